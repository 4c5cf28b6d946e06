//! The files in a node's state directory: the frame, and what is in it.

use ghostwire_client::session::map::NetworkMap;
use ghostwire_client::store::sealed::{Kind, open, seal};
use ghostwire_client::store::{Acquaintance, Identity, Settings};
use ghostwire_proto::v1;
use prost::Message as _;

/// A file, or the content of one. True if it is a file or can be the content of one.
pub fn run(data: &[u8]) -> bool {
    let mut understood = false;
    for kind in [Kind::Identity, Kind::Settings, Kind::Map, Kind::Peers] {
        if let Ok(payload) = open(kind, data) {
            assert_eq!(seal(kind, payload), data, "two files with one content");
            understood |= content(kind, payload);
        }
        // No fuzzer finds a SHA-256 by itself.
        assert_eq!(open(kind, &seal(kind, data)), Ok(data));
        understood |= content(kind, data);
    }
    understood
}

fn content(kind: Kind, payload: &[u8]) -> bool {
    match kind {
        Kind::Identity => serde_json::from_slice::<Identity>(payload).is_ok_and(|identity| {
            let _public = identity.node_public();
            let again = serde_json::to_vec(&identity).and_then(|text| serde_json::from_slice(&text));
            assert_eq!(again.ok(), Some(identity));
            true
        }),
        Kind::Settings => serde_json::from_slice::<Settings>(payload).is_ok_and(|settings| {
            let again = serde_json::to_vec(&settings).and_then(|text| serde_json::from_slice(&text));
            assert_eq!(again.ok(), Some(settings));
            true
        }),
        Kind::Peers => serde_json::from_slice::<Vec<Acquaintance>>(payload).is_ok_and(|peers| {
            let again = serde_json::to_vec(&peers).and_then(|text| serde_json::from_slice(&text));
            assert_eq!(again.ok(), Some(peers));
            true
        }),
        Kind::Map => {
            let Ok(snapshot) = v1::Snapshot::decode(payload) else { return false };
            NetworkMap::from_snapshot(&snapshot).is_ok_and(|map| {
                assert_eq!(NetworkMap::from_snapshot(&map.to_snapshot()).as_ref(), Ok(&map));
                true
            })
        }
    }
}

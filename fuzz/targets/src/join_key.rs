//! What people paste: join keys, addresses of coordinators, auth keys, keys in hexadecimal.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ghostwire_proto::auth_key::AuthKey;
use ghostwire_proto::join_key::{self, Address, JoinKey};
use ghostwire_proto::keys::{Fingerprint, MachineKey, NodeKey};
use sha2::{Digest as _, Sha256};

/// Text, or the payload of a join key without its checksum. True if a join key comes of either.
pub fn run(data: &[u8]) -> bool {
    // No fuzzer finds a SHA-256 by itself.
    let payload = [data, &Sha256::digest(data)[..4]].concat();
    let sealed = read(&format!("gwjoin-1-{}", URL_SAFE_NO_PAD.encode(payload)));
    let Ok(text) = std::str::from_utf8(data) else { return sealed };
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse::<Address>().ok().as_ref(), Some(&address), "{address}");
    }
    if let Ok(key) = AuthKey::parse(text) {
        assert_eq!(AuthKey::parse(&key.expose()).ok(), Some(key));
    }
    let _keys = (text.parse::<MachineKey>(), text.parse::<NodeKey>(), text.parse::<Fingerprint>());
    read(text) || sealed
}

fn read(token: &str) -> bool {
    let Ok(key) = join_key::parse(token) else { return false };
    let again: Option<JoinKey> = join_key::parse(&join_key::encode(&key)).ok();
    assert_eq!(again, Some(key), "a join key is written as another one");
    true
}

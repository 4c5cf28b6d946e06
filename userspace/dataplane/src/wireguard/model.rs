//! What a WireGuard device is to be, what it is, and the difference between the two.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    num::NonZeroU16,
    time::SystemTime,
};

use ipnet::IpNet;

use super::{PresharedKey, PrivateKey, PublicKey};

/// What a device is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceConfig {
    /// The node's key.
    pub private_key: PrivateKey,
    /// UDP port to listen on; 0 takes any and keeps it.
    pub listen_port: u16,
    /// Firewall mark of the encrypted packets; 0 for none.
    pub fwmark: u32,
}

/// What a peer is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Who it is.
    pub public_key: PublicKey,
    /// Secret shared with it.
    pub preshared_key: Option<PresharedKey>,
    /// Where packets to it go. `None` leaves what the device knows, for instance from packets that
    /// the peer sent; `Some` is enforced even if the peer has moved since.
    pub endpoint: Option<SocketAddr>,
    /// The addresses that are its own. An address belongs to one peer only: in a list of peers the
    /// last one that claims it has it.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds between packets that keep a NAT mapping alive.
    pub keepalive: Option<NonZeroU16>,
}

impl PeerConfig {
    /// A peer with nothing but a key.
    pub fn new(public_key: PublicKey) -> Self {
        Self { public_key, preshared_key: None, endpoint: None, allowed_ips: Vec::new(), keepalive: None }
    }
}

/// What a device is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its key, once it has one.
    pub private_key: Option<PrivateKey>,
    /// The UDP port that it listens on.
    pub listen_port: u16,
    /// Firewall mark of the encrypted packets; 0 for none.
    pub fwmark: u32,
    /// Its peers, in no particular order.
    pub peers: Vec<PeerStatus>,
}

impl DeviceStatus {
    /// The peer with this key.
    pub fn peer(&self, public_key: &PublicKey) -> Option<&PeerStatus> {
        self.peers.iter().find(|peer| peer.public_key == *public_key)
    }
}

/// What a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who it is.
    pub public_key: PublicKey,
    /// Secret shared with it.
    pub preshared_key: Option<PresharedKey>,
    /// Where packets to it go now.
    pub endpoint: Option<SocketAddr>,
    /// The addresses that are its own.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds between packets that keep a NAT mapping alive.
    pub keepalive: Option<NonZeroU16>,
    /// When it last proved who it is; `None` if it never has.
    pub last_handshake: Option<SystemTime>,
    /// Bytes received from it, encrypted.
    pub rx_bytes: u64,
    /// Bytes sent to it, encrypted.
    pub tx_bytes: u64,
}

impl PeerStatus {
    /// A peer that nothing is known of.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            preshared_key: None,
            endpoint: None,
            allowed_ips: Vec::new(),
            keepalive: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
        }
    }
}

/// A change to a device. Only what is named changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// A new key.
    pub private_key: Option<PrivateKey>,
    /// A new port; 0 takes any.
    pub listen_port: Option<u16>,
    /// A new firewall mark; 0 for none.
    pub fwmark: Option<u32>,
    /// Peers that are not in `peers` go.
    pub replace_peers: bool,
    /// Changes to peers, at most one for each.
    pub peers: Vec<PeerUpdate>,
}

impl Update {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A change to one peer; a peer that is not there is added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerUpdate {
    /// Which one.
    pub public_key: PublicKey,
    /// It goes.
    pub remove: bool,
    /// It is not added if it is not there.
    pub update_only: bool,
    /// A new shared secret; [`PresharedKey::NONE`] for none.
    pub preshared_key: Option<PresharedKey>,
    /// A new endpoint.
    pub endpoint: Option<SocketAddr>,
    /// New seconds between keepalives; 0 for none.
    pub keepalive: Option<u16>,
    /// Addresses that are not in `allowed_ips` go.
    pub replace_allowed_ips: bool,
    /// Addresses that become its own.
    pub allowed_ips: Vec<IpNet>,
}

impl PeerUpdate {
    /// A change of nothing: adds the peer, without addresses, if it is not there.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }

    /// The removal of a peer.
    pub fn removal(public_key: PublicKey) -> Self {
        Self { remove: true, ..Self::new(public_key) }
    }
}

/// The change that turns `current` into `device` with `peers`, and nothing more: peers that are as
/// they should be are not in it, so that their sessions go on. A peer with the device's own key is
/// left out (WireGuard refuses to talk to itself); of two with one key the last counts.
pub fn difference(current: &DeviceStatus, device: &DeviceConfig, peers: &[PeerConfig]) -> Update {
    let own = device.private_key.public_key();
    let mut wanted: BTreeMap<PublicKey, &PeerConfig> =
        peers.iter().map(|peer| (peer.public_key, peer)).collect();
    wanted.remove(&own);
    let owned = owned(peers, &wanted);
    let known: BTreeMap<PublicKey, &PeerStatus> =
        current.peers.iter().map(|peer| (peer.public_key, peer)).collect();
    let nothing = BTreeSet::new();

    let mut changes: Vec<PeerUpdate> = current
        .peers
        .iter()
        .filter(|peer| !wanted.contains_key(&peer.public_key))
        .map(|peer| PeerUpdate::removal(peer.public_key))
        .collect();
    changes.extend(wanted.values().filter_map(|peer| {
        let allowed = owned.get(&peer.public_key).unwrap_or(&nothing);
        peer_difference(known.get(&peer.public_key).copied(), peer, allowed)
    }));

    Update {
        private_key: (current.private_key.as_ref().map(PrivateKey::public_key) != Some(own))
            .then(|| device.private_key.clone()),
        listen_port: (device.listen_port != current.listen_port
            && (device.listen_port != 0 || current.listen_port == 0))
            .then_some(device.listen_port),
        fwmark: (device.fwmark != current.fwmark).then_some(device.fwmark),
        replace_peers: false,
        peers: changes,
    }
}

/// What each peer owns in the end: an address goes to the last one that claims it.
fn owned(
    peers: &[PeerConfig],
    wanted: &BTreeMap<PublicKey, &PeerConfig>,
) -> BTreeMap<PublicKey, BTreeSet<IpNet>> {
    let owners: BTreeMap<IpNet, PublicKey> = peers
        .iter()
        .filter(|peer| wanted.get(&peer.public_key).is_some_and(|last| std::ptr::eq(*last, *peer)))
        .flat_map(|peer| peer.allowed_ips.iter().map(|net| (net.trunc(), peer.public_key)))
        .collect();
    let mut owned: BTreeMap<PublicKey, BTreeSet<IpNet>> = BTreeMap::new();
    for (net, owner) in owners {
        owned.entry(owner).or_default().insert(net);
    }
    owned
}

fn peer_difference(
    current: Option<&PeerStatus>,
    wanted: &PeerConfig,
    allowed: &BTreeSet<IpNet>,
) -> Option<PeerUpdate> {
    let unknown = PeerStatus::new(wanted.public_key);
    let known = current.unwrap_or(&unknown);
    let mut update = PeerUpdate::new(wanted.public_key);
    update.update_only = current.is_some();
    if known.preshared_key != wanted.preshared_key {
        update.preshared_key = Some(wanted.preshared_key.clone().unwrap_or(PresharedKey::NONE));
    }
    update.endpoint = wanted.endpoint.filter(|endpoint| known.endpoint != Some(*endpoint));
    if known.keepalive != wanted.keepalive {
        update.keepalive = Some(wanted.keepalive.map_or(0, NonZeroU16::get));
    }
    let present: BTreeSet<IpNet> = known.allowed_ips.iter().map(IpNet::trunc).collect();
    if present != *allowed {
        // Adding is enough unless something has to go.
        update.replace_allowed_ips = !present.is_subset(allowed);
        update.allowed_ips = if update.replace_allowed_ips {
            allowed.iter().copied().collect()
        } else {
            allowed.difference(&present).copied().collect()
        };
    }
    let nothing = PeerUpdate { update_only: true, ..PeerUpdate::new(wanted.public_key) };
    (update != nothing).then_some(update)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32])
    }

    fn peer(number: u8, nets: &[&str]) -> PeerConfig {
        PeerConfig {
            allowed_ips: nets.iter().map(|net| net.parse().unwrap()).collect(),
            ..PeerConfig::new(key(number))
        }
    }

    fn device() -> DeviceConfig {
        DeviceConfig { private_key: PrivateKey::from_bytes([9; 32]), listen_port: 51820, fwmark: 0 }
    }

    /// What a device would be after an update, by the rules of the WireGuard protocol.
    fn applied(mut status: DeviceStatus, update: &Update) -> DeviceStatus {
        if let Some(private) = &update.private_key {
            status.private_key = Some(private.clone());
        }
        status.listen_port = update.listen_port.unwrap_or(status.listen_port);
        status.fwmark = update.fwmark.unwrap_or(status.fwmark);
        for change in &update.peers {
            if change.remove {
                status.peers.retain(|peer| peer.public_key != change.public_key);
                continue;
            }
            if status.peer(&change.public_key).is_none() {
                assert!(!change.update_only);
                status.peers.push(PeerStatus::new(change.public_key));
            }
            for peer in &mut status.peers {
                if peer.public_key != change.public_key {
                    peer.allowed_ips.retain(|net| !change.allowed_ips.contains(net));
                    continue;
                }
                if change.replace_allowed_ips {
                    peer.allowed_ips.clear();
                }
                peer.allowed_ips.extend(&change.allowed_ips);
                peer.endpoint = change.endpoint.or(peer.endpoint);
                if let Some(keepalive) = change.keepalive {
                    peer.keepalive = NonZeroU16::new(keepalive);
                }
                if let Some(preshared) = &change.preshared_key {
                    peer.preshared_key = (!preshared.is_none()).then(|| preshared.clone());
                }
            }
        }
        status
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        let mut one = peer(1, &["100.64.0.2/32", "10.0.0.0/8"]);
        one.endpoint = Some("192.0.2.1:51820".parse().unwrap());
        one.keepalive = NonZeroU16::new(25);
        one.preshared_key = Some(PresharedKey::from_bytes([3; 32]));
        let peers = [one, peer(2, &["100.64.0.3/32"])];
        let status =
            applied(DeviceStatus::default(), &difference(&DeviceStatus::default(), &device(), &peers));
        assert!(difference(&status, &device(), &peers).is_empty());
    }

    #[test]
    fn an_endpoint_learned_by_roaming_stays_unless_one_is_asked_for() {
        let mut status = DeviceStatus {
            private_key: Some(device().private_key),
            listen_port: 51820,
            ..DeviceStatus::default()
        };
        let mut known = PeerStatus::new(key(1));
        known.endpoint = Some("192.0.2.9:4000".parse().unwrap());
        status.peers.push(known);
        let mut wanted = peer(1, &[]);
        assert!(difference(&status, &device(), std::slice::from_ref(&wanted)).is_empty());
        wanted.endpoint = Some("192.0.2.1:51820".parse().unwrap());
        let update = difference(&status, &device(), std::slice::from_ref(&wanted));
        assert_eq!(update.peers[0].endpoint, wanted.endpoint);
    }

    #[test]
    fn only_the_changed_peer_is_touched() {
        let before = [peer(1, &["100.64.0.2/32"]), peer(2, &["100.64.0.3/32"]), peer(3, &["100.64.0.4/32"])];
        let status =
            applied(DeviceStatus::default(), &difference(&DeviceStatus::default(), &device(), &before));
        let after = [peer(1, &["100.64.0.2/32"]), peer(2, &["100.64.0.3/32", "10.0.0.0/8"])];
        let update = difference(&status, &device(), &after);
        assert_eq!(update.peers.len(), 2);
        assert_eq!(update.peers[0], PeerUpdate::removal(key(3)));
        assert_eq!(update.peers[1].public_key, key(2));
        assert!(!update.peers[1].replace_allowed_ips);
        assert_eq!(update.peers[1].allowed_ips, ["10.0.0.0/8".parse().unwrap()]);
    }

    #[test]
    fn an_address_belongs_to_the_last_peer_that_claims_it_and_stays_there() {
        let peers = [peer(1, &["10.0.0.0/8", "10.1.0.0/16"]), peer(2, &["10.0.0.0/8"])];
        let status =
            applied(DeviceStatus::default(), &difference(&DeviceStatus::default(), &device(), &peers));
        assert_eq!(status.peer(&key(2)).unwrap().allowed_ips, ["10.0.0.0/8".parse().unwrap()]);
        assert!(difference(&status, &device(), &peers).is_empty());
    }

    #[test]
    fn the_device_is_no_peer_of_itself() {
        let own = PeerConfig::new(device().private_key.public_key());
        assert!(difference(&DeviceStatus::default(), &device(), &[own]).peers.is_empty());
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        fn peers() -> impl Strategy<Value = Vec<PeerConfig>> {
            let one = (
                1_u8..6,
                prop::collection::vec((0_u8..4, 8_u8..33), 0..4),
                any::<Option<NonZeroU16>>(),
                0_u8..3,
            );
            prop::collection::vec(one, 0..6).prop_map(|list| {
                list.into_iter()
                    .map(|(number, nets, keepalive, preshared)| PeerConfig {
                        keepalive,
                        preshared_key: (preshared > 0).then(|| PresharedKey::from_bytes([preshared; 32])),
                        allowed_ips: nets
                            .into_iter()
                            .map(|(octet, length)| IpNet::new([10, octet, 0, 0].into(), length).unwrap())
                            .collect(),
                        ..PeerConfig::new(key(number))
                    })
                    .collect()
            })
        }

        proptest! {
            #[test]
            fn applying_the_difference_once_leaves_no_difference(before in peers(), after in peers()) {
                let empty = DeviceStatus::default();
                let status = applied(empty.clone(), &difference(&empty, &device(), &before));
                let status = applied(status.clone(), &difference(&status, &device(), &after));
                let left = difference(&status, &device(), &after);
                prop_assert!(left.is_empty(), "{left:?}");
            }
        }
    }
}

//! A change cut into portions, each of which a userspace engine does in a moment: it takes time for each peer (a key
//! agreement to add one, a walk through all addresses to remove one) and answers nobody meanwhile.

use super::{PeerUpdate, Update};

/// Most peers of a portion.
const PEERS: usize = 64;

/// Most addresses of a portion.
const ADDRESSES: usize = 1_024;

/// Changes that, made one after the other, are `update`. One at least. A change that removes whoever it does not name
/// stays whole, because it means that only as a whole.
pub(super) fn portions(update: &Update) -> Vec<Update> {
    if update.replace_peers {
        return vec![update.clone()];
    }
    let device = Update { peers: Vec::new(), ..update.clone() };
    let mut portions = vec![device];
    for piece in update.peers.iter().flat_map(pieces) {
        let has_room = |portion: &&mut Update| {
            let addresses: usize = portion.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
            portion.peers.len() < PEERS && addresses + piece.allowed_ips.len() <= ADDRESSES
        };
        match portions.last_mut().filter(has_room) {
            Some(portion) => portion.peers.push(piece),
            None => portions.push(Update { peers: vec![piece], ..Update::default() }),
        }
    }
    portions
}

/// The change of one peer, its addresses in several changes if they are many: the first does everything else, the
/// others add. All but the last fill a portion, so that no portion has two.
fn pieces(change: &PeerUpdate) -> Vec<PeerUpdate> {
    let mut addresses = change.allowed_ips.chunks(ADDRESSES);
    let first = addresses.next().unwrap_or_default().to_vec();
    let mut pieces = vec![PeerUpdate { allowed_ips: first, ..change.clone() }];
    pieces.extend(addresses.map(|more| PeerUpdate {
        update_only: true,
        allowed_ips: more.to_vec(),
        ..PeerUpdate::new(change.public_key)
    }));
    pieces
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;
    use crate::wireguard::{PrivateKey, PublicKey};

    fn key(number: u16) -> PublicKey {
        let mut bytes = [7; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_bytes(bytes)
    }

    fn net(number: u16) -> IpNet {
        std::net::IpAddr::from((0x0a00_0000 + u32::from(number)).to_be_bytes()).into()
    }

    /// Peers and their addresses after a change, by the rules of the WireGuard protocol.
    fn apply(peers: &mut BTreeMap<PublicKey, Vec<IpNet>>, update: &Update) {
        for change in &update.peers {
            if change.remove {
                peers.remove(&change.public_key);
                continue;
            }
            if change.update_only && !peers.contains_key(&change.public_key) {
                continue;
            }
            peers.entry(change.public_key).or_default();
            let moved: BTreeSet<&IpNet> = change.allowed_ips.iter().collect();
            for (owner, nets) in &mut *peers {
                let replaced = *owner == change.public_key && change.replace_allowed_ips;
                nets.retain(|net| !replaced && !moved.contains(net));
                if *owner == change.public_key {
                    nets.extend(&change.allowed_ips);
                }
            }
        }
    }

    prop_compose! {
        fn change()(
            number in 0_u16..300, remove in prop::bool::weighted(0.2), update_only in any::<bool>(),
            replace_allowed_ips in any::<bool>(), first in 0_u16..3_000,
            count in prop_oneof![9 => 0_u16..4, 1 => 0_u16..2_500],
        ) -> PeerUpdate {
            let allowed_ips = if remove { Vec::new() } else { (first..first + count).map(net).collect() };
            PeerUpdate { remove, update_only, replace_allowed_ips, allowed_ips, ..PeerUpdate::new(key(number)) }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn portions_are_small_and_come_to_the_same(
            peers in prop::collection::btree_map(0_u16..300, change(), 0..200), known in 0_u16..300,
        ) {
            let peers = peers.into_iter().map(|(number, change)| PeerUpdate { public_key: key(number), ..change });
            let update = Update { listen_port: Some(7), peers: peers.collect(), ..Update::default() };
            let mut whole: BTreeMap<_, _> = (0..known).map(|number| (key(number), vec![net(number)])).collect();
            let mut by_portions = whole.clone();
            apply(&mut whole, &update);
            let portions = portions(&update);
            for (index, portion) in portions.iter().enumerate() {
                prop_assert_eq!(portion.listen_port, (index == 0).then_some(7));
                prop_assert!(portion.peers.len() <= PEERS);
                let distinct: BTreeSet<_> = portion.peers.iter().map(|peer| peer.public_key).collect();
                prop_assert_eq!(distinct.len(), portion.peers.len());
                prop_assert!(portion.peers.iter().map(|peer| peer.allowed_ips.len()).sum::<usize>() <= ADDRESSES);
                apply(&mut by_portions, portion);
            }
            for nets in whole.values_mut().chain(by_portions.values_mut()) {
                nets.sort();
            }
            prop_assert_eq!(by_portions, whole);
        }
    }

    #[test]
    fn what_fits_stays_whole() {
        let update = Update {
            private_key: Some(PrivateKey::generate()),
            peers: (0..64).map(|number| PeerUpdate::new(key(number))).collect(),
            ..Update::default()
        };
        assert_eq!(portions(&update), [update]);
        assert_eq!(portions(&Update::default()), [Update::default()]);
        let all = (0..1_000).map(|number| PeerUpdate::new(key(number))).collect();
        let replacing = Update { replace_peers: true, peers: all, ..Update::default() };
        assert_eq!(portions(&replacing), [replacing]);
    }
}

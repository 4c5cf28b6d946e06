//! From what is to what should be, in the one order that never opens a gap.
//!
//! 1. the device exists, its programs are attached (without an image they drop everything);
//! 2. who is not wanted any more goes, and what is accepted from the others only shrinks;
//! 3. the image changes;
//! 4. addresses;
//! 5. who is new comes, what is accepted grows, routes lead there.
//!
//! If the image of 3 cannot be put in force, the old one stays and 5 does not happen: an address that has
//! a new owner must not inherit what the old policy gave to the previous one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ghostwire_proto::keys::NodeKey;
use ipnet::IpNet;

use super::{Machinery, PlaneError, PresentPeer, WantedImage, WantedPeer};
use crate::session::{Desired, Report};

/// Where WireGuard is to send, by peer id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// To the stable endpoints that steering leads on. They never change, and nothing keeps idle peers awake.
    Stable(BTreeMap<u64, SocketAddr>),
    /// To these, as long as WireGuard does not know the peer; then it is changed elsewhere, or by roaming.
    First(BTreeMap<u64, SocketAddr>),
}

impl Endpoints {
    fn of(&self, id: u64) -> Option<SocketAddr> {
        match self {
            Self::Stable(endpoints) | Self::First(endpoints) => endpoints.get(&id).copied(),
        }
    }

    fn are_stable(&self) -> bool {
        matches!(self, Self::Stable(_))
    }
}

/// Makes the machine so, as far as possible, and says how far that was.
pub fn reconcile(machine: &mut dyn Machinery, desired: &Desired, endpoints: &Endpoints) -> Report {
    let mut report = Report { ticket: desired.ticket, ..Report::default() };
    match steps(machine, desired, endpoints, &mut report.problems) {
        Ok(()) => report.complete = report.problems.is_empty(),
        Err(error) => report.problems.push(error.0),
    }
    report.enforced = machine.enforced().unwrap_or(0);
    report
}

fn steps(
    machine: &mut dyn Machinery,
    desired: &Desired,
    endpoints: &Endpoints,
    problems: &mut Vec<String>,
) -> Result<(), PlaneError> {
    let map = &desired.map;
    machine.ensure_device()?;
    if let Err(error) = machine.ensure_programs() {
        return Err(withdraw(machine, &error));
    }
    let wanted = wanted_peers(desired, endpoints);
    let present: BTreeMap<NodeKey, PresentPeer> =
        machine.peers()?.into_iter().map(|peer| (peer.key, peer)).collect();
    shrink(machine, &present, &wanted)?;

    let image_in_force = match wanted_image(desired) {
        Some(image) => machine.ensure_image(&image),
        None => Err(PlaneError("the coordinator has sent no filter yet, so nothing passes".to_owned())),
    };
    machine.set_addresses(&map.own.interface_addresses())?;
    if let Err(error) = image_in_force {
        let kept = machine.enforced().map_or_else(
            || "nothing passes until then".to_owned(),
            |generation| format!("policy generation {generation} stays in force, and new peers wait"),
        );
        problems.push(format!("the new policy is not in force: {error}; {kept}"));
        return Ok(());
    }
    for peer in wanted.values() {
        if !present.get(&peer.key).is_some_and(|is| is_as_wanted(is, peer)) {
            machine.put_peer(peer)?;
        }
    }
    machine.set_routes(&wanted_routes(desired), &map.own.addresses)
}

fn is_as_wanted(is: &PresentPeer, wanted: &WantedPeer) -> bool {
    let endpoint = !wanted.stable || is.endpoint == wanted.endpoint;
    endpoint && is.keepalive != wanted.stable && as_set(&is.allowed) == as_set(&wanted.allowed)
}

/// Without programs nothing is enforced, so nobody may be there to send.
fn withdraw(machine: &mut dyn Machinery, error: &PlaneError) -> PlaneError {
    let removed =
        machine.peers().and_then(|peers| peers.iter().try_for_each(|peer| machine.remove_peer(peer.key)));
    match removed {
        Ok(()) => PlaneError(format!("the policy cannot be enforced, so all peers are cut off: {error}")),
        Err(second) => PlaneError(format!("{error}; cutting off the peers failed too: {second}")),
    }
}

fn shrink(
    machine: &mut dyn Machinery,
    present: &BTreeMap<NodeKey, PresentPeer>,
    wanted: &BTreeMap<NodeKey, WantedPeer>,
) -> Result<(), PlaneError> {
    for peer in present.values() {
        let Some(keep) = wanted.get(&peer.key) else {
            machine.remove_peer(peer.key)?;
            continue;
        };
        let allowed: Vec<IpNet> =
            peer.allowed.iter().filter(|net| keep.allowed.contains(net)).copied().collect();
        if allowed.len() < peer.allowed.len() {
            machine.put_peer(&WantedPeer { allowed, endpoint: None, ..keep.clone() })?;
        }
    }
    Ok(())
}

fn wanted_peers(desired: &Desired, endpoints: &Endpoints) -> BTreeMap<NodeKey, WantedPeer> {
    let mut allowed = desired.map.allowed();
    let wanted = desired.map.peers.iter().map(|(id, peer)| {
        let mut allowed = allowed.remove(id).unwrap_or_default();
        allowed.retain(is_routable);
        let (endpoint, stable) = (endpoints.of(*id), endpoints.are_stable());
        (peer.key, WantedPeer { key: peer.key, allowed, endpoint, stable })
    });
    wanted.collect()
}

/// An exit node's `/0` would take the way to the coordinator and to the peers' endpoints as well.
fn is_routable(net: &IpNet) -> bool {
    net.prefix_len() != 0
}

fn wanted_image(desired: &Desired) -> Option<WantedImage> {
    let filter = desired.map.filter.as_ref()?;
    Some(WantedImage {
        generation: filter.generation,
        rules: filter.rules.clone(),
        own: desired.map.own.addresses.clone(),
        overlay: desired.map.own.overlay,
        shadow: desired.shadow,
    })
}

/// The overlay as a whole, so that a node without a peer answers "unreachable" instead of asking the default
/// route, and each subnet behind a peer.
fn wanted_routes(desired: &Desired) -> Vec<IpNet> {
    let overlay = desired.map.own.overlay;
    let mut routes: BTreeSet<IpNet> = [IpNet::V4(overlay.v4_nodes), IpNet::V6(overlay.v6)].into();
    for net in desired.map.allowed().into_values().flatten() {
        let inside = routes.iter().any(|route| route.contains(&net));
        if !inside && is_routable(&net) {
            routes.insert(net);
        }
    }
    routes.into_iter().collect()
}

fn as_set(nets: &[IpNet]) -> BTreeSet<IpNet> {
    nets.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::plane::Device;
    use crate::session::map::NetworkMap;
    use crate::testing;

    /// A machine that checks the promises after every single step.
    #[derive(Default)]
    struct Pretended {
        attached: bool,
        image: Option<WantedImage>,
        peers: BTreeMap<NodeKey, Vec<IpNet>>,
        addresses: Vec<IpNet>,
        routes: Vec<IpNet>,
        refuse_programs: bool,
        refuse_image: bool,
    }

    impl Pretended {
        fn check(&self) {
            if !self.attached {
                assert!(self.peers.is_empty(), "a peer while nothing is enforced");
            }
        }
    }

    impl Machinery for Pretended {
        fn ensure_device(&mut self) -> Result<Device, PlaneError> {
            Ok(Device { name: "gw0".into(), backend: "pretended".into(), listen_port: 1, mtu: 1420 })
        }
        fn ensure_programs(&mut self) -> Result<(), PlaneError> {
            if self.refuse_programs {
                return Err(PlaneError("no programs".into()));
            }
            self.attached = true;
            Ok(())
        }
        fn enforced(&mut self) -> Option<u32> {
            self.image.as_ref().map(|image| image.generation)
        }
        fn ensure_image(&mut self, image: &WantedImage) -> Result<(), PlaneError> {
            assert!(self.attached);
            if self.refuse_image && self.image.as_ref() != Some(image) {
                return Err(PlaneError("too large".into()));
            }
            self.image = Some(image.clone());
            Ok(())
        }
        fn peers(&mut self) -> Result<Vec<PresentPeer>, PlaneError> {
            let present = self.peers.iter().map(|(key, allowed)| PresentPeer {
                key: *key,
                allowed: allowed.clone(),
                endpoint: None,
                keepalive: true,
                handshake_age: None,
                rx_bytes: 0,
                tx_bytes: 0,
            });
            Ok(present.collect())
        }
        fn remove_peer(&mut self, key: NodeKey) -> Result<(), PlaneError> {
            assert!(self.peers.remove(&key).is_some(), "removed a peer that is not there");
            Ok(())
        }
        fn put_peer(&mut self, peer: &WantedPeer) -> Result<(), PlaneError> {
            assert!(self.attached && self.image.is_some());
            for (key, allowed) in &self.peers {
                let taken = *key != peer.key && allowed.iter().any(|net| peer.allowed.contains(net));
                assert!(!taken, "WireGuard would silently move the prefix");
            }
            self.peers.insert(peer.key, peer.allowed.clone());
            self.check();
            Ok(())
        }
        fn set_addresses(&mut self, addresses: &[IpNet]) -> Result<(), PlaneError> {
            self.addresses = addresses.to_vec();
            Ok(())
        }
        fn set_routes(&mut self, routes: &[IpNet], _: &[std::net::IpAddr]) -> Result<(), PlaneError> {
            self.routes = routes.to_vec();
            Ok(())
        }
        fn tear_down(&mut self) -> Result<(), PlaneError> {
            *self = Self::default();
            Ok(())
        }
    }

    fn unknown() -> Endpoints {
        Endpoints::First(BTreeMap::new())
    }

    fn desired(map: &crate::pb::Snapshot) -> Desired {
        let map = NetworkMap::from_snapshot(map).unwrap();
        Desired { ticket: 1, map: Arc::new(map), shadow: false }
    }

    fn allowed_of(map: &Desired) -> BTreeMap<NodeKey, BTreeSet<IpNet>> {
        wanted_peers(map, &unknown()).into_values().map(|peer| (peer.key, as_set(&peer.allowed))).collect()
    }

    fn allowed_in(machine: &Pretended) -> BTreeMap<NodeKey, BTreeSet<IpNet>> {
        machine.peers.iter().map(|(key, allowed)| (*key, as_set(allowed))).collect()
    }

    #[test]
    fn an_image_that_fails_cuts_who_must_go_and_admits_nobody() {
        let mut machine = Pretended::default();
        let before = desired(&testing::snapshot(1, &[1, 2]));
        assert!(reconcile(&mut machine, &before, &unknown()).complete);
        machine.refuse_image = true;
        let after = desired(&testing::snapshot(2, &[2, 3]));
        let report = reconcile(&mut machine, &after, &unknown());
        assert!(!report.complete);
        assert_eq!(report.enforced, 1);
        assert!(report.problems[0].contains("generation 1 stays in force"), "{:?}", report.problems);
        let keys: Vec<_> = machine.peers.keys().copied().collect();
        assert_eq!(keys, [testing::key(2)]);
        machine.refuse_image = false;
        assert!(reconcile(&mut machine, &after, &unknown()).complete);
        assert_eq!(allowed_in(&machine), allowed_of(&after));
    }

    #[test]
    fn without_programs_every_peer_is_cut_off() {
        let mut machine = Pretended::default();
        let map = desired(&testing::snapshot(1, &[1, 2]));
        reconcile(&mut machine, &map, &unknown());
        machine.refuse_programs = true;
        let report = reconcile(&mut machine, &map, &unknown());
        assert!(!report.complete && machine.peers.is_empty());
        assert!(report.problems[0].contains("cut off"), "{:?}", report.problems);
    }

    #[test]
    fn routes_cover_the_overlay_and_the_subnets_but_never_everything() {
        let mut snapshot = testing::snapshot(1, &[1]);
        let peer = &mut snapshot.peers[0];
        for net in ["10.7.0.0/16", "0.0.0.0/0"] {
            peer.allowed_prefixes.push(net.parse::<IpNet>().unwrap().into());
        }
        let mut machine = Pretended::default();
        assert!(reconcile(&mut machine, &desired(&snapshot), &unknown()).complete);
        let routes: Vec<String> = machine.routes.iter().map(ToString::to_string).collect();
        assert_eq!(routes, ["10.7.0.0/16", "100.64.0.0/16", "fd77:1:2::/48"]);
        assert!(machine.peers.values().flatten().all(|net| net.prefix_len() != 0));
    }

    proptest! {
        #[test]
        fn any_sequence_of_maps_ends_as_wanted_and_never_opens_a_gap(
            steps in prop::collection::vec((prop::collection::btree_set(1_u64..8, 0..6), any::<bool>(), any::<bool>()), 1..12)
        ) {
            let mut machine = Pretended::default();
            for (index, (peers, refuse_image, refuse_programs)) in steps.into_iter().enumerate() {
                let peers: Vec<u64> = peers.into_iter().collect();
                let generation = u32::try_from(index).unwrap() + 1;
                let map = desired(&testing::snapshot(generation, &peers));
                machine.refuse_image = refuse_image;
                machine.refuse_programs = refuse_programs;
                let report = reconcile(&mut machine, &map, &unknown());
                machine.check();
                prop_assert_eq!(report.complete, !refuse_image && !refuse_programs);
                let wanted = allowed_of(&map);
                for (key, allowed) in allowed_in(&machine) {
                    prop_assert!(wanted.get(&key).is_some_and(|wanted| allowed.is_subset(wanted)));
                }
                if report.complete {
                    prop_assert_eq!(allowed_in(&machine), wanted);
                    prop_assert_eq!(report.enforced, generation);
                }
            }
        }
    }
}

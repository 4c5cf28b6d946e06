//! Random lives of a few nodes against a model that is obviously right.

use std::collections::HashMap;
use std::net::SocketAddr;

use ghostwire_relay_protocol::control::Action;
use proptest::prelude::*;

use crate::world::{MAIN, Node, World};

const NODES: u64 = 4;

#[derive(Clone, Debug)]
enum Step {
    Allocate(u64),
    ReleasePort(u64),
    /// A node binds to a peer from one of a few addresses, so that addresses collide.
    Bind(u64, u64, u16),
    ReleaseLeg(u64, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = || 1..=NODES;
    let step = prop_oneof![
        2 => node().prop_map(Step::Allocate),
        1 => node().prop_map(Step::ReleasePort),
        8 => (node(), node(), 0_u16..5).prop_map(|(node, peer, at)| Step::Bind(node, peer, at)),
        2 => (node(), node()).prop_map(|(node, peer)| Step::ReleaseLeg(node, peer)),
    ];
    proptest::collection::vec(step, 0..60)
}

/// Both families, so that they cross.
fn place(at: u16) -> SocketAddr {
    if at.is_multiple_of(2) {
        SocketAddr::new([198, 51, 100, 1].into(), 1000 + at)
    } else {
        SocketAddr::new("2001:db8:7::1".parse().unwrap(), 1000 + at)
    }
}

#[derive(Default)]
struct Model {
    ports: HashMap<u64, u16>,
    /// Node and peer to the node's address.
    legs: HashMap<(u64, u64), SocketAddr>,
}

impl Model {
    fn bind(&mut self, node: u64, peer: u64, at: SocketAddr) -> bool {
        if node == peer || !self.ports.contains_key(&node) || !self.ports.contains_key(&peer) {
            return false;
        }
        self.legs.retain(|(other, its_peer), place| *its_peer != peer || *place != at || *other == node);
        self.legs.insert((node, peer), at);
        true
    }

    fn release_port(&mut self, node: u64) -> bool {
        self.legs.retain(|(a, b), _| *a != node && *b != node);
        self.ports.remove(&node).is_some()
    }

    /// Where a datagram for `peer`'s port from an address goes.
    fn route(&self, peer: u64, from: SocketAddr) -> Option<(u8, u16, SocketAddr)> {
        let (&(node, _), _) =
            self.legs.iter().find(|((_, its_peer), at)| *its_peer == peer && **at == from)?;
        let to = self.legs.get(&(peer, node))?;
        Some((u8::from(to.is_ipv6()), *self.ports.get(&node)?, *to))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_table_says_what_the_model_says(steps in steps()) {
        let mut config = crate::world::config();
        config.limits.control.burst = 100_000;
        config.limits.penalty = 0;
        let (mut world, mut model) = (World::with(config), Model::default());
        let mut nodes: HashMap<u64, Node> = (1..=NODES).map(|id| (id, Node::new(id))).collect();
        for step in steps {
            match step {
                Step::Allocate(node) => {
                    let port = nodes.get_mut(&node).unwrap().allocate(&mut world, "198.51.100.200:1").unwrap();
                    prop_assert_eq!(*model.ports.entry(node).or_insert(port), port);
                }
                Step::ReleasePort(node) => {
                    let source = place(0);
                    let done = nodes.get_mut(&node).unwrap().ask(&mut world, Action::Release, None, MAIN, source);
                    prop_assert_eq!(done.is_ok(), model.release_port(node));
                }
                Step::Bind(node, peer, at) => {
                    let port = model.ports.get(&peer).copied().unwrap_or(50_000);
                    let asked = nodes.get_mut(&node).unwrap();
                    let done = asked.ask(&mut world, Action::Bind, Some(peer), port, place(at));
                    prop_assert_eq!(done.is_ok(), model.bind(node, peer, place(at)));
                }
                Step::ReleaseLeg(node, peer) => {
                    let Some(port) = model.ports.get(&peer) else { continue };
                    let asked = nodes.get_mut(&node).unwrap();
                    let _ = asked.ask(&mut world, Action::Release, Some(peer), *port, place(0));
                    if node != peer && model.ports.contains_key(&node) {
                        model.legs.remove(&(node, peer));
                    }
                }
            }
            for (peer, port) in &model.ports {
                for at in 0..5 {
                    prop_assert_eq!(world.route(*port, place(at)), model.route(*peer, place(at)));
                }
            }
            let complete = model.legs.keys().filter(|(a, b)| a < b && model.legs.contains_key(&(*b, *a))).count();
            prop_assert_eq!(world.relay.load(), (model.ports.len(), complete));
        }
    }
}

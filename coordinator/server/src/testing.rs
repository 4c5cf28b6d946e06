//! Small networks for unit tests.

use std::sync::Arc;

use ghostwire_policy::Policy;
use ghostwire_proto::address::NodeEndpoint;
use ghostwire_proto::auth_key::AuthKey;
use ghostwire_proto::keys::{MachineKey, NodeKey};
use ghostwire_proto::v1;
use proptest::prelude::*;

use crate::enroll::{Application, admit};
use crate::ipam::overlay_ranges;
use crate::model::draft::Draft;
use crate::model::{AuthKeyRecord, Network, Node, PolicyInForce, User};
use crate::node_update::approve_routes;
use crate::storage::{Change, Seed};
use crate::view::{Generations, World};

const POLICIES: [&str; 5] = [
    r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#,
    r#"{"tagOwners": {"tag:owned": ["tag:server"], "tag:server": [], "tag:admin": []},
        "acls": [{"action": "accept", "src": ["tag:server"], "dst": ["tag:owned:22"]}]}"#,
    r#"{"acls": [{"action": "accept", "src": ["user1@example.com"], "dst": ["user2@example.com:80", "10.1.0.0/16:443"]}]}"#,
    r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}"#,
    r#"{"autoApprovers": {"routes": {"10.0.0.0/8": ["user0@example.com"]}},
        "acls": [{"action": "accept", "src": ["user1@example.com"], "dst": ["10.0.0.0/8:*", "user0@example.com:1-100"]}]}"#,
];

fn policy(version: u32, text: &str) -> PolicyInForce {
    let policy = Policy::parse(text).unwrap();
    PolicyInForce { version, author: "test".to_owned(), created: 5, text: text.to_owned(), policy }
}

/// What a new database starts from.
pub(crate) fn seed() -> Seed {
    Seed { epoch: "epoch".to_owned(), ula: [1, 2, 3, 4, 5], policy: POLICIES[0].to_owned(), now: 5 }
}

/// A network with three users and a policy with tags.
pub(crate) fn network() -> Network {
    let network = Network::new("epoch".to_owned(), overlay_ranges([1, 2, 3, 4, 5]), policy(1, POLICIES[1]));
    let mut draft = Draft::new(&network, "test", 0);
    for number in 0..3 {
        draft.put_user(user(number));
    }
    draft.into_parts().0
}

fn user(number: u8) -> User {
    User {
        id: format!("u{number}"),
        email: format!("user{number}@example.com"),
        name: format!("User {number}"),
        role: "user".to_owned(),
        created: 7,
    }
}

/// A single-use key of the first user.
pub(crate) fn auth_key(id: &str) -> (AuthKey, AuthKeyRecord) {
    let key = AuthKey::new(id, [42; 32]).unwrap();
    let record = AuthKeyRecord {
        id: id.to_owned(),
        secret: key.secret_hash(),
        user: Some("u0".to_owned()),
        reusable: false,
        ephemeral: false,
        tags: vec![],
        created: 9,
        expires: None,
        revoked: None,
        uses: 0,
        relay: false,
    };
    (key, record)
}

/// A machine that wants to join.
pub(crate) fn application(number: u64, key: &AuthKey) -> Application {
    let mut bytes = [1; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    let mut node_key = [2; 32];
    node_key[..8].copy_from_slice(&number.to_be_bytes());
    Application {
        machine_key: MachineKey::new(bytes),
        node_key: NodeKey::new(node_key),
        auth_key: key.clone(),
        hostname: "web".to_owned(),
        requested_tags: vec![],
        os: "linux".to_owned(),
        version: "0.1.0".to_owned(),
    }
}

/// A network with one of everything, and the changes that make it from an empty one.
pub(crate) fn busy_network() -> (Network, Vec<Change>) {
    let empty = Network::new("epoch".to_owned(), overlay_ranges([1, 2, 3, 4, 5]), policy(1, POLICIES[0]));
    let mut draft = Draft::new(&empty, "test", 12_345);
    for number in 0..3 {
        draft.put_user(user(number));
    }
    draft.delete_user("u2");
    let (key, record) = auth_key("k1");
    draft.put_key(AuthKeyRecord { reusable: true, tags: vec!["tag:server".to_owned()], ..record });
    draft.put_key(AuthKeyRecord { expires: Some(77), revoked: Some(78), ..auth_key("k2").1 });
    let nodes: Vec<Arc<Node>> = (1..=4).map(|n| admit(&mut draft, &application(n, &key)).unwrap()).collect();
    draft.put_node(Node {
        name: "renamed".to_owned(),
        renamed: true,
        endpoints: vec![NodeEndpoint { address: "192.0.2.1:51820".parse().unwrap(), fixed: true }],
        advertised: vec!["10.1.0.0/16".parse().unwrap(), "10.2.0.0/16".parse().unwrap()],
        approved_by_admin: vec!["10.1.0.0/16".parse().unwrap(), "10.3.0.0/16".parse().unwrap()],
        approved: vec!["10.1.0.0/16".parse().unwrap()],
        ..(*nodes[0]).clone()
    });
    draft.delete_node(nodes[2].id);
    draft.put_policy(policy(2, POLICIES[1]));
    draft.into_parts()
}

/// Something that happens to a fleet. Nodes are chosen by number, modulo how many there are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Enroll { user: u8, tag: Option<bool> },
    Delete { node: usize },
    Endpoint { node: usize, port: u16 },
    Online { node: usize, online: bool },
    Rename { node: usize },
    Policy { number: usize },
    Routes { node: usize, routes: u8 },
    Tag { node: usize, tag: Option<bool> },
}

/// Some of what can happen, in any order.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = || any::<prop::sample::Index>().prop_map(|index| index.index(64));
    let step = prop_oneof![
        3 => (0u8..3, any::<Option<bool>>()).prop_map(|(user, tag)| Step::Enroll { user, tag }),
        1 => node().prop_map(|node| Step::Delete { node }),
        2 => (node(), 1u16..).prop_map(|(node, port)| Step::Endpoint { node, port }),
        2 => (node(), any::<bool>()).prop_map(|(node, online)| Step::Online { node, online }),
        1 => node().prop_map(|node| Step::Rename { node }),
        2 => (0..POLICIES.len()).prop_map(|number| Step::Policy { number }),
        2 => (node(), any::<u8>()).prop_map(|(node, routes)| Step::Routes { node, routes }),
        1 => (node(), any::<Option<bool>>()).prop_map(|(node, tag)| Step::Tag { node, tag }),
    ];
    proptest::collection::vec(step, 1..40)
}

/// A network to which things happen, and its published worlds.
pub(crate) struct Fleet {
    world: World,
    count: u64,
}

/// Six nodes.
pub(crate) fn fleet() -> Fleet {
    let world = World::first(Arc::new(network()), &Generations::new()).unwrap();
    let mut fleet = Fleet { world, count: 0 };
    for number in 0..6u8 {
        fleet.apply(Step::Enroll { user: number % 3, tag: (number > 3).then_some(number == 4) });
    }
    fleet
}

fn tags(tag: Option<bool>) -> Vec<String> {
    tag.map(|owned| if owned { "tag:owned" } else { "tag:server" }.to_owned()).into_iter().collect()
}

impl Fleet {
    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    pub(crate) fn apply(&mut self, step: Step) {
        self.count += 1;
        let network = &self.world.network;
        let mut draft = Draft::new(network, "test", i64::try_from(self.count).unwrap() * 1_000);
        let pick = |number: usize| network.nodes.values().nth(number % network.nodes.len().max(1)).cloned();
        let change = |draft: &mut Draft, number: usize, change: &dyn Fn(&mut Node)| {
            if let Some(node) = pick(number) {
                let mut node = (*node).clone();
                change(&mut node);
                draft.put_node(node);
            }
        };
        match step {
            Step::Enroll { user, tag } => {
                let (key, record) = auth_key(&format!("k{}", self.count));
                draft.put_key(AuthKeyRecord { user: Some(format!("u{user}")), tags: tags(tag), ..record });
                admit(&mut draft, &application(self.count, &key)).unwrap();
            }
            Step::Delete { node } => {
                if let Some(node) = pick(node) {
                    draft.delete_node(node.id);
                }
            }
            Step::Endpoint { node, port } => change(&mut draft, node, &|node| {
                node.endpoints = vec![NodeEndpoint { address: ([192, 0, 2, 1], port).into(), fixed: false }];
            }),
            Step::Online { node, online } => {
                let now = draft.now();
                change(&mut draft, node, &|node| {
                    node.online = online;
                    node.last_seen = now;
                });
            }
            Step::Rename { node } => {
                let name = format!("name-{}", self.count);
                change(&mut draft, node, &|node| node.name.clone_from(&name));
            }
            Step::Policy { number } => {
                let version = network.policy.version + 1;
                draft.put_policy(policy(version, POLICIES[number]));
            }
            Step::Routes { node, routes } => change(&mut draft, node, &|node| {
                let all = ["10.1.0.0/16", "10.2.0.0/16", "2001:db8::/64"].map(|net| net.parse().unwrap());
                let chosen = |shift: u8| {
                    all.iter()
                        .zip(shift..)
                        .filter(|(_, bit)| routes >> bit & 1 == 1)
                        .map(|(net, _)| *net)
                        .collect()
                };
                (node.advertised, node.approved_by_admin) = (chosen(0), chosen(3));
            }),
            Step::Tag { node, tag } => change(&mut draft, node, &|node| node.tags = tags(tag)),
        }
        approve_routes(&mut draft);
        self.world = self.world.next(Arc::new(draft.into_parts().0)).unwrap();
    }
}

/// What a node does with a delta.
pub(crate) fn apply(snapshot: &mut v1::Snapshot, delta: &v1::Delta) {
    snapshot.peers.retain(|peer| !delta.removed.contains(&peer.id));
    for changed in &delta.changed {
        match snapshot.peers.iter_mut().find(|peer| peer.id == changed.id) {
            Some(peer) => *peer = changed.clone(),
            None => snapshot.peers.push(changed.clone()),
        }
    }
    for patch in &delta.patched {
        let peer =
            snapshot.peers.iter_mut().find(|peer| peer.id == patch.id).expect("a patch for a known peer");
        peer.online = patch.online.unwrap_or(peer.online);
        if let Some(list) = &patch.endpoints {
            peer.endpoints.clone_from(&list.endpoints);
        }
        if patch.last_seen_unix_ms != 0 {
            peer.last_seen_unix_ms = patch.last_seen_unix_ms;
        }
    }
    snapshot.peers.sort_by_key(|peer| peer.id);
    if let Some(filter) = &delta.filter {
        snapshot.filter = Some(filter.clone());
    }
    if let Some(node) = &delta.node {
        snapshot.node = Some(node.clone());
    }
}

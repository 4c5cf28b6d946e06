//! What any machine may send to the coordinator, and what becomes of it in the network.

use ghostwire_client::session::map::NetworkMap;
use ghostwire_policy::Policy;
use ghostwire_proto::auth_key::AuthKey;
use ghostwire_proto::keys::{Fingerprint, MachineKey};
use ghostwire_proto::proof::{self, Proven};
use ghostwire_proto::v1::{self, node_message};
use ghostwire_server::enroll::{Application, admit};
use ghostwire_server::ipam::overlay_ranges;
use ghostwire_server::model::draft::Draft;
use ghostwire_server::model::{AuthKeyRecord, Network, PolicyInForce, User};
use ghostwire_server::names;
use ghostwire_server::node_update::{self, NodeUpdate};
use ghostwire_server::view::{Generations, World};
use prost::Message as _;
use std::sync::{Arc, LazyLock};

/// The key that admits. Text in seeds.
pub(crate) const AUTH_KEY: &str = "k1.KioqKioqKioqKioqKioqKioqKioqKioqKioqKioqKio";
const POLICY: &str = r#"{"tagOwners": {"tag:a": [], "tag:b": ["tag:a"]},
  "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:a"]}, "exitNode": ["alice@x.org"]},
  "acls": [{"action": "accept", "src": ["*"], "dst": ["*:22", "10.0.0.0/8:*", "autogroup:internet:443"]}]}"#;

static NETWORK: LazyLock<Option<Network>> = LazyLock::new(network);

/// An enrolment, a zero-length one included, and messages on the stream, each behind its length as protobuf writes
/// it. True if the machine is admitted.
pub fn run(data: &[u8]) -> bool {
    let Some(network) = NETWORK.as_ref() else { return false };
    let mut draft = Draft::new(network, "fuzz", 1_000);
    let mut rest = data;
    let Ok(request) = v1::EnrollRequest::decode_length_delimited(&mut rest) else { return false };
    let Some(id) = enroll(&request, &mut draft) else { return false };
    while !rest.is_empty() {
        let Ok(message) = v1::NodeMessage::decode_length_delimited(&mut rest) else { break };
        let update = match message.message {
            Some(node_message::Message::Hello(hello)) => {
                let _refused = proof::verify(&hello, &Fingerprint::new([3; 32]));
                hello.update
            }
            Some(node_message::Message::Update(update)) => Some(update),
            Some(node_message::Message::Status(status)) => {
                for problem in node_update::problems(status.problems) {
                    assert!(!problem.chars().any(char::is_control), "{problem:?}");
                }
                None
            }
            _ => None,
        };
        if let Some(Ok(update)) = update.map(|update| NodeUpdate::parse(&update, draft.network())) {
            update.apply(&mut draft, id);
        }
    }
    let (network, _) = draft.into_parts();
    check(&Arc::new(network));
    true
}

fn enroll(request: &v1::EnrollRequest, draft: &mut Draft) -> Option<ghostwire_server::model::NodeId> {
    // No fuzzer signs: the proof is looked at, and then taken for granted.
    let _refused = proof::verify(request, &Fingerprint::new([3; 32]));
    let machine_key = request.proof.as_ref().map_or(&[1; 32][..], |proof| &proof.machine_key);
    let machine_key = MachineKey::try_from(machine_key).ok()?;
    let application = Application::parse(request, Proven { machine_key, nonce: [4; 32] }).ok()?;
    admit(draft, &application).ok().map(|node| node.id)
}

/// The network is sound, and what the node is told of it is a map.
fn check(network: &Arc<Network>) {
    for node in network.nodes.values() {
        assert!(names::is_label(&node.name), "{:?} is no name", node.name);
        let same = network.nodes.values().filter(|other| {
            other.name == node.name || other.host == node.host || other.node_key == node.node_key
        });
        assert_eq!(same.count(), 1, "two nodes share a name, a number or a key");
    }
    let Ok(world) = World::first(network.clone(), &Generations::new()) else {
        panic!("a network that nodes can bring about does not resolve");
    };
    for id in network.nodes.keys() {
        let Some(snapshot) = world.snapshot(*id, 1) else { panic!("node {id} has no snapshot") };
        if let Err(error) = NetworkMap::from_snapshot(&snapshot) {
            panic!("node {id} would refuse its snapshot: {error}");
        }
    }
}

fn network() -> Option<Network> {
    let policy = PolicyInForce {
        version: 1,
        author: "fuzz".to_owned(),
        created: 0,
        text: POLICY.to_owned(),
        policy: Policy::parse(POLICY).ok()?,
    };
    let empty = Network::new("epoch".to_owned(), overlay_ranges([1, 2, 3, 4, 5]), policy);
    let mut draft = Draft::new(&empty, "fuzz", 0);
    draft.put_user(User {
        id: "u1".to_owned(),
        email: "alice@x.org".to_owned(),
        name: "Alice".to_owned(),
        role: "user".to_owned(),
        created: 0,
    });
    let key = AuthKey::parse(AUTH_KEY).ok()?;
    draft.put_key(AuthKeyRecord {
        id: key.id().to_owned(),
        secret: key.secret_hash(),
        user: Some("u1".to_owned()),
        reusable: true,
        ephemeral: false,
        relay: false,
        tags: vec!["tag:a".to_owned()],
        created: 0,
        expires: None,
        revoked: None,
        uses: 0,
    });
    for number in 1..=2 {
        let request = v1::EnrollRequest {
            node_key: vec![number; 32],
            auth_key: AUTH_KEY.to_owned(),
            hostname: "web".to_owned(),
            ..Default::default()
        };
        let proven = Proven { machine_key: MachineKey::new([number + 100; 32]), nonce: [4; 32] };
        admit(&mut draft, &Application::parse(&request, proven).ok()?).ok()?;
    }
    Some(draft.into_parts().0)
}

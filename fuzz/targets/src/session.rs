//! The coordinator's messages: the node's session keeps its promises whatever they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ghostwire_client::session::map::NetworkMap;
use ghostwire_client::session::{Input, Output, Report, Session};
use ghostwire_proto::v1::CoordinatorMessage;
use ghostwire_proto::v1::node_message::Message as Outgoing;
use ipnet::IpNet;
use prost::Message as _;

/// Messages, each behind its length as protobuf writes it. True if one of them became a map.
pub fn run(data: &[u8]) -> bool {
    let mut node = Node::new();
    let mut rest = data;
    let mut understood = false;
    while !rest.is_empty() {
        let Ok(message) = CoordinatorMessage::decode_length_delimited(&mut rest) else { break };
        node.input(Input::Received(Box::new(message)));
        understood |= node.session.map().is_some();
        node.finish();
    }
    node.input(Input::Down);
    understood
}

/// A session and everything around it.
struct Node {
    now: Instant,
    session: Session,
    under_way: Option<(u64, Arc<NetworkMap>)>,
    /// Revisions that the data plane has had since the stream was opened.
    applied: Vec<u64>,
    open: bool,
    checked: Option<Arc<NetworkMap>>,
}

impl Node {
    fn new() -> Self {
        let mut node = Self {
            now: Instant::now(),
            session: Session::new(None, false, 1),
            under_way: None,
            applied: Vec::new(),
            open: false,
            checked: None,
        };
        node.input(Input::Up);
        node
    }

    fn input(&mut self, input: Input) {
        self.session.handle(self.now, input);
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Connect => {
                    self.open = true;
                    self.session.handle(self.now, Input::Opened { coordinator: "c:8080".to_owned() });
                }
                Output::Disconnect => self.open = false,
                Output::Send(message) => {
                    assert!(self.open, "sent into nothing");
                    if let Some(Outgoing::Ack(ack)) = message.message {
                        assert!(self.applied.contains(&ack.revision), "acknowledged what is not applied");
                    }
                }
                Output::Apply(desired) => {
                    assert!(self.under_way.is_none(), "two at a time");
                    self.under_way = Some((desired.ticket, desired.map));
                }
                Output::TearDown => self.under_way = None,
                Output::SaveMap(_) => self.session.handle(self.now, Input::Saved),
                Output::ForgetNetwork => assert!(self.session.map().is_none()),
                // For the ways, whose own readers are fuzzed elsewhere.
                Output::Signal(_) | Output::Relays(_) | Output::RelayTokens(_) | Output::RelayRebind(_) => {
                    assert!(self.open, "passed on what came from nobody");
                }
            }
        }
        if let Some(map) = self.session.map().cloned()
            && self.checked.as_ref().is_none_or(|checked| !Arc::ptr_eq(checked, &map))
        {
            check(&map);
            self.checked = Some(map);
        }
    }

    /// The data plane has done it; time passes, and the node connects again where it hung up.
    fn finish(&mut self) {
        if let Some((ticket, map)) = self.under_way.take() {
            self.applied.push(map.revision);
            let enforced = map.filter.as_ref().map_or(0, |filter| filter.generation);
            let report = Report { ticket, complete: true, enforced, problems: Vec::new() };
            self.input(Input::Applied(report));
        }
        let next = self.session.poll_timeout().unwrap_or(self.now);
        self.now = next.max(self.now).min(self.now + Duration::from_secs(10));
        self.input(Input::Tick);
        assert!(!self.session.state().as_str().is_empty());
        let _said = (self.session.detail(), self.session.problems(), self.session.resume());
    }
}

/// What a map promises.
fn check(map: &NetworkMap) {
    assert_eq!(NetworkMap::from_snapshot(&map.to_snapshot()).as_ref(), Ok(map), "what is on disk differs");
    if let Some(filter) = &map.filter {
        assert_ne!(filter.generation, 0);
        crate::filter_message::check(&filter.rules);
    }
    let mut owners: BTreeMap<IpNet, u64> = BTreeMap::new();
    for (id, nets) in map.allowed() {
        for net in nets {
            assert_eq!(owners.insert(net, id), None, "WireGuard gives {net} to one peer only");
        }
    }
    for peer in map.peers.values() {
        for address in &peer.addresses {
            assert_eq!(map.peer_of(*address).map(|found| found.key), Some(peer.key));
        }
    }
}

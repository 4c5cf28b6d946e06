//! Relays: which there are, what nodes are told of them, and who may use them.
//!
//! ```text
//! relay ──stream──▶ service ──▶ Relays ──list──▶ stream::session ──▶ nodes
//!                                 ▲ tokens            │
//!                                 └───────────────────┘
//! embedded ──▶ Relays                (the relay in this process)
//! ```
//!
//! - [`Relays`]: who has registered, with what load.
//! - [`signer`]: tokens, by which relays know nodes without asking.
//! - [`service`]: the stream of a relay that runs elsewhere.
//! - [`embedded`]: the relay that runs in this process.
//!
//! Nothing of this is stored: relays register again within seconds, and nodes keep their lists.

pub mod embedded;
pub mod service;
pub mod signer;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ghostwire_proto::v1;
use ghostwire_relay_protocol::token::RelayId;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use self::signer::Signer;
use crate::id_set::IdSet;
use crate::model::{NodeId, UnixMs};

/// A relay whose stream has ended is offered for so long: restarts and upgrades are not news.
const GONE_AFTER_MS: i64 = 60_000;

/// Most addresses of a relay.
const MAX_ADDRESSES: usize = 16;

/// Longest name of a region or host.
const MAX_TEXT: usize = 253;

/// Most relays.
const MAX_RELAYS: usize = 1024;

/// Load is told in steps of this size, so that it is not news all the time.
const LOAD_STEP: u32 = 50;

/// Rebind notices that wait for one node.
const NOTICES: usize = 4;

/// Why a relay is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RelayError {
    /// A field is missing or malformed.
    #[error("the relay's {0} is missing or malformed")]
    Malformed(&'static str),
    /// Another auth key registered a relay with this id.
    #[error(
        "a relay with this id is registered with another auth key; give each relay a state directory of its own"
    )]
    Taken,
    /// Too many.
    #[error("there are {MAX_RELAYS} relays already")]
    TooMany,
}

/// A relay that registers, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    id: RelayId,
    relay: v1::Relay,
}

impl Description {
    /// Checks what came from the network.
    pub fn parse(relay: v1::Relay) -> Result<Self, RelayError> {
        let id = <[u8; 16]>::try_from(relay.id.as_slice()).map_err(|_| RelayError::Malformed("id"))?;
        let port = |port: u32| u16::try_from(port).is_ok();
        let is_address = |address: &Vec<u8>| address.len() == 4 || address.len() == 16;
        let addresses = &relay.addresses;
        if addresses.is_empty() || addresses.len() > MAX_ADDRESSES || !addresses.iter().all(is_address) {
            return Err(RelayError::Malformed("list of addresses"));
        }
        if !port(relay.udp_port) || !port(relay.derp_port) || relay.udp_port + relay.derp_port == 0 {
            return Err(RelayError::Malformed("port"));
        }
        if relay.key.len() != 32 || relay.derp_key.len() != 32 {
            return Err(RelayError::Malformed("key"));
        }
        let plain = |text: &str| text.len() <= MAX_TEXT && !text.contains(char::is_control);
        if !plain(&relay.region) || !plain(&relay.derp_host) {
            return Err(RelayError::Malformed("region or host"));
        }
        let relay = v1::Relay { number: 0, load_permille: 0, draining: false, ..relay };
        Ok(Self { id: RelayId(id), relay })
    }
}

/// What a relay says about its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Nodes with a relay port.
    pub nodes: u32,
    /// Pairs that carry traffic.
    pub pairs: u32,
    /// Clients of the stream relay.
    pub clients: u32,
    /// 0 to 1000.
    pub permille: u32,
    /// It is about to stop.
    pub draining: bool,
}

struct Known {
    relay: v1::Relay,
    auth_key: String,
    version: String,
    load: Load,
    /// The stream that is open; `None`: since when there is none.
    stream: Result<u64, UnixMs>,
}

#[derive(Default)]
struct State {
    known: BTreeMap<RelayId16, Known>,
    next_stream: u64,
    /// Who hears of rebind notices.
    nodes: HashMap<NodeId, mpsc::Sender<u32>>,
}

type RelayId16 = [u8; 16];

/// All relays.
#[derive(Clone)]
pub struct Relays(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    list: watch::Sender<Arc<v1::RelayList>>,
    signer: Signer,
}

impl std::fmt::Debug for Relays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relays").field("list", &self.list()).finish_non_exhaustive()
    }
}

/// A relay's open stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId {
    relay: RelayId16,
    stream: u64,
}

impl Relays {
    /// No relay yet.
    pub fn new(signer: Signer) -> Self {
        let (list, _) = watch::channel(Arc::default());
        Self(Arc::new(Inner { state: Mutex::default(), list, signer }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose tokens are good.
    pub fn signer(&self) -> &Signer {
        &self.0.signer
    }

    /// What nodes are told.
    pub fn list(&self) -> Arc<v1::RelayList> {
        self.0.list.borrow().clone()
    }

    /// The same, and when it changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<v1::RelayList>> {
        self.0.list.subscribe()
    }

    /// Registers a relay. The newest stream of a relay counts.
    pub fn connect(
        &self,
        description: Description,
        auth_key: &str,
        version: &str,
    ) -> Result<StreamId, RelayError> {
        let Description { id: RelayId(id), mut relay } = description;
        let mut state = self.state();
        match state.known.get(&id) {
            Some(known) if known.auth_key != auth_key => return Err(RelayError::Taken),
            None if state.known.len() >= MAX_RELAYS => return Err(RelayError::TooMany),
            _ => {}
        }
        let taken = |number: u32| {
            state.known.iter().any(|(other, known)| *other != id && known.relay.number == number)
        };
        relay.number = number_of(id, taken);
        state.next_stream += 1;
        let stream = state.next_stream;
        let known = Known {
            relay,
            auth_key: auth_key.to_owned(),
            version: version.chars().filter(|letter| !letter.is_control()).take(64).collect(),
            load: Load::default(),
            stream: Ok(stream),
        };
        state.known.insert(id, known);
        self.publish(&state);
        Ok(StreamId { relay: id, stream })
    }

    /// Takes a relay's load. `false`: another stream of this relay has taken the place of this one.
    pub fn report(&self, id: StreamId, load: Load) -> bool {
        let mut state = self.state();
        let Some(known) = state.known.get_mut(&id.relay).filter(|known| known.stream == Ok(id.stream)) else {
            return false;
        };
        known.load = load;
        let permille = load.permille.min(1000) / LOAD_STEP * LOAD_STEP;
        if (known.relay.load_permille, known.relay.draining) != (permille, load.draining) {
            known.relay.load_permille = permille;
            known.relay.draining = load.draining;
            self.publish(&state);
        }
        true
    }

    /// A relay's stream has ended.
    pub fn disconnect(&self, id: StreamId, now: UnixMs) {
        let mut state = self.state();
        if let Some(known) = state.known.get_mut(&id.relay).filter(|known| known.stream == Ok(id.stream)) {
            known.stream = Err(now);
        }
    }

    /// Forgets relays that have been gone for long; called every second. `usable`: which auth keys are still good.
    pub fn tick(&self, now: UnixMs, usable: impl Fn(&str) -> bool) {
        let mut state = self.state();
        let before = state.known.len();
        state.known.retain(|_, known| {
            let gone = known.stream.is_err_and(|since| now.saturating_sub(since) > GONE_AFTER_MS);
            !gone && (known.auth_key == embedded::KEY || usable(&known.auth_key))
        });
        if state.known.len() != before {
            self.publish(&state);
        }
    }

    /// Whether a relay's stream is the one that counts.
    pub fn is_current(&self, id: StreamId) -> bool {
        self.state().known.get(&id.relay).is_some_and(|known| known.stream == Ok(id.stream))
    }

    /// What administrators are told.
    pub fn status(&self) -> Vec<v1::RelayStatus> {
        let state = self.state();
        let status = |known: &Known| v1::RelayStatus {
            relay: Some(known.relay.clone()),
            connected: known.stream.is_ok(),
            nodes: known.load.nodes,
            pairs: known.load.pairs,
            clients: known.load.clients,
            version: known.version.clone(),
        };
        state.known.values().map(status).collect()
    }

    /// A node's stream, which hears of rebind notices until the receiver is dropped.
    pub fn attach(&self, node: NodeId) -> mpsc::Receiver<u32> {
        let (sender, receiver) = mpsc::channel(NOTICES);
        let mut state = self.state();
        state.nodes.retain(|_, sender| !sender.is_closed());
        state.nodes.insert(node, sender);
        receiver
    }

    /// Somebody unknown sends to a node's relay port: the node's peers and the node have to bind again. `peers` are
    /// those that see it.
    pub fn unknown_source(&self, id: StreamId, peers: impl Iterator<Item = NodeId>) {
        let state = self.state();
        let Some(known) = state.known.get(&id.relay) else { return };
        for peer in peers {
            if let Some(node) = state.nodes.get(&peer) {
                // A node that has notices waiting will bind again anyway.
                let _ = node.try_send(known.relay.number);
            }
        }
    }

    /// Tokens for a node, for peers that it sees.
    pub fn tokens(
        &self,
        node: NodeId,
        visible: &IdSet,
        request: &v1::RelayTokensRequest,
        now: UnixMs,
    ) -> v1::RelayTokens {
        let known: HashMap<u32, RelayId> = {
            let state = self.state();
            state.known.iter().map(|(id, known)| (known.relay.number, RelayId(*id))).collect()
        };
        signer::tokens(&self.0.signer, node, visible, request, now, |number| known.get(&number).copied())
    }

    fn publish(&self, state: &State) {
        let relays = state.known.values().map(|known| known.relay.clone()).collect();
        self.0.list.send_replace(Arc::new(v1::RelayList { relays }));
    }
}

/// A relay's number: from its id, so that it is the same after a restart; never 0.
fn number_of(id: RelayId16, taken: impl Fn(u32) -> bool) -> u32 {
    let digest = Sha256::digest(id);
    let mut number = digest.first_chunk().copied().map_or(1, u32::from_be_bytes);
    while number == 0 || taken(number) {
        number = number.wrapping_add(1);
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(id: u8) -> v1::Relay {
        v1::Relay {
            id: vec![id; 16],
            addresses: vec![vec![203, 0, 113, id]],
            udp_port: 3478,
            derp_port: 443,
            key: vec![1; 32],
            derp_key: vec![2; 32],
            ..v1::Relay::default()
        }
    }

    fn relays() -> Relays {
        Relays::new(Signer::for_tests())
    }

    #[test]
    fn what_is_no_relay_is_refused() {
        let wrong: [fn(&mut v1::Relay); 8] = [
            |relay| relay.id.truncate(15),
            |relay| relay.addresses.clear(),
            |relay| relay.addresses.push(vec![1; 5]),
            |relay| relay.udp_port = 65_536,
            |relay| (relay.udp_port, relay.derp_port) = (0, 0),
            |relay| relay.key.push(0),
            |relay| relay.region = "a\nb".to_owned(),
            |relay| relay.derp_host = "x".repeat(254),
        ];
        for change in wrong {
            let mut relay = described(1);
            change(&mut relay);
            assert!(Description::parse(relay.clone()).is_err(), "{relay:?}");
        }
        let sneaky = v1::Relay { number: 7, load_permille: 9, draining: true, ..described(1) };
        assert_eq!(Description::parse(sneaky), Description::parse(described(1)));
    }

    #[test]
    fn a_relay_is_offered_while_it_is_there_and_a_little_longer() {
        let relays = relays();
        let mut list = relays.subscribe();
        let stream = relays.connect(Description::parse(described(1)).unwrap(), "k1", "1").unwrap();
        assert!(list.has_changed().unwrap());
        let number = list.borrow_and_update().relays[0].number;
        assert_ne!(number, 0);
        assert!(relays.report(stream, Load { permille: 40, ..Load::default() }));
        assert!(!list.has_changed().unwrap(), "a little load is no news");
        assert!(relays.report(stream, Load { permille: 512, draining: true, ..Load::default() }));
        assert_eq!(list.borrow_and_update().relays[0].load_permille, 500);
        relays.disconnect(stream, 1_000);
        relays.tick(50_000, |_| true);
        assert_eq!(list.borrow_and_update().relays.len(), 1);
        // It comes back under the same number, and its old stream ends nothing.
        let again = relays.connect(Description::parse(described(1)).unwrap(), "k1", "1").unwrap();
        relays.disconnect(stream, 60_000);
        assert!(relays.is_current(again) && !relays.is_current(stream));
        relays.tick(200_000, |_| true);
        assert_eq!(relays.list().relays[0].number, number);
        relays.disconnect(again, 200_000);
        relays.tick(260_001, |_| true);
        assert!(relays.list().relays.is_empty());
    }

    #[test]
    fn a_relays_id_belongs_to_its_auth_key_and_ends_with_it() {
        let relays = relays();
        let stream = relays.connect(Description::parse(described(1)).unwrap(), "k1", "1").unwrap();
        let other = relays.connect(Description::parse(described(1)).unwrap(), "k2", "1");
        assert_eq!(other, Err(RelayError::Taken));
        relays.tick(0, |key| key != "k1");
        assert!(relays.list().relays.is_empty() && !relays.is_current(stream));
    }

    #[test]
    fn only_those_who_see_a_node_are_told_to_bind_again() {
        let relays = relays();
        let stream = relays.connect(Description::parse(described(1)).unwrap(), "k1", "1").unwrap();
        let (mut a, mut b) = (relays.attach(NodeId(1)), relays.attach(NodeId(2)));
        for _ in 0..100 {
            relays.unknown_source(stream, [NodeId(1), NodeId(3)].into_iter());
        }
        assert_eq!(a.try_recv(), Ok(relays.list().relays[0].number));
        assert_eq!((1..100).take_while(|_| a.try_recv().is_ok()).count(), NOTICES - 1, "bounded");
        assert!(b.try_recv().is_err());
    }
}

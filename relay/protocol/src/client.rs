//! A node's side of the control protocol: keeps a relay port and bindings at one relay. No clock, no sockets.
//!
//! ```text
//! allocate, bind, rebind ──► Client ──► poll_transmit   requests, from WireGuard's port
//! datagrams, time        ──►        ──► poll_event      where to send WireGuard datagrams to
//! ```
//!
//! Everything is asked from the port that WireGuard's datagrams come from, so that the NAT mapping that the relay sees
//! is theirs. For each peer: the relay port of the peer is looked up, then it is bound to; see [`super::control`].

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::control::{
    Action, CHALLENGE_LEN, IntegrityKey, Lease, MIN_REQUEST_LEN, Response, ResponseError, code, write_request,
};
use crate::stun::{Message, TransactionId, looks_like_stun};
use crate::token::{NodeId, RelayId, TOKEN_LEN};

/// First pause before a request is repeated; it doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(4);

/// A relay that has answered nothing for so long is told about.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(5);

/// While the peer has not bound, or has no port yet, it is asked so often.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A refusal that time may heal is tried again after so long.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// A datagram to send, from the port of WireGuard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// What.
    pub bytes: Vec<u8>,
}

/// What the node has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The node has a relay port.
    Allocated {
        /// At the address that the world sees.
        relayed: SocketAddr,
        /// The node's own address, as the relay sees it.
        mapped: SocketAddr,
    },
    /// Datagrams for the peer go to `at`, and come from there.
    Bound {
        /// The peer.
        peer: NodeId,
        /// Its port at the relay.
        at: SocketAddr,
        /// It has bound, too: traffic flows.
        peer_bound: bool,
    },
    /// What was bound is not any more; the client goes on trying.
    Unbound {
        /// The peer.
        peer: NodeId,
    },
    /// There is no token for this, or the relay refused it: get another one, then [`Client::set_token`].
    TokenNeeded {
        /// To bind to this peer; `None`: to have a port.
        peer: Option<NodeId>,
    },
    /// The relay is about to stop: move to another one.
    Draining,
    /// The relay has not answered for five seconds; the client goes on trying.
    Unreachable,
}

/// One relay, at one of its addresses.
#[derive(Debug)]
pub struct Client {
    key: IntegrityKey,
    main: SocketAddr,
    seed: Zeroizing<[u8; 32]>,
    requests: u64,
    sequence: u64,
    allocate_token: Option<Box<[u8; TOKEN_LEN]>>,
    /// Whether a port is wanted, or is to be given back.
    allocation: Option<Task>,
    peers: BTreeMap<NodeId, Peer>,
    /// Since when the relay has not answered.
    silent_since: Option<Duration>,
    told_unreachable: bool,
    told_draining: bool,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

/// What is wanted of a peer.
#[derive(Debug)]
struct Peer {
    token: Option<Box<[u8; TOKEN_LEN]>>,
    /// The peer's port, once it is known.
    port: Option<SocketAddr>,
    bound: Option<bool>,
    wanted: bool,
    task: Task,
}

/// Something that is asked for until it is granted, and again before it ends.
#[derive(Debug)]
struct Task {
    action: Action,
    /// When to send next. `None`: not without a token.
    at: Option<Duration>,
    pause: Duration,
    /// Of the request that waits for an answer.
    transaction: Option<TransactionId>,
    /// What the relay wants to see again, and the port that it is for.
    challenge: Option<([u8; CHALLENGE_LEN], SocketAddr)>,
    /// Of the request that waits for an answer; repetitions have the same.
    sequence: u64,
}

impl Task {
    fn new(action: Action, now: Duration) -> Self {
        Self { action, at: Some(now), pause: FIRST_PAUSE, transaction: None, challenge: None, sequence: 0 }
    }

    /// Begins anew, at once.
    fn restart(&mut self, action: Action, now: Duration) {
        *self = Self { challenge: self.challenge, ..Self::new(action, now) };
    }

    /// Done for now.
    fn rest(&mut self, action: Action, until: Option<Duration>) {
        *self = Self { at: until, challenge: self.challenge, ..Self::new(action, Duration::ZERO) };
    }
}

/// Whose answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Allocation,
    Peer(NodeId),
}

impl Client {
    /// A client that wants nothing yet. `main` is one of the relay's addresses with its UDP port, `session` the private
    /// half of the key that the tokens name, `seed` are 32 random bytes, `sequence` is greater than any that this
    /// session key was used with: milliseconds since 1970. `None`: the relay's key is no key.
    pub fn new(
        relay: RelayId,
        relay_key: &[u8; 32],
        main: SocketAddr,
        session: &StaticSecret,
        seed: [u8; 32],
        sequence: u64,
    ) -> Option<Self> {
        Some(Self {
            key: IntegrityKey::for_node(session, relay, relay_key)?,
            main,
            seed: Zeroizing::new(seed),
            requests: 0,
            sequence,
            allocate_token: None,
            allocation: None,
            peers: BTreeMap::new(),
            silent_since: None,
            told_unreachable: false,
            told_draining: false,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        })
    }

    /// The relay's main port.
    pub fn main(&self) -> SocketAddr {
        self.main
    }

    /// Gives a token: to bind to a peer, or (`None`) to have a port. It replaces an older one.
    pub fn set_token(&mut self, now: Duration, peer: Option<NodeId>, token: [u8; TOKEN_LEN]) {
        match peer {
            None => {
                self.allocate_token = Some(Box::new(token));
                if let Some(task) = self.allocation.as_mut().filter(|task| task.at.is_none()) {
                    task.restart(task.action, now);
                }
            }
            Some(peer) => {
                let peer = self.peer(now, peer);
                peer.token = Some(Box::new(token));
                if peer.wanted && peer.task.at.is_none() {
                    peer.task.restart(peer.task.action, now);
                }
            }
        }
    }

    /// Wants a port.
    pub fn allocate(&mut self, now: Duration) {
        let wanted = self.allocation.as_ref().is_some_and(|task| task.action != Action::Release);
        if !wanted {
            self.allocation = Some(Task::new(Action::Allocate, now));
        }
    }

    /// Wants to be bound to a peer, and a port, which that takes.
    pub fn bind(&mut self, now: Duration, peer: NodeId) {
        self.allocate(now);
        let peer = self.peer(now, peer);
        if !peer.wanted {
            peer.wanted = true;
            peer.bound = None;
            peer.task = Task::new(Action::Lookup, now);
        }
    }

    /// Gives a binding back.
    pub fn unbind(&mut self, now: Duration, peer: NodeId) {
        let Some(peer) = self.peers.get_mut(&peer) else { return };
        peer.wanted = false;
        if peer.bound.take().is_some() {
            peer.task.restart(Action::Release, now);
        } else {
            peer.task.rest(Action::Lookup, None);
        }
    }

    /// Gives the port back, and with it all bindings. Said once; if the relay does not hear it, leases end by
    /// themselves.
    pub fn release(&mut self, now: Duration) {
        self.peers.clear();
        if self.allocation.is_some() {
            self.allocation = Some(Task::new(Action::Release, now));
        }
    }

    /// The node's address may have changed, or the relay has seen an unknown one: binds to all peers again.
    pub fn rebind(&mut self, now: Duration) {
        if let Some(task) = self.allocation.as_mut().filter(|task| task.action != Action::Release) {
            *task = Task::new(Action::Allocate, now);
        }
        for peer in self.peers.values_mut().filter(|peer| peer.wanted) {
            let action = if peer.port.is_some() { Action::Bind } else { Action::Lookup };
            peer.task = Task::new(action, now);
        }
    }

    /// The next datagram to send. Ask after every call, until there is none.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// What the node has to know. Ask after every call, until there is nothing.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Client::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let tasks = self.peers.values().map(|peer| &peer.task).chain(&self.allocation);
        let next = tasks.filter_map(|task| task.at).min();
        let silence = self.silent_since.filter(|_| !self.told_unreachable);
        next.into_iter().chain(silence.map(|since| since + UNREACHABLE_AFTER)).min()
    }

    /// Sends what is due.
    pub fn handle_timeout(&mut self, now: Duration) {
        if let Some(since) = self.silent_since
            && !self.told_unreachable
            && now >= since + UNREACHABLE_AFTER
        {
            self.told_unreachable = true;
            self.events.push_back(Event::Unreachable);
        }
        let due = |task: &Task| task.at.is_some_and(|at| at <= now);
        if self.allocation.as_ref().is_some_and(due) {
            self.send(now, Whose::Allocation);
        }
        let peers: Vec<NodeId> =
            self.peers.iter().filter(|(_, peer)| due(&peer.task)).map(|(id, _)| *id).collect();
        for peer in peers {
            self.send(now, Whose::Peer(peer));
        }
    }

    /// Takes a datagram. `false`: it is not an answer of this relay to this client.
    pub fn handle_input(&mut self, now: Duration, from: SocketAddr, datagram: &[u8]) -> bool {
        if from.ip() != self.main.ip() || !looks_like_stun(datagram) {
            return false;
        }
        let Ok(message) = Message::parse(datagram) else { return false };
        let Some(whose) = self.waits_for(message.transaction(), from) else { return false };
        let Some(task) = self.task(whose) else { return false };
        let (method, transaction) = (task.action.method(), message.transaction());
        match Response::parse(&message, method, transaction, &self.key) {
            Ok(response) => {
                self.silent_since = None;
                self.told_unreachable = false;
                self.answered(now, whose, from, response);
                true
            }
            // Forged, or damaged: the real answer may still come.
            Err(ResponseError::Other | ResponseError::Malformed | ResponseError::Integrity) => false,
        }
    }

    fn peer(&mut self, now: Duration, peer: NodeId) -> &mut Peer {
        self.peers.entry(peer).or_insert_with(|| Peer {
            token: None,
            port: None,
            bound: None,
            wanted: false,
            task: Task { at: None, ..Task::new(Action::Lookup, now) },
        })
    }

    fn task(&mut self, whose: Whose) -> Option<&mut Task> {
        match whose {
            Whose::Allocation => self.allocation.as_mut(),
            Whose::Peer(peer) => self.peers.get_mut(&peer).map(|peer| &mut peer.task),
        }
    }

    fn waits_for(&self, transaction: TransactionId, from: SocketAddr) -> Option<Whose> {
        let waits = |task: &Task| task.transaction == Some(transaction);
        if self.allocation.as_ref().is_some_and(waits) {
            return (from == self.main).then_some(Whose::Allocation);
        }
        let (id, peer) = self.peers.iter().find(|(_, peer)| waits(&peer.task))?;
        (from == self.target(peer)).then_some(Whose::Peer(*id))
    }

    /// Where a peer's request goes.
    fn target(&self, peer: &Peer) -> SocketAddr {
        match (peer.task.action, peer.port) {
            (Action::Bind | Action::Refresh | Action::Release, Some(port)) => port,
            _ => self.main,
        }
    }

    fn send(&mut self, now: Duration, whose: Whose) {
        let (token, to) = match whose {
            Whose::Allocation => (self.allocate_token.clone(), self.main),
            Whose::Peer(peer) => {
                let Some(peer) = self.peers.get(&peer) else { return };
                (peer.token.clone(), self.target(peer))
            }
        };
        let Some(token) = token else {
            if let Some(task) = self.task(whose) {
                task.at = None;
            }
            self.events.push_back(Event::TokenNeeded { peer: id_of(whose) });
            return;
        };
        let (fresh, fresh_sequence) = (self.transaction(), self.sequence + 1);
        let Some(task) = self.task(whose) else { return };
        // Repeated as it was: the answer to either will do.
        let repeated = task.transaction.is_some();
        let transaction = *task.transaction.get_or_insert(fresh);
        if !repeated {
            task.sequence = fresh_sequence;
        }
        let sequence = task.sequence;
        task.at = Some(now + task.pause);
        task.pause = (task.pause * 2).min(LAST_PAUSE);
        let (action, challenge) = (task.action, task.challenge);
        self.sequence = self.sequence.max(sequence);
        let challenge = challenge.filter(|(_, at)| *at == to).map(|(challenge, _)| challenge);
        let mut buffer = [0; MIN_REQUEST_LEN];
        let key = &self.key;
        // The buffer has the length that all requests have.
        let Ok(bytes) =
            write_request(&mut buffer, action, transaction, &token, challenge.as_ref(), sequence, key)
        else {
            return;
        };
        self.silent_since.get_or_insert(now);
        self.transmits.push_back(Transmit { to, bytes: bytes.to_vec() });
    }

    /// A number that nobody can guess and that does not come again.
    fn transaction(&mut self) -> TransactionId {
        self.requests += 1;
        let mut id = [0; 12];
        // A key of any length does for HMAC.
        if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.seed.as_slice()) {
            mac.update(&self.requests.to_be_bytes());
            for (byte, random) in id.iter_mut().zip(mac.finalize().into_bytes()) {
                *byte = random;
            }
        }
        TransactionId(id)
    }

    fn answered(&mut self, now: Duration, whose: Whose, from: SocketAddr, response: Response) {
        match response {
            Response::Challenge(challenge) => {
                if let Some(task) = self.task(whose) {
                    task.restart(task.action, now);
                    task.challenge = Some((challenge, from));
                }
                self.send(now, whose);
            }
            Response::Granted(lease) => {
                if lease.draining && !self.told_draining {
                    self.told_draining = true;
                    self.events.push_back(Event::Draining);
                }
                match whose {
                    Whose::Allocation => self.allocated(now, &lease),
                    Whose::Peer(peer) => self.granted(now, peer, &lease),
                }
            }
            Response::Refused { code, signed } => self.refused(now, whose, code, signed),
        }
    }

    fn allocated(&mut self, now: Duration, lease: &Lease) {
        let Some(task) = &mut self.allocation else { return };
        if task.action == Action::Release {
            self.allocation = None;
            return;
        }
        task.rest(Action::Allocate, Some(now + half(lease)));
        self.events.push_back(Event::Allocated { relayed: lease.relayed, mapped: lease.mapped });
        // Who was refused for want of a port need not wait any longer.
        let waiting = self.peers.values_mut().filter(|peer| peer.wanted && peer.bound.is_none());
        for peer in waiting {
            if peer.task.transaction.is_none() && peer.task.at.is_some_and(|at| at > now) {
                peer.task.restart(peer.task.action, now);
            }
        }
    }

    fn granted(&mut self, now: Duration, id: NodeId, lease: &Lease) {
        let main = self.main;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        match peer.task.action {
            Action::Lookup => {
                // Behind a 1:1 NAT the relay may name an address of another family or network; the port counts.
                peer.port = Some(SocketAddr::new(main.ip(), lease.relayed.port()));
                peer.task.restart(Action::Bind, now);
                self.send(now, Whose::Peer(id));
            }
            Action::Release => peer.task.rest(Action::Lookup, None),
            Action::Allocate | Action::Bind | Action::Refresh => {
                let Some(at) = peer.port else { return };
                if peer.bound != Some(lease.peer_bound) {
                    peer.bound = Some(lease.peer_bound);
                    self.events.push_back(Event::Bound { peer: id, at, peer_bound: lease.peer_bound });
                }
                let pause = if lease.peer_bound { half(lease) } else { ASK_AGAIN.min(half(lease)) };
                peer.task.rest(Action::Refresh, Some(now + pause));
            }
        }
    }

    fn refused(&mut self, now: Duration, whose: Whose, refusal: u16, signed: bool) {
        // Nobody but the relay can sign; a refusal of credentials cannot be signed.
        if !signed && refusal != code::WRONG_CREDENTIALS {
            return;
        }
        let Some(task) = self.task(whose) else { return };
        let action = task.action;
        if refusal == code::WRONG_CREDENTIALS {
            // What may be forged only costs time: the old token is tried again, too.
            task.rest(action, Some(now + REFUSED_PAUSE));
            self.events.push_back(Event::TokenNeeded { peer: id_of(whose) });
            return;
        }
        if refusal == code::TRY_ALTERNATE && !self.told_draining {
            self.told_draining = true;
            self.events.push_back(Event::Draining);
        }
        match whose {
            Whose::Allocation => {
                if action == Action::Release {
                    self.allocation = None;
                } else if let Some(task) = &mut self.allocation {
                    let pause = if refusal == code::OUT_OF_ORDER { FIRST_PAUSE } else { REFUSED_PAUSE };
                    task.rest(Action::Allocate, Some(now + pause));
                }
            }
            Whose::Peer(id) => self.refused_peer(now, id, action, refusal),
        }
    }

    fn refused_peer(&mut self, now: Duration, id: NodeId, action: Action, refusal: u16) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.bound.take().is_some() {
            self.events.push_back(Event::Unbound { peer: id });
        }
        match (action, refusal) {
            (Action::Release, _) => peer.task.rest(Action::Lookup, None),
            // Bound no more, or from another address: bind again.
            (Action::Refresh, _) => peer.task.restart(Action::Bind, now),
            // The peer has another port now, or none yet.
            (Action::Bind, code::MISMATCH) => peer.task.rest(Action::Lookup, Some(now + FIRST_PAUSE)),
            (Action::Lookup, code::MISMATCH) => peer.task.rest(Action::Lookup, Some(now + ASK_AGAIN)),
            (_, code::OUT_OF_ORDER) => peer.task.rest(action, Some(now + FIRST_PAUSE)),
            _ => peer.task.rest(action, Some(now + REFUSED_PAUSE)),
        }
        if refusal == code::MISMATCH && action == Action::Bind {
            peer.port = None;
            // Or the node itself has none: then it asks for it.
            if let Some(task) = self.allocation.as_mut().filter(|task| task.action == Action::Allocate) {
                task.restart(Action::Allocate, now);
            }
        }
    }
}

fn id_of(whose: Whose) -> Option<NodeId> {
    match whose {
        Whose::Allocation => None,
        Whose::Peer(peer) => Some(peer),
    }
}

/// When a lease is renewed.
fn half(lease: &Lease) -> Duration {
    Duration::from_secs(u64::from(lease.seconds)) / 2
}

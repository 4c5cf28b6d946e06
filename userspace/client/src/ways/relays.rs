//! The relays of the network as this node uses them: a port of our own and bindings to the ports of peers by UDP
//! (`ghostwire_relay_protocol::client`), tokens for that, and a stream to each relay that a path needs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ghostwire_path::{Base, CarrierFailure, Reach, RelayId, RelayOffer};
use ghostwire_proto::address::ip_from_wire;
use ghostwire_relay_protocol::client::{Client, Event};
use ghostwire_relay_protocol::token::{self, NodeId, TOKEN_LEN};
use rand::RngExt;
use rand::rngs::StdRng;
use x25519_dalek::StaticSecret;

use super::survey::Survey;
use crate::pb;

/// Most relays that are used.
const MAX_RELAYS: usize = 16;
/// Tokens that are wanted are asked for together.
const GATHER: Duration = Duration::from_millis(20);
/// A token that did not come is asked for again after this.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// A latency is told anew if it changed by more than this, and by more than a fifth.
const NOTABLE: Duration = Duration::from_millis(3);

/// A relay as the coordinator describes it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The coordinator's number.
    pub number: RelayId,
    /// What tokens call it.
    pub id: token::RelayId,
    /// The operator's words.
    pub region: String,
    /// Where it is reached.
    pub addresses: Vec<IpAddr>,
    /// STUN and Allocate; 0: no UDP.
    pub udp_port: u16,
    /// For signing requests.
    pub key: [u8; 32],
    /// The DERP server's key.
    pub derp_key: [u8; 32],
    /// TLS; 0: no stream.
    pub derp_port: u16,
    /// Server name for TLS and HTTP; empty: the address.
    pub derp_host: String,
    /// About to stop.
    pub draining: bool,
}

impl Description {
    /// Reads a message. `None`: it is not usable.
    pub fn check(wire: &pb::Relay) -> Option<Self> {
        let addresses: Vec<IpAddr> = wire
            .addresses
            .iter()
            .filter_map(|bytes| ip_from_wire(bytes).ok())
            .filter(|ip| !ip.is_unspecified() && !ip.is_multicast())
            .collect();
        let port = |port: u32| u16::try_from(port).ok();
        let description = Self {
            number: RelayId(wire.number),
            id: token::RelayId(wire.id.as_slice().try_into().ok()?),
            region: wire.region.clone(),
            udp_port: port(wire.udp_port)?,
            key: wire.key.as_slice().try_into().ok()?,
            derp_key: wire.derp_key.as_slice().try_into().ok()?,
            derp_port: port(wire.derp_port)?,
            derp_host: wire.derp_host.clone(),
            draining: wire.draining,
            addresses,
        };
        (!description.addresses.is_empty()).then_some(description)
    }

    /// The addresses of its main UDP port.
    pub fn main_ports(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let addresses = self.addresses.iter().filter(|_| self.udp_port != 0);
        addresses.map(|address| SocketAddr::new(*address, self.udp_port))
    }
}

/// What the stream to a relay is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    /// Nobody needs it.
    #[default]
    Closed,
    /// On its way.
    Opening,
    /// Open; connecting took so long.
    Open(Duration),
    /// Could not be opened, or broke.
    Failed,
}

/// What happens to a path through a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The peer's port is bound: packets for it go there.
    PortUp(RelayId, u64),
    /// Not, or no longer.
    PortDown(RelayId, u64, CarrierFailure),
    /// The stream is open.
    StreamUp(RelayId),
    /// Not, or no longer.
    StreamDown(RelayId, CarrierFailure),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// Send from WireGuard's port.
    Send(Base, SocketAddr, Vec<u8>),
    /// Ask the coordinator.
    AskTokens(pb::RelayTokensRequest),
    /// Connect.
    OpenStream(Box<Description>),
    /// Hang up.
    CloseStream(RelayId),
}

#[derive(Clone, Copy, Debug)]
struct Token {
    bytes: [u8; TOKEN_LEN],
    /// When half of its life is over.
    renew: Instant,
}

#[derive(Debug)]
struct Relay {
    description: Description,
    client: Option<(Base, Client)>,
    /// Peers whose ports are wanted, with the place of those that are bound.
    ports: BTreeMap<u64, Option<SocketAddr>>,
    /// By peer; 0: to allocate.
    tokens: BTreeMap<u64, Token>,
    draining: bool,
    stream: Stream,
    /// Peers whose paths need the stream.
    riders: BTreeSet<u64>,
    told: RelayOffer,
}

/// See the module.
pub struct Relays {
    start: Instant,
    secret: StaticSecret,
    rng: StdRng,
    bases: Vec<Base>,
    known: BTreeMap<RelayId, Relay>,
    /// Tokens to be asked for.
    wanted: BTreeSet<(RelayId, u64)>,
    ask_at: Option<Instant>,
    /// Asked for and not come.
    asked: BTreeMap<(RelayId, u64), Instant>,
    tasks: VecDeque<Task>,
    news: VecDeque<News>,
    /// The list of relays has changed since it was told.
    changed: bool,
}

impl std::fmt::Debug for Relays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relays").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Relays {
    /// Knows no relay. The session key is new with each start.
    pub fn new(start: Instant, mut rng: StdRng) -> Self {
        Self {
            start,
            secret: StaticSecret::from(rng.random::<[u8; 32]>()),
            rng,
            bases: Vec::new(),
            known: BTreeMap::new(),
            wanted: BTreeSet::new(),
            ask_at: None,
            asked: BTreeMap::new(),
            tasks: VecDeque::new(),
            news: VecDeque::new(),
            changed: false,
        }
    }

    fn since_start(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
    }

    /// All relays of the network map.
    pub fn set(&mut self, now: Instant, descriptions: Vec<Description>) {
        let listed: BTreeMap<RelayId, Description> =
            descriptions.into_iter().take(MAX_RELAYS).map(|known| (known.number, known)).collect();
        let gone: Vec<RelayId> = self
            .known
            .iter()
            .filter(|(id, relay)| {
                // Another key or address is another relay; load and draining are not.
                listed.get(id).is_none_or(|new| {
                    let drained = Description { draining: new.draining, ..relay.description.clone() };
                    *new != drained
                })
            })
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.drop_relay(now, id);
        }
        for (id, description) in listed {
            let draining = description.draining;
            let relay = self.known.entry(id).or_insert_with(|| {
                self.changed = true;
                Relay::new(description)
            });
            relay.draining |= draining;
        }
    }

    fn drop_relay(&mut self, now: Instant, id: RelayId) {
        let Some(mut relay) = self.known.remove(&id) else { return };
        self.changed = true;
        for peer in relay.ports.keys() {
            self.news.push_back(News::PortDown(id, *peer, CarrierFailure::Lost));
        }
        if relay.stream != Stream::Closed {
            self.tasks.push_back(Task::CloseStream(id));
            self.news.push_back(News::StreamDown(id, CarrierFailure::Lost));
        }
        let since_start = self.since_start(now);
        if let Some((base, client)) = &mut relay.client {
            client.release(since_start);
            client.handle_timeout(since_start);
            while let Some(transmit) = client.poll_transmit() {
                self.tasks.push_back(Task::Send(*base, transmit.to, transmit.bytes));
            }
        }
        self.wanted.retain(|(relay, _)| *relay != id);
        self.asked.retain(|(relay, _), _| *relay != id);
    }

    /// Where packets can leave. A client whose base is gone moves to another.
    pub fn set_bases(&mut self, now: Instant, bases: Vec<Base>) {
        if bases == self.bases {
            return;
        }
        self.bases = bases;
        let since_start = self.since_start(now);
        let ids: Vec<RelayId> = self.known.keys().copied().collect();
        for id in ids {
            let Some(relay) = self.known.get_mut(&id) else { continue };
            match relay.client.take() {
                None => {}
                Some((base, mut client)) => {
                    let same = |other: &&Base| other.address.is_ipv4() == base.address.is_ipv4();
                    match self.bases.iter().find(same) {
                        Some(new) => {
                            client.rebind(since_start);
                            relay.client = Some((*new, client));
                        }
                        None => self.restart(now, id),
                    }
                }
            }
        }
        self.drive(now);
    }

    /// A new client for all that is wanted, as the old one cannot go on.
    fn restart(&mut self, now: Instant, id: RelayId) {
        let Some(relay) = self.known.get_mut(&id) else { return };
        let peers: Vec<u64> = relay.ports.keys().copied().collect();
        for peer in &peers {
            if let Some(Some(_)) = relay.ports.insert(*peer, None) {
                self.news.push_back(News::PortDown(id, *peer, CarrierFailure::Lost));
            }
        }
        for peer in peers {
            self.bind(now, id, peer);
        }
    }

    /// The relay that has this address, and the base that is used for it.
    pub fn at(&self, address: IpAddr) -> Option<RelayId> {
        let has = |relay: &&Relay| relay.description.addresses.contains(&address);
        self.known.values().find(has).map(|relay| relay.description.number)
    }

    /// What is known about a relay.
    pub fn description(&self, id: RelayId) -> Option<&Description> {
        self.known.get(&id).map(|relay| &relay.description)
    }

    /// All relays and what their streams are.
    pub fn all(&self) -> impl Iterator<Item = (&Description, Stream)> {
        self.known.values().map(|relay| (&relay.description, relay.stream))
    }

    /// All main ports, for questions.
    pub fn servers(&self) -> Vec<(RelayId, SocketAddr)> {
        let of = |relay: &Relay| {
            let id = relay.description.number;
            relay.description.main_ports().map(move |port| (id, port)).collect::<Vec<_>>()
        };
        self.known.values().flat_map(of).collect()
    }

    /// Where packets for the peer go, once its port is bound.
    pub fn port(&self, id: RelayId, peer: u64) -> Option<(Base, SocketAddr)> {
        let relay = self.known.get(&id)?;
        let at = (*relay.ports.get(&peer)?)?;
        Some((relay.client.as_ref()?.0, at))
    }

    /// The peer whose port this is.
    pub fn peer_at(&self, remote: SocketAddr) -> Option<(RelayId, u64)> {
        let relay = self.known.get(&self.at(remote.ip())?)?;
        let (peer, _) = relay.ports.iter().find(|(_, at)| **at == Some(remote))?;
        Some((relay.description.number, *peer))
    }

    /// Wants the peer's port.
    pub fn bind(&mut self, now: Instant, id: RelayId, peer: u64) {
        let since_start = self.since_start(now);
        let (secret, seed) = (self.secret.clone(), self.rng.random());
        let Some(relay) = self.known.get_mut(&id) else {
            self.news.push_back(News::PortDown(id, peer, CarrierFailure::Unreachable));
            return;
        };
        if relay.client.is_none() {
            relay.client = Self::make_client(&relay.description, &self.bases, &secret, seed);
            if let Some((_, client)) = &mut relay.client {
                for (of, token) in &relay.tokens {
                    client.set_token(since_start, (*of != 0).then_some(NodeId(*of)), token.bytes);
                }
            }
        }
        let Some((_, client)) = &mut relay.client else {
            self.news.push_back(News::PortDown(id, peer, CarrierFailure::Unreachable));
            return;
        };
        client.bind(since_start, NodeId(peer));
        let known = relay.ports.entry(peer).or_default().is_some();
        if known {
            self.news.push_back(News::PortUp(id, peer));
        }
        self.drive(now);
    }

    fn make_client(
        description: &Description,
        bases: &[Base],
        secret: &StaticSecret,
        seed: [u8; 32],
    ) -> Option<(Base, Client)> {
        let reachable = |main: SocketAddr| {
            let base = bases.iter().find(|base| base.address.is_ipv4() == main.is_ipv4())?;
            Some((*base, main))
        };
        let (base, main) = description.main_ports().find_map(reachable)?;
        let sequence = super::unix_ms();
        let client = Client::new(description.id, &description.key, main, secret, seed, sequence)?;
        Some((base, client))
    }

    /// Wants the peer's port no more.
    pub fn unbind(&mut self, now: Instant, id: RelayId, peer: u64) {
        let since_start = self.since_start(now);
        let Some(relay) = self.known.get_mut(&id) else { return };
        relay.ports.remove(&peer);
        if let Some((_, client)) = &mut relay.client {
            client.unbind(since_start, NodeId(peer));
            if relay.ports.is_empty() {
                client.release(since_start);
                client.handle_timeout(since_start);
            }
        }
        self.wanted.remove(&(id, peer));
        self.asked.remove(&(id, peer));
        self.drive(now);
        if let Some(relay) = self.known.get_mut(&id).filter(|relay| relay.ports.is_empty()) {
            relay.client = None;
        }
    }

    /// The relay has heard somebody whom it does not know at our port.
    pub fn rebind(&mut self, now: Instant, id: RelayId) {
        let since_start = self.since_start(now);
        if let Some((_, client)) = self.known.get_mut(&id).and_then(|relay| relay.client.as_mut()) {
            client.rebind(since_start);
        }
        self.drive(now);
    }

    /// A datagram from an address of the relay. False: it is not for its client.
    pub fn datagram(&mut self, now: Instant, id: RelayId, from: SocketAddr, bytes: &[u8]) -> bool {
        let since_start = self.since_start(now);
        let client = self.known.get_mut(&id).and_then(|relay| relay.client.as_mut());
        let taken = client.is_some_and(|(_, client)| client.handle_input(since_start, from, bytes));
        if taken {
            self.drive(now);
        }
        taken
    }

    /// The base from which the relay's client sends.
    pub fn base(&self, id: RelayId) -> Option<Base> {
        self.known.get(&id)?.client.as_ref().map(|(base, _)| *base)
    }

    // Streams

    /// A path to the peer needs the relay's stream.
    pub fn ride(&mut self, id: RelayId, peer: u64) {
        let Some(relay) = self.known.get_mut(&id).filter(|relay| relay.description.derp_port != 0) else {
            self.news.push_back(News::StreamDown(id, CarrierFailure::Unreachable));
            return;
        };
        relay.riders.insert(peer);
        match relay.stream {
            Stream::Open(_) => self.news.push_back(News::StreamUp(id)),
            Stream::Opening => {}
            Stream::Closed | Stream::Failed => {
                relay.stream = Stream::Opening;
                self.tasks.push_back(Task::OpenStream(Box::new(relay.description.clone())));
            }
        }
    }

    /// The peer's path does not need it any more. An open stream stays: peers reach us by it while we sleep.
    pub fn alight(&mut self, id: RelayId, peer: u64) {
        if let Some(relay) = self.known.get_mut(&id) {
            relay.riders.remove(&peer);
            if relay.riders.is_empty() && relay.stream == Stream::Opening {
                relay.stream = Stream::Closed;
                self.tasks.push_back(Task::CloseStream(id));
            }
        }
    }

    /// Who rides the stream.
    pub fn riders(&self, id: RelayId) -> Vec<u64> {
        self.known.get(&id).map(|relay| relay.riders.iter().copied().collect()).unwrap_or_default()
    }

    /// The stream was opened, which took so long, or was not, or broke.
    pub fn on_stream(&mut self, id: RelayId, opened: Result<Duration, CarrierFailure>) {
        let Some(relay) = self.known.get_mut(&id) else { return };
        if relay.stream == Stream::Closed {
            return;
        }
        match opened {
            Ok(took) => {
                relay.stream = Stream::Open(took);
                self.news.push_back(News::StreamUp(id));
            }
            Err(why) => {
                relay.stream = Stream::Failed;
                self.news.push_back(News::StreamDown(id, why));
            }
        }
    }

    // Tokens

    /// The coordinator's stream is open (again): what has not come is asked for.
    pub fn connected(&mut self, now: Instant) {
        self.wanted.extend(self.asked.keys().copied());
        self.asked.clear();
        if !self.wanted.is_empty() {
            self.ask_at = Some(now);
        }
    }

    /// Tokens came.
    pub fn tokens(&mut self, now: Instant, unix_ms: i64, message: &pb::RelayTokens) {
        if message.session_key != x25519_dalek::PublicKey::from(&self.secret).as_bytes() {
            return;
        }
        let since_start = self.since_start(now);
        for wire in &message.tokens {
            let id = RelayId(wire.relay);
            let (Some(relay), Ok(bytes)) =
                (self.known.get_mut(&id), <[u8; TOKEN_LEN]>::try_from(wire.token.as_slice()))
            else {
                continue;
            };
            let life = u64::try_from(wire.expires_unix_ms.saturating_sub(unix_ms)).unwrap_or_default();
            let token = Token { bytes, renew: now + Duration::from_millis(life / 2) };
            relay.tokens.insert(wire.peer, token);
            self.asked.remove(&(id, wire.peer));
            self.wanted.remove(&(id, wire.peer));
            if let Some((_, client)) = &mut relay.client {
                client.set_token(since_start, (wire.peer != 0).then_some(NodeId(wire.peer)), bytes);
            }
        }
        self.drive(now);
    }

    fn want_token(&mut self, now: Instant, id: RelayId, peer: u64) {
        if !self.asked.contains_key(&(id, peer)) && self.wanted.insert((id, peer)) {
            self.ask_at.get_or_insert(now + GATHER);
        }
    }

    fn ask(&mut self, now: Instant) {
        self.ask_at = None;
        let mut wanted: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for (relay, peer) in std::mem::take(&mut self.wanted) {
            self.asked.insert((relay, peer), now);
            let peers = wanted.entry(relay.0).or_default();
            // A token to allocate comes along in any case.
            peers.extend((peer != 0).then_some(peer));
        }
        let wanted = wanted.into_iter().map(|(relay, peers)| pb::RelayTokensWanted { relay, peers });
        self.tasks.push_back(Task::AskTokens(pb::RelayTokensRequest {
            session_key: x25519_dalek::PublicKey::from(&self.secret).as_bytes().to_vec(),
            wanted: wanted.collect(),
        }));
    }

    // Time

    /// When to call [`Self::on_time`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let clients = self.known.values().filter_map(|relay| relay.client.as_ref());
        let clients = clients.filter_map(|(_, client)| client.poll_timeout()).map(|at| self.start + at);
        let again = self.asked.values().map(|asked| *asked + ASK_AGAIN);
        let renewals = self.known.values().filter(|relay| relay.client.is_some());
        let renewals = renewals.flat_map(|relay| relay.tokens.values().map(|token| token.renew));
        self.ask_at.into_iter().chain(clients).chain(again).chain(renewals).min()
    }

    /// Time has passed.
    pub fn on_time(&mut self, now: Instant) {
        let since_start = self.since_start(now);
        let late: Vec<(RelayId, u64)> = self
            .asked
            .iter()
            .filter(|(_, asked)| now >= **asked + ASK_AGAIN)
            .map(|(wanted, _)| *wanted)
            .collect();
        for (id, peer) in late {
            self.asked.remove(&(id, peer));
            // What nobody waits for any more is not asked for again.
            if self.known.get(&id).is_some_and(|relay| peer == 0 || relay.ports.contains_key(&peer)) {
                self.want_token(now, id, peer);
            }
        }
        let mut renew = Vec::new();
        for (id, relay) in self.known.iter_mut().filter(|(_, relay)| relay.client.is_some()) {
            for (peer, token) in &mut relay.tokens {
                if token.renew <= now {
                    token.renew = now + Duration::from_mins(1);
                    if *peer == 0 || relay.ports.contains_key(peer) {
                        renew.push((*id, *peer));
                    }
                }
            }
            if let Some((_, client)) = &mut relay.client {
                client.handle_timeout(since_start);
            }
        }
        for (id, peer) in renew {
            self.want_token(now, id, peer);
        }
        if self.ask_at.is_some_and(|at| at <= now) {
            self.ask(now);
        }
        self.drive(now);
    }

    /// Takes what the clients have to say.
    fn drive(&mut self, now: Instant) {
        let mut needed = Vec::new();
        for (id, relay) in &mut self.known {
            let Some((base, client)) = &mut relay.client else { continue };
            while let Some(transmit) = client.poll_transmit() {
                self.tasks.push_back(Task::Send(*base, transmit.to, transmit.bytes));
            }
            while let Some(event) = client.poll_event() {
                match event {
                    Event::Allocated { .. } => {}
                    Event::Bound { peer: NodeId(peer), at, .. } => {
                        let Some(known) = relay.ports.get_mut(&peer) else { continue };
                        if known.replace(at) != Some(at) {
                            self.news.push_back(News::PortUp(*id, peer));
                        }
                    }
                    Event::Unbound { peer: NodeId(peer) } => {
                        if let Some(known) = relay.ports.get_mut(&peer) {
                            *known = None;
                            self.news.push_back(News::PortDown(*id, peer, CarrierFailure::Lost));
                        }
                    }
                    Event::TokenNeeded { peer } => needed.push((*id, peer.map_or(0, |NodeId(peer)| peer))),
                    Event::Draining => relay.draining = true,
                    Event::Unreachable => {
                        for (peer, known) in &mut relay.ports {
                            *known = None;
                            let failure = CarrierFailure::Unreachable;
                            self.news.push_back(News::PortDown(*id, *peer, failure));
                        }
                    }
                }
            }
        }
        for (id, peer) in needed {
            self.want_token(now, id, peer);
        }
    }

    /// What is to be done.
    pub fn poll_task(&mut self) -> Option<Task> {
        self.tasks.pop_front()
    }

    /// What happened to paths.
    pub fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// The relays that paths may use, if that has changed notably since it was asked last.
    pub fn offers(&mut self, survey: &Survey) -> Option<Vec<RelayOffer>> {
        let mut changed = std::mem::take(&mut self.changed);
        for (id, relay) in &mut self.known {
            let offer = relay.offer(*id, survey);
            if differs(offer.udp, relay.told.udp) || differs(offer.tls, relay.told.tls) {
                relay.told = offer;
                changed = true;
            }
        }
        changed.then(|| self.offered())
    }

    /// The relays that paths may use.
    pub fn offered(&self) -> Vec<RelayOffer> {
        self.known.values().map(|relay| relay.told).collect()
    }
}

impl Relay {
    fn new(description: Description) -> Self {
        let blocked = Reach::Blocked;
        Self {
            told: RelayOffer { relay: description.number, udp: blocked, tls: blocked },
            description,
            client: None,
            ports: BTreeMap::new(),
            tokens: BTreeMap::new(),
            draining: false,
            stream: Stream::default(),
            riders: BTreeSet::new(),
        }
    }

    fn offer(&self, relay: RelayId, survey: &Survey) -> RelayOffer {
        let (has_udp, has_tls) = (self.description.udp_port != 0, self.description.derp_port != 0);
        let udp = if has_udp && !self.draining { survey.reach(relay) } else { Reach::Blocked };
        let tls = match self.stream {
            _ if self.draining || !has_tls => Reach::Blocked,
            Stream::Open(took) => Reach::Answers(took),
            // One that failed is tried again all the same: the machine decides when.
            Stream::Closed | Stream::Opening | Stream::Failed => Reach::Unknown,
        };
        RelayOffer { relay, udp, tls }
    }
}

fn differs(new: Reach, told: Reach) -> bool {
    match (new, told) {
        (Reach::Answers(new), Reach::Answers(told)) => {
            let change = new.abs_diff(told);
            change > NOTABLE && change > told / 5
        }
        (new, told) => new != told,
    }
}

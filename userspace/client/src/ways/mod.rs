//! The ways to all peers: the thin edge around one path machine (`ghostwire-path`) for each peer. Still without
//! sockets: datagrams, packets of streams, signals, changes of the network and time go in; [`Effect`]s come out.
//!
//! ```text
//! links, addresses ──────────┐                             ┌─► datagrams from WireGuard's port, packets for streams
//! datagrams, stream packets ─┤  survey ─┐                  ├─► which way packets of a peer take; whom to let in
//! first packets of peers ────┼──────────┼─► PathMachine ───┼─► signals for peers
//! signals, tokens, relays ───┤  relays ─┘    per peer      ├─► streams to open
//! traffic counters, time ────┘                             └─► packets for WireGuard
//! ```
//!
//! - [`checks`]: connectivity checks as bytes; [`signal`]: signals on the wire.
//! - [`survey`]: what STUN says of our addresses and our NAT; [`relays`]: bindings, tokens, streams.
//! - [`explain`]: the answers to `gwctl why`, `netcheck` and `status`.
//! - [`quic`]: connections with peers.
//! - [`derp`]: the client of a relay's stream; the daemon's `steering` connects all this to the kernel.
//!
//! A packet for a peer that has no way yet is kept (the last [`MOST_HELD`]) and sent as soon as there is one: the first
//! packet is a handshake, which WireGuard would repeat only after five seconds.

pub mod checks;
pub mod derp;
pub mod explain;
mod inward;
mod memory;
mod outward;
pub mod quic;
pub mod relays;
pub mod signal;
pub mod survey;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ghostwire_path::{
    Base, CandidateKind, Class, Config, Generation, InUse, Input, LocalCandidate, NatReport, PathMachine,
    RelayId, Socket, Steer, UplinkId,
};
use ghostwire_proto::keys::NodeKey;
use ghostwire_quic::PublicKey;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::quic::{OwnQuic, PeerQuic};
use self::relays::{Description, Relays};
use self::survey::Survey;
use crate::pb;

/// Packets kept for a peer that has no way yet.
pub const MOST_HELD: usize = 4;
/// For how long. WireGuard has a fresh handshake after that (REKEY_TIMEOUT).
const HELD_FOR: Duration = Duration::from_secs(5);
/// Checks that may be answered. Each peer's machine remembers a few itself.
const MOST_ASKED: usize = 16_384;
/// For how long a path that an earlier run left is better than hope.
const ADOPTED_FOR: Duration = Duration::from_secs(10);
/// A check that is not answered by then never will be.
const ASKED_FOR: Duration = Duration::from_secs(10);

/// A link of this node by which packets may leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Interface index.
    pub index: u32,
    /// Our addresses on it.
    pub addresses: Vec<IpAddr>,
}

/// A peer of the network map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its WireGuard key.
    pub key: NodeKey,
    /// Whether the coordinator sees it.
    pub online: bool,
}

/// Where packets of a peer go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// From a base to an address, as they are.
    Wire {
        /// From where.
        base: Base,
        /// To where.
        remote: SocketAddr,
        /// The remote is a relay's port.
        relayed: bool,
    },
    /// Through the QUIC connection with the peer.
    Quic {
        /// Where its other end is.
        remote: SocketAddr,
    },
    /// Through a relay's stream.
    Stream(RelayId),
}

impl Hop {
    /// Whether packets go through the daemon.
    pub fn is_carrier(self) -> bool {
        !matches!(self, Self::Wire { .. })
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send from WireGuard's port, or STUN from QUIC's, as the base says.
    Send {
        /// From where.
        base: Base,
        /// To where.
        remote: SocketAddr,
        /// What.
        bytes: Vec<u8>,
    },
    /// Send through a relay's stream, which is open.
    Stream {
        /// Which relay.
        relay: RelayId,
        /// To whom.
        to: NodeKey,
        /// What.
        bytes: Vec<u8>,
    },
    /// Hand a packet that came by a carrier to WireGuard.
    Deliver {
        /// From whom.
        peer: u64,
        /// By which carrier.
        class: Class,
        /// What.
        bytes: Vec<u8>,
    },
    /// Send through the QUIC connection with a peer.
    Quic {
        /// To whom.
        peer: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Connect with a peer by QUIC.
    OpenQuic {
        /// With whom.
        peer: u64,
        /// Who has this key.
        key: PublicKey,
        /// From our address.
        local: IpAddr,
        /// Where.
        remote: SocketAddr,
    },
    /// End the QUIC connection with a peer.
    CloseQuic {
        /// With whom.
        peer: u64,
    },
    /// QUIC connections to this remote leave from this address of ours from now on.
    MoveQuic {
        /// From here.
        local: IpAddr,
        /// To there.
        remote: SocketAddr,
    },
    /// Exactly those who have these keys may connect by QUIC.
    QuicPeers(HashSet<PublicKey>),
    /// Packets of a peer take these ways from now on; no way: keep them and show them.
    Use {
        /// Whose.
        peer: u64,
        /// This one.
        primary: Option<Hop>,
        /// And a copy by this one.
        also: Option<Hop>,
    },
    /// Packets from there are the peer's.
    Admit {
        /// Whose.
        peer: u64,
        /// From where.
        remote: SocketAddr,
        /// It is a relay's port.
        relayed: bool,
    },
    /// Not any more.
    Dismiss {
        /// Whose.
        peer: u64,
        /// From where.
        remote: SocketAddr,
    },
    /// Tell a peer, through the coordinator.
    Signal {
        /// Whom.
        to: u64,
        /// What.
        signal: Box<pb::Signal>,
    },
    /// Ask the coordinator for tokens.
    AskTokens(pb::RelayTokensRequest),
    /// Connect to a relay.
    OpenStream(Box<Description>),
    /// Hang up.
    CloseStream(RelayId),
}

#[derive(Debug)]
struct Peer {
    key: NodeKey,
    online: Option<bool>,
    machine: PathMachine,
    in_use: InUse,
    /// What the edge was told last.
    told: Option<(Option<Hop>, Option<Hop>)>,
    /// A way that has not proven itself, while there is no other: the kernel is not told of it, so that WireGuard's
    /// packets still come to us, go there, and are kept.
    hope: Option<Hop>,
    /// Remotes that are admitted, with the number of routes that lead there.
    admitted: BTreeMap<SocketAddr, u32>,
    /// What each admitted relay route leads to.
    relay_ports: BTreeMap<RelayId, SocketAddr>,
    quic: PeerQuic,
    held: VecDeque<(Instant, Vec<u8>)>,
    /// The way that was tried for them without being proven.
    held_tried: Option<Hop>,
    /// The kernel has a path of an earlier run, which stays until another is proven, or until this.
    adopted_until: Option<Instant>,
    /// The latest signal to it; the coordinator may not have it.
    signal: Option<pb::Signal>,
    /// What lasts of its latest signal.
    heard: Option<pb::Signal>,
    /// It knows our credentials from an earlier run.
    is_known: bool,
    /// What is wrong with its signals.
    trouble: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub struct Ways {
    own: NodeKey,
    own_quic: Option<OwnQuic>,
    port: u16,
    uplinks: Vec<Uplink>,
    /// Addresses that the operator says we are reached at.
    fixed: Vec<SocketAddr>,
    /// Given by the router: our address outside.
    mapped: Option<SocketAddr>,
    peers: BTreeMap<u64, Peer>,
    /// Our credentials' fragments.
    fragments: HashMap<String, u64>,
    keys: HashMap<NodeKey, u64>,
    asked: HashMap<[u8; 12], (u64, Instant)>,
    asked_order: VecDeque<(Instant, [u8; 12])>,
    survey: Survey,
    relays: Relays,
    nat: NatReport,
    candidates: Vec<LocalCandidate>,
    /// Peers to come that the kernel has a path for.
    adopted: BTreeMap<u64, Instant>,
    memory: memory::Memory,
    rng: StdRng,
    effects: VecDeque<Effect>,
}

impl Ways {
    /// A node without network and peers.
    pub fn new(now: Instant, own: NodeKey, seed: [u8; 32]) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let relays = Relays::new(now, StdRng::from_rng(&mut rng));
        Self {
            own,
            own_quic: None,
            port: 0,
            uplinks: Vec::new(),
            fixed: Vec::new(),
            mapped: None,
            peers: BTreeMap::new(),
            fragments: HashMap::new(),
            keys: HashMap::new(),
            asked: HashMap::new(),
            asked_order: VecDeque::new(),
            survey: Survey::new(),
            relays,
            nat: NatReport::default(),
            candidates: Vec::new(),
            adopted: BTreeMap::new(),
            memory: memory::Memory::default(),
            rng,
            effects: VecDeque::new(),
        }
    }

    /// What is to be done, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Self::on_time`] at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let machines = self.peers.values().filter_map(|peer| peer.machine.poll_timeout());
        machines.chain(self.survey.poll_timeout()).chain(self.relays.poll_timeout()).min()
    }

    /// Time has passed.
    pub fn on_time(&mut self, now: Instant) {
        let due: Vec<u64> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.machine.poll_timeout().is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.input(now, id, Input::Tick);
        }
        self.survey.set_active(now, self.is_active());
        for question in self.survey.on_time(now, &mut self.rng) {
            self.send(question.base, question.server, question.bytes);
        }
        if self.relays.poll_timeout().is_some_and(|at| at <= now) {
            self.relays.on_time(now);
        }
        self.forget_asked(now);
        self.settle(now);
    }

    /// Our links in order of preference, WireGuard's port, and what the operator and the router say about it.
    pub fn set_network(
        &mut self,
        now: Instant,
        uplinks: Vec<Uplink>,
        port: u16,
        fixed: Vec<SocketAddr>,
        mapped: Option<SocketAddr>,
    ) {
        let same = (&uplinks, port, &fixed, mapped) == (&self.uplinks, self.port, &self.fixed, self.mapped);
        if same {
            return;
        }
        (self.uplinks, self.port, self.fixed, self.mapped) = (uplinks, port, fixed, mapped);
        let bases = self.bases();
        self.relays.set_bases(now, bases);
        self.survey.set(now, self.all_bases(), self.relays.servers());
        let moved = self.move_quic();
        self.settle(now);
        for (id, route) in moved {
            self.input(now, id, Input::CarrierUp(route));
        }
        // Relays may be reached from another base now.
        let ids: Vec<u64> = self.peers.keys().copied().collect();
        for id in ids {
            self.tell_use(now, id);
        }
    }

    /// Where packets can leave, in order of preference.
    fn bases(&self) -> Vec<Base> {
        let of = |uplink: &Uplink| {
            let index = uplink.index;
            let base = move |address: &IpAddr| Base {
                uplink: UplinkId(index),
                address: SocketAddr::new(*address, self.port),
                socket: Socket::WireGuard,
            };
            uplink.addresses.iter().map(base).collect::<Vec<_>>()
        };
        if self.port == 0 { Vec::new() } else { self.uplinks.iter().flat_map(of).collect() }
    }

    fn local_candidates(&self) -> Vec<LocalCandidate> {
        let bases = self.bases();
        let host =
            |base: &Base| LocalCandidate { base: *base, kind: CandidateKind::Host, address: base.address };
        let mut candidates: Vec<LocalCandidate> = self.all_bases().iter().map(host).collect();
        for address in self.fixed.iter().chain(&self.mapped) {
            let of = bases.iter().find(|base| base.address.is_ipv4() == address.is_ipv4());
            candidates.extend(of.map(|base| LocalCandidate {
                base: *base,
                kind: CandidateKind::PortMapped,
                address: *address,
            }));
        }
        for (base, address) in self.survey.reflexive() {
            candidates.push(LocalCandidate { base, kind: CandidateKind::ServerReflexive, address });
        }
        candidates
    }

    /// Exactly the peers of the network map.
    pub fn set_peers(&mut self, now: Instant, wanted: &BTreeMap<u64, Neighbour>) {
        let gone: Vec<u64> = self
            .peers
            .iter()
            .filter(|(id, peer)| wanted.get(id).is_none_or(|neighbour| neighbour.key != peer.key))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.remove(now, id);
        }
        for (id, neighbour) in wanted {
            if !self.peers.contains_key(id) {
                self.add(now, *id, neighbour.key);
            }
            let known = self.peers.get_mut(id).map(|peer| peer.online.replace(neighbour.online));
            if known != Some(Some(neighbour.online)) {
                self.input(now, *id, Input::PeerOnline(neighbour.online));
            }
        }
        self.forget_strangers();
        self.settle(now);
    }

    fn add(&mut self, now: Instant, id: u64, key: NodeKey) {
        let (credentials, told) = self.recall(id, key);
        let is_known = credentials.is_some();
        let config = Config {
            controlling: self.own.as_bytes() > key.as_bytes(),
            generation: Generation(unix_ms()),
            credentials,
            // Needs further ports, which the edge does not open yet.
            birthday: false,
            seed: self.rng.random(),
        };
        let machine = PathMachine::new(config);
        self.fragments.insert(machine.credentials().fragment.clone(), id);
        self.keys.insert(key, id);
        let peer = Peer {
            key,
            online: None,
            machine,
            in_use: InUse::default(),
            told: None,
            hope: None,
            admitted: BTreeMap::new(),
            relay_ports: BTreeMap::new(),
            quic: PeerQuic::default(),
            held: VecDeque::new(),
            held_tried: None,
            adopted_until: self.adopted.remove(&id),
            signal: None,
            heard: None,
            is_known,
            trouble: None,
        };
        self.peers.insert(id, peer);
        self.input(now, id, Input::LocalCandidates(self.candidates.clone()));
        self.input(now, id, Input::Nat(self.nat));
        self.input(now, id, Input::Relays(self.relays.offered()));
        if let Some(told) = told {
            self.replay(now, id, &told);
        }
    }

    /// The kernel has a path for the peer that an earlier run of the daemon has left.
    pub fn adopt(&mut self, now: Instant, id: u64) {
        self.adopted.insert(id, now + ADOPTED_FOR);
    }

    fn remove(&mut self, now: Instant, id: u64) {
        let Some(peer) = self.peers.remove(&id) else { return };
        self.fragments.remove(&peer.machine.credentials().fragment);
        self.keys.remove(&peer.key);
        self.asked.retain(|_, (asked, _)| *asked != id);
        self.memory.changed = true;
        // The same number may belong to another machine from now on.
        for remote in peer.admitted.keys() {
            self.effects.push_back(Effect::Dismiss { peer: id, remote: *remote });
        }
        if peer.told.is_some() {
            self.effects.push_back(Effect::Use { peer: id, primary: None, also: None });
        }
        self.effects.push_back(Effect::CloseQuic { peer: id });
        self.tell_quic_peers();
        let relays: Vec<RelayId> = self.relays.all().map(|(relay, _)| relay.number).collect();
        for relay in relays {
            self.relays.unbind(now, relay, id);
            self.relays.alight(relay, id);
        }
    }

    /// All relays of the network map.
    pub fn set_relays(&mut self, now: Instant, relays: &[pb::Relay]) {
        self.relays.set(now, relays.iter().filter_map(Description::check).collect());
        self.survey.set(now, self.all_bases(), self.relays.servers());
        self.settle(now);
    }

    /// Whether the peer is one of ours.
    pub fn knows(&self, peer: u64) -> bool {
        self.peers.contains_key(&peer)
    }

    /// Peers for whom something is done now.
    pub fn awake(&self) -> impl Iterator<Item = u64> + '_ {
        self.peers.iter().filter(|(_, peer)| peer.machine.is_awake()).map(|(id, _)| *id)
    }

    /// Whether anything is done for any peer now.
    pub fn is_active(&self) -> bool {
        self.peers.values().any(|peer| peer.machine.is_awake())
    }

    /// An operator's wish for one peer.
    pub fn steer(&mut self, now: Instant, peer: u64, steer: Steer) {
        self.input(now, peer, Input::Steer(steer));
        self.settle(now);
    }

    /// An operator wants everything tried now.
    pub fn try_now(&mut self, now: Instant, peer: u64) {
        self.input(now, peer, Input::TryNow);
        self.settle(now);
    }

    /// Asks all relays again what they see of us.
    pub fn ask_world(&mut self, now: Instant) {
        self.survey.begin(now);
    }

    /// Whether an answer to that is still awaited.
    pub fn is_asking_world(&self) -> bool {
        self.survey.is_asking()
    }

    /// Carries news of survey and relays to the machines, until nothing moves any more.
    fn settle(&mut self, now: Instant) {
        loop {
            self.do_relay_tasks();
            if let Some(news) = self.relays.poll_news() {
                self.relay_news(now, news);
                continue;
            }
            let nat = self.survey.report();
            let candidates = self.local_candidates();
            let offers = self.relays.offers(&self.survey);
            let (new_nat, new_candidates) = (nat != self.nat, candidates != self.candidates);
            if !new_nat && !new_candidates && offers.is_none() {
                return;
            }
            self.nat = nat;
            self.candidates.clone_from(&candidates);
            let ids: BTreeSet<u64> = self.peers.keys().copied().collect();
            for id in ids {
                if new_nat {
                    self.input(now, id, Input::Nat(nat));
                }
                if new_candidates {
                    self.input(now, id, Input::LocalCandidates(candidates.clone()));
                }
                if let Some(offers) = &offers {
                    self.input(now, id, Input::Relays(offers.clone()));
                }
            }
        }
    }

    fn forget_asked(&mut self, now: Instant) {
        while let Some((at, transaction)) = self.asked_order.front().copied() {
            if now < at + ASKED_FOR && self.asked_order.len() <= MOST_ASKED {
                return;
            }
            self.asked_order.pop_front();
            self.asked.remove(&transaction);
        }
    }
}

/// Milliseconds since 1970.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

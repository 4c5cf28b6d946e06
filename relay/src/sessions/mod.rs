//! Who has a relay port and who is bound to whom. Without I/O: requests and the time go in, responses and
//! [`Event`]s come out, and the pair table is written.
//!
//! - [`config`]: what an operator chooses.
//! - [`legs`]: which addresses a relay sends to.
//! - `challenge`: that a node receives what is sent to its address.
//! - `ports`: the relay ports and which are free.
//! - `pairs`: two legs make a pair, and a pair two entries of the table.
//! - `control`: requests, from bytes to bytes.
//! - `bindings`: what requests do.
//! - [`journal`], `resume`: what outlives a restart.
//!
//! The protocol is described in `ghostwire_relay_protocol::control`.

mod bindings;
mod challenge;
pub mod config;
mod control;
pub mod journal;
pub mod legs;
mod pairs;
mod ports;
mod resume;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ed25519_dalek::VerifyingKey;
use ghostwire_relay_fastpath::Ip;
use ghostwire_relay_fastpath::table::{Header, Key, Lines, Writer, lines_needed};
use ghostwire_relay_protocol::token::{KeyNumber, NetworkId, NodeId};
use sha2::{Digest as _, Sha256};

use self::challenge::ChallengeKey;
use self::config::{Config, ConfigError, Secrets};
use self::journal::Record;
use self::legs::LegPolicy;
use self::pairs::{Leg, PairId, PairState};
use self::ports::Ports;
use crate::limits::{Bucket, SessionRate, Sources};

pub use self::control::Answer;

/// How often what has expired is looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// The time, as the caller's clocks show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since the relay's start; never goes back.
    pub monotonic: Duration,
    /// Seconds since 1970, for the expiry of tokens.
    pub unix: u64,
}

/// Where a datagram came to, and from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Which of the relay's addresses, as [`Config::locals`] counts them.
    pub local: u8,
    /// Which port. Host byte order.
    pub port: u16,
    /// From whom.
    pub source: SocketAddr,
}

/// A node of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The network.
    pub network: NetworkId,
    /// The node.
    pub node: NodeId,
}

/// What the shell around the core has to do, or to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Receive on this port, on all addresses. Before the response goes out; if it cannot be,
    /// [`Sessions::port_failed`].
    OpenPort(u16),
    /// Receive on it no more.
    ClosePort(u16),
    /// What a restarted relay has to know, before the response goes out.
    Record(Record),
    /// A session has begun, or its rate has changed.
    SessionOpened {
        /// Its number in the pair table.
        session: u32,
        /// What it may send.
        rate: SessionRate,
    },
    /// A session has ended.
    SessionClosed {
        /// Its number.
        session: u32,
    },
    /// A pair carries traffic from now on, or carries it elsewhere. Who knows the way to both ends may say so by
    /// [`Sessions::set_same_way`].
    PairConnected {
        /// Its session.
        session: u32,
        /// Where both ends are.
        ends: [IpAddr; 2],
    },
    /// Something that is not bound sent WireGuard datagrams to a live port: most likely one of this node's peers,
    /// whose address a NAT has changed. The coordinator prompts its peers to bind again.
    UnknownSource {
        /// Whose port.
        owner: Owner,
        /// From where.
        source: SocketAddr,
    },
}

/// What has been counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct ControlCounters {
    pub stun_answered: u64,
    pub malformed: u64,
    pub source_limited: u64,
    pub challenged: u64,
    pub stale_challenges: u64,
    pub crypto_limited: u64,
    pub token_refused: u64,
    pub integrity_refused: u64,
    pub legs_refused: u64,
    pub out_of_order: u64,
    pub quota_refused: u64,
    pub granted: u64,
    pub refused: u64,
    pub rebound: u64,
    pub reports_limited: u64,
}

/// The place of a request in its session: by the token's age, then by the session's own count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    /// When the token was issued, in seconds since 1970.
    pub issued: u64,
    /// The session's count.
    pub sequence: u64,
}

/// A node's relay port.
#[derive(Clone, Debug)]
struct Allocation {
    port: u16,
    expires: Duration,
    order: Order,
    /// From where it was last asked for; what it counts for in the quota per address.
    source: SocketAddr,
    /// How many pairs the node is in.
    pairs: usize,
}

/// The core. `T` is the memory of the pair table.
#[derive(Debug)]
pub struct Sessions<T> {
    config: Config,
    secrets: Secrets,
    legs: LegPolicy,
    challenge: ChallengeKey,
    table: Writer<T>,
    ports: Ports,
    allocations: HashMap<Owner, Allocation>,
    pairs: HashMap<PairId, PairState>,
    /// The pair of each session.
    pair_of: HashMap<u32, PairId>,
    /// Which leg a table's key belongs to, also of legs whose peer has not bound yet.
    bound: HashMap<Key, Owner>,
    numbers: ports::Numbers,
    sources: Sources,
    crypto: Bucket,
    reports: Bucket,
    events: VecDeque<Event>,
    counters: ControlCounters,
    next_sweep: Duration,
    draining: bool,
}

impl<T: Lines> Sessions<T> {
    /// How many lines the pair table of a configuration takes.
    pub fn table_lines(config: &Config) -> Result<u32, ConfigError> {
        Ok(table_size(config)?.0)
    }

    /// A relay with nothing on it. `table` holds at least [`Sessions::table_lines`] lines; `seed` are random bytes.
    pub fn new(config: Config, secrets: Secrets, table: T, seed: &[u8; 32]) -> Result<Self, ConfigError> {
        config.check()?;
        let (_, log2_buckets) = table_size(&config)?;
        let header = Header {
            log2_buckets,
            seed: derived_word(seed, b"table"),
            main_port: config.main_port,
            first_port: *config.ports.start(),
            last_port: *config.ports.end(),
        };
        let locals: Vec<Ip> = config.locals.iter().map(|local| local.local.into()).collect();
        let table = Writer::format(table, header, &locals).map_err(|_| ConfigError::TableMemory)?;
        Ok(Self::with_table(config, secrets, table, seed))
    }

    fn with_table(config: Config, secrets: Secrets, table: Writer<T>, seed: &[u8; 32]) -> Self {
        Self {
            legs: LegPolicy::new(&config),
            challenge: ChallengeKey::new(derived(seed, b"challenge")),
            sources: Sources::new(derived_word(seed, b"sources"), config.limits.control),
            ports: Ports::new(&config.ports, derived_word(seed, b"ports")),
            numbers: ports::Numbers::new(config.limits.pairs),
            allocations: HashMap::new(),
            pairs: HashMap::new(),
            pair_of: HashMap::new(),
            bound: HashMap::new(),
            crypto: Bucket::default(),
            reports: Bucket::default(),
            events: VecDeque::new(),
            counters: ControlCounters::default(),
            next_sweep: SWEEP,
            draining: false,
            table,
            secrets,
            config,
        }
    }

    /// What the relay was told to be.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whose tokens are good from now on.
    pub fn set_coordinators(&mut self, coordinators: Vec<(KeyNumber, VerifyingKey)>) {
        self.secrets.coordinators = coordinators;
    }

    /// The pair table, to read.
    pub fn table(&self) -> &T {
        self.table.table()
    }

    /// What has been counted.
    pub fn counters(&self) -> ControlCounters {
        self.counters
    }

    /// How many nodes have a port, and how many pairs carry traffic.
    pub fn load(&self) -> (usize, usize) {
        let carrying = self.pairs.values().filter(|pair| pair.is_complete()).count();
        (self.allocations.len(), carrying)
    }

    /// The next thing to do. Empty the queue after every call.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Sessions::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Duration {
        self.next_sweep
    }

    /// Lets expire what has not been refreshed.
    pub fn handle_timeout(&mut self, now: Now) {
        if now.monotonic < self.next_sweep {
            return;
        }
        self.next_sweep = now.monotonic + SWEEP;
        self.expire(now.monotonic);
    }

    /// Says that the relay is about to stop: no new allocations; what is there goes on, and its nodes learn with
    /// their next refresh that they should move.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// The shell could not receive on a port: its owner loses it, and it is not given out again.
    pub fn port_failed(&mut self, port: u16) {
        if let Some(owner) = self.ports.owner(port) {
            self.release_allocation(owner);
        }
        self.ports.retire(port);
    }

    /// Tells of a WireGuard datagram from a source that is not bound. Nothing is learnt from it; at most it is
    /// reported.
    pub fn handle_unknown_source(&mut self, now: Now, arrival: Arrival) {
        let Some(owner) = self.ports.owner(arrival.port) else { return };
        let reported = self.ports.may_report(arrival.port, now.monotonic, self.config.limits.report_interval)
            && self.reports.admit(self.config.limits.reports, now.monotonic, 1);
        if reported {
            self.ports.reported(arrival.port, now.monotonic);
            self.events.push_back(Event::UnknownSource { owner, source: arrival.source });
        } else {
            self.counters.reports_limited += 1;
        }
    }
}

/// Secrets for different uses, none of which tells anything about another.
fn derived(seed: &[u8; 32], purpose: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed);
    hash.update(purpose);
    hash.finalize().into()
}

fn derived_word(seed: &[u8; 32], purpose: &[u8]) -> u64 {
    derived(seed, purpose).first_chunk().copied().map_or(0, u64::from_be_bytes)
}

fn table_size(config: &Config) -> Result<(u32, u32), ConfigError> {
    let entries = config.limits.pairs.checked_mul(2).ok_or(ConfigError::TooManyPairs)?;
    lines_needed(entries).ok_or(ConfigError::TooManyPairs)
}

/// The table's key of a leg: its owner's address at the peer's port.
fn key_of(leg: &Leg, peer_port: u16) -> Key {
    Key { local: leg.local, port: peer_port, source: leg.source.into() }
}

//! What the two sides tell each other through the coordinator, and candidates.
//!
//! A [`Signal`] is a state, not an event: it holds everything, and the one with the highest
//! ([`Generation`], revision) wins. Lost, repeated and reordered signals do no harm, and a signal that was
//! stored while the coordinator was away is still good. Trickling a candidate (RFC 8838) is a new revision.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt;
use zeroize::Zeroize;

use crate::route::{Base, RelayId, Socket};

/// Which life of a node's machine a signal comes from. Grows with every start of the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// How an address became known (RFC 8445 section 5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// An address of an interface.
    Host,
    /// Seen in a check of the peer; never signalled.
    PeerReflexive,
    /// Given by the router (UPnP, NAT-PMP, PCP).
    PortMapped,
    /// Seen by a STUN server.
    ServerReflexive,
    /// The NAT's address with our own port: right for NATs that preserve ports whenever they can.
    Guessed,
}

impl CandidateKind {
    /// RFC 8445 section 5.1.2.2. The router's mapping is as good as a server-reflexive one, and lasts.
    fn preference(self) -> u32 {
        match self {
            Self::Host => 126,
            Self::PeerReflexive => 110,
            Self::PortMapped => 105,
            Self::ServerReflexive => 100,
            Self::Guessed => 50,
        }
    }
}

impl fmt::Display for CandidateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::PeerReflexive => "peer-reflexive",
            Self::PortMapped => "port-mapped",
            Self::ServerReflexive => "server-reflexive",
            Self::Guessed => "guessed",
        })
    }
}

/// One of our own candidates as the edge gathered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalCandidate {
    /// Where packets leave.
    pub base: Base,
    /// How the address became known.
    pub kind: CandidateKind,
    /// The address as the peer can use it; for a host candidate the base's.
    pub address: SocketAddr,
}

/// A candidate in a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// The socket behind it.
    pub socket: Socket,
    /// How the address became known.
    pub kind: CandidateKind,
    /// The address.
    pub address: SocketAddr,
    /// RFC 8445 section 5.1.2.
    pub priority: u32,
}

/// RFC 8445 section 5.1.2.1 with one component; IPv6 before IPv4 (RFC 8421), then the order of the uplinks.
pub(crate) fn priority(kind: CandidateKind, address: SocketAddr, position: usize) -> u32 {
    let family = if address.is_ipv6() { 0x8000 } else { 0 };
    let position = u32::try_from(position.min(0x7fff)).unwrap_or(0x7fff);
    (kind.preference() << 24) | ((family + 0x7fff - position) << 8) | 255
}

/// RFC 8445 section 6.1.2.3: both sides compute the same.
pub(crate) fn pair_priority(controlling: bool, own: u32, peers: u32) -> u64 {
    let (own, peers) = (u64::from(own), u64::from(peers));
    let tie = if controlling { own > peers } else { peers > own };
    (own.min(peers) << 32) + 2 * own.max(peers) + u64::from(tie)
}

/// Short-term credentials of RFC 8445 section 5.3 for the checks that a node receives.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name fragment; not secret.
    pub fragment: String,
    /// The key of MESSAGE-INTEGRITY. Secret: it shows up in no log.
    pub password: String,
}

impl Credentials {
    /// 48 and 192 random bits (RFC 8445 asks for 24 and 128).
    pub(crate) fn generate(rng: &mut impl RngExt) -> Self {
        // The characters that RFC 8839 allows in credentials: 64 of them, six bits each.
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = |length: usize| -> String {
            (0..length).map(|_| char::from(ALPHABET[usize::from(rng.random::<u8>() % 64)])).collect()
        };
        Self { fragment: text(8), password: text(32) }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("fragment", &self.fragment).finish_non_exhaustive()
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.password.zeroize();
    }
}

/// How a side can reach a relay by one of its transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Not measured yet: worth a try.
    Unknown,
    /// With this round trip time.
    Answers(Duration),
    /// Not at all.
    Blocked,
}

impl Reach {
    /// What to reckon with.
    pub(crate) fn latency(self) -> Option<Duration> {
        match self {
            Self::Unknown => Some(Duration::from_millis(100)),
            Self::Answers(latency) => Some(latency),
            Self::Blocked => None,
        }
    }
}

/// A relay that a side can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelayOffer {
    /// Which.
    pub relay: RelayId,
    /// Its UDP ports.
    pub udp: Reach,
    /// Its TLS stream.
    pub tls: Reach,
}

/// How a NAT assigns ports to the flows of one local port (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// Not known.
    #[default]
    Unknown,
    /// No NAT, or the same port for all remotes: what STUN sees, everybody can use.
    EndpointIndependent,
    /// Another port for each remote address, or address and port: a "hard" or "symmetric" NAT.
    EndpointDependent,
}

/// What a side knows about the network that it is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NatReport {
    /// The NAT's mapping behaviour.
    pub mapping: Mapping,
    /// Whether UDP reaches the Internet; `None`: not known.
    pub udp: Option<bool>,
}

impl NatReport {
    pub(crate) fn is_hard(self) -> bool {
        self.mapping == Mapping::EndpointDependent
    }
}

/// A call for checks at the same time on both sides, which is what opens the NATs. Grows with every call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// Number of the call within the generation.
    pub number: u32,
    /// Birthday probing is wanted, not only checks.
    pub birthday: bool,
}

/// Everything that a side tells the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signal {
    /// The sender's life.
    pub generation: Generation,
    /// Grows within a generation.
    pub revision: u32,
    /// For checks sent to the sender.
    pub credentials: Credentials,
    /// Where the sender may be reached.
    pub candidates: Vec<Candidate>,
    /// Relays that the sender can use.
    pub relays: Vec<RelayOffer>,
    /// The sender's NAT.
    pub nat: NatReport,
    /// The sender's latest call for checks.
    pub attempt: Attempt,
    /// The generation of the receiver that the sender knows. If it is higher than the receiver's own, the
    /// receiver's clock has been set back and it jumps ahead.
    pub heard: Option<Generation>,
}

impl Signal {
    /// Whether this replaces the other.
    pub(crate) fn is_newer_than(&self, other: &Self) -> bool {
        (self.generation, self.revision) > (other.generation, other.revision)
    }
}

//! What goes in and what comes out.

use std::net::{IpAddr, SocketAddr};

use crate::route::{Base, Class, Framing, PathId, RelayId, Route};
use crate::signal::{LocalCandidate, NatReport, RelayOffer, Signal};

/// Transaction identifier of RFC 8489.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Transaction(pub [u8; 12]);

/// A connectivity check: an authenticated STUN binding request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// By which way. For [`Framing::Stun`] on a pair of the QUIC socket: that socket, outside of a connection.
    pub route: Route,
    /// How it is dressed.
    pub framing: Framing,
    /// To be repeated by the answer.
    pub transaction: Transaction,
    /// PRIORITY: what the sender would have as peer-reflexive candidate.
    pub priority: u32,
    /// USE-CANDIDATE: the controlling side uses this path.
    pub nominate: bool,
    /// The sender's latest call for checks, for when the coordinator is away.
    pub attempt: u32,
}

/// Why the edge could not open a carrier, or lost it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CarrierFailure {
    /// Nobody answered.
    Unreachable,
    /// Somebody said no: wrong identity, no right, full.
    Refused,
    /// It was up and ended.
    Lost,
}

/// Which paths an operator means. Empty: all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Of this kind.
    pub class: Option<Class>,
    /// To this address.
    pub remote: Option<SocketAddr>,
    /// To any port of this address.
    pub address: Option<IpAddr>,
    /// Through this relay.
    pub relay: Option<RelayId>,
}

impl Filter {
    /// Whether the operator means it.
    pub fn matches(&self, route: &Route) -> bool {
        self.class.is_none_or(|class| class == route.class())
            && self.remote.is_none_or(|remote| Some(remote) == route.remote())
            && self.address.is_none_or(|ip| route.remote().is_some_and(|remote| remote.ip() == ip))
            && self.relay.is_none_or(|relay| Some(relay) == route.relay())
    }
}

/// An operator's wish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Steer {
    /// None: the best path is used.
    #[default]
    Automatic,
    /// These paths come before all others as long as they work.
    Prefer(Filter),
    /// Only these paths; if none works, nothing does.
    Pin(Filter),
}

/// What the edge tells the machine.
#[derive(Clone, Debug)]
pub enum Input {
    /// The time asked for by [`poll_timeout`](crate::PathMachine::poll_timeout) has come.
    Tick,
    /// All local candidates: at start, and whenever an uplink or an address came, went or changed.
    LocalCandidates(Vec<LocalCandidate>),
    /// All relays that this node may use.
    Relays(Vec<RelayOffer>),
    /// What is known about our NAT.
    Nat(NatReport),
    /// The ports asked for by [`Output::OpenAuxiliaryPorts`].
    AuxiliaryPorts(Vec<Base>),
    /// From the peer.
    Signal(Box<Signal>),
    /// Whether the coordinator sees the peer. Only for explanations: paths live without the coordinator.
    PeerOnline(bool),
    /// A check arrived whose integrity the edge has verified with our credentials.
    CheckReceived(Check),
    /// An answer arrived whose integrity the edge has verified with the peer's credentials.
    CheckAnswered {
        /// Of the check.
        transaction: Transaction,
        /// By which way the answer came.
        route: Route,
    },
    /// The relay is bound, the QUIC connection is established (by us or by the peer).
    CarrierUp(Route),
    /// Not, or no longer.
    CarrierDown(Route, CarrierFailure),
    /// WireGuard has sent data to the peer since the last report (not persistent keepalives, which should be
    /// off). At once when the peer was idle, else a few times a second while it lasts.
    Sent,
    /// WireGuard has received something authentic from the peer since the last report.
    Received,
    /// An operator's wish.
    Steer(Steer),
    /// An operator wants everything tried now.
    TryNow,
    /// The node slept, or its clock jumped.
    Resumed,
}

/// Which paths carry the traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Packets go here. None: nowhere to send to.
    pub primary: Option<(PathId, Route)>,
    /// And a copy here, while the first is in doubt; WireGuard drops the second copy.
    pub also: Option<(PathId, Route)>,
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send a check.
    SendCheck(Check),
    /// Answer a check that was received, by the way and in the dress that it came.
    Answer {
        /// The way.
        route: Route,
        /// The dress.
        framing: Framing,
        /// Of the check.
        transaction: Transaction,
    },
    /// Tell the peer through the coordinator. Only the latest counts; keep it until the coordinator has it.
    Signal(Box<Signal>),
    /// Bind at the relay, connect to it, or connect by QUIC; answer with [`Input::CarrierUp`] or
    /// [`Input::CarrierDown`].
    Open(PathId, Route),
    /// Needed no more.
    Close(PathId, Route),
    /// The peer has proven that it is there: let its packets in from there (the REV map).
    Admit(PathId, Route),
    /// The path is gone: stop admitting after a grace period.
    Dismiss(PathId, Route),
    /// These paths from now on (the PATH map).
    Use(InUse),
    /// Open this many further UDP ports beside the base for birthday probing.
    OpenAuxiliaryPorts {
        /// Same uplink and address as this.
        base: Base,
        /// How many.
        count: u16,
    },
    /// Close these again.
    CloseAuxiliaryPorts(Vec<Base>),
}

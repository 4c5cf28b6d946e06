//! What the XDP program and userspace say to each other besides the pair table: names and layouts of maps.

use crate::pace::EventPace;

/// The program.
pub const PROGRAM: &str = "relay";

/// The pair table: an array of lines of 64 bytes that userspace maps into its memory.
pub const PAIRS: &str = "PAIRS";

/// [`Settings`] as words.
pub const SETTINGS: &str = "SETTINGS";

/// Packets and bytes by [`Counter`], for each processor.
pub const COUNTERS: &str = "COUNTERS";

/// Numbers of the interfaces that frames may be redirected to.
pub const INTERFACES: &str = "INTERFACES";

/// What becomes of a packet that is for the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Counter {
    /// Sent back to the neighbour that it came from.
    Returned = 0,
    /// The same, by the other IP version.
    Crossed = 1,
    /// Sent to another neighbour.
    Routed = 2,
    /// A STUN request, answered.
    Stun = 3,
    /// A request to the relay, passed to userspace.
    Control = 4,
    /// Dropped: neither WireGuard nor STUN.
    NotWireGuard = 5,
    /// Dropped, or passed to userspace at a limited rate: from nobody who may send to this port.
    UnknownSource = 6,
    /// Dropped: passed too many routers.
    HopLimit = 7,
    /// Passed to userspace: the table changed each time it was read.
    Busy = 8,
    /// Dropped: the session sends too much.
    Paced = 9,
    /// Dropped: the session sends too many handshakes.
    Handshakes = 10,
    /// Passed to userspace: a fragment.
    Fragment = 11,
    /// Passed to userspace: IP options, extension headers or lengths that do not agree.
    Unusual = 12,
    /// Passed to userspace: the kernel knows no neighbour for it, or one behind an interface without XDP.
    NoNeighbour = 13,
    /// Passed to userspace: without the checksum that IPv6 needs, or without room for its header.
    NotRewritten = 14,
    /// Dropped half rewritten, which should not happen.
    Spoilt = 15,
    /// Dropped: too many STUN requests from one source.
    StunLimited = 16,
}

impl Counter {
    /// All, in order.
    pub const ALL: [Self; 17] = [
        Self::Returned,
        Self::Crossed,
        Self::Routed,
        Self::Stun,
        Self::Control,
        Self::NotWireGuard,
        Self::UnknownSource,
        Self::HopLimit,
        Self::Busy,
        Self::Paced,
        Self::Handshakes,
        Self::Fragment,
        Self::Unusual,
        Self::NoNeighbour,
        Self::NotRewritten,
        Self::Spoilt,
        Self::StunLimited,
    ];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::Crossed => "crossed",
            Self::Routed => "routed",
            Self::Stun => "stun",
            Self::Control => "control",
            Self::NotWireGuard => "not_wireguard",
            Self::UnknownSource => "unknown_source",
            Self::HopLimit => "hop_limit",
            Self::Busy => "busy",
            Self::Paced => "rate_limited",
            Self::Handshakes => "handshakes_limited",
            Self::Fragment => "fragment",
            Self::Unusual => "unusual",
            Self::NoNeighbour => "no_neighbour",
            Self::NotRewritten => "not_rewritten",
            Self::Spoilt => "spoilt",
            Self::StunLimited => "stun_limited",
        }
    }
}

/// How many counters there are.
pub const COUNTERS_LEN: usize = Counter::ALL.len();

/// Packets and bytes of each, one after the other. Flat: maps of arrays of arrays are not made everywhere.
pub type CounterWords = [u64; 2 * COUNTERS_LEN];

/// What the program is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Handshakes of a session.
    pub handshakes: EventPace,
    /// STUN requests of a source.
    pub stun: EventPace,
    /// Datagrams from unknown sources that go to userspace, on each processor.
    pub reports: EventPace,
}

/// [`Settings`] in their map.
pub type SettingsWords = [u64; 6];

impl Settings {
    /// To the map.
    pub const fn words(&self) -> SettingsWords {
        let Self { handshakes, stun, reports } = self;
        [handshakes.cost, handshakes.burst, stun.cost, stun.burst, reports.cost, reports.burst]
    }
}

/// Words of [`Settings`].
pub mod setting {
    /// [`super::Settings::handshakes`]
    pub const HANDSHAKES: usize = 0;
    /// [`super::Settings::stun`]
    pub const STUN: usize = 2;
    /// [`super::Settings::reports`]
    pub const REPORTS: usize = 4;
}

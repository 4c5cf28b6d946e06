//! What the programs tell userspace: counters by reason, and sampled events about single packets.

/// Why a packet passed or was dropped. Index of the per-CPU counters; every packet counts once.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Passed: the image allows it.
    Policy = 0,
    /// Passed: belongs to a connection that this side opened.
    Connection = 1,
    /// Passed: the answer to something that inbound policy allows (egress only).
    Reply = 2,
    /// Passed: an ICMP error about a permitted flow.
    IcmpError = 3,
    /// Passed: a later fragment of an admitted datagram.
    Fragment = 4,
    /// Dropped: no image is loaded, or it is of another layout.
    NoImage = 5,
    /// Dropped: no rule allows it.
    Denied = 6,
    /// Dropped: the address on the far side belongs to no known peer.
    UnknownRemote = 7,
    /// Dropped: the address on this side is neither ours nor in a subnet that we route.
    NotLocal = 8,
    /// Dropped: truncated or contradictory headers.
    Malformed = 9,
    /// Dropped: a later fragment whose first fragment was not admitted.
    OrphanFragment = 10,
    /// Dropped: an ICMP error about a flow that is not permitted.
    UnrelatedIcmpError = 11,
    /// Dropped: a segment that does not fit the state of its connection.
    InvalidState = 12,
    /// Dropped: not IPv4 or IPv6, or multicast and link-local, which a mesh does not carry.
    Unsupported = 13,
    /// Dropped: needed new state, and its source creates state too fast.
    StateRateLimited = 14,
    /// Passed although denied: shadow mode.
    Shadow = 15,
}

impl Reason {
    /// Number of counters.
    pub const COUNT: u32 = 16;

    /// All reasons, by number.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::Policy,
        Self::Connection,
        Self::Reply,
        Self::IcmpError,
        Self::Fragment,
        Self::NoImage,
        Self::Denied,
        Self::UnknownRemote,
        Self::NotLocal,
        Self::Malformed,
        Self::OrphanFragment,
        Self::UnrelatedIcmpError,
        Self::InvalidState,
        Self::Unsupported,
        Self::StateRateLimited,
        Self::Shadow,
    ];

    /// The reason with a number.
    pub fn from_index(index: u32) -> Option<Self> {
        Self::ALL.get(index as usize).copied()
    }
}

const _: () = {
    let mut index = 0;
    while index < Reason::COUNT as usize {
        assert!(Reason::ALL[index] as usize == index);
        index += 1;
    }
};

/// All counters of one CPU, the value of the counter map: indexed by `direction * Reason::COUNT + reason`.
pub type Counters = [Counter; 2 * Reason::COUNT as usize];

/// Direction as seen by this node.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the tunnel to this node.
    Ingress = 0,
    /// From this node into the tunnel.
    Egress = 1,
}

/// What happened to the packet of an [`Event`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It passed (reported only when accept sampling is on).
    Pass = 0,
    /// It was dropped.
    Drop = 1,
    /// Shadow mode let it pass; the policy would have dropped it.
    WouldDrop = 2,
}

/// A counter pair.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets; a GRO aggregate counts as one.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
}

/// What one CPU remembers in order to limit its events.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limiter {
    /// Monotonic nanoseconds at which the current second began.
    pub window_ns: u64,
    /// Events sent in it.
    pub sent: u64,
    /// Events suppressed since the last one sent.
    pub suppressed: u64,
    /// Accepted packets seen while accepted packets are sampled.
    pub accepts: u64,
}

/// One packet, as told through the ring buffer. Userspace names the rule: it keeps the compiled policy of
/// recent generations and evaluates the tuple again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub time_ns: u64,
    /// Source address; IPv4 is IPv4-mapped.
    pub src: [u8; 16],
    /// Destination address; IPv4 is IPv4-mapped.
    pub dst: [u8; 16],
    /// Source port, 0 where the protocol has none (ICMP: the type). Network byte order.
    pub src_port_be: u16,
    /// Destination port, 0 where the protocol has none (ICMP: the code). Network byte order.
    pub dst_port_be: u16,
    /// Generation of the image that judged it, 0 without an image.
    pub generation: u32,
    /// Bytes from the IP header on.
    pub length: u32,
    /// A [`Reason`].
    pub reason: u32,
    /// Remote class in the matrix of `direction`.
    pub remote_class: u16,
    /// Local class in the matrix of `direction`.
    pub local_class: u16,
    /// Service class in the matrix of `direction`.
    pub service_class: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// 4 or 6; 0 where the packet is neither.
    pub family: u8,
    /// An [`Action`].
    pub action: u8,
    /// A [`Direction`].
    pub direction: u8,
    /// TCP flags byte, else 0.
    pub tcp_flags: u8,
    /// Zero.
    pub pad: [u8; 5],
    /// Events that the rate limit suppressed on this CPU since the last one.
    pub suppressed: u64,
}

const _: () = {
    assert!(size_of::<Counter>() == 16);
    assert!(size_of::<Limiter>() == 32);
    assert!(size_of::<Event>() == 80);
};

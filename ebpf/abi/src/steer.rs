//! Stable endpoints: keys and values of the maps that steer WireGuard's datagrams, and the addresses that stand for
//! peers.
//!
//! A peer is known by the low 16 bits of its overlay address. WireGuard sends to its synthetic address; an array
//! holds one word for each peer, which names one or two slots of the path table. A slot does not change while a word or
//! an admission names it, so a switch is one store of 64 bits and no packet sees half of it.

use crate::event::Counter;

/// Layout of the maps. Another number: they are made anew.
pub const LAYOUT: u32 = 1;

/// The first half of every peer's synthetic IPv4 address: 198.18.0.0/16, of the 198.18.0.0/15 of RFC 2544, which
/// nobody routes.
pub const PEERS4: u16 = 0xc612;

/// Our end of the synthetic IPv4 network.
pub const OWN4: [u8; 4] = [198, 19, 0, 1];

/// The first 14 bytes of every peer's synthetic IPv6 address: a unique local prefix that never leaves the host.
pub const PEERS6: [u8; 14] = [0xfd, 0x67, 0x77, 0x73, 0x74, 0x65, 0x65, 0x72, 0, 0, 0, 0, 0, 0];

/// Our end of the synthetic IPv6 network.
pub const OWN6: [u8; 16] = [0xfd, 0x67, 0x77, 0x73, 0x74, 0x65, 0x65, 0x72, 0, 0, 0, 0, 0, 1, 0, 1];

/// Port of every stable endpoint.
pub const STABLE_PORT: u16 = 51820;

/// `tc_index` of the copy of a packet: on its way to the second path, or to the controller. It is given and taken between
/// two runs of one program on one device.
pub const COPY: u32 = 0x4757;

/// The array with one word for each peer.
pub mod peers {
    /// Number of words: every value of 16 bits.
    pub const COUNT: u32 = 1 << 16;

    /// The word for two slots; 0: none.
    pub const fn word(primary: u16, also: u16) -> u64 {
        primary as u64 | (also as u64) << 16
    }

    /// Slot of the path that packets take, 0: there is none.
    #[expect(clippy::cast_possible_truncation, reason = "a field is cut out of a wider word")]
    pub const fn primary(word: u64) -> u16 {
        word as u16
    }

    /// Slot of the path that a copy takes, 0: there is none.
    #[expect(clippy::cast_possible_truncation, reason = "a field is cut out of a wider word")]
    pub const fn also(word: u64) -> u16 {
        (word >> 16) as u16
    }
}

/// Slots of the path table and of the counters beside it. Slot 0 stays empty.
pub const SLOTS: u32 = 16_384;

/// Kinds of [`Path::kind`].
pub mod kind {
    /// Nothing.
    pub const FREE: u32 = 0;
    /// Out by an uplink, over IPv4.
    pub const WIRE4: u32 = 4;
    /// Out by an uplink, over IPv6.
    pub const WIRE6: u32 = 6;
    /// To whoever reads from the device: userspace.
    pub const CARRIER: u32 = 1;
    /// No way out: counts what comes in from an admitted remote.
    pub const ADMISSION: u32 = 2;
}

/// A slot of the path table. Addresses as they lie in a packet, IPv4 in the first word.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// One of [`kind`].
    pub kind: u32,
    /// Index of the interface.
    pub uplink: u32,
    /// Most bytes from the IP header on.
    pub mtu: u32,
    /// 1: the interface has no Ethernet header.
    pub layer3: u32,
    /// Our address.
    pub local: [u32; 4],
    /// The far address.
    pub remote: [u32; 4],
    /// Our port, then the far port, as they lie in a packet.
    pub ports: u32,
    /// The peer.
    pub peer: u16,
    /// What the path is counted as: the number of a class that userspace knows.
    pub class: u16,
}

/// Most rows of the array of [`Count`]s; each has [`SLOTS`] of them. A CPU counts in the row of its number, modulo the
/// number of rows, a power of two. With more CPUs than rows a packet may be missing in the counters now and then.
pub const MAX_ROWS: u32 = 8;

/// What went by one slot. In memory that userspace reads directly, so that asking often costs nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets; an aggregate counts as one.
    pub packets: u64,
    /// Bytes of UDP payload.
    pub bytes: u64,
    /// `CLOCK_MONOTONIC_COARSE` nanoseconds of the last one, 0: there was none.
    pub last_ns: u64,
    /// Zero.
    pub pad: u64,
}

/// Who may be let in as which peer: an IPv4 address and port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote4 {
    /// The address as it lies in a packet.
    pub addr: u32,
    /// Port in network byte order.
    pub port_be: u16,
    /// Zero.
    pub pad: u16,
}

/// Who may be let in as which peer: an IPv6 address and port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote6 {
    /// The address as it lies in a packet.
    pub addr: [u32; 4],
    /// Port in network byte order.
    pub port_be: u16,
    /// Zero.
    pub pad: u16,
}

/// As whom a remote is let in.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The peer.
    pub peer: u16,
    /// Slot that counts it.
    pub slot: u16,
}

/// Words of the bitmap of further ports.
pub const PORT_WORDS: u32 = 65_536 / 64;

/// The one value of the configuration map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Index of the device that WireGuard's endpoints are routed to; 0: everything is dropped or passed by.
    pub device: u32,
    /// WireGuard's port: the node's. Network byte order.
    pub wireguard_port_be: u16,
    /// Port of the controller's socket, 0: there is none. Network byte order.
    pub controller_port_be: u16,
    /// 4 or 6: family of the stable endpoints.
    pub family: u32,
    /// Packets from unknown sources that reach the controller, per second and CPU.
    pub unknown_per_second: u32,
    /// STUN messages and checks that reach it, per second and CPU.
    pub control_per_second: u32,
}

/// What one CPU remembers in order to limit what reaches the controller.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limiter {
    /// Nanoseconds at which the current second began.
    pub window_ns: u64,
    /// Packets from unknown sources in it.
    pub unknown: u32,
    /// Messages for the controller in it.
    pub control: u32,
}

/// What happened to a packet that did not just take its path. Index of the per-CPU counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Dropped: to the device, but not a datagram of WireGuard to a peer's stable endpoint.
    NotSynthetic = 0,
    /// Dropped: the peer has no path.
    NoPath = 1,
    /// Dropped: a fragment that belongs to nothing that was let in, or one on the way out.
    Fragment = 2,
    /// Dropped: larger than the uplink's MTU.
    TooBig = 3,
    /// Dropped: the kernel could not rewrite or send it.
    Failed = 4,
    /// Dropped: from a source that is not admitted, and the controller has heard enough of those.
    UnknownSource = 5,
    /// Passed to the controller: from a source that is not admitted.
    UnknownReported = 6,
    /// Passed to the controller: STUN, or a check in WireGuard's dress.
    ControlReported = 7,
    /// Dropped: more messages for the controller than it takes.
    ControlLimited = 8,
    /// Dropped: to WireGuard's port, and neither WireGuard's nor the controller's.
    NotWireGuard = 9,
    /// Dropped: to WireGuard's port, with IP options or extension headers.
    Options = 10,
    /// Dropped: contradictory headers.
    Malformed = 11,
    /// Dropped: without a UDP checksum, where it needs one.
    NoChecksum = 12,
    /// Dropped: to a synthetic address, on its way out of the host.
    Escaped = 13,
}

impl Reason {
    /// Number of counters.
    pub const COUNT: u32 = 16;

    /// All reasons, by number.
    pub const ALL: [Self; 14] = [
        Self::NotSynthetic,
        Self::NoPath,
        Self::Fragment,
        Self::TooBig,
        Self::Failed,
        Self::UnknownSource,
        Self::UnknownReported,
        Self::ControlReported,
        Self::ControlLimited,
        Self::NotWireGuard,
        Self::Options,
        Self::Malformed,
        Self::NoChecksum,
        Self::Escaped,
    ];

    /// A short name, as in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotSynthetic => "not_synthetic",
            Self::NoPath => "no_path",
            Self::Fragment => "fragment",
            Self::TooBig => "too_big",
            Self::Failed => "failed",
            Self::UnknownSource => "unknown_source",
            Self::UnknownReported => "unknown_reported",
            Self::ControlReported => "control_reported",
            Self::ControlLimited => "control_limited",
            Self::NotWireGuard => "not_wireguard",
            Self::Options => "options",
            Self::Malformed => "malformed",
            Self::NoChecksum => "no_checksum",
            Self::Escaped => "escaped",
        }
    }
}

/// All counters of one CPU: packets and bytes from the IP header on, by [`Reason`].
pub type Counters = [Counter; Reason::COUNT as usize];

const _: () = {
    assert!(size_of::<Path>() == 56);
    assert!(size_of::<Count>() == 32);
    assert!(size_of::<Remote4>() == 8);
    assert!(size_of::<Remote6>() == 20);
    assert!(size_of::<Admitted>() == 4);
    assert!(size_of::<Config>() == 20);
    assert!(size_of::<Limiter>() == 16);
    let mut index = 0;
    while index < Reason::ALL.len() {
        assert!(Reason::ALL[index] as usize == index);
        index += 1;
    }
    assert!(Reason::ALL.len() <= Reason::COUNT as usize);
    assert!(SLOTS <= 1 << 16);
};

//! Keys and values of the connection and fragment tables.
//!
//! The image is judged first. A connection is consulted only where the image denies, and created only on
//! egress, for a flow that outbound policy allows and whose reply inbound policy would deny. It carries the
//! generation that last approved it: a packet that meets an older one has the flow judged again.

/// An IPv4 connection, from this side: `local` is the originator.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnKey4 {
    /// Address on this side (this node, or a host of a subnet it routes).
    pub local: [u8; 4],
    /// Address on the other side of the tunnel.
    pub remote: [u8; 4],
    /// Port on this side; ICMP echo: the identifier; portless protocols: 0. Network byte order.
    pub local_port_be: u16,
    /// Port on the other side; ICMP echo and portless protocols: 0. Network byte order.
    pub remote_port_be: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// An IPv6 connection; fields as in [`ConnKey4`].
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at ConnKey4")]
pub struct ConnKey6 {
    pub local: [u8; 16],
    pub remote: [u8; 16],
    pub local_port_be: u16,
    pub remote_port_be: u16,
    pub protocol: u8,
    pub pad: [u8; 3],
}

/// What is known of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conn {
    /// `CLOCK_MONOTONIC_COARSE` nanoseconds of the last packet in either direction.
    pub last_seen_ns: u64,
    /// Generation of the image that last approved the flow.
    pub generation: u32,
    /// One of [`state`].
    pub state: u32,
    /// Packets seen by this entry, both directions; not exact under concurrency.
    pub packets: u64,
    /// Bytes seen by this entry, both directions; not exact under concurrency.
    pub bytes: u64,
}

/// States of [`Conn::state`]. TCP after RFC 9293 section 3.3.2 as an observer sees it.
pub mod state {
    /// Not TCP.
    pub const DATAGRAM: u32 = 0;
    /// We sent SYN; only SYN+ACK or RST may come back.
    pub const SYN_SENT: u32 = 1;
    /// SYN+ACK came back, or a running connection was picked up from our own segment.
    pub const ESTABLISHED: u32 = 2;
    /// One side sent FIN.
    pub const CLOSING: u32 = 3;
    /// Both sides sent FIN, or one sent RST; only what is still in flight passes.
    pub const CLOSED: u32 = 4;
    /// Flag added to [`CLOSING`]: the FIN was ours.
    pub const FIN_LOCAL: u32 = 1 << 8;
    /// Flag added to [`CLOSING`]: the FIN was theirs.
    pub const FIN_REMOTE: u32 = 1 << 9;
}

/// Idle times after which an entry is dead, in nanoseconds.
pub mod timeout {
    const S: u64 = 1_000_000_000;
    /// Unanswered SYN.
    pub const SYN_SENT: u64 = 60 * S;
    /// RFC 5382 REQ-5 asks for at least 2 h 4 min.
    pub const ESTABLISHED: u64 = 7_440 * S;
    /// After one FIN.
    pub const CLOSING: u64 = 120 * S;
    /// After both FINs or RST.
    pub const CLOSED: u64 = 10 * S;
    /// UDP and other datagrams: RFC 4787 REQ-5 recommends 5 minutes.
    pub const DATAGRAM: u64 = 300 * S;
    /// ICMP echo: RFC 5508 REQ-1 asks for at least 60 s.
    pub const ICMP: u64 = 60 * S;
    /// Fragments of one datagram: RFC 8200 section 4.5 gives 60 s; Linux keeps 30.
    pub const FRAGMENT: u64 = 30 * S;
}

/// Identifies the datagram that a fragment belongs to. IPv4 addresses are IPv4-mapped.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Identification field, zero-extended for IPv4. Network byte order.
    pub id_be: u32,
    /// IANA protocol number of the datagram.
    pub protocol: u8,
    /// 0 ingress, 1 egress.
    pub direction: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// What the first fragment said, so that later ones can be judged, and judged again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Coarse monotonic nanoseconds at the first fragment.
    pub first_seen_ns: u64,
    /// Generation that admitted the first fragment.
    pub generation: u32,
    /// Source port of the first fragment, or what stands for it. Network byte order.
    pub src_port_be: u16,
    /// Destination port of the first fragment, or what stands for it. Network byte order.
    pub dst_port_be: u16,
}

/// A token bucket that limits how fast one source creates state.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Coarse monotonic nanoseconds of the last refill.
    pub refilled_ns: u64,
    /// Tokens left.
    pub tokens: u64,
}

const _: () = {
    assert!(size_of::<ConnKey4>() == 16);
    assert!(size_of::<ConnKey6>() == 40);
    assert!(size_of::<Conn>() == 32);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<Fragment>() == 16);
    assert!(size_of::<Bucket>() == 16);
};

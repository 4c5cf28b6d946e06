//! Connections that this side opened and whose answers the inbound image would deny.
//!
//! An entry admits nothing by itself: whenever it is used, the outbound image must still allow the flow, so a
//! removed permission cuts a running connection with its next packet.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use ghostwire_ebpf_abi::conntrack::{Conn, ConnKey4, ConnKey6, state, timeout};
use ghostwire_ebpf_abi::event::Reason;
use ghostwire_packet::transport::tcp;
use ghostwire_packet::{Family, V4, V6, protocol};

use crate::image::{Ends, Image, Matrix};
use crate::verdict::Code;
use crate::{limit, maps};

/// A connection as seen from this side, and the packet that is about to use it.
#[derive(Clone, Copy)]
pub struct Flow<A> {
    /// Address on this side.
    pub local: A,
    /// Address on the far side.
    pub remote: A,
    /// Port on this side, or the echo identifier. Network byte order.
    pub local_port_be: u16,
    /// Port on the far side. Network byte order.
    pub remote_port_be: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// TCP flags of the packet.
    pub tcp_flags: u8,
    /// Length of the packet.
    pub length: u32,
    /// Classes of the two ends.
    pub ends: Ends,
}

/// A family's table.
pub trait Tracked: Family {
    /// Looks a connection up.
    fn find(flow: &Flow<Self::Addr>) -> Option<*mut Conn>;
    /// Inserts or replaces a connection.
    fn insert(flow: &Flow<Self::Addr>, conn: &Conn) -> Result<(), i32>;
}

#[inline(always)]
fn key4(flow: &Flow<u32>) -> ConnKey4 {
    ConnKey4 {
        local: flow.local.to_ne_bytes(),
        remote: flow.remote.to_ne_bytes(),
        local_port_be: flow.local_port_be,
        remote_port_be: flow.remote_port_be,
        protocol: flow.protocol,
        pad: [0; 3],
    }
}

#[inline(always)]
fn key6(flow: &Flow<[u32; 4]>) -> ConnKey6 {
    ConnKey6 {
        local: bytes(flow.local),
        remote: bytes(flow.remote),
        local_port_be: flow.local_port_be,
        remote_port_be: flow.remote_port_be,
        protocol: flow.protocol,
        pad: [0; 3],
    }
}

/// An address in the form that the shared types have.
#[inline(always)]
pub fn bytes(addr: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are sixteen bytes that may have any value.
    unsafe { core::mem::transmute(addr) }
}

impl Tracked for V4 {
    #[inline(always)]
    fn find(flow: &Flow<u32>) -> Option<*mut Conn> {
        maps::CONN4.get_ptr_mut(key4(flow))
    }

    #[inline(always)]
    fn insert(flow: &Flow<u32>, conn: &Conn) -> Result<(), i32> {
        maps::CONN4.insert(key4(flow), conn, u64::from(BPF_ANY))
    }
}

impl Tracked for V6 {
    #[inline(always)]
    fn find(flow: &Flow<[u32; 4]>) -> Option<*mut Conn> {
        maps::CONN6.get_ptr_mut(key6(flow))
    }

    #[inline(always)]
    fn insert(flow: &Flow<[u32; 4]>, conn: &Conn) -> Result<(), i32> {
        maps::CONN6.insert(key6(flow), conn, u64::from(BPF_ANY))
    }
}

/// Monotonic time that costs no clock read: it is as old as the last timer tick.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

#[inline(always)]
fn lifetime(protocol: u8, conn_state: u32, icmp: u8) -> u64 {
    if protocol == icmp {
        return timeout::ICMP;
    }
    match conn_state & 0xff {
        state::SYN_SENT => timeout::SYN_SENT,
        state::ESTABLISHED => timeout::ESTABLISHED,
        state::CLOSING => timeout::CLOSING,
        state::CLOSED => timeout::CLOSED,
        _ => timeout::DATAGRAM,
    }
}

/// The state after a segment from the far side; `None`: it does not fit.
#[inline(always)]
fn after_inbound(conn_state: u32, flags: u8) -> Option<u32> {
    let syn = flags & tcp::SYN != 0;
    let ack = flags & tcp::ACK != 0;
    match conn_state & 0xff {
        state::SYN_SENT if flags & tcp::RST != 0 => Some(state::CLOSED),
        state::SYN_SENT if syn && ack && flags & tcp::FIN == 0 => Some(state::ESTABLISHED),
        state::SYN_SENT => None,
        // A SYN without ACK would open a connection to this node.
        _ if syn && !ack => None,
        state::CLOSED if syn => None,
        state::CLOSED => Some(state::CLOSED),
        _ if flags & tcp::RST != 0 => Some(state::CLOSED),
        _ if flags & tcp::FIN == 0 => Some(conn_state),
        state::CLOSING if conn_state & state::FIN_LOCAL != 0 => Some(state::CLOSED),
        _ => Some(state::CLOSING | state::FIN_REMOTE),
    }
}

/// The state after our own segment.
#[inline(always)]
fn after_outbound(conn_state: u32, flags: u8) -> u32 {
    if flags & tcp::RST != 0 {
        return state::CLOSED;
    }
    let opens = flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    match conn_state & 0xff {
        state::CLOSING | state::CLOSED if opens => state::SYN_SENT,
        state::CLOSED => state::CLOSED,
        _ if flags & tcp::FIN == 0 => conn_state,
        state::CLOSING if conn_state & state::FIN_REMOTE != 0 => state::CLOSED,
        _ => state::CLOSING | state::FIN_LOCAL,
    }
}

/// State of a new entry; `None`: this segment of ours does not start one.
#[inline(always)]
fn initial(protocol: u8, flags: u8) -> Option<u32> {
    if protocol != protocol::TCP {
        return Some(state::DATAGRAM);
    }
    match flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) {
        tcp::SYN => Some(state::SYN_SENT),
        // Picked up in the middle: this node was upgraded, or the entry was evicted.
        0 | tcp::ACK => Some(state::ESTABLISHED),
        _ => None,
    }
}

/// Stores what a packet changes. A closed connection ages from its end: only what is in flight still passes.
///
/// # Safety
///
/// `conn` is a value of a connection table.
#[inline(always)]
unsafe fn touch(conn: *mut Conn, conn_state: u32, now: u64, generation: u32, length: u32) {
    // SAFETY: the caller's promise. Concurrent packets may lose a count, which is documented.
    unsafe {
        let closed = conn_state & 0xff == state::CLOSED && (*conn).state & 0xff == state::CLOSED;
        if !closed {
            (*conn).last_seen_ns = now;
        }
        if (*conn).state != conn_state {
            (*conn).state = conn_state;
        }
        if (*conn).generation != generation {
            (*conn).generation = generation;
        }
        (*conn).packets += 1;
        (*conn).bytes += u64::from(length);
    }
}

/// Judges a packet from the far side that the inbound image denies. A code, because BPF functions return one
/// register.
#[inline(never)]
pub fn inbound<F: Tracked>(words: *const u64, flow: &Flow<F::Addr>) -> u64 {
    let image = Image::at(words);
    let Some(conn) = F::find(flow) else { return Code::drop(Reason::Denied) };
    let now = now();
    // SAFETY: a value of the table; slots are recycled, so it is read once and each field by itself.
    let (last_seen, conn_state) = unsafe { ((*conn).last_seen_ns, (*conn).state) };
    if now.saturating_sub(last_seen) > lifetime(flow.protocol, conn_state, F::ICMP) {
        return Code::drop(Reason::Denied);
    }
    let service = image.service(flow.protocol, flow.remote_port_be);
    if !image.allows(Matrix::Outbound, flow.ends, service) {
        return Code::drop(Reason::Denied);
    }
    let next = if flow.protocol == protocol::TCP {
        match after_inbound(conn_state, flow.tcp_flags) {
            Some(next) => next,
            None => return Code::drop(Reason::InvalidState),
        }
    } else {
        conn_state
    };
    // SAFETY: a value of the table.
    unsafe { touch(conn, next, now, image.generation(), flow.length) };
    Code::pass(Reason::Connection)
}

/// Remembers a flow that the outbound image allows and whose answer the inbound image would deny.
#[inline(never)]
pub fn outbound<F: Tracked>(words: *const u64, flow: &Flow<F::Addr>) -> u64 {
    let image = Image::at(words);
    let now = now();
    if let Some(conn) = F::find(flow) {
        // SAFETY: as in `inbound`.
        let (last_seen, conn_state) = unsafe { ((*conn).last_seen_ns, (*conn).state) };
        if now.saturating_sub(last_seen) <= lifetime(flow.protocol, conn_state, F::ICMP) {
            let next = if flow.protocol == protocol::TCP {
                after_outbound(conn_state, flow.tcp_flags)
            } else {
                conn_state
            };
            // SAFETY: a value of the table.
            unsafe { touch(conn, next, now, image.generation(), flow.length) };
            return Code::pass(Reason::Policy);
        }
    }
    let Some(conn_state) = initial(flow.protocol, flow.tcp_flags) else { return Code::pass(Reason::Policy) };
    if !limit::take(&F::mapped(flow.local), now) {
        return Code::drop(Reason::StateRateLimited);
    }
    let conn = Conn {
        last_seen_ns: now,
        generation: image.generation(),
        state: conn_state,
        packets: 1,
        bytes: u64::from(flow.length),
    };
    // Without memory for the entry the packet passes, because policy allows it; its answer will not.
    let _full = F::insert(flow, &conn);
    Code::pass(Reason::Policy)
}

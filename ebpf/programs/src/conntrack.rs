//! Connections that this side opened and whose answers the inbound image would deny.
//!
//! An entry admits nothing by itself: whenever it is used, the outbound image must still allow the flow, so a
//! removed permission cuts a running connection with its next packet.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use ghostwire_ebpf_abi::conntrack::{Conn, ConnKey4, ConnKey6, state, timeout};
use ghostwire_ebpf_abi::event::{Direction, Reason};
use ghostwire_packet::transport::tcp;
use ghostwire_packet::{Family, Packet, V4, V6, protocol};

use crate::image::{Ends, Image, Matrix};
use crate::verdict::Code;
use crate::{acl, limit, maps};

/// A family's table.
pub trait Tracked: Family {
    /// Its key.
    type Key;
    /// The connection of a packet that comes from, or goes to, the side `local`.
    fn key(packet: &Packet<Self::Addr>, direction: Direction) -> Self::Key;
    /// Looks a connection up.
    fn find(key: &Self::Key) -> Option<*mut Conn>;
    /// Inserts or replaces a connection.
    fn insert(key: &Self::Key, conn: &Conn) -> Result<(), i32>;
}

/// Local and remote port of a connection; an echo has an identifier in the place of the local port.
#[inline(always)]
fn ports<F: Family>(packet: &Packet<F::Addr>, direction: Direction) -> (u16, u16) {
    let transport = &packet.transport;
    let (local, remote) = match direction {
        Direction::Ingress => (transport.dst_port_be, transport.src_port_be),
        Direction::Egress => (transport.src_port_be, transport.dst_port_be),
    };
    (local, if packet.protocol == F::ICMP { 0 } else { remote })
}

macro_rules! tracked {
    ($family:ident, $key:ident, $table:ident, $bytes:expr) => {
        impl Tracked for $family {
            type Key = $key;

            #[inline(always)]
            fn key(packet: &Packet<Self::Addr>, direction: Direction) -> $key {
                let (remote, local) = acl::roles(direction, packet.src, packet.dst);
                let (local_port_be, remote_port_be) = ports::<Self>(packet, direction);
                $key {
                    local: $bytes(local),
                    remote: $bytes(remote),
                    local_port_be,
                    remote_port_be,
                    protocol: packet.protocol,
                    pad: [0; 3],
                }
            }

            #[inline(always)]
            fn find(key: &$key) -> Option<*mut Conn> {
                maps::$table.get_ptr_mut(key)
            }

            #[inline(always)]
            fn insert(key: &$key, conn: &Conn) -> Result<(), i32> {
                maps::$table.insert(key, conn, u64::from(BPF_ANY))
            }
        }
    };
}

tracked!(V4, ConnKey4, CONN4, u32::to_ne_bytes);
tracked!(V6, ConnKey6, CONN6, bytes);

/// An address in the form that the shared types have.
#[inline(always)]
pub fn bytes(addr: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are sixteen bytes that may have any value.
    unsafe { core::mem::transmute(addr) }
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

/// Judges a packet from the far side that the inbound image denies.
#[inline(never)]
pub fn inbound<F: Tracked>(words: *const u64, packet: &Packet<F::Addr>, ends: u64, length: u32) -> u64 {
    let image = Image::at(words);
    let key = F::key(packet, Direction::Ingress);
    let Some(conn) = F::find(&key) else { return Code::drop(Reason::Denied) };
    let now = now();
    // SAFETY: a value of the table; slots are recycled, so each field is read once.
    let (last_seen, conn_state) = unsafe { ((*conn).last_seen_ns, (*conn).state) };
    if now.saturating_sub(last_seen) > lifetime(packet.protocol, conn_state, F::ICMP) {
        return Code::drop(Reason::Denied);
    }
    let (_, remote_port_be) = ports::<F>(packet, Direction::Ingress);
    let service = image.service(packet.protocol, remote_port_be);
    if !image.allows(Matrix::Outbound, Ends::unpack(ends), service) {
        return Code::drop(Reason::Denied);
    }
    let next = if packet.protocol == protocol::TCP {
        match after_inbound(conn_state, packet.transport.tcp_flags) {
            Some(next) => next,
            None => return Code::drop(Reason::InvalidState),
        }
    } else {
        conn_state
    };
    // SAFETY: a value of the table.
    unsafe { touch(conn, next, now, image.generation(), length) };
    Code::pass(Reason::Connection)
}

/// Remembers a flow that the outbound image allows and whose answer the inbound image would deny.
#[inline(never)]
pub fn outbound<F: Tracked>(words: *const u64, packet: &Packet<F::Addr>, length: u32) -> u64 {
    let generation = Image::at(words).generation();
    let key = F::key(packet, Direction::Egress);
    let now = now();
    let flags = packet.transport.tcp_flags;
    if let Some(conn) = F::find(&key) {
        // SAFETY: as in `inbound`.
        let (last_seen, conn_state) = unsafe { ((*conn).last_seen_ns, (*conn).state) };
        if now.saturating_sub(last_seen) <= lifetime(packet.protocol, conn_state, F::ICMP) {
            let is_tcp = packet.protocol == protocol::TCP;
            let next = if is_tcp { after_outbound(conn_state, flags) } else { conn_state };
            // SAFETY: a value of the table.
            unsafe { touch(conn, next, now, generation, length) };
            return Code::pass(Reason::Policy);
        }
    }
    let Some(conn_state) = initial(packet.protocol, flags) else { return Code::pass(Reason::Policy) };
    if !limit::take(&F::mapped(packet.src), now) {
        return Code::drop(Reason::StateRateLimited);
    }
    let conn =
        Conn { last_seen_ns: now, generation, state: conn_state, packets: 1, bytes: u64::from(length) };
    // Without memory for the entry the packet passes, because policy allows it; its answer will not.
    let _full = F::insert(&key, &conn);
    Code::pass(Reason::Policy)
}

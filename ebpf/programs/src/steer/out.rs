//! From WireGuard to a peer: which path, and onto it.

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_OK};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_redirect, bpf_redirect_neigh, bpf_skb_change_head,
};
use ghostwire_ebpf_abi::steer::{self, COPY, OWN4, PEERS4, PEERS6, Path, Reason, STABLE_PORT, kind, peers};
use ghostwire_packet::outer::{self, Datagram, Outer};

use crate::maps::{self, L3_OFFSET};
use crate::rewrite::{self, Ends};
use crate::skb::Skb;
use crate::{ETHERNET, tally};

/// Sends a packet on its path.
#[inline(always)]
pub fn run(context: *mut __sk_buff) -> i32 {
    let l3 = L3_OFFSET.load();
    let skb = Skb::new(context, l3);
    match ghostwire_packet::version(&skb) {
        Ok(4) => send4(context),
        Ok(6) => send6(context),
        _ => tally::shoot(context, Reason::NotSynthetic),
    }
}

/// Sends what goes to an IPv4 stable endpoint.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn send4(context: *mut __sk_buff) -> i32 {
    let l3 = L3_OFFSET.load();
    let datagram = match outer::v4(&Skb::again(context, l3)) {
        Outer::Datagram(datagram) => datagram,
        Outer::Fragment(..) => return tally::shoot(context, Reason::Fragment),
        _ => return tally::shoot(context, Reason::NotSynthetic),
    };
    let dst = u32::from_be(datagram.dst);
    if dst >> 16 != u32::from(PEERS4)
        || datagram.src != u32::from_ne_bytes(OWN4)
        || datagram.dst_port_be() != STABLE_PORT.to_be()
    {
        return tally::shoot(context, Reason::NotSynthetic);
    }
    conclude(context, onto_path(context, dst as u16, &datagram, l3))
}

/// Sends what goes to an IPv6 stable endpoint.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn send6(context: *mut __sk_buff) -> i32 {
    let l3 = L3_OFFSET.load();
    let datagram = match outer::v6(&Skb::again(context, l3)) {
        Outer::Datagram(datagram) => datagram,
        Outer::Fragment(..) => return tally::shoot(context, Reason::Fragment),
        _ => return tally::shoot(context, Reason::NotSynthetic),
    };
    let Some(peer) = peer6(datagram.dst) else { return tally::shoot(context, Reason::NotSynthetic) };
    if datagram.src != words(steer::OWN6) || datagram.dst_port_be() != STABLE_PORT.to_be() {
        return tally::shoot(context, Reason::NotSynthetic);
    }
    conclude(context, onto_path(context, peer, &datagram, l3))
}

#[inline(always)]
fn conclude(context: *mut __sk_buff, result: Result<i32, Reason>) -> i32 {
    match result {
        Ok(action) => action,
        Err(reason) => tally::shoot(context, reason),
    }
}

/// An address of 16 bytes as it lies in a packet.
pub const fn words(addr: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = addr;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// The peer that an IPv6 address stands for.
#[inline(always)]
pub fn peer6(addr: [u32; 4]) -> Option<u16> {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n] = PEERS6;
    let [w0, w1, w2, _] = words([a, b, c, d, e, f, g, h, i, j, k, l, m, n, 0, 0]);
    let last = u32::from_be(addr[3]);
    (addr[0] == w0 && addr[1] == w1 && addr[2] == w2 && last >> 16 == 0).then_some(last as u16)
}

/// A family that a stable endpoint can have.
trait Stable: Copy {
    /// Rewrites to the ends of a path over IPv4.
    fn over4(&self, context: *mut __sk_buff, l3: u32, new: Ends<u32>) -> Result<(), Reason>;
    /// Rewrites to the ends of a path over IPv6.
    fn over6(&self, context: *mut __sk_buff, l3: u32, new: Ends<[u32; 4]>) -> Result<(), Reason>;
    /// Bytes from the IP header on, less that header.
    fn behind_header(&self) -> u32;
}

impl Stable for Datagram<u32> {
    #[inline(always)]
    fn over4(&self, context: *mut __sk_buff, l3: u32, new: Ends<u32>) -> Result<(), Reason> {
        rewrite::within4(context, l3, new)
    }

    #[inline(always)]
    fn over6(&self, context: *mut __sk_buff, l3: u32, new: Ends<[u32; 4]>) -> Result<(), Reason> {
        if self.checksum == 0 {
            return Err(Reason::NoChecksum);
        }
        rewrite::into6(context, l3, self, new)
    }

    #[inline(always)]
    fn behind_header(&self) -> u32 {
        self.total - 20
    }
}

impl Stable for Datagram<[u32; 4]> {
    #[inline(always)]
    fn over4(&self, context: *mut __sk_buff, l3: u32, new: Ends<u32>) -> Result<(), Reason> {
        rewrite::into4(context, l3, self, new)
    }

    #[inline(always)]
    fn over6(&self, context: *mut __sk_buff, l3: u32, new: Ends<[u32; 4]>) -> Result<(), Reason> {
        rewrite::within6(context, l3, new)
    }

    #[inline(always)]
    fn behind_header(&self) -> u32 {
        self.total - 40
    }
}

/// The path of a peer, and a copy on its second path while there is one.
#[inline(always)]
fn onto_path<A>(context: *mut __sk_buff, peer: u16, datagram: &Datagram<A>, l3: u32) -> Result<i32, Reason>
where
    Datagram<A>: Stable,
{
    let word = maps::PEERS.get(u32::from(peer)).copied().unwrap_or(0);
    // SAFETY: the context that the kernel passed.
    let is_copy = unsafe { (*context).tc_index } == COPY;
    let also = peers::also(word);
    let slot = if is_copy {
        // SAFETY: as above.
        unsafe { (*context).tc_index = 0 };
        also
    } else {
        if also != 0 {
            copy(context);
        }
        peers::primary(word)
    };
    if slot == 0 {
        return Err(Reason::NoPath);
    }
    let Some(path) = maps::PATHS.get(u32::from(slot)) else { return Err(Reason::NoPath) };
    let action = match path.kind {
        kind::WIRE4 => {
            fits(context, path, datagram.behind_header() + 20)?;
            let ends = Ends { src: path.local[0], dst: path.remote[0], ports: path.ports };
            datagram.over4(context, l3, ends)?;
            emit(context, path)?
        }
        kind::WIRE6 => {
            fits(context, path, datagram.behind_header() + 40)?;
            let ends = Ends { src: path.local, dst: path.remote, ports: path.ports };
            datagram.over6(context, l3, ends)?;
            emit(context, path)?
        }
        kind::CARRIER => TC_ACT_OK,
        _ => return Err(Reason::NoPath),
    };
    tally::slot(u32::from(slot), datagram.payload);
    Ok(action)
}

/// Sends a copy through the device once more, where it is known by its mark. Neighbours are resolved only for a packet
/// that a program returns, so that a copy cannot be sent from here.
#[inline(always)]
fn copy(context: *mut __sk_buff) {
    // SAFETY: the context that the kernel passed. Should there be no memory, there is no copy.
    unsafe {
        (*context).tc_index = COPY;
        bpf_clone_redirect(context, (*context).ifindex, 0);
        (*context).tc_index = 0;
    }
}

/// Whether a packet of `length` bytes may go by the path; of an aggregate, each of its datagrams.
#[inline(always)]
fn fits(context: *mut __sk_buff, path: &Path, length: u32) -> Result<(), Reason> {
    // SAFETY: the context that the kernel passed.
    let segment = unsafe { (*context).gso_size };
    // The headers of a datagram of an aggregate: at most 48 bytes.
    let length = if segment != 0 { segment + 48 } else { length };
    if length > path.mtu { Err(Reason::TooBig) } else { Ok(()) }
}

/// Hands the packet to the uplink. The kernel looks up the next hop there. A next hop of our own would spare that, but a
/// packet that has to wait for its neighbour's address would then be sent by its former route, which leads back to our
/// device, and be lost (`neigh_update` in net/core/neighbour.c).
#[inline(always)]
fn emit(context: *mut __sk_buff, path: &Path) -> Result<i32, Reason> {
    // SAFETY: the context that the kernel passed.
    unsafe {
        if path.layer3 != 0 {
            return Ok(bpf_redirect(path.uplink, 0) as i32);
        }
        if bpf_skb_change_head(context, ETHERNET, 0) != 0 {
            return Err(Reason::Failed);
        }
        Ok(bpf_redirect_neigh(path.uplink, ptr::null_mut(), 0, 0) as i32)
    }
}

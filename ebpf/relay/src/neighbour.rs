//! Where a frame goes that does not go back to where it came from: the kernel's routes and neighbours.

use core::mem;

use aya_ebpf::bindings::{bpf_fib_lookup, xdp_md};
use aya_ebpf::helpers::generated;
use ghostwire_relay_fastpath::frame::{ETHERNET_LEN, Neighbour, Packet, UDP_LEN};
use ghostwire_relay_fastpath::{Forward, table};

use crate::maps::{INTERFACES, Table};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const UDP: u8 = 17;

/// To whom, and by which interface unless it is the one that the frame came by.
pub struct Way {
    pub neighbour: Neighbour,
    pub interface: Option<u32>,
}

/// Asks the kernel. `None`: it does not know, does not forward on this interface, the frame would have to be cut, or
/// the way leads through an interface without XDP, or a VLAN. Userspace's sockets can do all that.
#[inline(always)]
pub fn find(context: *mut xdp_md, packet: &Packet, forward: &Forward) -> Option<Way> {
    if packet.l3 != ETHERNET_LEN {
        return None;
    }
    let from = table::local(&Table, forward.local)?;
    // SAFETY: all-zero bytes are valid for this plain struct.
    let mut lookup: bpf_fib_lookup = unsafe { mem::zeroed() };
    // SAFETY: the context that the kernel passed; the verifier rewrites the read.
    let arrived = unsafe { (*context).ingress_ifindex };
    lookup.l4_protocol = UDP;
    lookup.sport = forward.port.to_be();
    lookup.dport = forward.destination.port.to_be();
    lookup.ifindex = arrived;
    let payload = packet.datagram.len as u16 + UDP_LEN as u16;
    match (from.v4_word(), forward.destination.ip.v4_word()) {
        (Some(from), Some(to)) => {
            lookup.family = AF_INET;
            lookup.__bindgen_anon_1.tot_len = payload + 20;
            lookup.__bindgen_anon_3.ipv4_src = from;
            lookup.__bindgen_anon_4.ipv4_dst = to;
        }
        _ => {
            lookup.family = AF_INET6;
            lookup.__bindgen_anon_1.tot_len = payload + 40;
            lookup.__bindgen_anon_3.ipv6_src = from.0;
            lookup.__bindgen_anon_4.ipv6_dst = forward.destination.ip.0;
        }
    }
    let size = mem::size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the struct lives through the call and has the size that is passed.
    if unsafe { generated::bpf_fib_lookup(context.cast(), &raw mut lookup, size, 0) } != 0 {
        return None;
    }
    let interface = lookup.ifindex;
    let interface = if interface == arrived {
        None
    } else {
        // SAFETY: the value is not used.
        unsafe { INTERFACES.get(&interface)? };
        Some(interface)
    };
    let word = |mac: &[u8; 6], at: usize| u16::from_ne_bytes([mac[at], mac[at + 1]]);
    let (to, own) = (lookup.dmac, lookup.smac);
    let macs = [word(&to, 0), word(&to, 2), word(&to, 4), word(&own, 0), word(&own, 2), word(&own, 4)];
    Some(Way { neighbour: Neighbour::Other(macs), interface })
}

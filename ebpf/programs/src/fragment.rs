//! Later fragments carry no ports: they pass if the first fragment of their datagram was admitted, and are
//! judged again by its ports when the policy has changed since.

use aya_ebpf::bindings::BPF_ANY;
use ghostwire_ebpf_abi::conntrack::{Fragment, FragmentKey, timeout};
use ghostwire_ebpf_abi::event::Reason;
use ghostwire_packet::transport::tcp;
use ghostwire_packet::{Packet, Transport};

use crate::acl::Judged;
use crate::conntrack::{bytes, now};
use crate::image::Image;
use crate::verdict::Code;
use crate::{limit, maps};

#[inline(always)]
fn key<F: Judged>(direction: u32, packet: &Packet<F::Addr>) -> FragmentKey {
    FragmentKey {
        src: bytes(F::mapped(packet.src)),
        dst: bytes(F::mapped(packet.dst)),
        id_be: packet.fragmentation.id_be,
        protocol: packet.fragmentation.protocol,
        direction: direction as u8,
        pad: [0; 2],
    }
}

/// Remembers a first fragment that was admitted with `code`.
#[inline(never)]
pub fn first<F: Judged>(words: *const u64, direction: u32, packet: &Packet<F::Addr>, code: u64) -> u64 {
    let now = now();
    if !limit::take(&F::mapped(packet.src), now) {
        return Code::drop(Reason::StateRateLimited);
    }
    let transport = &packet.transport;
    // ICMP: what stands for the ports is the type and the identifier.
    let src_port_be = if packet.protocol == F::ICMP {
        u16::from(transport.icmp_type).to_be()
    } else {
        transport.src_port_be
    };
    let fragment = Fragment {
        first_seen_ns: now,
        generation: Image::at(words).generation(),
        src_port_be,
        dst_port_be: transport.dst_port_be,
    };
    // Without memory for the entry the later fragments are orphans, and the datagram is lost: closed.
    let _full = maps::FRAGMENTS.insert(key::<F>(direction, packet), fragment, u64::from(BPF_ANY));
    code
}

/// Judges a later fragment. The code is open if the policy has changed: then it carries the ports, for
/// [`recall`].
#[inline(never)]
pub fn later<F: Judged>(words: *const u64, direction: u32, packet: &Packet<F::Addr>) -> u64 {
    let orphan = Code::drop(Reason::OrphanFragment);
    let Some(entry) = maps::FRAGMENTS.get_ptr_mut(key::<F>(direction, packet)) else { return orphan };
    // SAFETY: the map's value, copied at once.
    let fragment = unsafe { *entry };
    if now().saturating_sub(fragment.first_seen_ns) > timeout::FRAGMENT {
        return orphan;
    }
    if fragment.generation == Image::at(words).generation() {
        return Code::pass(Reason::Fragment);
    }
    Code::open(fragment.src_port_be, fragment.dst_port_be)
}

/// Gives a later fragment the transport header that the first was judged by. A segment in the middle of a
/// connection stands for TCP: it opens and closes nothing.
#[inline(always)]
pub fn recall<F: Judged>(packet: &mut Packet<F::Addr>, open: u64) {
    let (src_port_be, dst_port_be) = Code::ports(open);
    packet.transport = Transport { src_port_be, dst_port_be, tcp_flags: tcp::ACK, ..Transport::NONE };
    if packet.protocol == F::ICMP {
        packet.transport.icmp_type = u16::from_be(src_port_be) as u8;
        packet.transport.icmp = F::icmp(packet.transport.icmp_type);
        packet.transport.src_port_be = dst_port_be;
    }
}

/// Approves a datagram's fragments under the present policy.
#[inline(never)]
pub fn renew<F: Judged>(words: *const u64, direction: u32, packet: &Packet<F::Addr>) -> u64 {
    if let Some(entry) = maps::FRAGMENTS.get_ptr_mut(key::<F>(direction, packet)) {
        // SAFETY: the map's value; all writers of this generation write the same.
        unsafe { (*entry).generation = Image::at(words).generation() };
    }
    Code::pass(Reason::Fragment)
}

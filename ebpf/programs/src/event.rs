//! Events about single packets, at a limited rate. Off the fast path: the packet is parsed again, so that the
//! fast path keeps nothing for them.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use ghostwire_ebpf_abi::event::{Action, Counter, Direction, Event};
use ghostwire_ebpf_abi::image;
use ghostwire_packet::{Packet, Reader, V4, V6};

use crate::acl;
use crate::conntrack::bytes;
use crate::image::{Addressed, Image};
use crate::skb::Skb;
use crate::{limit, maps, nets};

const SECOND: u64 = 1_000_000_000;

/// What is told of a packet, in one register: direction, reason and action.
#[inline(always)]
pub const fn about(direction: Direction, reason: u32, action: Action) -> u64 {
    direction as u64 | (reason as u64) << 8 | (action as u64) << 16
}

/// Tells of a packet.
#[inline(never)]
pub fn report(context: *mut __sk_buff, about: u64) -> u64 {
    let skb = Skb::again(context);
    match ghostwire_packet::version(&skb) {
        Ok(4) => report_in::<V4>(&skb, about),
        Ok(6) => report_in::<V6>(&skb, about),
        _ => {
            emit(&blank(&skb, about));
        }
    }
    0
}

/// A packet passed, and accepted packets are sampled.
#[inline(never)]
pub fn accepted(context: *mut __sk_buff, about: u64) -> u64 {
    let Some(limiter) = maps::LIMITER.get_ptr_mut(0) else { return 0 };
    let every = u64::from(limit::config().accept_sample);
    // SAFETY: this CPU's value.
    unsafe {
        (*limiter).accepts += 1;
        if every == 0 || (*limiter).accepts % every != 0 {
            return 0;
        }
    }
    report(context, about)
}

#[inline(always)]
fn report_in<F: Addressed>(skb: &Skb, about: u64) {
    let mut event = blank(skb, about);
    event.family = F::VERSION;
    if let Ok(packet) = F::parse(skb) {
        describe::<F>(&mut event, &packet);
        if about >> 16 == Action::Drop as u64 {
            let ingress = event.direction == Direction::Ingress as u8;
            count_remote(F::mapped(if ingress { packet.src } else { packet.dst }), skb.length());
        }
    }
    emit(&event);
}

#[inline(always)]
fn blank(skb: &Skb, about: u64) -> Event {
    Event {
        time_ns: 0,
        src: [0; 16],
        dst: [0; 16],
        src_port_be: 0,
        dst_port_be: 0,
        generation: 0,
        length: skb.length(),
        reason: (about >> 8) as u32 & 0xff,
        remote_class: 0,
        local_class: 0,
        service_class: 0,
        protocol: 0,
        family: 0,
        action: (about >> 16) as u8,
        direction: about as u8,
        tcp_flags: 0,
        pad: [0; 5],
        suppressed: 0,
    }
}

#[inline(always)]
fn describe<F: Addressed>(event: &mut Event, packet: &Packet<F::Addr>) {
    let transport = packet.transport;
    event.src = bytes(F::mapped(packet.src));
    event.dst = bytes(F::mapped(packet.dst));
    event.protocol = packet.protocol;
    event.tcp_flags = transport.tcp_flags;
    (event.src_port_be, event.dst_port_be) = if packet.protocol == F::ICMP {
        (u16::from(transport.icmp_type).to_be(), u16::from(transport.icmp_code).to_be())
    } else {
        (transport.src_port_be, transport.dst_port_be)
    };
    let Some(image) = Image::current() else { return };
    event.generation = image.generation();
    let ingress = event.direction == Direction::Ingress as u8;
    let direction = if ingress { Direction::Ingress } else { Direction::Egress };
    let (remote, local) = acl::roles(direction, packet.src, packet.dst);
    let service = image.service(packet.protocol, transport.dst_port_be);
    let ends = nets::ends::<F>(image, remote, local);
    let (remote, local) = ends.map_or((0, 0), |ends| (ends.remote, ends.local));
    let class = if ingress { image::inbound } else { image::outbound };
    event.remote_class = class(remote) as u16;
    event.local_class = class(local) as u16;
    event.service_class = class(service) as u16;
}

/// Counts a drop for the address on the far side.
#[inline(always)]
fn count_remote(addr: [u32; 4], length: u32) {
    if let Some(counter) = maps::REMOTE_DROPS.get_ptr_mut(addr) {
        // SAFETY: this CPU's value.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(length);
        }
        return;
    }
    let counter = Counter { packets: 1, bytes: u64::from(length) };
    // Without memory the packet is missing here, but not in the counters by reason.
    let _full = maps::REMOTE_DROPS.insert(addr, counter, u64::from(BPF_ANY));
}

/// Sends an event, unless this CPU has sent its share of this second.
#[inline(always)]
fn emit(event: &Event) {
    let Some(limiter) = maps::LIMITER.get_ptr_mut(0) else { return };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: this CPU's value; a softirq that interrupts the egress path may skew the count by one.
    unsafe {
        if now.saturating_sub((*limiter).window_ns) >= SECOND {
            (*limiter).window_ns = now;
            (*limiter).sent = 0;
        }
        if (*limiter).sent >= u64::from(limit::config().drop_events_per_second) {
            (*limiter).suppressed += 1;
            return;
        }
        let Some(mut entry) = maps::EVENTS.reserve(0) else {
            (*limiter).suppressed += 1;
            return;
        };
        entry.write(Event { time_ns: now, suppressed: (*limiter).suppressed, ..*event });
        entry.submit(0);
        (*limiter).sent += 1;
        (*limiter).suppressed = 0;
    }
}

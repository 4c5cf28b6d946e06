//! Events about single packets, at a limited rate, and drops by remote address. Off the fast path: addresses are
//! read again, so that the fast path keeps nothing for them.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use ghostwire_ebpf_abi::event::{Action, Counter, Direction, Event};
use ghostwire_packet::{Reader, V4, V6};

use crate::acl;
use crate::conntrack::bytes;
use crate::image::{Addressed, Image, Matrix};
use crate::skb::Skb;
use crate::verdict::Code;
use crate::{limit, maps, nets};

const SECOND: u64 = 1_000_000_000;

/// A packet passed, and accepted packets are sampled.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn accepted(context: *mut __sk_buff, direction: u32, code: u64) -> u64 {
    let Some(limiter) = maps::LIMITER.get_ptr_mut(0) else { return 0 };
    let every = u64::from(limit::config().accept_sample);
    // SAFETY: this CPU's value.
    unsafe {
        (*limiter).accepts += 1;
        if every == 0 || (*limiter).accepts % every != 0 {
            return 0;
        }
    }
    report(context, direction, code, Action::Pass as u32)
}

/// Tells of a packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report(context: *mut __sk_buff, direction: u32, code: u64, action: u32) -> u64 {
    let skb = Skb::again(context);
    let direction = if direction == Direction::Ingress as u32 { Direction::Ingress } else { Direction::Egress };
    let mut event = blank(&skb, direction, code, action);
    match ghostwire_packet::version(&skb) {
        Ok(4) => {
            if let Some([src, dst]) = skb.near::<[u32; 2]>(12) {
                describe::<V4>(&mut event, direction, code, src, dst);
            }
        }
        Ok(6) => {
            if let Some([a, b, c, d, e, f, g, h]) = skb.near::<[u32; 8]>(8) {
                describe::<V6>(&mut event, direction, code, [a, b, c, d], [e, f, g, h]);
            }
        }
        _ => {}
    }
    if action == Action::Drop as u32 && event.family != 0 {
        let ingress = matches!(direction, Direction::Ingress);
        count_remote(if ingress { &event.src } else { &event.dst }, event.length);
    }
    emit(&mut event);
    0
}

#[inline(always)]
fn blank(skb: &Skb, direction: Direction, code: u64, action: u32) -> Event {
    let (protocol, tcp_flags) = Code::header(code);
    let (src_port_be, dst_port_be) = Code::ports(code);
    Event {
        time_ns: 0,
        src: [0; 16],
        dst: [0; 16],
        src_port_be,
        dst_port_be,
        generation: 0,
        length: skb.length(),
        reason: Code::reason(code),
        remote_class: 0,
        local_class: 0,
        service_class: 0,
        protocol,
        family: 0,
        action: action as u8,
        direction: direction as u8,
        tcp_flags,
        pad: [0; 5],
        suppressed: 0,
    }
}

#[inline(always)]
fn describe<F: Addressed>(event: &mut Event, direction: Direction, code: u64, src: F::Addr, dst: F::Addr) {
    event.family = F::VERSION;
    event.src = bytes(F::mapped(src));
    event.dst = bytes(F::mapped(dst));
    let Some(image) = Image::current() else { return };
    event.generation = image.generation();
    let (remote, local) = acl::roles(direction, src, dst);
    let (protocol, _) = Code::header(code);
    let (_, port_be) = Code::ports(code);
    let service = image.service(protocol, port_be);
    let matrix = match direction {
        Direction::Ingress => Matrix::Inbound,
        Direction::Egress => Matrix::Outbound,
    };
    let (remote, local) = nets::ends::<F>(image, remote, local).map_or((0, 0), |ends| (ends.remote, ends.local));
    event.remote_class = matrix.class(remote) as u16;
    event.local_class = matrix.class(local) as u16;
    event.service_class = matrix.class(service) as u16;
}

/// Counts a drop for the address on the far side.
#[inline(always)]
fn count_remote(addr: &[u8; 16], length: u32) {
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
fn emit(event: &mut Event) {
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
        event.time_ns = now;
        event.suppressed = (*limiter).suppressed;
        if maps::EVENTS.output(&*event, 0).is_err() {
            (*limiter).suppressed += 1;
            return;
        }
        (*limiter).sent += 1;
        (*limiter).suppressed = 0;
    }
}

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
    let direction =
        if direction == Direction::Ingress as u32 { Direction::Ingress } else { Direction::Egress };
    match ghostwire_packet::version(&skb) {
        Ok(4) => {
            if let Some([src, dst]) = skb.near::<[u32; 2]>(12) {
                report_in::<V4>(&skb, direction, code, action, src, dst);
                return 0;
            }
        }
        Ok(6) => {
            if let Some([a, b, c, d, e, f, g, h]) = skb.near::<[u32; 8]>(8) {
                report_in::<V6>(&skb, direction, code, action, [a, b, c, d], [e, f, g, h]);
                return 0;
            }
        }
        _ => {}
    }
    // No addresses to tell of.
    if let Some((time_ns, suppressed)) = admit() {
        send(&skb, direction, code, action, time_ns, suppressed, |_| ());
    }
    0
}

#[inline(always)]
fn report_in<F: Addressed>(
    skb: &Skb,
    direction: Direction,
    code: u64,
    action: u32,
    src: F::Addr,
    dst: F::Addr,
) {
    let (remote, local) = acl::roles(direction, src, dst);
    if action == Action::Drop as u32 {
        count_remote(&F::mapped(remote), skb.length());
    }
    let Some((time_ns, suppressed)) = admit() else { return };
    let mut classes = [0_u16; 3];
    let mut generation = 0;
    if let Some(image) = Image::current() {
        generation = image.generation();
        let matrix = match direction {
            Direction::Ingress => Matrix::Inbound,
            Direction::Egress => Matrix::Outbound,
        };
        let (remote, local) =
            nets::ends::<F>(image, remote, local).map_or((0, 0), |ends| (ends.remote, ends.local));
        let service = image.service(Code::header(code).0, Code::ports(code).1);
        classes = [matrix.class(remote) as u16, matrix.class(local) as u16, matrix.class(service) as u16];
    }
    send(skb, direction, code, action, time_ns, suppressed, |event| {
        event.family = F::VERSION;
        event.src = bytes(F::mapped(src));
        event.dst = bytes(F::mapped(dst));
        event.generation = generation;
        [event.remote_class, event.local_class, event.service_class] = classes;
    });
}

/// Writes an event into the ring buffer, where it takes no room on the stack.
#[inline(always)]
fn send(
    skb: &Skb,
    direction: Direction,
    code: u64,
    action: u32,
    time_ns: u64,
    suppressed: u64,
    describe: impl FnOnce(&mut Event),
) {
    let Some(mut entry) = maps::EVENTS.reserve(0) else {
        if let Some(limiter) = maps::LIMITER.get_ptr_mut(0) {
            // SAFETY: this CPU's value.
            unsafe { (*limiter).suppressed = suppressed + 1 };
        }
        return;
    };
    let (protocol, tcp_flags) = Code::header(code);
    let (src_port_be, dst_port_be) = Code::ports(code);
    let event = entry.write(Event {
        time_ns,
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
        suppressed,
    });
    describe(event);
    entry.submit(0);
}

/// Counts a drop for the address on the far side.
#[inline(always)]
fn count_remote(addr: &[u32; 4], length: u32) {
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

/// Whether this CPU may send another event in this second: the time, and how many were suppressed since the last.
#[inline(always)]
fn admit() -> Option<(u64, u64)> {
    let limiter = maps::LIMITER.get_ptr_mut(0)?;
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
            return None;
        }
        let suppressed = (*limiter).suppressed;
        (*limiter).sent += 1;
        (*limiter).suppressed = 0;
        Some((now, suppressed))
    }
}

//! The relay as an XDP program: glue between frames, maps and the decision, which are in `ghostwire-relay-fastpath`.
//!
//! ```text
//! frame ─> Packet::parse ─> decide ─> limits ─> neighbour ─> Packet::forward ─> XDP_TX or redirect
//!              │               │                    │
//!              │               └─ STUN ─> answered here, or
//!              └──────────────────────────────────────────────> XDP_PASS: the userspace path
//! ```
//!
//! What the program cannot do, userspace does by the same decision: a frame is passed on only while it is untouched.
//! The program writes no state but counters and limits.
#![no_std]
#![no_main]

mod frame;
mod maps;
mod neighbour;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_redirect};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use ghostwire_relay_fastpath::abi::Counter;
use ghostwire_relay_fastpath::frame::{Neighbour, NotSent, Packet, Pass, stun};
use ghostwire_relay_fastpath::table::Head;
use ghostwire_relay_fastpath::{Forward, Pace, Reason, Verdict, decide_with};

use crate::frame::Live;
use crate::maps::Table;
use crate::neighbour::Way;

/// Relays, answers, or leaves it to the kernel.
#[xdp(frags)]
pub fn relay(ctx: XdpContext) -> u32 {
    let mut frame = Live::new(ctx.ctx);
    let Some(head) = Head::of(&Table) else { return XDP_PASS };
    let packet = match Packet::parse(&frame, &head, &Table) {
        Ok(packet) => packet,
        Err(Pass::NotOurs) => return XDP_PASS,
        Err(Pass::Fragment) => return counted(&frame, Counter::Fragment, XDP_PASS),
        Err(Pass::Unusual) => return counted(&frame, Counter::Unusual, XDP_PASS),
    };
    if !head.header().is_relay_port(packet.datagram.port) {
        return main_port(&mut frame, &packet);
    }
    match decide_with(&head, &Table, &packet.datagram) {
        Verdict::Forward(forward) => send(&mut frame, &packet, &forward),
        Verdict::Control => counted(&frame, Counter::Control, XDP_PASS),
        Verdict::Drop(Reason::NotWireGuard) => counted(&frame, Counter::NotWireGuard, XDP_DROP),
        Verdict::Drop(Reason::HopLimit) => counted(&frame, Counter::HopLimit, XDP_DROP),
        // Userspace looks again.
        Verdict::Drop(Reason::Busy) => counted(&frame, Counter::Busy, XDP_PASS),
        Verdict::Drop(Reason::UnknownSource) => {
            let reported = maps::admit_report(now());
            counted(&frame, Counter::UnknownSource, if reported { XDP_PASS } else { XDP_DROP })
        }
    }
}

/// STUN's plain requests are answered, all others go to userspace.
#[inline(always)]
fn main_port(frame: &mut Live, packet: &Packet) -> u32 {
    if !stun::is_request(packet) {
        return counted(frame, Counter::Control, XDP_PASS);
    }
    if !maps::admit_stun(packet.datagram.source.ip, now()) {
        return counted(frame, Counter::StunLimited, XDP_DROP);
    }
    match stun::answer(frame, packet) {
        Some(true) => counted(frame, Counter::Stun, XDP_TX),
        Some(false) => counted(frame, Counter::Spoilt, XDP_DROP),
        None => counted(frame, Counter::Control, XDP_PASS),
    }
}

#[inline(always)]
fn send(frame: &mut Live, packet: &Packet, forward: &Forward) -> u32 {
    if forward.handshake && !maps::admit_handshake(forward.session, now()) {
        return counted(frame, Counter::Handshakes, XDP_DROP);
    }
    if forward.pace != Pace::UNLIMITED
        && !maps::admit_bytes(forward.session, forward.pace, now(), packet.datagram.len)
    {
        return counted(frame, Counter::Paced, XDP_DROP);
    }
    let way = if forward.same_way {
        Way { neighbour: Neighbour::Same, interface: None }
    } else {
        match neighbour::find(frame.context(), packet, forward) {
            Some(way) => way,
            None => return counted(frame, Counter::NoNeighbour, XDP_PASS),
        }
    };
    match packet.forward(frame, &Table, forward, way.neighbour) {
        Ok(()) => {}
        Err(NotSent::Untouched) => return counted(frame, Counter::NotRewritten, XDP_PASS),
        Err(NotSent::Spoilt) => return counted(frame, Counter::Spoilt, XDP_DROP),
    }
    match way.interface {
        // SAFETY: the helper only notes where the frame goes.
        Some(interface) => counted(frame, Counter::Routed, unsafe { bpf_redirect(interface, 0) } as u32),
        None if !forward.same_way => counted(frame, Counter::Routed, XDP_TX),
        None if packet.v6 != forward.destination.ip.v4_word().is_none() => {
            counted(frame, Counter::Crossed, XDP_TX)
        }
        None => counted(frame, Counter::Returned, XDP_TX),
    }
}

/// Counts a frame; gives what is done with it.
#[inline(always)]
fn counted(frame: &Live, counter: Counter, action: u32) -> u32 {
    maps::count(counter, frame.linear_len());
    action
}

/// Nanoseconds since the machine's start, to a few milliseconds.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_coarse_ns() }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// What the kernel calls GPL-compatible; the helpers for time and routes need it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

//! The one place where a judgement becomes an action of the kernel, a counter and an event.

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use ghostwire_ebpf_abi::event::{Action, Direction, Reason};
use ghostwire_ebpf_abi::image::flags;
use ghostwire_packet::{Family, Packet, Reader};

use crate::event;
use crate::image::Image;
use crate::maps::{self, FirstKey};
use crate::skb::Skb;

/// A judgement: passed with a reason, or dropped with one. A number, because a BPF function that is not inlined
/// returns one register.
///
/// Bits 0 to 7 are the reason, bit 8 is set if the packet passes, bit 9 if it is not decided yet, bits 10 and 11 are
/// the image's modes. The rest tells of the packet what an event
/// will say: protocol (16), TCP flags (24), source port (32) and destination port (48), the ports in network byte
/// order.
pub enum Code {}

impl Code {
    const PASS: u64 = 1 << 8;
    const OPEN: u64 = 1 << 9;
    const SHADOW: u64 = 1 << 10;
    const SAMPLED: u64 = 1 << 11;

    /// Passed.
    #[inline(always)]
    pub const fn pass(reason: Reason) -> u64 {
        reason as u64 | Self::PASS
    }

    /// Dropped.
    #[inline(always)]
    pub const fn drop(reason: Reason) -> u64 {
        reason as u64
    }

    /// Not decided: to be judged by these ports.
    #[inline(always)]
    pub const fn open(src_port_be: u16, dst_port_be: u16) -> u64 {
        Self::OPEN | Self::with_ports(src_port_be, dst_port_be)
    }

    /// What to add to a code so that it tells of the image's modes.
    #[inline(always)]
    pub fn mode(image: Image) -> u64 {
        let shadow = if image.has(flags::SHADOW) { Self::SHADOW } else { 0 };
        let sampled = if image.has(flags::SAMPLE_ACCEPTS) { Self::SAMPLED } else { 0 };
        shadow | sampled
    }

    /// Whether it passed.
    #[inline(always)]
    pub const fn passes(code: u64) -> bool {
        code & Self::PASS != 0
    }

    /// Whether it is not decided.
    #[inline(always)]
    pub const fn is_open(code: u64) -> bool {
        code & Self::OPEN != 0
    }

    /// Number of the reason.
    #[inline(always)]
    pub const fn reason(code: u64) -> u32 {
        code as u32 & (Reason::COUNT - 1)
    }

    /// What to add to a code so that it tells of the packet.
    #[inline(always)]
    pub fn describe<F: Family>(packet: &Packet<F::Addr>) -> u64 {
        let transport = &packet.transport;
        let (src_port_be, dst_port_be) = if packet.protocol == F::ICMP {
            (u16::from(transport.icmp_type).to_be(), u16::from(transport.icmp_code).to_be())
        } else {
            (transport.src_port_be, transport.dst_port_be)
        };
        (packet.protocol as u64) << 16
            | (transport.tcp_flags as u64) << 24
            | Self::with_ports(src_port_be, dst_port_be)
    }

    const fn with_ports(src_port_be: u16, dst_port_be: u16) -> u64 {
        (src_port_be as u64) << 32 | (dst_port_be as u64) << 48
    }

    /// Source and destination port.
    #[inline(always)]
    pub const fn ports(code: u64) -> (u16, u16) {
        ((code >> 32) as u16, (code >> 48) as u16)
    }

    /// Protocol and TCP flags.
    #[inline(always)]
    pub const fn header(code: u64) -> (u8, u8) {
        ((code >> 16) as u8, (code >> 24) as u8)
    }
}

/// Denials that shadow mode lets pass: those that a policy decides. Never a missing image or a packet that
/// cannot be read.
const SHADOWED: u32 = 1 << Reason::Denied as u32
    | 1 << Reason::UnknownRemote as u32
    | 1 << Reason::NotLocal as u32
    | 1 << Reason::UnrelatedIcmpError as u32
    | 1 << Reason::OrphanFragment as u32
    | 1 << Reason::InvalidState as u32;

/// Counts one packet.
#[inline(always)]
pub fn count(key: &FirstKey, direction: Direction, reason: u32, length: u64) {
    // SAFETY: an array.
    let counters = unsafe { maps::first(ptr::from_ref(&maps::COUNTERS).cast(), key) };
    if counters.is_null() {
        return;
    }
    let index = (direction as u32 * Reason::COUNT) | (reason & (Reason::COUNT - 1));
    // SAFETY: this CPU's value, which no other CPU writes; the index is below its length.
    unsafe {
        let counter = counters.cast::<ghostwire_ebpf_abi::event::Counter>().add(index as usize);
        (*counter).packets += 1;
        (*counter).bytes += length;
    }
}

/// Turns a judgement into the action. `UNSPEC` means "next program": others on the device have their say.
#[inline(always)]
pub fn conclude(context: *mut __sk_buff, direction: Direction, code: u64) -> i32 {
    let key = FirstKey::new();
    let length = u64::from(Skb::again(context).length());
    let reason = Code::reason(code);
    if Code::passes(code) {
        count(&key, direction, reason, length);
        if code & Code::SAMPLED != 0 {
            event::accepted(context, direction as u32, code);
        }
        return TC_ACT_UNSPEC;
    }
    let shadowed = code & Code::SHADOW != 0 && SHADOWED >> reason & 1 != 0;
    let (counted, action, verdict) = if shadowed {
        (Reason::Shadow as u32, Action::WouldDrop, TC_ACT_UNSPEC)
    } else {
        (reason, Action::Drop, TC_ACT_SHOT)
    };
    count(&key, direction, counted, length);
    event::report(context, direction as u32, code, action as u32);
    verdict
}

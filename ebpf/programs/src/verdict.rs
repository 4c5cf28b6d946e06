//! The one place where a judgement becomes an action of the kernel, a counter and an event.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use ghostwire_ebpf_abi::event::{Action, Direction, Reason};
use ghostwire_ebpf_abi::image::flags;

use crate::image::Image;
use crate::{event, maps};

/// A judgement: passed with a reason, or dropped with one. A number, because a BPF function that is not inlined
/// returns one register.
pub enum Code {}

impl Code {
    const PASS: u64 = 1 << 8;

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

    /// Whether it passed.
    #[inline(always)]
    pub const fn passes(code: u64) -> bool {
        code & Self::PASS != 0
    }

    /// Number of the reason.
    #[inline(always)]
    pub const fn reason(code: u64) -> u32 {
        code as u32 & (Reason::COUNT - 1)
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
pub fn count(direction: Direction, reason: u32, length: u32) {
    let Some(counters) = maps::COUNTERS.get_ptr_mut(0) else { return };
    let index = (direction as u32 * Reason::COUNT) | (reason & (Reason::COUNT - 1));
    // SAFETY: this CPU's value, which no other CPU writes; the index is below its length.
    unsafe {
        let counter = counters.cast::<ghostwire_ebpf_abi::event::Counter>().add(index as usize);
        (*counter).packets += 1;
        (*counter).bytes += u64::from(length);
    }
}

/// Turns a judgement into the action. `UNSPEC` means "next program": others on the device have their say.
#[inline(always)]
pub fn conclude(
    context: *mut __sk_buff,
    image: Option<Image>,
    direction: Direction,
    length: u32,
    code: u64,
) -> i32 {
    let reason = Code::reason(code);
    if Code::passes(code) {
        count(direction, reason, length);
        if image.is_some_and(|image| image.has(flags::SAMPLE_ACCEPTS)) {
            event::accepted(context, event::about(direction, reason, Action::Pass));
        }
        return TC_ACT_UNSPEC;
    }
    let shadowed = image.is_some_and(|image| image.has(flags::SHADOW)) && SHADOWED >> reason & 1 != 0;
    if shadowed {
        count(direction, Reason::Shadow as u32, length);
        event::report(context, event::about(direction, reason, Action::WouldDrop));
        return TC_ACT_UNSPEC;
    }
    count(direction, reason, length);
    event::report(context, event::about(direction, reason, Action::Drop));
    TC_ACT_SHOT
}

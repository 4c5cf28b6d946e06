//! What is counted: packets by slot, and those that did not just take their path by reason.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns};
use ghostwire_ebpf_abi::steer::{Config, Reason, SLOTS};

use crate::maps;

const SECOND: u64 = 1_000_000_000;

/// Counts a datagram with so many bytes of payload for a slot, in the row of this CPU.
#[inline(always)]
pub fn slot(slot: u32, payload: u32) {
    // SAFETY: no arguments.
    let row = unsafe { bpf_get_smp_processor_id() } & maps::ROW_MASK.load();
    let Some(count) = maps::TRAFFIC.get_ptr_mut(row * SLOTS + slot) else { return };
    // SAFETY: the map's value, aligned to eight bytes, which only the CPUs of the row write. Volatile, because userspace
    // reads meanwhile.
    unsafe {
        (&raw mut (*count).packets).write_volatile((*count).packets + 1);
        (&raw mut (*count).bytes).write_volatile((*count).bytes + u64::from(payload));
        (&raw mut (*count).last_ns).write_volatile(bpf_ktime_get_coarse_ns());
    }
}

/// Counts a packet by reason.
#[inline(always)]
pub fn reason(context: *mut __sk_buff, reason: Reason) {
    let Some(counters) = maps::STEER_COUNTERS.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's value, and the index of a reason is below its length.
    unsafe {
        let counter = (&raw mut *counters).cast::<ghostwire_ebpf_abi::event::Counter>().add(reason as usize);
        (*counter).packets += 1;
        (*counter).bytes += u64::from((*context).len);
    }
}

/// Counts a packet and drops it.
#[inline(always)]
pub fn shoot(context: *mut __sk_buff, why: Reason) -> i32 {
    reason(context, why);
    TC_ACT_SHOT
}

/// Whether one more packet may go to the controller on this CPU in this second. An aggregate counts as about as many as
/// there are in it.
#[inline(always)]
pub fn may_report(context: *mut __sk_buff, config: &Config, unknown: bool) -> bool {
    let Some(limiter) = maps::STEER_LIMITER.get_ptr_mut(0) else { return false };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: this CPU's value.
    unsafe {
        if now.saturating_sub((*limiter).window_ns) >= SECOND {
            (*limiter).window_ns = now;
            (*limiter).unknown = 0;
            (*limiter).control = 0;
        }
        let (spent, limit) = if unknown {
            (&raw mut (*limiter).unknown, config.unknown_per_second)
        } else {
            (&raw mut (*limiter).control, config.control_per_second)
        };
        if *spent >= limit {
            return false;
        }
        let segment = (*context).gso_size;
        *spent += if segment == 0 { 1 } else { 1 + (*context).len / segment };
        true
    }
}

//! How fast one source may create state: a token bucket for each.

use aya_ebpf::bindings::BPF_ANY;
use ghostwire_ebpf_abi::config::Config;
use ghostwire_ebpf_abi::conntrack::Bucket;

use crate::maps::{BUCKETS, CONFIG};

const SECOND: u64 = 1_000_000_000;

/// Longest time that counts as a pause, so that the product below cannot overflow.
const LONGEST_NS: u64 = 4 * SECOND;

/// The configuration.
#[inline(always)]
pub fn config() -> Config {
    // SAFETY: reads four numbers, each by itself; a concurrent update mixes old and new knobs for one packet.
    CONFIG.get(0).copied().unwrap_or(Config::DEFAULT)
}

/// Takes a token from a source's bucket. Not exact under concurrency, where two packets may share a token.
#[inline(always)]
pub fn take(source: &[u32; 4], now: u64) -> bool {
    let config = config();
    let burst = u64::from(config.states_burst);
    let Some(bucket) = BUCKETS.get_ptr_mut(source) else {
        if burst == 0 {
            return false;
        }
        let fresh = Bucket { refilled_ns: now, tokens: burst - 1 };
        return BUCKETS.insert(source, fresh, u64::from(BPF_ANY)).is_ok();
    };
    // SAFETY: the map's value; a concurrent writer can only make the count inexact.
    unsafe {
        let rate = u64::from(config.states_per_second);
        let pause = now.saturating_sub((*bucket).refilled_ns);
        let pause = if pause > LONGEST_NS { LONGEST_NS } else { pause };
        let earned = pause * rate / SECOND;
        let mut tokens = (*bucket).tokens;
        if earned > 0 {
            tokens += earned;
            (*bucket).refilled_ns = now;
        }
        if tokens > burst {
            tokens = burst;
        }
        if tokens == 0 {
            return false;
        }
        (*bucket).tokens = tokens - 1;
        true
    }
}

//! The maps. Userspace finds them by their names; the table's size is its to override.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use ghostwire_relay_fastpath::abi::{Counter, CounterWords, SettingsWords, setting};
use ghostwire_relay_fastpath::pace::EventPace;
use ghostwire_relay_fastpath::table::{Line, Lines, WORDS};
use ghostwire_relay_fastpath::{Ip, Pace};

/// The pair table.
#[btf_map]
pub static PAIRS: Array<[u64; WORDS], 4096, { BPF_F_MMAPABLE as usize }> = Array::new();

/// What userspace has set.
#[btf_map]
pub static SETTINGS: Array<SettingsWords, 1> = Array::new();

/// Packets and bytes by what became of them.
#[btf_map]
pub static COUNTERS: PerCpuArray<CounterWords, 1> = PerCpuArray::new();

/// Interfaces that frames may be redirected to.
#[btf_map]
pub static INTERFACES: HashMap<u32, u32, 64> = HashMap::new();

/// Sessions share places: the one that came last has it, and begins with a full allowance. Sessions that send so much
/// that their limit matters come back before others take their place.
const PLACES: usize = 4096;

/// How far sessions have paid for their bytes: session and number of [`Pace::admit`].
#[btf_map]
pub static BYTES: PerCpuArray<[u64; 2], PLACES> = PerCpuArray::new();

/// The same for handshakes.
#[btf_map]
pub static HANDSHAKES: PerCpuArray<[u64; 2], PLACES> = PerCpuArray::new();

/// Sources share places, too; they have one number together.
const SOURCES: usize = 16_384;

/// How far sources have paid for their STUN requests.
#[btf_map]
pub static STUN: Array<u64, SOURCES> = Array::new();

/// How far reports have been paid for.
#[btf_map]
pub static REPORTS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The pair table, as the decision reads it.
pub struct Table;

impl Lines for Table {
    #[inline(always)]
    fn line(&self, index: u32) -> Option<&Line> {
        // SAFETY: a line is its words. Elements of mmapable arrays start on a page, so that lines of 64 bytes are
        // aligned. Userspace writes meanwhile, as the table's readers expect.
        PAIRS.get_ptr(index).map(|line| unsafe { &*line.cast::<Line>() })
    }
}

/// Counts a packet.
#[inline(always)]
pub fn count(counter: Counter, bytes: u64) {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: this processor's own, and programs are not interrupted by themselves; the index is a variant's.
        unsafe {
            let [packets, sum] = &mut *counters.cast::<[u64; 2]>().add(counter as usize);
            *packets += 1;
            *sum += bytes;
        }
    }
}

#[inline(always)]
fn pace_of(at: usize) -> Option<EventPace> {
    let words = SETTINGS.get(0)?;
    Some(EventPace { cost: *words.get(at)?, burst: *words.get(at + 1)? })
}

/// Whether a session may send so many bytes.
#[inline(always)]
pub fn admit_bytes(session: u32, pace: Pace, now: u64, len: u32) -> bool {
    let Some(place) = BYTES.get_ptr_mut(session % PLACES as u32) else { return true };
    // SAFETY: this processor's own.
    admit(unsafe { &mut *place }, session, |number| pace.admit(number, now, len))
}

/// Whether a session may send a handshake.
#[inline(always)]
pub fn admit_handshake(session: u32, now: u64) -> bool {
    let Some(pace) = pace_of(setting::HANDSHAKES) else { return true };
    let Some(place) = HANDSHAKES.get_ptr_mut(session % PLACES as u32) else { return true };
    // SAFETY: this processor's own.
    admit(unsafe { &mut *place }, session, |number| pace.admit(number, now))
}

#[inline(always)]
fn admit(place: &mut [u64; 2], session: u32, pace: impl FnOnce(u64) -> Option<u64>) -> bool {
    let number = if place[0] == u64::from(session) { place[1] } else { 0 };
    match pace(number) {
        Some(number) => {
            *place = [session.into(), number];
            true
        }
        None => false,
    }
}

/// Whether a source may have a STUN request answered.
#[inline(always)]
pub fn admit_stun(source: Ip, now: u64) -> bool {
    let Some(pace) = pace_of(setting::STUN) else { return true };
    // A customer has at least a /64 of IPv6, so its second half does not count. The mapped prefix of IPv4 is no secret;
    // who floods can share a place with somebody else, who then asks another relay.
    let [a, b, ..] = source.0;
    let hash = source.v4_word().unwrap_or(a ^ b.rotate_left(16));
    let place = hash.wrapping_mul(0x9E37_79B1) >> 18;
    let Some(number) = STUN.get_ptr_mut(place % SOURCES as u32) else { return true };
    // SAFETY: a number that processors share; see [`ghostwire_relay_fastpath::pace`] for what races cost.
    unsafe { store(number, |number| pace.admit(number, now)) }
}

/// Whether userspace is to hear of a datagram from an unknown source.
#[inline(always)]
pub fn admit_report(now: u64) -> bool {
    let Some(pace) = pace_of(setting::REPORTS) else { return false };
    let Some(number) = REPORTS.get_ptr_mut(0) else { return false };
    // SAFETY: this processor's own.
    unsafe { store(number, |number| pace.admit(number, now)) }
}

/// # Safety
///
/// `number` can be read and written.
#[inline(always)]
unsafe fn store(number: *mut u64, pace: impl FnOnce(u64) -> Option<u64>) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        match pace(number.read_volatile()) {
            Some(next) => {
                number.write_volatile(next);
                true
            }
            None => false,
        }
    }
}

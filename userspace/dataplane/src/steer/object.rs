//! The embedded object of the steering programs.

use std::path::Path;

use aya::Ebpf;
use ghostwire_ebpf_abi::steer;

use super::SteerError;
use crate::bpf::Origin;
use crate::bpf::object::{self, Source};

/// The eBPF object, as the build made it from source.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("GHOSTWIRE_STEER_OBJECT"));

/// The programs.
pub const PROGRAMS: [&str; 5] = [OUT, IN, IN_IP, UPLINK_OUT, UPLINK_OUT_IP];

/// From WireGuard to its peers' stable endpoints.
pub(super) const OUT: &str = "steer_out";
/// From an Ethernet uplink.
pub(super) const IN: &str = "steer_in";
/// From an uplink without Ethernet headers.
pub(super) const IN_IP: &str = "steer_in_ip";
/// Out by an Ethernet uplink.
pub(super) const UPLINK_OUT: &str = "uplink_out";
/// Out by an uplink without Ethernet headers.
pub(super) const UPLINK_OUT_IP: &str = "uplink_out_ip";

/// Loads the programs into the kernel, with pinned maps.
pub(super) fn load(dir: &Path, l3_offset: u32) -> Result<(Ebpf, Origin), SteerError> {
    let rows = rows();
    let source = Source {
        object: OBJECT,
        programs: &PROGRAMS,
        layout: steer::LAYOUT.into(),
        sizes: &[("TRAFFIC", rows * steer::SLOTS)],
        globals: &[("L3_OFFSET", l3_offset), ("ROW_MASK", rows - 1)],
    };
    Ok(object::load(dir, &source)?)
}

/// Rows of the counters: one for each CPU that there may be, within the limit.
pub(super) fn rows() -> u32 {
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    u32::try_from(cpus.next_power_of_two()).unwrap_or(steer::MAX_ROWS).clamp(1, steer::MAX_ROWS)
}

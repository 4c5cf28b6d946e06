//! Nanoseconds per packet by `BPF_PROG_TEST_RUN`, over an empty program.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use anyhow::{Result, ensure};

use super::samples::{Pair, middle_mean};
use super::{bpf, steps};

/// `TC_ACT_UNSPEC`: passed.
pub const PASSED: u32 = u32::MAX;
/// `TC_ACT_SHOT`: dropped.
pub const DROPPED: u32 = 2;

/// A frame: an Ethernet header, which `BPF_PROG_TEST_RUN` insists on, and a UDP datagram of 64 bytes. Checksums are
/// zero: nobody looks. The addresses are of one family.
pub fn frame(src: (IpAddr, u16), dst: (IpAddr, u16)) -> Vec<u8> {
    let mut frame = vec![0; 12];
    match (src.0, dst.0) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame.extend([0x08, 0x00]);
            frame.extend([0x45, 0, 0, 92, 0, 0, 0x40, 0, 64, 17, 0, 0]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
        }
        (src, dst) => {
            let octets = |addr| match addr {
                IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
                IpAddr::V6(addr) => addr.octets(),
            };
            frame.extend([0x86, 0xdd]);
            frame.extend([0x60, 0, 0, 0, 0, 72, 17, 64]);
            frame.extend(octets(src));
            frame.extend(octets(dst));
        }
    }
    frame.extend(src.1.to_be_bytes());
    frame.extend(dst.1.to_be_bytes());
    frame.extend([0, 72, 0, 0]);
    frame.extend([0; 64]);
    frame
}

/// Runs in a row: shorter than a time slice, so that most are not interrupted.
const REPEAT: u32 = 5_000;
/// Pairs of one measurement.
const PAIRS: usize = 60;

/// Compares programs with an empty one.
pub struct Scale {
    empty: OwnedFd,
    /// Nanoseconds of the empty program in the best moment so far.
    pub floor: f64,
}

impl Scale {
    /// With the best moment of earlier scales. Loads the empty program anew: how its few bytes lie in memory makes a
    /// difference, too.
    pub fn new(floor: f64) -> Result<Self> {
        Ok(Self { empty: steps::empty()?, floor })
    }

    /// A program for one packet, again and again: everything is in the cache. By our own clock, because the duration
    /// that the kernel reports is in whole nanoseconds; the system call adds some tenths of one to each run of either
    /// program.
    pub fn warm(&mut self, program: BorrowedFd<'_>, frame: &[u8], verdict: u32) -> Result<Vec<Pair>> {
        let mut pairs = Vec::with_capacity(PAIRS);
        let mut before = timed(self.empty.as_fd(), frame, PASSED)?;
        for _ in 0..PAIRS {
            let measured = timed(program, frame, verdict)?;
            let after = timed(self.empty.as_fd(), frame, PASSED)?;
            pairs.push(Pair { plain: f64::midpoint(before, after), measured });
            self.floor = self.floor.min(after);
            before = after;
        }
        Ok(pairs)
    }

    /// Nanoseconds over the empty program for packets that are all different, one run each: what a system call has pushed
    /// out of the caches, and the policy's words for other packets, have to be fetched again.
    pub fn varying(&mut self, program: BorrowedFd<'_>, frames: &[Vec<u8>]) -> Result<f64> {
        let before = timed(self.empty.as_fd(), &frames[0], PASSED)?;
        let empty = self.empty.as_fd();
        // One after the other both times: the second finds the way through the kernel in the caches.
        let first = once(program, empty, frames)?;
        let second = once(empty, program, frames)?;
        let after = timed(self.empty.as_fd(), &frames[0], PASSED)?;
        self.floor = self.floor.min(before.min(after));
        // As it would have been in the best moment.
        Ok((first.0 - first.1 + second.1 - second.0) / 2.0 * self.floor / f64::midpoint(before, after))
    }
}

/// Nanoseconds of one run for each frame, by one program and then by another, as the kernel measured them.
fn once(one: BorrowedFd<'_>, other: BorrowedFd<'_>, frames: &[Vec<u8>]) -> Result<(f64, f64)> {
    let nanoseconds = |program, frame: &[u8]| -> Result<f64> {
        let run = bpf::run(program, frame, 1)?;
        ensure!(run.verdict == PASSED, "the benchmark's packet was not admitted: {}", run.verdict);
        Ok(f64::from(run.nanoseconds))
    };
    let (mut ones, mut others) = (Vec::with_capacity(frames.len()), Vec::with_capacity(frames.len()));
    for frame in frames {
        ones.push(nanoseconds(one, frame)?);
        others.push(nanoseconds(other, frame)?);
    }
    Ok((middle_mean(ones), middle_mean(others)))
}

/// Nanoseconds per run.
fn timed(program: BorrowedFd<'_>, frame: &[u8], verdict: u32) -> Result<f64> {
    let started = Instant::now();
    let run = bpf::run(program, frame, REPEAT)?;
    let nanoseconds = started.elapsed().as_secs_f64() * 1e9 / f64::from(REPEAT);
    ensure!(run.verdict == verdict, "the benchmark's packet came to verdict {}, not {verdict}", run.verdict);
    Ok(nanoseconds)
}

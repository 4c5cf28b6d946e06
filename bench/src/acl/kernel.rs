//! Nanoseconds per packet by `BPF_PROG_TEST_RUN`, over an empty program.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;
const TCX_INGRESS: u32 = 46;
const PROG_TYPE_SCHED_CLS: u32 = 3;

/// A frame: an Ethernet header, which `BPF_PROG_TEST_RUN` insists on, and a UDP datagram.
pub fn frame(src: Ipv4Addr, dst: Ipv4Addr, dst_port: u16) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00]);
    frame.extend([0x45, 0, 0, 92, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(src.octets());
    frame.extend(dst.octets());
    frame.extend(40_000_u16.to_be_bytes());
    frame.extend(dst_port.to_be_bytes());
    frame.extend([0, 72, 0, 0]);
    frame.extend([0; 64]);
    frame
}

/// A classifier that does nothing but pass.
pub fn empty_program() -> Result<OwnedFd> {
    #[repr(C)]
    struct LoadAttr {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        rest: [u64; 4],
    }
    // r0 = -1 (TC_ACT_UNSPEC); exit
    let code: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let license = c"GPL";
    let mut attr = LoadAttr {
        kind: PROG_TYPE_SCHED_CLS,
        instructions: 2,
        code: code.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        rest: [0; 4],
    };
    // SAFETY: the attributes point to code and licence, which live until after the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, ptr::from_mut(&mut attr), size_of::<LoadAttr>()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
    let fd = fd.ok_or_else(io::Error::last_os_error).context("loading an empty program (root is needed)")?;
    // SAFETY: a new descriptor, ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to a device's ingress for as long as the descriptor lives.
pub fn attach_ingress(program: BorrowedFd<'_>, interface: &str) -> Result<OwnedFd> {
    #[repr(C)]
    struct LinkAttr {
        prog_fd: u32,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
        rest: [u64; 4],
    }
    let mut attr = LinkAttr {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        ifindex: nix::net::if_::if_nametoindex(interface)?,
        attach_type: TCX_INGRESS,
        flags: 0,
        rest: [0; 4],
    };
    // SAFETY: the attributes hold no pointers.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, LINK_CREATE, ptr::from_mut(&mut attr), size_of::<LinkAttr>()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
    let fd = fd.ok_or_else(io::Error::last_os_error).context("attaching a tcx program (Linux 6.6)")?;
    // SAFETY: a new descriptor, ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Average nanoseconds of `repeat` runs, and what the last returned.
pub fn run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<(u32, u32)> {
    #[repr(C)]
    struct RunAttr {
        prog_fd: u32,
        retval: u32,
        size_in: u32,
        size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        rest: [u64; 4],
    }
    let mut attr = RunAttr {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        retval: 0,
        size_in: u32::try_from(frame.len())?,
        size_out: 0,
        data_in: frame.as_ptr().expose_provenance() as u64,
        data_out: 0,
        repeat,
        duration: 0,
        rest: [0; 4],
    };
    // SAFETY: the attributes point to the frame, which lives until after the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, ptr::from_mut(&mut attr), size_of::<RunAttr>())
    };
    ensure!(result >= 0, "BPF_PROG_TEST_RUN: {}", io::Error::last_os_error());
    Ok((attr.duration, attr.retval))
}

const REPEAT: u32 = 20_000;
const ROUNDS: u32 = 120;
/// `TC_ACT_UNSPEC`: passed.
const PASSED: u32 = u32::MAX;

/// Nanoseconds of a program for one packet, again and again: everything is in the cache. The best of many rounds counts,
/// because everything else on the machine only adds; each is shorter than a time slice, so that some are not
/// interrupted. By our own clock, because the duration that the kernel reports is in whole nanoseconds; the system call
/// adds a tenth of a nanosecond to each run of either program.
pub fn warm(program: BorrowedFd<'_>, frame: &[u8]) -> Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let (_, verdict) = run(program, frame, REPEAT)?;
        best = best.min(started.elapsed().as_secs_f64() * 1e9 / f64::from(REPEAT));
        ensure!(verdict == PASSED, "the benchmark's packet was not admitted: {verdict}");
    }
    Ok(best)
}

/// Nanoseconds over an empty program for packets that are all different: each is run a few times after the others
/// have gone through the cache.
pub fn varying(program: BorrowedFd<'_>, empty: BorrowedFd<'_>, frames: &[Vec<u8>]) -> Result<f64> {
    const FEW: u32 = 4;
    let mut best = f64::MAX;
    for _ in 0..2 {
        let (mut ours, mut floor) = (0_u64, 0_u64);
        for frame in frames {
            floor += u64::from(run(empty, frame, FEW)?.0);
        }
        for frame in frames {
            let (duration, verdict) = run(program, frame, FEW)?;
            ensure!(verdict == PASSED, "the benchmark's packet was not admitted: {verdict}");
            ours += u64::from(duration);
        }
        #[expect(clippy::cast_precision_loss, reason = "sums of nanoseconds are far below 2^52")]
        let difference = (ours as f64 - floor as f64) / frames.len() as f64;
        best = best.min(difference);
    }
    Ok(best)
}

//! The `bpf` system call, as far as the benchmark needs it beyond what the eBPF library offers.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result};

const PROG_LOAD: libc::c_long = 5;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;
const TCX_INGRESS: u32 = 46;
const PROG_TYPE_SCHED_CLS: u32 = 3;

/// What a `BPF_PROG_TEST_RUN` came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Average nanoseconds, whole ones, as the kernel measured them.
    pub nanoseconds: u32,
    /// What the last run returned.
    pub verdict: u32,
}

/// Calls `bpf` with attributes that hold no pointers but to what the caller keeps alive.
fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are of the length that is passed; the functions below see to the pointers in them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As [`call`], for commands that return a new descriptor.
fn open<T>(command: libc::c_long, attributes: &mut T) -> Result<OwnedFd> {
    let fd = i32::try_from(call(command, attributes)?)?;
    // SAFETY: a new descriptor, ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads a classifier.
pub fn load(code: &[u64]) -> Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        rest: [u64; 4],
    }
    let license = c"GPL";
    let mut attributes = Attributes {
        kind: PROG_TYPE_SCHED_CLS,
        instructions: u32::try_from(code.len())?,
        code: code.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        rest: [0; 4],
    };
    open(PROG_LOAD, &mut attributes).context("loading a program of the benchmark's own (root is needed)")
}

/// Opens a pinned map.
pub fn open_pin(path: &Path) -> Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes { path: name.as_ptr().expose_provenance() as u64, fd: 0, flags: 0 };
    open(OBJ_GET, &mut attributes).with_context(|| format!("opening {}", path.display()))
}

/// Attaches a program to a device's ingress for as long as the descriptor lives.
pub fn attach_ingress(program: BorrowedFd<'_>, interface: &str) -> Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        interface: u32,
        attach_type: u32,
        flags: u32,
        rest: [u64; 4],
    }
    let mut attributes = Attributes {
        program: program.as_raw_fd().cast_unsigned(),
        interface: nix::net::if_::if_nametoindex(interface)?,
        attach_type: TCX_INGRESS,
        flags: 0,
        rest: [0; 4],
    };
    open(LINK_CREATE, &mut attributes).context("attaching a tcx program (Linux 6.6)")
}

/// Runs a program on a frame `repeat` times.
pub fn run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<Run> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        verdict: u32,
        size_in: u32,
        size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        nanoseconds: u32,
        rest: [u64; 4],
    }
    let mut attributes = Attributes {
        program: program.as_raw_fd().cast_unsigned(),
        verdict: 0,
        size_in: u32::try_from(frame.len())?,
        size_out: 0,
        data_in: frame.as_ptr().expose_provenance() as u64,
        data_out: 0,
        repeat,
        nanoseconds: 0,
        rest: [0; 4],
    };
    call(PROG_TEST_RUN, &mut attributes).context("BPF_PROG_TEST_RUN")?;
    Ok(Run { nanoseconds: attributes.nanoseconds, verdict: attributes.verdict })
}

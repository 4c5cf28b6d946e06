//! What the process of a userspace device needs of the operating system: to be ended safely by the
//! daemon, and to have no more rights than it uses.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::Error;

/// Opens a process: unlike its number, the descriptor can never come to mean another one.
pub(super) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Sends a signal; it is no error if the process has ended.
pub(super) fn pidfd_signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_details = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open for as long as it is borrowed; a null siginfo means kill's.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, no_details, 0) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}

/// Waits for a process to end. Returns whether it did.
pub(super) fn pidfd_wait(process: BorrowedFd<'_>, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut [PollFd::new(process, PollFlags::POLLIN)], timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Nice level of a process that carries packets.
const NICENESS: i32 = -10;

/// Puts this thread, and those that it starts, before ordinary programs, as the kernel's WireGuard is: while it waits
/// for a processor, its TUN device drops what exceeds 500 packets.
pub(super) fn run_first() -> io::Result<()> {
    // SAFETY: three integers; 0 means the calling thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opening the TUN device, marking packets (SO_MARK), the alias.
const CAP_NET_ADMIN: u32 = 12;
/// A listen port below 1024.
const CAP_NET_BIND_SERVICE: u32 = 10;
/// Version 3 of the capability calls (two 32-bit halves), `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Capabilities {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up everything that a userspace device does not need: all capabilities but two, new ones
/// through set-uid programs, core dumps and debuggers that could read the keys. It holds for the
/// calling thread and the threads that it starts.
pub(super) fn drop_privileges() -> Result<(), Error> {
    let failed = |action| move |source: io::Error| Error::Privileges { action, source };
    nix::sys::prctl::set_no_new_privs().map_err(|error| failed("no_new_privs")(error.into()))?;
    nix::sys::prctl::set_dumpable(false).map_err(|error| failed("dumpable")(error.into()))?;

    let wanted = 1 << CAP_NET_ADMIN | 1 << CAP_NET_BIND_SERVICE;
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut sets = [Capabilities::default(); 2];
    // SAFETY: header and sets have the layout of version 3, which reads or writes two sets.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    if result != 0 {
        return Err(failed("capget")(io::Error::last_os_error()));
    }
    // In a container even these may be missing: what needs them fails by itself.
    let kept = sets[0].permitted & wanted;
    let sets = [Capabilities { effective: kept, permitted: kept, inheritable: 0 }, Capabilities::default()];
    // SAFETY: as above; the call only reads.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    if result != 0 {
        return Err(failed("capset")(io::Error::last_os_error()));
    }
    Ok(())
}

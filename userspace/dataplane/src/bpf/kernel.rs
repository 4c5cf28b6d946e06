//! System calls that the eBPF library does not offer: a map in memory, what a link is attached to, and what is attached
//! to an interface.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use super::BpfError;

/// The value area of a mmapable array, in this process's memory.
pub(crate) struct Mapping {
    start: NonNull<libc::c_void>,
    bytes: usize,
}

// SAFETY: memory that any thread may use, by atomic operations only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of the values.
    pub(crate) fn new(map: BorrowedFd<'_>, bytes: usize) -> Result<Self, BpfError> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: asks for a new mapping at an address of the kernel's choice.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Self { start, bytes }),
            _ => Err(BpfError::System { call: "mmap of a map", source: io::Error::last_os_error() }),
        }
    }

    /// Word `index`. Atomic, because programs read while we write.
    pub(crate) fn word(&self, index: u32) -> &AtomicU64 {
        let index = index as usize;
        assert!(index < self.bytes / 8, "word {index} of a mapping of {} bytes", self.bytes);
        // SAFETY: within the mapping, which lives as long as self and is page-aligned.
        unsafe { &*self.start.as_ptr().cast::<AtomicU64>().add(index) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing that borrows from it is left. Failure would leak it.
        unsafe { libc::munmap(self.start.as_ptr(), self.bytes) };
    }
}

/// The start of `struct bpf_link_info` and its `tcx` arm (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    ifindex: u32,
    attach_type: u32,
    rest: [u64; 8],
}

/// `BPF_OBJ_GET_INFO_BY_FD` and the attributes that it takes.
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `BPF_OBJ_GET` and the attributes that it takes.
const OBJ_GET: libc::c_long = 7;

#[repr(C)]
struct PathAttr {
    path: u64,
    bpf_fd: u32,
    flags: u32,
}

/// Opens whatever is pinned at a path.
pub(crate) fn open_pin(pin: &Path) -> Result<OwnedFd, BpfError> {
    let fail = |source| BpfError::Pin { action: "open the pin", path: pin.to_owned(), source };
    let path = CString::new(pin.as_os_str().as_bytes()).map_err(|error| fail(error.into()))?;
    let mut attr = PathAttr { path: path.as_ptr().expose_provenance() as u64, bpf_fd: 0, flags: 0 };
    // SAFETY: the path is a string that lives until after the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, ptr::from_mut(&mut attr), size_of::<PathAttr>()) };
    match i32::try_from(fd) {
        // SAFETY: a new descriptor, ours.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(fail(io::Error::last_os_error())),
    }
}

/// What a tcx link holds where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcxLink {
    /// Index of the interface, in whatever network namespace that is; 0: the interface is gone, or the link was
    /// detached.
    pub(crate) interface: u32,
    /// Number of the program.
    pub(crate) program: u32,
}

/// Asks a link.
pub(crate) fn tcx_link(link: &OwnedFd) -> Result<TcxLink, BpfError> {
    let mut info = LinkInfo::default();
    let mut attr = InfoAttr {
        bpf_fd: link.as_raw_fd().cast_unsigned(),
        info_len: u32::try_from(size_of::<LinkInfo>()).unwrap_or(0),
        info: ptr::from_mut(&mut info).expose_provenance() as u64,
    };
    // SAFETY: the attributes name a buffer of the length that they say.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, ptr::from_mut(&mut attr), size_of::<InfoAttr>())
    };
    if result < 0 {
        return Err(BpfError::System { call: "bpf(OBJ_GET_INFO_BY_FD)", source: io::Error::last_os_error() });
    }
    Ok(TcxLink { interface: info.ifindex, program: info.prog_id })
}

/// `BPF_PROG_QUERY` and the attributes that it takes; tcx from kernel 6.6.
const PROG_QUERY: libc::c_long = 16;

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Most programs on one side of an interface (`BPF_MPROG_MAX`).
const MOST_PROGRAMS: usize = 64;

/// Numbers of the tcx programs on one side of an interface of the calling thread's network namespace. `side` is
/// `BPF_TCX_INGRESS` or `BPF_TCX_EGRESS`. An interface that is gone has none.
pub(crate) fn tcx_programs(interface: u32, side: u32) -> Result<Vec<u32>, BpfError> {
    let mut programs = [0_u32; MOST_PROGRAMS];
    let mut attr = QueryAttr {
        target_ifindex: interface,
        attach_type: side,
        prog_ids: programs.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(MOST_PROGRAMS).unwrap_or(0),
        ..QueryAttr::default()
    };
    // SAFETY: the attributes name a buffer of the length that they say.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, ptr::from_mut(&mut attr), size_of::<QueryAttr>()) };
    if result < 0 {
        return match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(Vec::new()),
            source => Err(BpfError::System { call: "bpf(PROG_QUERY)", source }),
        };
    }
    let count = usize::try_from(attr.count).unwrap_or(0).min(MOST_PROGRAMS);
    Ok(programs[..count].to_vec())
}

/// `BPF_LINK_DETACH`, kernel 5.9.
const LINK_DETACH: libc::c_long = 34;

/// Detaches a link now. Removing its pin would do so too, but some time later, after an RCU grace period.
pub(crate) fn detach_link(link: &OwnedFd) -> Result<(), BpfError> {
    let attr = link.as_raw_fd().cast_unsigned();
    // SAFETY: the attributes are one descriptor.
    let result = unsafe { libc::syscall(libc::SYS_bpf, LINK_DETACH, ptr::from_ref(&attr), size_of::<u32>()) };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // The interface is gone, and has taken the attachment along.
        error if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        source => Err(BpfError::System { call: "bpf(LINK_DETACH)", source }),
    }
}

/// Whether the running kernel is at least this version.
pub(crate) fn at_least(major: u32, minor: u32) -> bool {
    let Ok(name) = nix::sys::utsname::uname() else { return false };
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

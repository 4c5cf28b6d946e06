//! The memory of the pair table: this process's, or a BPF map that an XDP program reads too.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use ghostwire_relay_fastpath::table::{Line, Lines};

/// Lines on the heap, shared between the writer and the readers.
#[derive(Clone, Debug)]
pub struct HeapTable(Arc<[Line]>);

impl HeapTable {
    /// Empty lines.
    pub fn new(lines: u32) -> Self {
        Self((0..lines).map(|_| Line::default()).collect())
    }
}

impl Lines for HeapTable {
    #[inline]
    fn line(&self, index: u32) -> Option<&Line> {
        self.0.get(index as usize)
    }
}

/// An array map whose elements are lines, in this process's memory. The map lives at least as long.
#[derive(Clone, Debug)]
pub struct MapTable(Arc<Mapping>);

#[derive(Debug)]
struct Mapping {
    start: NonNull<Line>,
    lines: usize,
}

// SAFETY: the memory is shared with the kernel anyway, and lines consist of atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl MapTable {
    /// Maps a `BPF_F_MMAPABLE` array of `lines` elements of 64 bytes.
    pub fn new(map: impl AsFd, lines: u32) -> io::Result<Self> {
        let lines = lines as usize;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (bytes, fd) = (lines * size_of::<Line>(), map.as_fd().as_raw_fd());
        // SAFETY: a new mapping, wherever the kernel likes. The kernel refuses lengths beyond the map's.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, 0) };
        match NonNull::new(start.cast::<Line>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => {
                Ok(Self(Arc::new(Mapping { start, lines })))
            }
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `MapTable::new` with this length; nobody has a reference any more.
        // It fails only for lengths and addresses that are none.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.lines * size_of::<Line>()) };
    }
}

impl Lines for MapTable {
    #[inline]
    fn line(&self, index: u32) -> Option<&Line> {
        let index = index as usize;
        // SAFETY: within the mapping, which lives as long as `self`; elements are lines of 64 bytes from the start of a
        // page on, and all bytes are valid for atomics.
        (index < self.0.lines).then(|| unsafe { &*self.0.start.as_ptr().add(index) })
    }
}

/// Either.
#[derive(Clone, Debug)]
pub enum Memory {
    /// This process's.
    Heap(HeapTable),
    /// A BPF map's.
    Map(MapTable),
}

impl Lines for Memory {
    #[inline]
    fn line(&self, index: u32) -> Option<&Line> {
        match self {
            Self::Heap(table) => table.line(index),
            Self::Map(table) => table.line(index),
        }
    }
}

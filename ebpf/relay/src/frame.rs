//! The frame as the driver hands it over.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use ghostwire_relay_fastpath::frame::{Bytes, Frame};

/// A frame whose first bytes are in one piece.
pub struct Live {
    context: *mut xdp_md,
    start: usize,
    end: usize,
}

impl Live {
    #[inline(always)]
    pub fn new(context: *mut xdp_md) -> Self {
        let mut frame = Self { context, start: 0, end: 0 };
        frame.look();
        frame
    }

    /// The context, for helpers.
    #[inline(always)]
    pub fn context(&self) -> *mut xdp_md {
        self.context
    }

    /// Bytes in the first piece, which is all there is unless the frame is very long.
    #[inline(always)]
    pub fn linear_len(&self) -> u64 {
        (self.end - self.start) as u64
    }

    #[inline(always)]
    fn look(&mut self) {
        // SAFETY: the context that the kernel passed; the verifier rewrites these reads.
        unsafe {
            self.start = (*self.context).data as usize;
            self.end = (*self.context).data_end as usize;
        }
    }
}

impl Frame for Live {
    #[inline(always)]
    fn at(&self, offset: usize, bytes: usize) -> Option<Bytes> {
        let start = self.start + offset;
        if start + bytes > self.end {
            return None;
        }
        // SAFETY: just compared with the end, which the verifier checks; the frame is this program's while it runs.
        Some(unsafe { Bytes::new(start as *mut u8) })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    fn is_at_least(&self, len: usize) -> bool {
        // SAFETY: the context that the kernel passed.
        self.len() >= len || unsafe { bpf_xdp_get_buff_len(self.context) } as usize >= len
    }

    #[inline(always)]
    fn move_start(&mut self, by: i32) -> bool {
        // SAFETY: the context that the kernel passed; pointers are read again below.
        let moved = unsafe { bpf_xdp_adjust_head(self.context, by) } == 0;
        self.look();
        moved
    }

    #[inline(always)]
    fn grow(&mut self, by: i32) -> bool {
        // SAFETY: as above.
        let grown = by == 0 || unsafe { bpf_xdp_adjust_tail(self.context, by) } == 0;
        self.look();
        grown
    }
}

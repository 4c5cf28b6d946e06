//! The packet as the kernel hands it over.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_skb_pull_data};
use ghostwire_packet::reader::Field;
use ghostwire_packet::{Reader, v6};

use crate::maps::L3_OFFSET;

/// What the parser reads directly: an IPv6 and a TCP header.
const NEAR_BYTES: u32 = 60;

/// A socket buffer whose first headers are in its linear part.
#[derive(Clone, Copy)]
pub struct Skb {
    context: *mut __sk_buff,
    start: usize,
    end: usize,
    l3_offset: u32,
    length: u32,
}

impl Skb {
    /// Looks at a socket buffer. The linear part may be shorter than the headers, which is rare: then it is
    /// extended.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        let seen = Self::look(skb);
        if seen.start + NEAR_BYTES as usize > seen.end && seen.linear() < seen.length {
            let wanted = if seen.length < NEAR_BYTES { seen.length } else { NEAR_BYTES };
            // SAFETY: skb is the context that the kernel passed. Failure leaves the linear part as it is; then
            // the packet counts as truncated.
            unsafe { bpf_skb_pull_data(skb, seen.l3_offset + wanted) };
            return Self::look(skb);
        }
        seen
    }

    /// Looks again, in a function that got the context from one which has looked.
    #[inline(always)]
    pub fn again(skb: *mut __sk_buff) -> Self {
        Self::look(skb)
    }

    #[inline(always)]
    fn look(skb: *mut __sk_buff) -> Self {
        let l3_offset = L3_OFFSET.load();
        // SAFETY: skb is the context that the kernel passed; the verifier rewrites these reads.
        let (start, end, length) = unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).len) };
        Self { context: skb, start: start + l3_offset as usize, end, l3_offset, length: length - l3_offset }
    }

    #[inline(always)]
    fn linear(&self) -> u32 {
        (self.end - self.start) as u32
    }

    /// The context, for functions that look again.
    #[inline(always)]
    pub fn context(&self) -> *mut __sk_buff {
        self.context
    }
}

impl Reader for Skb {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.length
    }

    #[inline(always)]
    fn near<T: Field>(&self, offset: u32) -> Option<T> {
        let at = self.start + offset as usize;
        if at + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: just compared with the end, which the verifier checks. Headers are aligned to 4 bytes
        // (NET_IP_ALIGN), and where the architecture insists on it the verifier does too.
        Some(unsafe { *(at as *const T) })
    }

    #[inline(always)]
    fn far<T: Field>(&self, offset: u32) -> Option<T> {
        load(self.context, self.l3_offset + offset)
    }

    #[inline(always)]
    fn walk(&self, next: u8, offset: u32, end: u32) -> u64 {
        walk_extensions(self.context, next.into(), offset, end)
    }
}

#[inline(always)]
fn load<T: Field>(context: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the buffer has the size that is passed; the helper writes all of it or fails.
    unsafe {
        let to = value.as_mut_ptr().cast::<c_void>();
        if bpf_skb_load_bytes(context.cast(), offset, to, size_of::<T>() as u32) != 0 {
            return None;
        }
        Some(value.assume_init())
    }
}

/// A socket buffer that is read by helper calls only: one word on the stack.
#[derive(Clone, Copy)]
pub struct Distant(pub *mut __sk_buff);

impl Reader for Distant {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context that the kernel passed.
        unsafe { (*self.0).len - L3_OFFSET.load() }
    }

    #[inline(always)]
    fn near<T: Field>(&self, offset: u32) -> Option<T> {
        self.far(offset)
    }

    #[inline(always)]
    fn far<T: Field>(&self, offset: u32) -> Option<T> {
        load(self.0, L3_OFFSET.load() + offset)
    }

    #[inline(always)]
    fn walk(&self, next: u8, offset: u32, end: u32) -> u64 {
        walk_extensions(self.0, next.into(), offset, end)
    }
}

/// The walk over extension headers, as a global function: the verifier looks at it once, and not again for every
/// state of its callers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_extensions(context: *mut __sk_buff, next: u32, offset: u32, end: u32) -> u64 {
    v6::walk(&Distant(context), next as u8, offset, end)
}

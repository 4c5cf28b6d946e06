//! The packet as the kernel hands it over.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_skb_pull_data};
use ghostwire_packet::reader::Field;
use ghostwire_packet::{Reader, v6};

/// What is read directly: an IPv6 header, a UDP header, and what tells what the payload is.
const NEAR_BYTES: u32 = 40 + 8 + 16;

/// Ethernet types, as `skb->protocol` has them.
pub const IPV4: u32 = 0x0800_u16.to_be() as u32;
pub const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// A socket buffer whose first headers are in its linear part. Not to be used any more after a helper call that may
/// move the packet: look again.
#[derive(Clone, Copy)]
pub struct Skb {
    context: *mut __sk_buff,
    start: usize,
    end: usize,
    l3_offset: u32,
    length: u32,
}

impl Skb {
    /// Looks at a socket buffer. The linear part may be shorter than the headers, which is rare: then it is extended.
    #[inline(always)]
    pub fn new(context: *mut __sk_buff, l3_offset: u32) -> Self {
        let seen = Self::again(context, l3_offset);
        let wanted = if seen.length < NEAR_BYTES { seen.length } else { NEAR_BYTES };
        if ((seen.end - seen.start) as u32) < wanted {
            // SAFETY: the context that the kernel passed. Failure leaves the linear part as it is; then the packet counts
            // as truncated.
            unsafe { bpf_skb_pull_data(context, l3_offset + wanted) };
            return Self::again(context, l3_offset);
        }
        seen
    }

    /// Looks without extending.
    #[inline(always)]
    pub fn again(context: *mut __sk_buff, l3_offset: u32) -> Self {
        // SAFETY: the context that the kernel passed; the verifier rewrites these reads.
        let (start, end, length) =
            unsafe { ((*context).data as usize, (*context).data_end as usize, (*context).len) };
        let length = if length < l3_offset { 0 } else { length - l3_offset };
        Self { context, start: start + l3_offset as usize, end, l3_offset, length }
    }

    /// The first `size_of::<T>()` bytes from the IP header on, to be changed in place.
    #[inline(always)]
    pub fn head<T: Field>(&self) -> Option<*mut T> {
        if self.start + size_of::<T>() > self.end {
            return None;
        }
        Some(self.start as *mut T)
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
        walk_extensions(self.context, u32::from(next) | self.l3_offset << 8, offset, end)
    }
}

/// Reads from any offset of the packet.
#[inline(always)]
pub fn load<T: Field>(context: *mut __sk_buff, offset: u32) -> Option<T> {
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

/// A socket buffer that is read by helper calls only.
#[derive(Clone, Copy)]
struct Distant {
    context: *mut __sk_buff,
    l3_offset: u32,
}

impl Reader for Distant {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context that the kernel passed.
        unsafe { (*self.context).len - self.l3_offset }
    }

    #[inline(always)]
    fn near<T: Field>(&self, offset: u32) -> Option<T> {
        self.far(offset)
    }

    #[inline(always)]
    fn far<T: Field>(&self, offset: u32) -> Option<T> {
        load(self.context, self.l3_offset + offset)
    }
}

/// The walk over extension headers, as a global function: the verifier looks at it once, and not again for every
/// state of its callers. `next`: the first one's type, and above it the bytes in front of the IP header.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_extensions(context: *mut __sk_buff, next: u32, offset: u32, end: u32) -> u64 {
    let reader = Distant { context, l3_offset: next >> 8 & 0xff };
    v6::walk(&reader, next as u8, offset, end)
}

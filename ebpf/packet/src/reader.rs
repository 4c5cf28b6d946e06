//! Where the bytes of a packet come from.

/// A type that any bytes are a valid value of, with alignment 4 or less and no padding.
///
/// # Safety
///
/// The type must be `repr(C)` or `repr(transparent)`, without padding, of alignment at most 4, and every bit
/// pattern must be valid.
pub unsafe trait Field: Copy {}

/// Four bytes as they lie in the packet.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes4(pub u32);

impl Bytes4 {
    /// The byte at the lowest address.
    #[inline(always)]
    pub const fn first(self) -> u8 {
        (u32::from_be(self.0) >> 24) as u8
    }

    /// The byte at the second lowest address.
    #[inline(always)]
    pub const fn second(self) -> u8 {
        (u32::from_be(self.0) >> 16) as u8
    }

    /// The third and fourth byte as a big-endian number.
    #[inline(always)]
    pub const fn low16(self) -> u16 {
        u32::from_be(self.0) as u16
    }
}

// SAFETY: transparent over u32.
unsafe impl Field for Bytes4 {}
// SAFETY: an integer.
unsafe impl Field for u32 {}
// SAFETY: N words of 4 bytes, no padding.
unsafe impl<const N: usize> Field for [u32; N] {}

/// A packet that starts at its IP header.
pub trait Reader {
    /// Bytes from the IP header on, whether linear or not.
    fn length(&self) -> u32;

    /// Reads at an offset that is a constant of the program, near the start of the packet. An eBPF program reads
    /// it directly from the packet.
    fn near<T: Field>(&self, offset: u32) -> Option<T>;

    /// Reads at any offset. An eBPF program pays for a helper call, and in return the verifier need not follow
    /// where the offset comes from.
    fn far<T: Field>(&self, offset: u32) -> Option<T>;

    /// [`crate::v6::walk`]. An eBPF program puts it into a function of its own.
    #[inline(always)]
    fn walk(&self, next: u8, offset: u32, end: u32) -> u64
    where
        Self: Sized,
    {
        crate::v6::walk(self, next, offset, end)
    }
}

/// A packet in memory.
#[derive(Clone, Copy, Debug)]
pub struct SliceReader<'a> {
    bytes: &'a [u8],
}

impl<'a> SliceReader<'a> {
    /// A packet that starts with the first byte of the slice.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }
}

impl Reader for SliceReader<'_> {
    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn near<T: Field>(&self, offset: u32) -> Option<T> {
        self.far(offset)
    }

    fn far<T: Field>(&self, offset: u32) -> Option<T> {
        let bytes = self.bytes.get(offset as usize..)?.get(..size_of::<T>())?;
        // SAFETY: the slice has the size of T, and any bytes are a valid T.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}

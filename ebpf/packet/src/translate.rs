//! Headers of one family for a datagram that had the other's: what RFC 7915 says, as far as WireGuard's datagrams
//! need it. Addresses are not derived from each other; a table names both.

use crate::checksum::Sum;
use crate::protocol;

const DONT_FRAGMENT: u32 = 0x4000;
const HEADER4: u32 = 20;

/// An IPv6 header as it lies in memory. `payload`: bytes behind it, below 65,536.
#[inline(always)]
pub const fn header6(class: u8, payload: u32, hops: u8, src: [u32; 4], dst: [u32; 4]) -> [u32; 10] {
    let first = 6 << 28 | (class as u32) << 20;
    let second = payload << 16 | (protocol::UDP as u32) << 8 | hops as u32;
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (src, dst);
    [first.to_be(), second.to_be(), s0, s1, s2, s3, d0, d1, d2, d3]
}

/// An IPv4 header as it lies in memory, with its checksum. `payload`: bytes behind it, below 65,516. Not to be fragmented,
/// as IPv6 is not; such a datagram needs no identification (RFC 6864 section 4.1).
#[inline(always)]
pub fn header4(class: u8, payload: u32, ttl: u8, src: u32, dst: u32) -> [u32; 5] {
    let first = 0x45 << 24 | u32::from(class) << 16 | (HEADER4 + payload);
    let middle = u32::from(ttl) << 24 | u32::from(protocol::UDP) << 16;
    let words = [first.to_be(), DONT_FRAGMENT.to_be(), middle.to_be(), src, dst];
    let checksum = !Sum::ZERO.plus_all(words).fold16();
    let [first, fragment, middle, src, dst] = words;
    // The checksum has the upper two bytes in memory order.
    [first, fragment, middle | (u32::from(u16::from_be(checksum))).to_be(), src, dst]
}

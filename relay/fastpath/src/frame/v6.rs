//! IPv6.

use super::checksum::Sum;
use super::{Bytes, Ends, Frame, NotSent, Packet, Pass, UDP, UDP_LEN, address, datagram};
use crate::table::{self, Head, Lines};
use crate::{Forward, Ip};

/// Length of the header.
pub(super) const HEADER_LEN: usize = 40;

const SOURCE: usize = 8;
const DESTINATION: usize = 24;

const FRAGMENT: u8 = 44;

#[inline(always)]
pub(super) fn parse<F: Frame, T: Lines + ?Sized>(
    frame: &F,
    l3: usize,
    head: &Head<'_>,
    table: &T,
) -> Result<Packet, Pass> {
    let ip = frame.at(l3, HEADER_LEN + UDP_LEN + 8).ok_or(Pass::NotOurs)?;
    // SAFETY: offsets below are within the 56 bytes.
    unsafe {
        let next: u8 = ip.load(6);
        // UDP may follow hop-by-hop options, routing, a fragment header or destination options.
        if !matches!(next, UDP | 0 | 43 | FRAGMENT | 60) {
            return Err(Pass::NotOurs);
        }
        let local = table::local_index(table, load(ip, DESTINATION)).ok_or(Pass::NotOurs)?;
        match next {
            UDP => {}
            FRAGMENT => return Err(Pass::Fragment),
            _ => return Err(Pass::Unusual),
        }
        if ip.load::<u8>(0) >> 4 != 6 {
            return Err(Pass::Unusual);
        }
        let udp_len = u16::from_be(ip.load(HEADER_LEN + 4));
        let port = u16::from_be(ip.load(HEADER_LEN + 2));
        if !head.header().is_ours(port) {
            return Err(Pass::NotOurs);
        }
        // IPv6 has no datagrams without checksum (RFC 8200 section 8.1).
        if u16::from_be(ip.load(4)) != udp_len
            || usize::from(udp_len) < UDP_LEN + 8
            || !frame.is_at_least(l3 + HEADER_LEN + usize::from(udp_len))
            || ip.load::<u16>(HEADER_LEN + 6) == 0
        {
            return Err(Pass::Unusual);
        }
        let udp = Bytes::new(ip.0.add(HEADER_LEN));
        let datagram = datagram(udp, udp_len, local, load(ip, SOURCE), ip.load(7));
        // An IPv4 address in disguise is no address on the wire (RFC 4291 section 2.5.5.2), and would be taken for
        // the real one.
        if datagram.source.ip.v4_word().is_some() {
            return Err(Pass::Unusual);
        }
        Ok(Packet { datagram, l3, v6: true, udp_len })
    }
}

/// Other addresses, other ports, one hop less.
#[inline(always)]
pub(super) fn rewrite<F: Frame, const L3: usize>(
    frame: &mut F,
    forward: &Forward,
    ends: &Ends,
    neighbour: super::Neighbour,
) -> Result<(), NotSent> {
    let ethernet = frame.at(0, L3 + HEADER_LEN + UDP_LEN).ok_or(NotSent::Untouched)?;
    // SAFETY: offsets below are within the header that was asked for.
    unsafe {
        let udp = L3 + HEADER_LEN;
        let before = sum(load(ethernet, L3 + SOURCE)).plus(sum(load(ethernet, L3 + DESTINATION)));
        let after = sum(ends.from).plus(sum(ends.to.ip));
        let checksum = Sum::of_checksum(ethernet.load(udp + 6))
            .plus(inverted(before))
            .plus(after)
            .sub(ethernet.load(udp))
            .add(ends.ports());
        ethernet.store(udp + 6, checksum.udp_checksum());
        ethernet.store(udp, ends.ports());
        ethernet.store(L3 + 7, forward.hops);
        store(ethernet, L3 + SOURCE, ends.from);
        store(ethernet, L3 + DESTINATION, ends.to.ip);
        address(ethernet, neighbour);
    }
    Ok(())
}

/// The sum of an address.
#[inline(always)]
pub(super) fn sum(ip: Ip) -> Sum {
    let [a, b, c, d] = ip.0;
    Sum::default().add(a).add(b).add(c).add(d)
}

/// What takes a sum away: the inverse of its folded value.
#[inline(always)]
pub(super) fn inverted(sum: Sum) -> Sum {
    Sum::default().add(u32::from(sum.checksum()))
}

/// Reads an address.
///
/// # Safety
///
/// The 16 bytes are within what `bytes` was made for.
#[inline(always)]
pub(super) unsafe fn load(bytes: Bytes, offset: usize) -> Ip {
    // SAFETY: the caller's promise.
    unsafe {
        Ip([bytes.load(offset), bytes.load(offset + 4), bytes.load(offset + 8), bytes.load(offset + 12)])
    }
}

/// Writes an address.
///
/// # Safety
///
/// As for [`load`].
#[inline(always)]
pub(super) unsafe fn store(bytes: Bytes, offset: usize, ip: Ip) {
    // SAFETY: the caller's promise.
    unsafe {
        for (word, value) in ip.0.into_iter().enumerate() {
            bytes.store(offset + word * 4, value);
        }
    }
}

//! IPv4.

use super::checksum::Sum;
use super::{Bytes, Ends4, Frame, NotSent, Packet, Pass, UDP, UDP_LEN, address, datagram, in_memory};
use crate::table::{self, Head, Lines};
use crate::{Forward, Ip};

/// Length of a header without options.
pub(super) const HEADER_LEN: usize = 20;

/// Version 4, five words.
const PLAIN: u8 = 0x45;

/// "More fragments", and the offset.
const FRAGMENT: u16 = 0x3FFF_u16.to_be();

#[inline(always)]
pub(super) fn parse<F: Frame, T: Lines + ?Sized>(
    frame: &F,
    l3: usize,
    head: &Head<'_>,
    table: &T,
) -> Result<Packet, Pass> {
    // With the beginning of the payload: nothing that is relayed or answered is shorter.
    let ip = frame.at(l3, HEADER_LEN + UDP_LEN + 8).ok_or(Pass::NotOurs)?;
    // SAFETY: offsets below are within the 36 bytes.
    unsafe {
        if ip.load::<u8>(9) != UDP {
            return Err(Pass::NotOurs);
        }
        let local = table::local_index(table, Ip::from_v4_word(ip.load(16))).ok_or(Pass::NotOurs)?;
        if ip.load::<u16>(6) & FRAGMENT != 0 {
            return Err(Pass::Fragment);
        }
        let total = usize::from(u16::from_be(ip.load(2)));
        let udp_len = u16::from_be(ip.load(HEADER_LEN + 4));
        let port = u16::from_be(ip.load(HEADER_LEN + 2));
        if ip.load::<u8>(0) != PLAIN {
            return Err(Pass::Unusual);
        }
        if !head.header().is_ours(port) {
            return Err(Pass::NotOurs);
        }
        if usize::from(udp_len) + HEADER_LEN != total
            || usize::from(udp_len) < UDP_LEN + 8
            || !frame.is_at_least(l3 + total)
        {
            return Err(Pass::Unusual);
        }
        let source = Ip::from_v4_word(ip.load(12));
        let udp = Bytes::new(ip.0.add(HEADER_LEN));
        let datagram = datagram(udp, udp_len, local, source, ip.load(8));
        Ok(Packet { datagram, l3, v6: false, udp_len })
    }
}

/// Other addresses, other ports, one hop less.
#[inline(always)]
pub(super) fn rewrite<F: Frame, const L3: usize>(
    frame: &mut F,
    forward: &Forward,
    ends: Ends4,
    neighbour: super::Neighbour,
) -> Result<(), NotSent> {
    let ethernet = frame.at(0, L3 + HEADER_LEN + UDP_LEN).ok_or(NotSent::Untouched)?;
    // SAFETY: offsets below are within the header that was asked for.
    unsafe {
        let addresses = Sum::default()
            .sub(ethernet.load(L3 + 12))
            .sub(ethernet.load(L3 + 16))
            .add(ends.from)
            .add(ends.to);
        // Time to live and protocol share a word.
        let hops = in_memory(ethernet.load(L3 + 8), 0);
        let hops_after = in_memory(u16::from_ne_bytes([forward.hops, UDP]), 0);
        let checksum = Sum::of_checksum(ethernet.load(L3 + 10)).plus(addresses).sub(hops).add(hops_after);
        ethernet.store(L3 + 8, forward.hops);
        ethernet.store(L3 + 10, checksum.checksum());
        ethernet.store(L3 + 12, ends.from);
        ethernet.store(L3 + 16, ends.to);
        let udp = L3 + HEADER_LEN;
        let before: u16 = ethernet.load(udp + 6);
        if before != 0 {
            let sum = Sum::of_checksum(before).plus(addresses).sub(ethernet.load(udp)).add(ends.ports);
            ethernet.store(udp + 6, sum.udp_checksum());
        }
        ethernet.store(udp, ends.ports);
        address(ethernet, neighbour);
    }
    Ok(())
}

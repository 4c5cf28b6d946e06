//! From one family to the other. The UDP datagram stays where it is; the headers before it are written anew.

use super::checksum::Sum;
use super::{
    Bytes, ETHERTYPE_V4, ETHERTYPE_V6, Ends, Ends4, Frame, NotSent, UDP, UDP_LEN, address, in_memory, v4, v6,
};
use crate::Forward;

/// How much longer an IPv6 header is.
#[expect(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "20")]
const DIFFERENCE: i32 = (v6::HEADER_LEN - v4::HEADER_LEN) as i32;

/// Ethernet addresses and tag, while the header moves.
struct Link {
    addresses: [u32; 3],
    tag: u32,
}

impl Link {
    /// # Safety
    ///
    /// `ethernet` was made for at least `L3` bytes.
    #[inline(always)]
    unsafe fn load<const L3: usize>(ethernet: Bytes) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Self {
                addresses: [ethernet.load(0), ethernet.load(4), ethernet.load(8)],
                tag: if L3 == super::ETHERNET_LEN { 0 } else { ethernet.load(12) },
            }
        }
    }

    /// # Safety
    ///
    /// As for [`Link::load`].
    #[inline(always)]
    unsafe fn store<const L3: usize>(&self, ethernet: Bytes, ethertype: u16, neighbour: super::Neighbour) {
        let [a, b, c] = self.addresses;
        // SAFETY: the caller's promise.
        unsafe {
            ethernet.store(0, a);
            ethernet.store(4, b);
            ethernet.store(8, c);
            if L3 != super::ETHERNET_LEN {
                ethernet.store(12, self.tag);
            }
            ethernet.store(L3 - 2, ethertype);
            address(ethernet, neighbour);
        }
    }
}

/// IPv4 to IPv6.
#[inline(always)]
pub(super) fn to_v6<F: Frame, const L3: usize>(
    frame: &mut F,
    forward: &Forward,
    ends: &Ends,
    neighbour: super::Neighbour,
) -> Result<(), NotSent> {
    let before = frame.at(0, L3 + v4::HEADER_LEN + UDP_LEN).ok_or(NotSent::Untouched)?;
    // SAFETY: offsets below are within the headers that were asked for.
    let (link, tos, udp_len, addresses, ports, checksum) = unsafe {
        let udp = L3 + v4::HEADER_LEN;
        let addresses = Sum::default().sub(before.load(L3 + 12)).sub(before.load(L3 + 16));
        let (ports, udp_len, checksum) =
            (before.load::<u32>(udp), before.load::<u16>(udp + 4), before.load::<u16>(udp + 6));
        (Link::load::<L3>(before), before.load::<u8>(L3 + 1), udp_len, addresses, ports, checksum)
    };
    // IPv6 needs a checksum, which would have to be computed over the whole payload.
    if checksum == 0 || !frame.move_start(-DIFFERENCE) {
        return Err(NotSent::Untouched);
    }
    let after = frame.at(0, L3 + v6::HEADER_LEN + UDP_LEN).ok_or(NotSent::Spoilt)?;
    // SAFETY: as above.
    unsafe {
        link.store::<L3>(after, ETHERTYPE_V6, neighbour);
        // Version, traffic class, no flow label.
        after.store(L3, (6_u32 << 28 | u32::from(tos) << 20).to_be());
        after.store(L3 + 4, udp_len);
        after.store(L3 + 6, u16::from_ne_bytes([UDP, forward.hops]));
        v6::store(after, L3 + 8, ends.from);
        v6::store(after, L3 + 24, ends.to.ip);
        let udp = L3 + v6::HEADER_LEN;
        let checksum = Sum::of_checksum(checksum)
            .plus(addresses)
            .plus(v6::sum(ends.from))
            .plus(v6::sum(ends.to.ip))
            .sub(ports)
            .add(ends.ports());
        after.store(udp, ends.ports());
        after.store(udp + 6, checksum.udp_checksum());
    }
    Ok(())
}

/// IPv6 to IPv4. The datagram may be fragmented behind the relay, as those that kernel WireGuard sends by IPv4 may,
/// so it gets an identification that differs from those of its neighbours: the checksum of its contents does.
#[inline(always)]
pub(super) fn to_v4<F: Frame, const L3: usize>(
    frame: &mut F,
    forward: &Forward,
    ends: Ends4,
    neighbour: super::Neighbour,
) -> Result<(), NotSent> {
    let before = frame.at(0, L3 + v6::HEADER_LEN + UDP_LEN).ok_or(NotSent::Untouched)?;
    // SAFETY: offsets below are within the headers that were asked for.
    let (link, class, udp_len, addresses, ports, checksum) = unsafe {
        let udp = L3 + v6::HEADER_LEN;
        let addresses = v6::sum(v6::load(before, L3 + 8)).plus(v6::sum(v6::load(before, L3 + 24)));
        let (ports, udp_len, checksum) =
            (before.load::<u32>(udp), before.load::<u16>(udp + 4), before.load::<u16>(udp + 6));
        (Link::load::<L3>(before), before.load::<u32>(L3), udp_len, v6::inverted(addresses), ports, checksum)
    };
    if !frame.move_start(DIFFERENCE) {
        return Err(NotSent::Untouched);
    }
    let after = frame.at(0, L3 + v4::HEADER_LEN + UDP_LEN).ok_or(NotSent::Spoilt)?;
    // SAFETY: as above.
    unsafe {
        link.store::<L3>(after, ETHERTYPE_V4, neighbour);
        #[expect(clippy::cast_possible_truncation, reason = "the traffic class has eight bits")]
        let tos = (u32::from_be(class) >> 20) as u8;
        #[expect(clippy::cast_possible_truncation, reason = "20")]
        let total = u16::from_be(udp_len).wrapping_add(v4::HEADER_LEN as u16).to_be();
        let first = in_memory(u16::from_ne_bytes([0x45, tos]), total);
        let second = in_memory(checksum, 0);
        let third = u16::from_ne_bytes([forward.hops, UDP]);
        let header =
            Sum::default().add(first).add(second).add(in_memory(third, 0)).add(ends.from).add(ends.to);
        after.store(L3, first);
        after.store(L3 + 4, second);
        after.store(L3 + 8, third);
        after.store(L3 + 10, header.checksum());
        after.store(L3 + 12, ends.from);
        after.store(L3 + 16, ends.to);
        let udp = L3 + v4::HEADER_LEN;
        let checksum =
            Sum::of_checksum(checksum).plus(addresses).add(ends.from).add(ends.to).sub(ports).add(ends.ports);
        after.store(udp, ends.ports);
        after.store(udp + 6, checksum.udp_checksum());
    }
    Ok(())
}

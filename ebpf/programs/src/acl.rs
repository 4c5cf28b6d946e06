//! The order of judgement, for both directions.

use aya_ebpf::bindings::__sk_buff;
use ghostwire_ebpf_abi::event::{Direction, Reason};
use ghostwire_packet::transport::tcp;
use ghostwire_packet::{Error, Icmp, Packet, Part, Reader, Transport, V4, V6, protocol};

use crate::conntrack::{self, Flow, Tracked};
use crate::image::{Addressed, Ends, Image, Matrix};
use crate::skb::Skb;
use crate::verdict::{self, Code};
use crate::{fragment, icmp_error, nets};

/// A family with everything that a judgement needs.
pub trait Judged: Addressed + Tracked {}
impl<F: Addressed + Tracked> Judged for F {}

/// The addresses of a packet by role.
#[inline(always)]
pub fn roles<A>(direction: Direction, src: A, dst: A) -> (A, A) {
    match direction {
        Direction::Ingress => (src, dst),
        Direction::Egress => (dst, src),
    }
}

/// Judges a packet and says what the kernel shall do with it.
#[inline(always)]
pub fn run(context: *mut __sk_buff, direction: Direction) -> i32 {
    let skb = Skb::new(context);
    let Some(image) = Image::current() else {
        let code = Code::drop(Reason::NoImage);
        return verdict::conclude(context, None, direction, skb.length(), code);
    };
    let code = match ghostwire_packet::version(&skb) {
        Ok(4) => judge::<V4>(&skb, image, direction),
        Ok(6) => judge::<V6>(&skb, image, direction),
        Ok(_) => Code::drop(Reason::Unsupported),
        Err(_) => Code::drop(Reason::Malformed),
    };
    verdict::conclude(context, Some(image), direction, skb.length(), code)
}

/// The reason for a packet that cannot be parsed.
#[inline(always)]
pub const fn unparsable(error: Error) -> Reason {
    match error {
        Error::Malformed => Reason::Malformed,
        Error::Unsupported => Reason::Unsupported,
    }
}

#[inline(always)]
fn judge<F: Judged>(skb: &Skb, image: Image, direction: Direction) -> u64 {
    let packet = match F::parse(skb) {
        Ok(packet) => packet,
        Err(error) => return Code::drop(unparsable(error)),
    };
    let (remote_addr, local_addr) = roles(direction, packet.src, packet.dst);
    let overlay = F::overlay(image, remote_addr);
    let own = F::is_own(image, local_addr);
    // Between an overlay address and our own there is nothing to check.
    if !(overlay.is_some() && own) && !(F::is_carried(packet.src) && F::is_carried(packet.dst)) {
        return Code::drop(Reason::Unsupported);
    }
    if matches!(packet.transport.icmp, Icmp::Error) {
        return icmp_error::judge::<F>(
            skb.context(),
            image.address(),
            direction as u32,
            packet.transport_offset,
            &packet.dst,
        );
    }
    if matches!(packet.fragmentation.part, Part::Later) {
        return fragment::later::<F>(image.address(), direction as u32, &packet, skb.length());
    }
    let remote = match overlay {
        Some(cell) => cell,
        None => nets::remote::<F>(image, remote_addr),
    };
    if remote == 0 {
        return Code::drop(Reason::UnknownRemote);
    }
    let local = if own {
        0
    } else {
        match nets::local::<F>(image, local_addr) {
            0 => return Code::drop(Reason::NotLocal),
            local => local,
        }
    };
    let ends = Ends { remote, local };
    let code = flow::<F>(image, direction, &packet, ends, skb.length());
    if matches!(packet.fragmentation.part, Part::First) && Code::passes(code) {
        return fragment::first::<F>(image.address(), direction as u32, &packet, code);
    }
    code
}

/// Judges by addresses, ports and flags: everything but ICMP errors and later fragments.
#[inline(always)]
pub fn flow<F: Judged>(
    image: Image,
    direction: Direction,
    packet: &Packet<F::Addr>,
    ends: Ends,
    length: u32,
) -> u64 {
    match direction {
        Direction::Ingress => ingress::<F>(image, packet, ends, length),
        Direction::Egress => egress::<F>(image, packet, ends, length),
    }
}

#[inline(always)]
fn ingress<F: Judged>(image: Image, packet: &Packet<F::Addr>, ends: Ends, length: u32) -> u64 {
    let Transport { src_port_be, dst_port_be, tcp_flags, icmp, .. } = packet.transport;
    let service = image.service(packet.protocol, dst_port_be);
    if image.allows(Matrix::Inbound, ends, service) {
        return Code::pass(Reason::Policy);
    }
    let echo = packet.protocol == F::ICMP;
    if echo && !matches!(icmp, Icmp::EchoReply) {
        return Code::drop(Reason::Denied);
    }
    let flow = Flow {
        local: packet.dst,
        remote: packet.src,
        local_port_be: dst_port_be,
        remote_port_be: if echo { 0 } else { src_port_be },
        protocol: packet.protocol,
        tcp_flags,
        length,
        ends,
    };
    conntrack::inbound::<F>(image.address(), &flow)
}

#[inline(always)]
fn egress<F: Judged>(image: Image, packet: &Packet<F::Addr>, ends: Ends, length: u32) -> u64 {
    let Transport { src_port_be, dst_port_be, tcp_flags, icmp, .. } = packet.transport;
    let is_icmp = packet.protocol == F::ICMP;
    // Whether the far side may open flows to the port that this packet comes from.
    let reply = image.service(packet.protocol, src_port_be);
    let reply_allowed = image.allows(Matrix::Inbound, ends, reply);
    let service = image.service(packet.protocol, dst_port_be);
    if image.allows(Matrix::Outbound, ends, service) {
        // The answer needs no state, or there is none to come.
        if reply_allowed || (is_icmp && !matches!(icmp, Icmp::EchoRequest)) {
            return Code::pass(Reason::Policy);
        }
        let flow = Flow {
            local: packet.src,
            remote: packet.dst,
            local_port_be: src_port_be,
            remote_port_be: if is_icmp { 0 } else { dst_port_be },
            protocol: packet.protocol,
            tcp_flags,
            length,
            ends,
        };
        return conntrack::outbound::<F>(image.address(), &flow);
    }
    let answers = match packet.protocol {
        protocol::TCP => tcp_flags & (tcp::SYN | tcp::ACK) != tcp::SYN,
        _ => !is_icmp || matches!(icmp, Icmp::EchoReply),
    };
    if reply_allowed && answers { Code::pass(Reason::Reply) } else { Code::drop(Reason::Denied) }
}

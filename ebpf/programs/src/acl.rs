//! The order of judgement, for both directions.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use ghostwire_ebpf_abi::event::{Direction, Reason};
use ghostwire_packet::transport::tcp;
use ghostwire_packet::{Error, Icmp, Packet, Part, Reader, V4, V6, protocol};

use crate::conntrack::{self, Tracked};
use crate::icmp_error::Complained;
use crate::image::{Ends, Image, Matrix};
use crate::skb::Skb;
use crate::verdict::{self, Code};
use crate::{fast, fragment, nets};

/// A family with everything that a judgement needs.
pub trait Judged: Complained + Tracked {}
impl<F: Complained + Tracked> Judged for F {}

/// Remote and local address of a packet.
#[inline(always)]
pub fn roles<A>(direction: Direction, src: A, dst: A) -> (A, A) {
    match direction {
        Direction::Ingress => (src, dst),
        Direction::Egress => (dst, src),
    }
}

/// Judges a packet and says what the kernel shall do with it.
///
/// Of everything but [`fast`] only calls are in the programs themselves, one after the other: a register that they kept
/// would be saved for every packet, and a function around them would be one more frame on a stack of 512 bytes.
#[inline(always)]
pub fn run(context: *mut __sk_buff, direction: Direction) -> i32 {
    if fast::passes(context, direction) {
        return TC_ACT_UNSPEC;
    }
    let code = match (version(context), direction) {
        (4, Direction::Ingress) => judge_ipv4_ingress(context),
        (4, Direction::Egress) => judge_ipv4_egress(context),
        (6, Direction::Ingress) => judge_ipv6_ingress(context),
        (6, Direction::Egress) => judge_ipv6_egress(context),
        (version, _) => judge_other(version),
    };
    match direction {
        Direction::Ingress => conclude_ingress(context, code),
        Direction::Egress => conclude_egress(context, code),
    }
}

/// IP version of the packet; `u32::MAX`: it is empty.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn version(context: *mut __sk_buff) -> u32 {
    ghostwire_packet::version(&Skb::again(context)).map_or(u32::MAX, u32::from)
}

/// Judges a packet of no IP version that we know.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_other(version: u32) -> u64 {
    with_image(|_| Code::drop(if version == u32::MAX { Reason::Malformed } else { Reason::Unsupported }))
}

/// [`verdict::conclude`] for one direction.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn conclude_ingress(context: *mut __sk_buff, code: u64) -> i32 {
    verdict::conclude(context, Direction::Ingress, code)
}

/// [`verdict::conclude`] for one direction.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn conclude_egress(context: *mut __sk_buff, code: u64) -> i32 {
    verdict::conclude(context, Direction::Egress, code)
}

/// The whole way, as functions of their own: what they keep at hand would only slow the common packet down, each
/// has a stack for one family, and the verifier looks at a global function once.
macro_rules! whole_way {
    ($($name:ident: $family:ident, $direction:ident;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[doc = "Judges a packet of one family and direction."]
        pub extern "C" fn $name(context: *mut __sk_buff) -> u64 {
            with_image(|image| judge_family::<$family>(&Skb::new(context), image, Direction::$direction))
        }
    )*};
}

whole_way! {
    judge_ipv4_ingress: V4, Ingress;
    judge_ipv4_egress: V4, Egress;
    judge_ipv6_ingress: V6, Ingress;
    judge_ipv6_egress: V6, Egress;
}

/// Judges with the image in force, of which the code tells the modes.
#[inline(always)]
fn with_image(judge: impl FnOnce(Image) -> u64) -> u64 {
    match Image::current() {
        Some(image) => judge(image) | Code::mode(image),
        None => Code::drop(Reason::NoImage),
    }
}

/// Judges a packet of one family; the code tells of the packet too.
#[inline(always)]
fn judge_family<F: Judged>(skb: &Skb, image: Image, direction: Direction) -> u64 {
    match F::parse(skb) {
        Ok(packet) => judge::<F>(skb, image, direction, packet) | Code::describe::<F>(&packet),
        Err(Error::Malformed) => Code::drop(Reason::Malformed),
        Err(Error::Unsupported) => Code::drop(Reason::Unsupported),
    }
}

#[inline(always)]
fn judge<F: Judged>(skb: &Skb, image: Image, direction: Direction, mut packet: Packet<F::Addr>) -> u64 {
    let (remote_addr, local_addr) = roles(direction, packet.src, packet.dst);
    let overlay = F::overlay(image, remote_addr);
    let own = F::is_own(image, local_addr);
    // Between an overlay address and our own there is nothing to check.
    if !(overlay.is_some() && own) && !(F::is_carried(packet.src) && F::is_carried(packet.dst)) {
        return Code::drop(Reason::Unsupported);
    }
    if matches!(packet.transport.icmp, Icmp::Error) {
        return F::judge(skb.context(), direction as u32, packet.transport_offset);
    }
    let later = matches!(packet.fragmentation.part, Part::Later);
    if later {
        match fragment::later::<F>(image.address(), direction as u32, &packet) {
            code if Code::is_open(code) => fragment::recall::<F>(&mut packet, code),
            settled => return settled,
        }
    }
    let code = match ends::<F>(image, overlay, own, remote_addr, local_addr) {
        Ok(ends) => match direction {
            Direction::Ingress => ingress::<F>(image, &packet, ends, skb.length()),
            Direction::Egress => egress::<F>(image, &packet, ends, skb.length()),
        },
        Err(reason) => Code::drop(reason),
    };
    match packet.fragmentation.part {
        Part::Whole => code,
        Part::First if Code::passes(code) => {
            fragment::first::<F>(image.address(), direction as u32, &packet, code)
        }
        Part::First => code,
        Part::Later if Code::passes(code) => fragment::renew::<F>(image.address(), direction as u32, &packet),
        Part::Later => Code::drop(Reason::OrphanFragment),
    }
}

/// Classes of the two ends, of which the easy half is known.
#[inline(always)]
fn ends<F: Judged>(
    image: Image,
    overlay: Option<u32>,
    own: bool,
    remote_addr: F::Addr,
    local_addr: F::Addr,
) -> Result<Ends, Reason> {
    let remote = match overlay {
        Some(cell) => cell,
        None => nets::remote::<F>(image, remote_addr),
    };
    if remote == 0 {
        return Err(Reason::UnknownRemote);
    }
    if own {
        return Ok(Ends { remote, local: 0 });
    }
    match nets::local::<F>(image, local_addr) {
        0 => Err(Reason::NotLocal),
        local => Ok(Ends { remote, local }),
    }
}

#[inline(always)]
fn ingress<F: Judged>(image: Image, packet: &Packet<F::Addr>, ends: Ends, length: u32) -> u64 {
    let service = image.service(packet.protocol, packet.transport.dst_port_be);
    if image.allows(Matrix::Inbound, ends, service) {
        return Code::pass(Reason::Policy);
    }
    if packet.protocol == F::ICMP && !matches!(packet.transport.icmp, Icmp::EchoReply) {
        return Code::drop(Reason::Denied);
    }
    conntrack::inbound::<F>(image.address(), packet, ends.pack(), length)
}

#[inline(always)]
fn egress<F: Judged>(image: Image, packet: &Packet<F::Addr>, ends: Ends, length: u32) -> u64 {
    let transport = &packet.transport;
    let is_icmp = packet.protocol == F::ICMP;
    // Whether the far side may open flows to the port that this packet comes from.
    let reply = image.service(packet.protocol, transport.src_port_be);
    let reply_allowed = image.allows(Matrix::Inbound, ends, reply);
    let service = image.service(packet.protocol, transport.dst_port_be);
    if image.allows(Matrix::Outbound, ends, service) {
        // The answer needs no state, or there is none to come.
        if reply_allowed || (is_icmp && !matches!(transport.icmp, Icmp::EchoRequest)) {
            return Code::pass(Reason::Policy);
        }
        return conntrack::outbound::<F>(image.address(), packet, length);
    }
    let answers = match packet.protocol {
        protocol::TCP => transport.tcp_flags & (tcp::SYN | tcp::ACK) != tcp::SYN,
        _ => !is_icmp || matches!(transport.icmp, Icmp::EchoReply),
    };
    if reply_allowed && answers { Code::pass(Reason::Reply) } else { Code::drop(Reason::Denied) }
}

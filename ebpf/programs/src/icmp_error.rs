//! ICMP errors: "destination unreachable" and its like, without which path MTU discovery fails.
//!
//! Whoever sends one may be any router, so its own addresses say nothing: the quoted packet decides. It must
//! have come from the end that the error is sent to, and its flow must be permitted now. A connection entry
//! need not be looked up: it lives only as long as the outbound image allows its flow, which is asked here.

use aya_ebpf::bindings::__sk_buff;
use ghostwire_ebpf_abi::event::{Direction, Reason};
use ghostwire_packet::{Error, Icmp, Reader, V4, V6};

use crate::image::{Addressed, Image, Matrix};
use crate::nets;
use crate::skb::Distant;
use crate::verdict::Code;

/// A family with a function for it.
pub trait Complained: Addressed {
    /// Judges the error whose ICMP header is at `offset`. Fetches the image by itself: nothing of the decision was
    /// made before.
    fn judge(context: *mut __sk_buff, direction: u32, offset: u32) -> u64;
}

impl Complained for V4 {
    #[inline(always)]
    fn judge(context: *mut __sk_buff, direction: u32, offset: u32) -> u64 {
        judge_icmp_error(context, direction, offset)
    }
}

impl Complained for V6 {
    #[inline(always)]
    fn judge(context: *mut __sk_buff, direction: u32, offset: u32) -> u64 {
        judge_icmpv6_error(context, direction, offset)
    }
}

/// Global functions, at which the verifier looks once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_icmp_error(context: *mut __sk_buff, direction: u32, offset: u32) -> u64 {
    match Distant(context).far::<u32>(16) {
        Some(dst) => judge::<V4>(context, direction, offset, dst),
        None => Code::drop(Reason::Malformed),
    }
}

/// As [`judge_icmp_error`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_icmpv6_error(context: *mut __sk_buff, direction: u32, offset: u32) -> u64 {
    match Distant(context).far::<[u32; 4]>(24) {
        Some(dst) => judge::<V6>(context, direction, offset, dst),
        None => Code::drop(Reason::Malformed),
    }
}

#[inline(always)]
fn judge<F: Addressed>(context: *mut __sk_buff, direction: u32, offset: u32, dst: F::Addr) -> u64 {
    let Some(image) = Image::current() else { return Code::drop(Reason::NoImage) };
    let skb = Distant(context);
    let quoted = match F::quoted(&skb, offset + 8) {
        Ok(quoted) => quoted,
        Err(Error::Malformed) => return Code::drop(Reason::Malformed),
        Err(Error::Unsupported) => return Code::drop(Reason::UnrelatedIcmpError),
    };
    let refused = Code::drop(Reason::UnrelatedIcmpError);
    // An IPv4-mapped address in a quoted IPv6 packet would be looked up as the IPv4 peer.
    if quoted.src != dst || !F::is_carried(quoted.src) || !F::is_carried(quoted.dst) {
        return refused;
    }
    // On ingress the quoted packet is ours, on egress it is theirs.
    let ours = direction == Direction::Ingress as u32;
    let (remote, local) = if ours { (quoted.dst, quoted.src) } else { (quoted.src, quoted.dst) };
    let Some(ends) = nets::ends::<F>(image, remote, local) else { return refused };
    let (opened_by_sender, opened_by_receiver) =
        if ours { (Matrix::Outbound, Matrix::Inbound) } else { (Matrix::Inbound, Matrix::Outbound) };
    let service = image.service(quoted.protocol, quoted.dst_port_be);
    if image.allows(opened_by_sender, ends, service) {
        return Code::pass(Reason::IcmpError);
    }
    // Or it was an answer. Of ICMP only an echo reply is one.
    if quoted.protocol == F::ICMP && !matches!(quoted.icmp, Icmp::EchoReply) {
        return refused;
    }
    let service = image.service(quoted.protocol, quoted.src_port_be);
    if image.allows(opened_by_receiver, ends, service) { Code::pass(Reason::IcmpError) } else { refused }
}

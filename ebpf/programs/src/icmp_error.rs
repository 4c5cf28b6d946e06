//! ICMP errors: "destination unreachable" and its like, without which path MTU discovery fails.
//!
//! Whoever sends one may be any router, so its own addresses say nothing: the quoted packet decides. It must
//! have come from the end that the error is sent to, and its flow must be permitted now. A connection entry
//! need not be looked up: it lives only as long as the outbound image allows its flow, which is asked here.

use aya_ebpf::bindings::__sk_buff;
use ghostwire_ebpf_abi::event::{Direction, Reason};
use ghostwire_packet::{Error, Icmp};

use crate::image::{Addressed, Image, Matrix};
use crate::nets;
use crate::skb::Skb;
use crate::verdict::Code;

/// Judges the error whose ICMP header is at `offset` and whose destination is `dst`.
#[inline(never)]
pub fn judge<F: Addressed>(
    context: *mut __sk_buff,
    words: *const u64,
    direction: u32,
    offset: u32,
    dst: &F::Addr,
) -> u64 {
    let image = Image::at(words);
    let skb = Skb::again(context);
    let quoted = match F::quoted(&skb, offset + 8) {
        Ok(quoted) => quoted,
        Err(Error::Malformed) => return Code::drop(Reason::Malformed),
        Err(Error::Unsupported) => return Code::drop(Reason::UnrelatedIcmpError),
    };
    let refused = Code::drop(Reason::UnrelatedIcmpError);
    if quoted.src != *dst {
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

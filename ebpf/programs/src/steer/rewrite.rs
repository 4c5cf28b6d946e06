//! Other addresses and ports for a datagram: within its family, where they are one run of bytes, or across.
//!
//! Checksums are changed by difference. Whether the UDP checksum is complete or left to the device only the kernel
//! knows, so it is changed by helpers. Where a device has summed the whole packet (`CHECKSUM_COMPLETE`), the helpers
//! assume an IPv4 header, whose sum never changes because it has a checksum of its own; for IPv6 that is made good with
//! `bpf_csum_update`, which is nothing for packets that are not summed. (`BPF_F_IPV6` does the same, but only from Linux
//! 6.16 on.)

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_ENFORCE, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{bpf_csum_update, bpf_l4_csum_replace, bpf_skb_change_proto};
use ghostwire_ebpf_abi::steer::Reason;
use ghostwire_packet::checksum::{Sum, update};
use ghostwire_packet::outer::Datagram;
use ghostwire_packet::translate::{header4, header6};

use crate::skb::{IPV4, IPV6, Skb};

const HEADER4: u32 = 20;
const HEADER6: u32 = 40;
/// Of the UDP header.
const CHECKSUM: u32 = 6;

/// A checksum of 0 means none, and stays.
const OPTIONAL: u64 = BPF_F_MARK_MANGLED_0 as u64;
/// A checksum of 0 means 0xffff: IPv6 has no datagrams without.
const ENFORCED: u64 = OPTIONAL | BPF_F_MARK_ENFORCE as u64;

/// Source and destination address, and both ports as they lie in a packet.
#[derive(Clone, Copy)]
pub struct Ends<A> {
    pub src: A,
    pub dst: A,
    pub ports: u32,
}

/// Changes the UDP checksum, which is at `offset` of the packet.
#[inline(always)]
fn change(
    context: *mut __sk_buff,
    offset: u32,
    addresses: Sum,
    ports: Sum,
    flags: u64,
) -> Result<(), Reason> {
    // SAFETY: the context that the kernel passed; the kernel checks the offset.
    unsafe {
        let pseudo = flags | u64::from(BPF_F_PSEUDO_HDR);
        if bpf_l4_csum_replace(context, offset, 0, u64::from(addresses.fold32()), pseudo) != 0
            || bpf_l4_csum_replace(context, offset, 0, u64::from(ports.fold32()), flags) != 0
        {
            return Err(Reason::Failed);
        }
    }
    Ok(())
}

/// Makes good for a sum over the whole packet.
#[inline(always)]
fn whole(context: *mut __sk_buff, difference: Sum) {
    // SAFETY: the context that the kernel passed. An error says that there is no such sum.
    unsafe { bpf_csum_update(context, difference.fold32()) };
}

/// IPv4 stays IPv4.
#[inline(always)]
pub fn within4(context: *mut __sk_buff, l3: u32, new: Ends<u32>) -> Result<(), Reason> {
    let skb = Skb::again(context, l3);
    let Some(head) = skb.head::<[u32; 7]>() else { return Err(Reason::Failed) };
    // SAFETY: within the packet, which the verifier checks.
    let (addresses, ports) = unsafe {
        let [_, _, _, src, dst, ports, _] = *head;
        let addresses = Sum::ZERO.minus(src).minus(dst).plus(new.src).plus(new.dst);
        let field = head.cast::<u16>().add(5);
        *field = update(*field, addresses);
        (*head)[3] = new.src;
        (*head)[4] = new.dst;
        (*head)[5] = new.ports;
        (addresses, Sum::ZERO.minus(ports).plus(new.ports))
    };
    change(context, l3 + HEADER4 + CHECKSUM, addresses, ports, OPTIONAL)
}

/// IPv6 stays IPv6.
#[inline(always)]
pub fn within6(context: *mut __sk_buff, l3: u32, new: Ends<[u32; 4]>) -> Result<(), Reason> {
    let skb = Skb::again(context, l3);
    let Some(head) = skb.head::<[u32; 12]>() else { return Err(Reason::Failed) };
    // SAFETY: within the packet, which the verifier checks.
    let (addresses, ports) = unsafe {
        let [_, _, a, b, c, d, e, f, g, h, ports, _] = *head;
        let old = Sum::ZERO.minus_all([a, b, c, d]).minus_all([e, f, g, h]);
        let addresses = old.plus_all(new.src).plus_all(new.dst);
        let ([a, b, c, d], [e, f, g, h]) = (new.src, new.dst);
        (*head)[2] = a;
        (*head)[3] = b;
        (*head)[4] = c;
        (*head)[5] = d;
        (*head)[6] = e;
        (*head)[7] = f;
        (*head)[8] = g;
        (*head)[9] = h;
        (*head)[10] = new.ports;
        (addresses, Sum::ZERO.minus(ports).plus(new.ports))
    };
    change(context, l3 + HEADER6 + CHECKSUM, addresses, ports, ENFORCED)?;
    whole(context, addresses);
    Ok(())
}

/// An IPv4 datagram gets an IPv6 header.
#[inline(always)]
pub fn into6(
    context: *mut __sk_buff,
    l3: u32,
    old: &Datagram<u32>,
    new: Ends<[u32; 4]>,
) -> Result<(), Reason> {
    // SAFETY: the context that the kernel passed.
    if unsafe { bpf_skb_change_proto(context, IPV6 as u16, 0) } != 0 {
        return Err(Reason::Failed);
    }
    let header = header6(old.class, old.total - HEADER4, old.ttl, new.src, new.dst);
    let Some(head) = Skb::again(context, l3).head::<[u32; 12]>() else { return Err(Reason::Failed) };
    let [a, b, c, d, e, f, g, h, i, j] = header;
    // SAFETY: within the packet, which the verifier checks.
    unsafe {
        (*head)[0] = a;
        (*head)[1] = b;
        (*head)[2] = c;
        (*head)[3] = d;
        (*head)[4] = e;
        (*head)[5] = f;
        (*head)[6] = g;
        (*head)[7] = h;
        (*head)[8] = i;
        (*head)[9] = j;
        (*head)[10] = new.ports;
    }
    let addresses = Sum::ZERO.minus(old.src).minus(old.dst).plus_all(new.src).plus_all(new.dst);
    let ports = Sum::ZERO.minus(old.ports).plus(new.ports);
    change(context, l3 + HEADER6 + CHECKSUM, addresses, ports, ENFORCED)?;
    whole(context, Sum::ZERO.plus_all(header));
    Ok(())
}

/// An IPv6 datagram gets an IPv4 header.
#[inline(always)]
pub fn into4(
    context: *mut __sk_buff,
    l3: u32,
    old: &Datagram<[u32; 4]>,
    new: Ends<u32>,
) -> Result<(), Reason> {
    let Some(head) = Skb::again(context, l3).head::<[u32; 10]>() else { return Err(Reason::Failed) };
    // The kernel cuts off the first 20 bytes. Newer ones take them out of the sum over the packet and older ones do not:
    // zeros are the same to both.
    // SAFETY: within the packet, which the verifier checks.
    let before = unsafe {
        let before = Sum::ZERO.minus_all(*head);
        for word in 0..5 {
            (*head)[word] = 0;
        }
        before
    };
    // SAFETY: the context that the kernel passed.
    if unsafe { bpf_skb_change_proto(context, IPV4 as u16, 0) } != 0 {
        return Err(Reason::Failed);
    }
    let [a, b, c, d, e] = header4(old.class, old.total - HEADER6, old.ttl, new.src, new.dst);
    let Some(head) = Skb::again(context, l3).head::<[u32; 7]>() else { return Err(Reason::Failed) };
    // SAFETY: within the packet, which the verifier checks.
    unsafe {
        (*head)[0] = a;
        (*head)[1] = b;
        (*head)[2] = c;
        (*head)[3] = d;
        (*head)[4] = e;
        (*head)[5] = new.ports;
    }
    let addresses = Sum::ZERO.minus_all(old.src).minus_all(old.dst).plus(new.src).plus(new.dst);
    let ports = Sum::ZERO.minus(old.ports).plus(new.ports);
    change(context, l3 + HEADER4 + CHECKSUM, addresses, ports, OPTIONAL)?;
    whole(context, before);
    Ok(())
}

/// Changes one port. `at`: offset of the port in the packet; `udp`: of the UDP header; `mandatory`: IPv6.
#[inline(always)]
pub fn port(
    context: *mut __sk_buff,
    udp: u32,
    at: u32,
    old_be: u16,
    new_be: u16,
    mandatory: bool,
) -> Result<(), Reason> {
    use aya_ebpf::helpers::generated::bpf_skb_store_bytes;
    let difference = Sum::ZERO.minus(u32::from(old_be)).plus(u32::from(new_be));
    let flags = if mandatory { ENFORCED } else { OPTIONAL };
    // SAFETY: the context that the kernel passed, and two bytes on the stack; the kernel checks the offsets.
    let failed = unsafe {
        bpf_skb_store_bytes(context.cast(), at, (&raw const new_be).cast(), 2, 0) != 0
            || bpf_l4_csum_replace(context, udp + CHECKSUM, 0, u64::from(difference.fold32()), flags) != 0
    };
    if failed { Err(Reason::Failed) } else { Ok(()) }
}

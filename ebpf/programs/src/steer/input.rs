//! From an uplink: what is a peer's goes to WireGuard, dressed as from the peer's stable endpoint.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::bpf_redirect;
use ghostwire_ebpf_abi::steer::{
    Admitted, Config, OWN4, OWN6, PEERS4, PEERS6, Reason, Remote4, Remote6, STABLE_PORT,
};
use ghostwire_packet::outer::{self, Outer};
use ghostwire_packet::{Family, Reader, V4, protocol};

use crate::aggregate::{self, Concern};
use crate::controller::{self, Kind};
use crate::out::words;
use crate::rewrite::{self, Ends};
use crate::skb::{IPV4, IPV6, Skb};
use crate::{maps, tally};

/// `skb->pkt_type` of what is for this host.
const PACKET_HOST: u32 = 0;

/// Takes what is for WireGuard's port and one of our addresses; everything else is passed by.
#[inline(always)]
pub fn run<const L3: u32>(context: *mut __sk_buff) -> i32 {
    // SAFETY: the context that the kernel passed.
    let (for_us, ethertype) =
        unsafe { ((*context).pkt_type == PACKET_HOST && (*context).vlan_present == 0, (*context).protocol) };
    // A tagged packet is for the VLAN's own device, where it comes by once more.
    if !for_us {
        return TC_ACT_UNSPEC;
    }
    match ethertype {
        IPV4 => receive4(context, L3),
        IPV6 => receive6(context, L3),
        _ => TC_ACT_UNSPEC,
    }
}

/// [`run`] for IPv4. `l3`: bytes in front of the IP header.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn receive4(context: *mut __sk_buff, l3: u32) -> i32 {
    let l3 = bounded(l3);
    // What most packets on an uplink are: not to be slowed down.
    if let Some([_, _, middle]) = Skb::again(context, l3).near::<[u32; 3]>(0)
        && (u32::from_be(middle) >> 16) as u8 != protocol::UDP
    {
        return TC_ACT_UNSPEC;
    }
    let Some(config) = maps::STEER_CONFIG.get(0) else { return TC_ACT_UNSPEC };
    let skb = Skb::new(context, l3);
    let datagram = match outer::v4(&skb) {
        Outer::Datagram(datagram) => datagram,
        Outer::Optional(dst, port_be) if concerns4(config, dst, port_be) => {
            return tally::shoot(context, Reason::Options);
        }
        Outer::Fragment(dst, port_be) if concerns4(config, dst, port_be) => {
            return tally::shoot(context, Reason::Fragment);
        }
        _ => return TC_ACT_UNSPEC,
    };
    if !concerns4(config, datagram.dst, datagram.dst_port_be()) {
        return by_the_back_door(context, config, datagram.dst_port_be(), &V4::mapped(datagram.dst));
    }
    let concern = aggregate::concern(context, &skb, l3, 28, datagram.payload);
    if concern == Concern::Nobody {
        return tally::shoot(context, Reason::NotWireGuard);
    }
    let port_be = datagram.dst_port_be();
    if for_controller_only(context, concern) {
        return controller::hand_over(context, config, l3 + 20, port_be, Kind::Control, false);
    }
    let remote = Remote4 { addr: datagram.src, port_be: datagram.src_port_be(), pad: 0 };
    // SAFETY: four bytes are copied; should the entry be reused meanwhile, a packet on its way is counted for another
    // peer, and WireGuard drops it.
    let Some(admitted) = unsafe { maps::REV4.get(remote) }.copied() else {
        return controller::hand_over(context, config, l3 + 20, port_be, Kind::Unknown, false);
    };
    if concern == Concern::Both {
        aggregate::copy(context);
    }
    let ports = inner_ports(config);
    let done = if config.family == 4 {
        rewrite::within4(context, l3, stable4(admitted, ports))
    } else if datagram.checksum == 0 {
        Err(Reason::NoChecksum)
    } else {
        rewrite::into6(context, l3, &datagram, stable6(admitted, ports))
    };
    deliver(context, config, admitted, datagram.payload, done)
}

/// [`run`] for IPv6. `l3`: bytes in front of the IP header.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn receive6(context: *mut __sk_buff, l3: u32) -> i32 {
    let l3 = bounded(l3);
    if let Some([_, second]) = Skb::again(context, l3).near::<[u32; 2]>(0)
        && matches!((u32::from_be(second) >> 8) as u8, protocol::TCP | protocol::ICMPV6)
    {
        return TC_ACT_UNSPEC;
    }
    let Some(config) = maps::STEER_CONFIG.get(0) else { return TC_ACT_UNSPEC };
    let skb = Skb::new(context, l3);
    let datagram = match outer::v6(&skb) {
        Outer::Datagram(datagram) => datagram,
        Outer::Optional(dst, port_be) if concerns6(config, dst, port_be) => {
            return tally::shoot(context, Reason::Options);
        }
        Outer::Fragment(dst, port_be) if concerns6(config, dst, port_be) => {
            return tally::shoot(context, Reason::Fragment);
        }
        Outer::Obscure(dst) if is_local(&dst) => return tally::shoot(context, Reason::Malformed),
        _ => return TC_ACT_UNSPEC,
    };
    if !concerns6(config, datagram.dst, datagram.dst_port_be()) {
        return by_the_back_door(context, config, datagram.dst_port_be(), &datagram.dst);
    }
    if datagram.checksum == 0 {
        return tally::shoot(context, Reason::NoChecksum);
    }
    let concern = aggregate::concern(context, &skb, l3, 48, datagram.payload);
    if concern == Concern::Nobody {
        return tally::shoot(context, Reason::NotWireGuard);
    }
    let port_be = datagram.dst_port_be();
    if for_controller_only(context, concern) {
        return controller::hand_over(context, config, l3 + 40, port_be, Kind::Control, true);
    }
    let remote = Remote6 { addr: datagram.src, port_be: datagram.src_port_be(), pad: 0 };
    // SAFETY: as in receive4.
    let Some(admitted) = unsafe { maps::REV6.get(remote) }.copied() else {
        return controller::hand_over(context, config, l3 + 40, port_be, Kind::Unknown, true);
    };
    if concern == Concern::Both {
        aggregate::copy(context);
    }
    let ports = inner_ports(config);
    let done = if config.family == 4 {
        rewrite::into4(context, l3, &datagram, stable4(admitted, ports))
    } else {
        rewrite::within6(context, l3, stable6(admitted, ports))
    };
    deliver(context, config, admitted, datagram.payload, done)
}

/// Nobody outside knows the controller's own port; what goes there would get around the limits.
#[inline(always)]
fn by_the_back_door(context: *mut __sk_buff, config: &Config, port_be: u16, dst: &[u32; 4]) -> i32 {
    if port_be == config.controller_port_be && config.device != 0 && is_local(dst) {
        return tally::shoot(context, Reason::NotWireGuard);
    }
    TC_ACT_UNSPEC
}

/// One of the two values that there are, for the verifier.
#[inline(always)]
pub const fn bounded(l3: u32) -> u32 {
    if l3 == 0 { 0 } else { crate::ETHERNET }
}

/// Whether WireGuard gets nothing of it, or has got it already.
#[inline(always)]
fn for_controller_only(context: *mut __sk_buff, concern: Concern) -> bool {
    match concern {
        Concern::Both => aggregate::was_copied(context),
        other => other == Concern::Controller,
    }
}

#[inline(always)]
fn concerns4(config: &Config, dst: u32, port_be: u16) -> bool {
    is_port(config, port_be) && is_local(&V4::mapped(dst))
}

#[inline(always)]
fn concerns6(config: &Config, dst: [u32; 4], port_be: u16) -> bool {
    is_port(config, port_be) && is_local(&dst)
}

/// Whether a port is WireGuard's, or treated like it. The cheap question, to be asked first.
#[inline(always)]
fn is_port(config: &Config, port_be: u16) -> bool {
    if port_be == config.wireguard_port_be {
        return config.device != 0;
    }
    let port = u32::from(u16::from_be(port_be));
    let word = maps::PORTS.get(port / 64).copied().unwrap_or(0);
    word >> (port % 64) & 1 != 0 && config.device != 0
}

#[inline(always)]
fn is_local(addr: &[u32; 4]) -> bool {
    maps::LOCALS.get_ptr(addr).is_some()
}

/// From the stable endpoint's port to WireGuard's.
#[inline(always)]
fn inner_ports(config: &Config) -> u32 {
    u32::from(STABLE_PORT.to_be()) | u32::from(config.wireguard_port_be) << 16
}

#[inline(always)]
fn stable4(admitted: Admitted, ports: u32) -> Ends<u32> {
    let src = (u32::from(PEERS4) << 16 | u32::from(admitted.peer)).to_be();
    Ends { src, dst: u32::from_ne_bytes(OWN4), ports }
}

#[inline(always)]
fn stable6(admitted: Admitted, ports: u32) -> Ends<[u32; 4]> {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n] = PEERS6;
    let [p, q] = admitted.peer.to_be_bytes();
    Ends { src: words([a, b, c, d, e, f, g, h, i, j, k, l, m, n, p, q]), dst: words(OWN6), ports }
}

/// To the device's ingress, so that reverse path filter, firewall and connection tracking see what WireGuard sees.
#[inline(always)]
fn deliver(
    context: *mut __sk_buff,
    config: &Config,
    admitted: Admitted,
    payload: u32,
    rewritten: Result<(), Reason>,
) -> i32 {
    if let Err(reason) = rewritten {
        return tally::shoot(context, reason);
    }
    tally::slot(u32::from(admitted.slot), payload);
    // SAFETY: numbers only.
    unsafe { bpf_redirect(config.device, u64::from(BPF_F_INGRESS)) as i32 }
}

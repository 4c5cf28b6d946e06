//! The controller's share of WireGuard's port: it has an ordinary socket on a port of its own, which the world knows as
//! WireGuard's.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use ghostwire_ebpf_abi::steer::{Config, OWN6, PEERS4, Reason};
use ghostwire_packet::outer::{self, Outer};

use crate::input::bounded;
use crate::skb::{IPV4, IPV6, Skb};
use crate::{maps, out, rewrite, tally};

/// What the controller gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// STUN, or a check in WireGuard's dress.
    Control,
    /// WireGuard's, from a source that is not admitted.
    Unknown,
}

/// Passes a packet up to the controller's socket, or to the further socket that it is for. `udp`: offset of its UDP
/// header; `mandatory`: whether its family needs a checksum.
#[inline(always)]
pub fn hand_over(
    context: *mut __sk_buff,
    config: &Config,
    udp: u32,
    port_be: u16,
    kind: Kind,
    mandatory: bool,
) -> i32 {
    let (passed, limited) = match kind {
        Kind::Control => (Reason::ControlReported, Reason::ControlLimited),
        Kind::Unknown => (Reason::UnknownReported, Reason::UnknownSource),
    };
    let is_ours = port_be == config.wireguard_port_be;
    if (is_ours && config.controller_port_be == 0)
        || !tally::may_report(context, config, matches!(kind, Kind::Unknown))
    {
        return tally::shoot(context, limited);
    }
    tally::reason(context, passed);
    if is_ours
        && let Err(reason) =
            rewrite::port(context, udp, udp + 2, port_be, config.controller_port_be, mandatory)
    {
        return tally::shoot(context, reason);
    }
    TC_ACT_UNSPEC
}

/// On its way out by an uplink: the controller's packets get WireGuard's port. What goes to a stable endpoint must not
/// leave the host, should the route to them be gone.
#[inline(always)]
pub fn leave<const L3: u32>(context: *mut __sk_buff) -> i32 {
    // SAFETY: the context that the kernel passed.
    match unsafe { (*context).protocol } {
        IPV4 => leave4(context, L3),
        IPV6 => leave6(context, L3),
        _ => TC_ACT_UNSPEC,
    }
}

/// [`leave`] for IPv4. `l3`: bytes in front of the IP header.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leave4(context: *mut __sk_buff, l3: u32) -> i32 {
    let l3 = bounded(l3);
    let Some(config) = maps::STEER_CONFIG.get(0) else { return TC_ACT_UNSPEC };
    let Outer::Datagram(datagram) = outer::v4(&Skb::again(context, l3)) else { return TC_ACT_UNSPEC };
    let from_be = datagram.src_port_be();
    if from_be == config.wireguard_port_be && u32::from_be(datagram.dst) >> 16 == u32::from(PEERS4) {
        return tally::shoot(context, Reason::Escaped);
    }
    mask(context, config, l3 + 20, from_be, false)
}

/// [`leave`] for IPv6. `l3`: bytes in front of the IP header.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leave6(context: *mut __sk_buff, l3: u32) -> i32 {
    let l3 = bounded(l3);
    let Some(config) = maps::STEER_CONFIG.get(0) else { return TC_ACT_UNSPEC };
    let Outer::Datagram(datagram) = outer::v6(&Skb::again(context, l3)) else { return TC_ACT_UNSPEC };
    let from_be = datagram.src_port_be();
    let [first, second, ..] = out::words(OWN6);
    if from_be == config.wireguard_port_be && datagram.dst[0] == first && datagram.dst[1] == second {
        return tally::shoot(context, Reason::Escaped);
    }
    mask(context, config, l3 + 40, from_be, true)
}

#[inline(always)]
fn mask(context: *mut __sk_buff, config: &Config, udp: u32, from_be: u16, mandatory: bool) -> i32 {
    if from_be != config.controller_port_be || from_be == 0 || config.device == 0 {
        return TC_ACT_UNSPEC;
    }
    match rewrite::port(context, udp, udp, from_be, config.wireguard_port_be, mandatory) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(reason) => tally::shoot(context, reason),
    }
}

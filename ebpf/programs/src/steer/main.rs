//! Steering: WireGuard's datagrams between stable endpoints and real paths.
//!
//! ```text
//! WireGuard ─> gw0-steer ── steer_out ─┬─ out: PEERS word ─> path slot ─> rewrite ─> neighbour of an uplink
//!                                      └─ carrier: the device's file descriptor
//! uplink ── steer_in, steer_in_ip ─────┬─ input: admitted remote ─> rewrite ─> ingress of gw0-steer ─> WireGuard
//!                                      ├─ controller: STUN, checks, unknown sources, at a limited rate
//!                                      └─ everything else on the host: passed by
//! uplink ── uplink_out, uplink_out_ip ── the controller's datagrams leave from WireGuard's port
//! ```
//!
//! The `_ip` programs are for uplinks without an Ethernet header. Failing closed: what is for WireGuard's port and cannot
//! be told to be a peer's never reaches WireGuard, because it would take the source for the peer's new endpoint.
//!
//! - `aggregate`: several datagrams at once. `skb`: the packet. `rewrite`: addresses and ports, of one family or across. `tally`: what is counted.
#![no_std]
#![no_main]

mod aggregate;
mod controller;
mod input;
mod maps;
mod out;
mod rewrite;
mod skb;
mod tally;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;

/// From WireGuard to its peers' stable endpoints.
#[classifier]
pub fn steer_out(ctx: TcContext) -> i32 {
    out::run(ctx.skb.skb)
}

/// From an Ethernet uplink.
#[classifier]
pub fn steer_in(ctx: TcContext) -> i32 {
    input::run::<ETHERNET>(ctx.skb.skb)
}

/// From an uplink where packets start at the IP header.
#[classifier]
pub fn steer_in_ip(ctx: TcContext) -> i32 {
    input::run::<0>(ctx.skb.skb)
}

/// Out by an Ethernet uplink.
#[classifier]
pub fn uplink_out(ctx: TcContext) -> i32 {
    controller::leave::<ETHERNET>(ctx.skb.skb)
}

/// Out by an uplink where packets start at the IP header.
#[classifier]
pub fn uplink_out_ip(ctx: TcContext) -> i32 {
    controller::leave::<0>(ctx.skb.skb)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// What the kernel calls GPL-compatible; the helpers for time need it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

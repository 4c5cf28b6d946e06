//! GhostWire's eBPF programs.
//!
//! ```text
//! skb ─> skb::Skb (where the IP header is) ─> acl::judge ─> Result<Reason, Reason> ─> verdict::conclude ─> TC action
//!                     (fast: the common packet) │   ├─ image      classes and verdict bits of one generation
//!                                              │   ├─ nets       addresses behind subnet routers
//!                                              │   ├─ conntrack  answers to what this side opened
//!                                              │   ├─ fragment   later fragments
//!                                              │   └─ icmp_error errors about permitted flows
//!                                              └─ everything but the image is off the fast path
//! ```
//!
//! Both programs attach to the WireGuard device, where packets start at the IP header. Failing closed: without
//! an image, or with one of another layout, everything is dropped.
#![no_std]
#![no_main]

mod acl;
mod conntrack;
mod event;
mod fast;
mod fragment;
mod icmp_error;
mod image;
mod limit;
mod maps;
mod nets;
mod skb;
mod verdict;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use ghostwire_ebpf_abi::event::Direction;

/// From the tunnel to this node.
#[classifier]
pub fn acl_ingress(ctx: TcContext) -> i32 {
    acl::run(ctx.skb.skb, Direction::Ingress)
}

/// From this node into the tunnel.
#[classifier]
pub fn acl_egress(ctx: TcContext) -> i32 {
    acl::run(ctx.skb.skb, Direction::Egress)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// What the kernel calls GPL-compatible; the helpers for time need it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

//! Wire formats of the relay, without I/O. Everything here is total: bytes from the network become a valid value
//! or an error; nothing panics, allocates without a bound or waits.
//!
//! ```text
//! UDP  ── stun::Message::parse ──> control::Request::parse ──> token::Token::verify, control::IntegrityKey
//!      <─ stun::Writer <────────── control::Response::write
//! TCP  ── derp::Frame::parse ────> derp::{client_info, server_info} open their boxes
//!      <─ derp::Frame::write
//! ```
//!
//! - [`stun`]: RFC 8489 messages, as answered on the main port and as the frame of the control protocol.
//! - [`control`]: Allocate, Bind, Refresh and Release, and what they mean.
//! - [`client`]: a node's side of it.
//! - [`token`]: what the coordinator signs so that a relay lets a node in without asking anybody.
//! - [`derp`]: version 2 of the stream relay protocol that Tailscale publishes.
//!
//! What a relay does with WireGuard datagrams is in `ghostwire-relay-fastpath`, which eBPF programs link too.

pub mod client;
pub mod control;
pub mod derp;
pub mod stun;
pub mod token;

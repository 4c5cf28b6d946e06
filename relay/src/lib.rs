//! GhostWire's relay.
//!
//! Two ways through it, both for packets that it cannot read:
//!
//! - **Relay ports**: a node sends plain WireGuard datagrams to its peer's UDP port on the relay, and they leave
//!   from its own port, unchanged. [`sessions`] decides who may; [`udp`] carries datagrams where no XDP program
//!   does, by the same table and the same decision (`ghostwire-relay-fastpath`).
//! - **DERP** over TLS ([`derp`]), for nodes whose networks let no UDP through.
//!
//! ```text
//! main port ──► sessions::Sessions::handle_control ──► events: open a port, a session's limits, reports
//!                    │ writes                         │
//!                pair table                           ▼
//!                    │ read                       udp::Plane (sockets)
//! relay ports ──► fastpath::decide ──► session limits ──► out of the sender's own port
//! TCP ──► TLS ──► derp::http ──► handshake, admission ──► derp::registry ──► derp::queue
//! ```
//!
//! [`coordinator`] registers a relay that runs by itself; [`metrics`] shows what has been counted.
//!
//! [`sessions`] has no clock, no sockets and no randomness of its own: time comes with each call. Whoever embeds the
//! relay (the coordinator does by default) drives [`server::Server`] and implements [`udp::Observer`] and
//! [`derp::Admission`].

pub mod coordinator;
pub mod derp;
pub mod keys;
pub mod limits;
pub mod metrics;
pub mod server;
pub mod sessions;
pub mod state_dir;
pub mod table;
pub mod tls;
pub mod udp;
pub mod xdp;

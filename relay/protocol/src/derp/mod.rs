//! DERP version 2, the stream relay protocol that Tailscale publishes: opaque packets between public keys.
//!
//! After an HTTP upgrade (or without one, "fast start") both sides send frames: type, length, payload.
//!
//! ```text
//! server  ServerKey                                ─►
//!         ◄─  ClientInfo { key, box(JSON) }            the box shows that the client holds its key
//! server  ServerInfo { box(JSON) }                 ─►  and this one that the server holds its own
//!         ◄─  Send { to, packet }
//! server  Recv { from, packet }                    ─►
//! ```
//!
//! [`Header`] and [`Frame`] read and write frames, [`handshake`] seals and opens the two boxes.

mod frame;
pub mod handshake;

pub use frame::{Frame, FrameError, GoneReason, Header, Presence};

use std::fmt;

/// Version of the protocol.
pub const VERSION: u32 = 2;

/// Length of a frame's header in bytes.
pub const HEADER_LEN: usize = 5;

/// The longest packet that is relayed, in bytes.
pub const MAX_PACKET_LEN: usize = 64 << 10;

/// The longest ClientInfo or ServerInfo in bytes.
pub const MAX_INFO_LEN: usize = 256 << 10;

/// The longest frame that a server accepts after the handshake, in bytes: a packet with its addresses.
pub const MAX_FRAME_LEN: usize = MAX_PACKET_LEN + 64;

/// What a ServerKey frame starts with.
const MAGIC: [u8; 8] = [0x44, 0x45, 0x52, 0x50, 0xF0, 0x9F, 0x94, 0x91];

/// What a packet of Tailscale's path discovery starts with.
const DISCO_MAGIC: [u8; 6] = [0x54, 0x53, 0xF0, 0x9F, 0x92, 0xAC];

/// The shortest packet of Tailscale's path discovery: magic, key, nonce.
const DISCO_MIN_LEN: usize = 62;

/// A client's or the server's public key, X25519.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a packet looks like Tailscale's path discovery. Such packets are few, small and urgent: they have a
/// queue of their own, and their sender is told when the receiver is not here.
pub fn looks_like_disco(packet: &[u8]) -> bool {
    packet.len() >= DISCO_MIN_LEN && packet.starts_with(&DISCO_MAGIC)
}

//! The QUIC carrier: WireGuard's datagrams as QUIC datagrams (RFC 9221) from node to node, for networks that let QUIC
//! pass but not WireGuard.
//!
//! ```text
//! messages ─► Link ─► parts::Packer ─► QUIC datagrams ─┐            ┌─► Event::Messages, Up, Moved, Down
//!                                                      ├─ socket ───┤
//! STUN ────────────────────────────────────────────────┘            └─► Stun
//! ```
//!
//! - [`identity`]: who a node is here. [`tls`]: TLS 1.3 with both keys pinned.
//! - [`parts`]: messages in datagrams, and messages that are longer than one. Pure.
//! - [`demux`]: STUN among QUIC on one port (RFC 9443). Pure.
//! - [`congestion`]: why there is no second control loop beneath TCP's. Pure.
//! - [`socket`]: the UDP port. [`endpoint`]: connections and their ends; the shell around quinn.
//!
//! # Who is at the other end
//!
//! The network map names peers by their WireGuard keys, which are X25519 and sign nothing. So a node derives an Ed25519
//! key from its machine key, and tells it in the signals that the coordinator carries from node to node: it vouches for
//! the sender of a signal as it does for the WireGuard keys of the map. Both ends present that key as a raw public key
//! (RFC 7250): no certificates to parse, no names. The client expects exactly the key of the peer it calls; the server
//! expects the key of a peer, and says whose it was. No key, no connection.
//!
//! What passes is WireGuard's ciphertext: who broke TLS would still have to break WireGuard.
//!
//! # Early data
//!
//! A second connection to the same peer sends in its first flight (0-RTT). The server keeps sessions in memory and uses
//! each once, so that a recorded flight cannot be played back to it; and were one played back, WireGuard takes no
//! datagram twice. A checks' answer is played to nobody but the peer. Early data is taken from peers only.
//!
//! # Sizes
//!
//! WireGuard's largest datagram on a 1500-byte path is 1452 bytes, which leaves no room for QUIC's about 40. Lowering
//! `gw0`'s MTU while the path is QUIC would make it flap, and paths move. So what does not fit is sent in parts, and
//! the rest of a datagram is filled with what comes next: a bulk transfer takes 3 % more datagrams, not twice as many.

pub mod congestion;
pub mod demux;
pub mod endpoint;
pub mod identity;
pub mod parts;
pub mod socket;
pub mod tls;

pub use endpoint::{Endpoint, Event, Failure, Inbox, Link, OpenError};
pub use identity::{Identity, PublicKey};
pub use socket::{Stun, bind};

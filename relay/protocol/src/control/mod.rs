//! The relay's control protocol: STUN messages with methods of our own.
//!
//! A relay gives each node one UDP port. Node A sends WireGuard datagrams for B to B's port; the relay sends them
//! on from A's port to the address that B bound. For that, both sides bind:
//!
//! | method | sent to | token | effect |
//! |---|---|---|---|
//! | [`ALLOCATE`] | main port | allocate | the node has a relay port from now on; the same one if it had one |
//! | [`LOOKUP`] | main port | bind | none; tells the peer's relay port, if it has one |
//! | [`BIND`] | the peer's relay port | bind | the source of this request is the node's address towards that peer |
//! | [`REFRESH`] | either | as above | prolongs what is there; refused from an address that is not bound |
//! | [`RELEASE`] | either | as above | ends the leg, or the port with all its legs |
//!
//! A pair carries traffic once A has bound to B's port and B to A's. A bind from another address moves the leg
//! there. Data never does: a datagram from an unknown address is dropped and reported.
//!
//! # The exchange
//!
//! 1. The node sends its request, without CHALLENGE. The relay keeps no state; it answers error 401 with a
//!    CHALLENGE that is a MAC over the node's address, the port asked and the time.
//! 2. The node repeats the request from the same socket with the CHALLENGE. It has thereby shown that it receives
//!    what is sent to that address. Only now does the relay verify the token and the message's integrity.
//! 3. The relay answers success, signed with the same key, or an error.
//!
//! A challenge older than its time is answered with error 438 and a new one. Lost messages are repeated by the
//! node with the same transaction; every method may be repeated.
//!
//! # Why it cannot be abused
//!
//! - *Amplification*: a request is at least [`MIN_REQUEST_LEN`] long, and no response is longer than its request.
//! - *Spoofing*: no state and no public-key cryptography before the challenge came back.
//! - *Replay*: the challenge binds a request to its source; SEQUENCE, which grows with each request of a session
//!   and is covered by the integrity, keeps an older bind from undoing a newer one, even from the same address.
//! - *Stolen tokens*: MESSAGE-INTEGRITY-SHA256 is keyed with [`IntegrityKey`], which takes the private half of the
//!   session key that the token names.

mod key;
mod request;
mod response;

pub use key::IntegrityKey;
pub use request::{Action, Bad, Request, write_request};
pub use response::{Lease, Response, ResponseError, write_challenge, write_error, write_success};

use crate::stun::{Kind, Method};

/// Asks for a relay port.
pub const ALLOCATE: Method = Method::own(0x801);
/// Binds the source address to a peer's relay port.
pub const BIND: Method = Method::own(0x802);
/// Prolongs.
pub const REFRESH: Method = Method::own(0x803);
/// Gives back.
pub const RELEASE: Method = Method::own(0x804);
/// Asks for a peer's relay port.
pub const LOOKUP: Method = Method::own(0x805);

/// TOKEN: a [`crate::token`], 160 bytes. In every request.
pub const TOKEN: Kind = Kind(0x7E01);
/// CHALLENGE: opaque to the node, [`CHALLENGE_LEN`] bytes.
pub const CHALLENGE: Kind = Kind(0x7E02);
/// SEQUENCE: 64 bits, greater in each new request of a session. Milliseconds since 1970 serve.
pub const SEQUENCE: Kind = Kind(0x7E03);
/// LEASE: seconds for which what was granted lasts without a refresh, 32 bits.
pub const LEASE: Kind = Kind(0x7E04);
/// STATE: 32 bits; see [`Lease`].
pub const STATE: Kind = Kind(0x7E05);
/// XOR-RELAYED-ADDRESS of RFC 8656: the relay port, at the address that the world sees.
pub const XOR_RELAYED_ADDRESS: Kind = Kind(0x0016);
/// PADDING that a receiver ignores.
pub const PADDING: Kind = Kind(0xFE01);

/// Length of a challenge in bytes.
pub const CHALLENGE_LEN: usize = 20;

/// The shortest request that is answered, in bytes. All our requests are exactly this long.
pub const MIN_REQUEST_LEN: usize = 320;

/// The longest response in bytes.
pub const MAX_RESPONSE_LEN: usize = 160;

/// Error codes of responses.
pub mod code {
    /// The relay is about to stop: use another.
    pub const TRY_ALTERNATE: u16 = 300;
    /// The request is not well-formed.
    pub const BAD_REQUEST: u16 = 400;
    /// Repeat with the CHALLENGE of this answer.
    pub const UNAUTHENTICATED: u16 = 401;
    /// The source address is one that this relay does not send to.
    pub const FORBIDDEN: u16 = 403;
    /// Attributes that must be understood are not.
    pub const UNKNOWN_ATTRIBUTE: u16 = 420;
    /// No allocation or binding that fits the request.
    pub const MISMATCH: u16 = 437;
    /// The CHALLENGE is too old, or was for another address.
    pub const STALE_CHALLENGE: u16 = 438;
    /// The token or the integrity does not convince.
    pub const WRONG_CREDENTIALS: u16 = 441;
    /// A newer request of the same session was carried out.
    pub const OUT_OF_ORDER: u16 = 447;
    /// One more is more than this node or address may have.
    pub const QUOTA: u16 = 486;
    /// The relay is full.
    pub const CAPACITY: u16 = 508;
}

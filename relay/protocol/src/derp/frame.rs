//! Frames.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use super::{HEADER_LEN, MAGIC, MAX_PACKET_LEN, PublicKey};

const SERVER_KEY: u8 = 0x01;
const CLIENT_INFO: u8 = 0x02;
const SERVER_INFO: u8 = 0x03;
const SEND: u8 = 0x04;
const RECV: u8 = 0x05;
const KEEP_ALIVE: u8 = 0x06;
const NOTE_PREFERRED: u8 = 0x07;
const PEER_GONE: u8 = 0x08;
const PEER_PRESENT: u8 = 0x09;
const FORWARD: u8 = 0x0A;
const WATCH: u8 = 0x10;
const CLOSE_PEER: u8 = 0x11;
const PING: u8 = 0x12;
const PONG: u8 = 0x13;
const HEALTH: u8 = 0x14;
const RESTARTING: u8 = 0x15;

/// The longest payload of a ping in bytes; the first eight are echoed.
const MAX_PING_LEN: usize = 1000;

/// A frame's first five bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The frame's type.
    pub kind: u8,
    /// Length of the payload in bytes. Compare it with a limit before reading.
    pub len: u32,
}

impl Header {
    /// Reads a header.
    pub const fn parse(bytes: [u8; HEADER_LEN]) -> Self {
        Self { kind: bytes[0], len: u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) }
    }
}

/// Why a peer is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoneReason {
    /// It was here and closed its connection.
    Disconnected,
    /// It is not here.
    NotHere,
    /// A reason of a later version.
    Other(u8),
}

impl From<u8> for GoneReason {
    fn from(value: u8) -> Self {
        match value {
            0 => Self::Disconnected,
            1 => Self::NotHere,
            other => Self::Other(other),
        }
    }
}

impl From<GoneReason> for u8 {
    fn from(reason: GoneReason) -> Self {
        match reason {
            GoneReason::Disconnected => 0,
            GoneReason::NotHere => 1,
            GoneReason::Other(other) => other,
        }
    }
}

/// A peer that has connected, as told to those who watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Its key.
    pub key: PublicKey,
    /// Where it connects from, if told.
    pub address: Option<SocketAddr>,
    /// 1 regular, 2 mesh, 4 prober, 8 not in its ideal region.
    pub flags: u8,
}

/// A frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The server's public key; its first frame.
    ServerKey(PublicKey),
    /// The client's public key and a box; see [`super::handshake`].
    ClientInfo {
        /// The client's key.
        key: PublicKey,
        /// Nonce and box.
        sealed: &'a [u8],
    },
    /// A box; see [`super::handshake`].
    ServerInfo {
        /// Nonce and box.
        sealed: &'a [u8],
    },
    /// A packet for a peer.
    Send {
        /// The peer.
        to: PublicKey,
        /// The packet.
        packet: &'a [u8],
    },
    /// A packet from a peer.
    Recv {
        /// The peer.
        from: PublicKey,
        /// The packet.
        packet: &'a [u8],
    },
    /// A packet between servers of one region.
    Forward {
        /// Its sender.
        from: PublicKey,
        /// Its receiver.
        to: PublicKey,
        /// The packet.
        packet: &'a [u8],
    },
    /// The connection lives.
    KeepAlive,
    /// Whether this is the client's home.
    NotePreferred(bool),
    /// A peer is gone.
    PeerGone {
        /// The peer.
        key: PublicKey,
        /// Why.
        reason: GoneReason,
    },
    /// A peer has connected.
    PeerPresent(Presence),
    /// Wants to hear of every peer; needs the mesh key.
    Watch,
    /// Wants a peer's connection closed; needs the mesh key.
    ClosePeer(PublicKey),
    /// Wants its eight bytes back.
    Ping([u8; 8]),
    /// The eight bytes.
    Pong([u8; 8]),
    /// What is wrong with the connection; empty: nothing any more.
    Health(&'a str),
    /// The server restarts.
    Restarting {
        /// Come back after so many milliseconds.
        reconnect_in_ms: u32,
        /// And keep trying for so many.
        try_for_ms: u32,
    },
    /// A type of a later version, to be skipped.
    Unknown(u8),
}

/// Why a payload is not what its type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("malformed frame of type {kind:#04x}")]
pub struct FrameError {
    /// The frame's type.
    pub kind: u8,
}

fn key(bytes: &[u8]) -> Option<(PublicKey, &[u8])> {
    bytes.split_first_chunk().map(|(key, rest)| (PublicKey(*key), rest))
}

impl<'a> Frame<'a> {
    /// Reads a payload. What follows the fields that this version knows is ignored, as the protocol wants.
    pub fn parse(kind: u8, payload: &'a [u8]) -> Result<Self, FrameError> {
        Self::parse_known(kind, payload).ok_or(FrameError { kind })
    }

    fn parse_known(kind: u8, payload: &'a [u8]) -> Option<Self> {
        Some(match kind {
            SERVER_KEY => {
                let (magic, rest) = payload.split_first_chunk::<8>()?;
                if *magic != MAGIC {
                    return None;
                }
                Self::ServerKey(key(rest)?.0)
            }
            CLIENT_INFO => {
                let (key, sealed) = key(payload)?;
                Self::ClientInfo { key, sealed }
            }
            SERVER_INFO => Self::ServerInfo { sealed: payload },
            SEND => {
                let (to, packet) = key(payload)?;
                Self::Send { to, packet: bounded(packet)? }
            }
            RECV => {
                let (from, packet) = key(payload)?;
                Self::Recv { from, packet: bounded(packet)? }
            }
            FORWARD => {
                let (from, rest) = key(payload)?;
                let (to, packet) = key(rest)?;
                Self::Forward { from, to, packet: bounded(packet)? }
            }
            KEEP_ALIVE => Self::KeepAlive,
            NOTE_PREFERRED => Self::NotePreferred(*payload.first()? != 0),
            PEER_GONE => {
                let (key, rest) = key(payload)?;
                // Old servers send no reason.
                Self::PeerGone { key, reason: rest.first().copied().unwrap_or(0).into() }
            }
            PEER_PRESENT => Self::PeerPresent(presence(payload)?),
            WATCH => Self::Watch,
            CLOSE_PEER => Self::ClosePeer(key(payload)?.0),
            PING if payload.len() <= MAX_PING_LEN => Self::Ping(*payload.first_chunk()?),
            PING => return None,
            PONG => Self::Pong(*payload.first_chunk()?),
            HEALTH => Self::Health(std::str::from_utf8(payload).ok()?),
            RESTARTING => {
                let (reconnect, rest) = payload.split_first_chunk()?;
                Self::Restarting {
                    reconnect_in_ms: u32::from_be_bytes(*reconnect),
                    try_for_ms: u32::from_be_bytes(*rest.first_chunk()?),
                }
            }
            other => Self::Unknown(other),
        })
    }

    /// Appends the frame, header included. An [`Frame::Unknown`] frame is written without payload. What is longer
    /// than a frame can be cannot be built: packets are bounded where they are read.
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[self.kind(), 0, 0, 0, 0]);
        self.write_payload(out);
        let len = u32::try_from(out.len() - start - HEADER_LEN).unwrap_or(u32::MAX);
        if let Some(field) = out.get_mut(start + 1..start + HEADER_LEN) {
            field.copy_from_slice(&len.to_be_bytes());
        }
    }

    fn write_payload(&self, out: &mut Vec<u8>) {
        match self {
            Self::ServerKey(key) => {
                out.extend_from_slice(&MAGIC);
                out.extend_from_slice(&key.0);
            }
            Self::ClientInfo { key, sealed } => {
                out.extend_from_slice(&key.0);
                out.extend_from_slice(sealed);
            }
            Self::ServerInfo { sealed } => out.extend_from_slice(sealed),
            Self::Send { to: key, packet } | Self::Recv { from: key, packet } => {
                out.extend_from_slice(&key.0);
                out.extend_from_slice(packet);
            }
            Self::Forward { from, to, packet } => {
                out.extend_from_slice(&from.0);
                out.extend_from_slice(&to.0);
                out.extend_from_slice(packet);
            }
            Self::KeepAlive | Self::Watch | Self::Unknown(_) => {}
            Self::NotePreferred(preferred) => out.push(u8::from(*preferred)),
            Self::PeerGone { key, reason } => {
                out.extend_from_slice(&key.0);
                out.push((*reason).into());
            }
            Self::PeerPresent(presence) => write_presence(presence, out),
            Self::ClosePeer(key) => out.extend_from_slice(&key.0),
            Self::Ping(data) | Self::Pong(data) => out.extend_from_slice(data),
            Self::Health(text) => out.extend_from_slice(text.as_bytes()),
            Self::Restarting { reconnect_in_ms, try_for_ms } => {
                out.extend_from_slice(&reconnect_in_ms.to_be_bytes());
                out.extend_from_slice(&try_for_ms.to_be_bytes());
            }
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::ServerKey(_) => SERVER_KEY,
            Self::ClientInfo { .. } => CLIENT_INFO,
            Self::ServerInfo { .. } => SERVER_INFO,
            Self::Send { .. } => SEND,
            Self::Recv { .. } => RECV,
            Self::Forward { .. } => FORWARD,
            Self::KeepAlive => KEEP_ALIVE,
            Self::NotePreferred(_) => NOTE_PREFERRED,
            Self::PeerGone { .. } => PEER_GONE,
            Self::PeerPresent(_) => PEER_PRESENT,
            Self::Watch => WATCH,
            Self::ClosePeer(_) => CLOSE_PEER,
            Self::Ping(_) => PING,
            Self::Pong(_) => PONG,
            Self::Health(_) => HEALTH,
            Self::Restarting { .. } => RESTARTING,
            Self::Unknown(kind) => *kind,
        }
    }
}

fn bounded(packet: &[u8]) -> Option<&[u8]> {
    (packet.len() <= MAX_PACKET_LEN).then_some(packet)
}

/// Address and flags came later than the key; each may be missing.
fn presence(payload: &[u8]) -> Option<Presence> {
    let (key, rest) = key(payload)?;
    let Some((ip, rest)) = rest.split_first_chunk::<16>() else {
        return Some(Presence { key, address: None, flags: 0 });
    };
    let Some((port, rest)) = rest.split_first_chunk::<2>() else {
        return Some(Presence { key, address: None, flags: 0 });
    };
    let address = SocketAddr::new(Ipv6Addr::from(*ip).to_canonical(), u16::from_be_bytes(*port));
    Some(Presence { key, address: Some(address), flags: rest.first().copied().unwrap_or(0) })
}

fn write_presence(presence: &Presence, out: &mut Vec<u8>) {
    out.extend_from_slice(&presence.key.0);
    let Some(address) = presence.address else { return };
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend_from_slice(&ip.octets());
    out.extend_from_slice(&address.port().to_be_bytes());
    out.push(presence.flags);
}

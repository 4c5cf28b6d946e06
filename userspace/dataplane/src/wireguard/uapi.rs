//! The WireGuard configuration protocol (<https://www.wireguard.com/xplatform/#configuration-protocol>)
//! as text: total parsers with bounds, and the writers that match them. No I/O here.
//!
//! A message is lines `key=value` up to an empty line. The daemon writes requests and reads answers,
//! the process that owns a userspace device does the opposite.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::{DeviceStatus, PeerStatus, PeerUpdate, PresharedKey, PrivateKey, PublicKey, Update};

/// No line of the protocol is longer; the longest is a key and its name.
pub const MAX_LINE: usize = 256;

/// No message is longer: room for tens of thousands of peers.
pub const MAX_MESSAGE: usize = 32 << 20;

/// Why text is not a message of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// More bytes than any message has.
    #[error("the message is longer than {MAX_MESSAGE} bytes")]
    MessageTooLong,
    /// More bytes in a line than any line has.
    #[error("line {0} is longer than {MAX_LINE} bytes")]
    LineTooLong(usize),
    /// Bytes that are not UTF-8.
    #[error("the message is not text")]
    NotText,
    /// Neither `get=1` nor `set=1`.
    #[error("the message starts with neither get=1 nor set=1")]
    UnknownOperation,
    /// A line without `=`.
    #[error("line {0} is not key=value")]
    NotKeyValue(usize),
    /// A key that has no business here.
    #[error("line {0}: unknown key, or not in this place")]
    UnexpectedKey(usize),
    /// A value that does not fit its key.
    #[error("line {line}: the value of {key} is malformed")]
    BadValue {
        /// Which line.
        line: usize,
        /// Which key.
        key: &'static str,
    },
    /// The same peer twice.
    #[error("line {0}: this peer has been named before")]
    DuplicatePeer(usize),
    /// An answer that does not say whether it worked.
    #[error("the answer has no errno")]
    NoErrno,
}

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// The state of the device.
    Get,
    /// A change to it.
    Set(Update),
}

/// What a server answers to [`Request::Get`].
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// 0 or the errno of the failure.
    pub errno: i32,
    /// The state of the device; empty in answers to a change.
    pub status: DeviceStatus,
}

/// Cuts a stream of bytes into messages. Its memory is bounded and wiped.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Zeroizing<Vec<u8>>,
    /// Start of the line that is being read.
    line: usize,
    lines: usize,
}

impl Framer {
    /// Takes bytes; returns the first message that they complete and how many bytes belong to it.
    /// The rest is the start of the next one.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(usize, Option<Zeroizing<String>>), ProtocolError> {
        for (index, byte) in bytes.iter().enumerate() {
            if *byte != b'\n' {
                if self.buffer.len() - self.line >= MAX_LINE {
                    return Err(ProtocolError::LineTooLong(self.lines + 1));
                }
                self.append(*byte)?;
                continue;
            }
            let empty = self.buffer.len() == self.line;
            if !empty {
                self.append(*byte)?;
                self.line = self.buffer.len();
                self.lines += 1;
            } else if !self.buffer.is_empty() {
                return self.take().map(|message| (index + 1, Some(message)));
            }
        }
        Ok((bytes.len(), None))
    }

    fn append(&mut self, byte: u8) -> Result<(), ProtocolError> {
        if self.buffer.len() >= MAX_MESSAGE {
            return Err(ProtocolError::MessageTooLong);
        }
        if self.buffer.len() == self.buffer.capacity() {
            // Growing a vector frees the old memory with the keys in it: copy and wipe instead.
            let mut larger = Zeroizing::new(Vec::with_capacity((self.buffer.len() * 2).max(4096)));
            larger.extend_from_slice(&self.buffer);
            self.buffer = larger;
        }
        self.buffer.push(byte);
        Ok(())
    }

    fn take(&mut self) -> Result<Zeroizing<String>, ProtocolError> {
        let mut framed = std::mem::take(self);
        String::from_utf8(std::mem::take(&mut *framed.buffer)).map(Zeroizing::new).map_err(|error| {
            drop(Zeroizing::new(error.into_bytes()));
            ProtocolError::NotText
        })
    }
}

/// Writes a request for the state of the device.
pub fn get_request() -> &'static str {
    "get=1\n\n"
}

/// Writes a request for a change.
pub fn set_request(update: &Update) -> Zeroizing<String> {
    let mut text = Writer::new("set=1\n");
    if let Some(key) = &update.private_key {
        text.secret("private_key", key.as_bytes());
    }
    text.optional("listen_port", update.listen_port);
    text.optional("fwmark", update.fwmark);
    if update.replace_peers {
        text.line("replace_peers", true);
    }
    for peer in &update.peers {
        text.line("public_key", hex::encode(peer.public_key.as_bytes()));
        if peer.remove {
            text.line("remove", true);
        }
        if peer.update_only {
            text.line("update_only", true);
        }
        if let Some(key) = &peer.preshared_key {
            text.secret("preshared_key", key.as_bytes());
        }
        text.optional("endpoint", peer.endpoint);
        text.optional("persistent_keepalive_interval", peer.keepalive);
        if peer.replace_allowed_ips {
            text.line("replace_allowed_ips", true);
        }
        for net in &peer.allowed_ips {
            text.line("allowed_ip", net);
        }
    }
    text.finish()
}

/// Writes the answer to a request for the state of the device.
pub fn get_answer(status: &DeviceStatus) -> Zeroizing<String> {
    let mut text = Writer::new("");
    if let Some(key) = &status.private_key {
        text.secret("private_key", key.as_bytes());
    }
    text.line("listen_port", status.listen_port);
    text.optional("fwmark", (status.fwmark != 0).then_some(status.fwmark));
    for peer in &status.peers {
        text.line("public_key", hex::encode(peer.public_key.as_bytes()));
        if let Some(key) = &peer.preshared_key {
            text.secret("preshared_key", key.as_bytes());
        }
        text.optional("endpoint", peer.endpoint);
        text.line("persistent_keepalive_interval", peer.keepalive.map_or(0, NonZeroU16::get));
        let handshake =
            peer.last_handshake.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        text.line("last_handshake_time_sec", handshake.as_secs());
        text.line("last_handshake_time_nsec", handshake.subsec_nanos());
        text.line("rx_bytes", peer.rx_bytes);
        text.line("tx_bytes", peer.tx_bytes);
        for net in &peer.allowed_ips {
            text.line("allowed_ip", net);
        }
        text.line("protocol_version", 1);
    }
    text.line("errno", 0);
    text.finish()
}

/// Writes the answer to a change, or the refusal of anything.
pub fn errno_answer(errno: i32) -> String {
    format!("errno={errno}\n\n")
}

/// Lines of `key=value` in a buffer that is wiped.
struct Writer(Zeroizing<String>);

impl Writer {
    fn new(start: &str) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(4096));
        text.push_str(start);
        Self(text)
    }

    fn line(&mut self, key: &str, value: impl std::fmt::Display) {
        if self.0.capacity() - self.0.len() < MAX_LINE {
            let mut larger = Zeroizing::new(String::with_capacity(self.0.capacity() * 2));
            larger.push_str(&self.0);
            self.0 = larger;
        }
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{key}={value}");
    }

    fn optional(&mut self, key: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.line(key, value);
        }
    }

    fn secret(&mut self, key: &str, bytes: &[u8; 32]) {
        self.line(key, Zeroizing::new(hex::encode(bytes)).as_str());
    }

    fn finish(mut self) -> Zeroizing<String> {
        self.0.push('\n');
        self.0
    }
}

/// One line of a message.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    key: &'a str,
    value: &'a str,
}

impl<'a> Line<'a> {
    fn parse<T: FromStr>(self, key: &'static str) -> Result<T, ProtocolError> {
        self.value.parse().map_err(|_| self.bad(key))
    }

    fn bad(self, key: &'static str) -> ProtocolError {
        ProtocolError::BadValue { line: self.number, key }
    }

    fn unexpected(self) -> ProtocolError {
        ProtocolError::UnexpectedKey(self.number)
    }

    /// A key in hexadecimal; the parsers of the key types would take base64 too.
    fn key<T: FromStr>(self, key: &'static str) -> Result<T, ProtocolError> {
        if self.value.len() == 64 { self.parse(key) } else { Err(self.bad(key)) }
    }

    fn flag(self, key: &'static str) -> Result<bool, ProtocolError> {
        if self.value == "true" { Ok(true) } else { Err(self.bad(key)) }
    }

    fn net(self, key: &'static str) -> Result<IpNet, ProtocolError> {
        let net: IpNet = match self.value.parse::<IpAddr>() {
            Ok(address) => address.into(),
            Err(_) => self.parse(key)?,
        };
        Ok(net.trunc())
    }

    fn lines(message: &'a str) -> impl Iterator<Item = Result<Self, ProtocolError>> {
        message.lines().enumerate().map(|(index, line)| {
            let number = index + 1;
            if line.len() > MAX_LINE {
                return Err(ProtocolError::LineTooLong(number));
            }
            let (key, value) = line.split_once('=').ok_or(ProtocolError::NotKeyValue(number))?;
            Ok(Self { number, key, value })
        })
    }
}

/// Parses a message from a client.
pub fn parse_request(message: &str) -> Result<Request, ProtocolError> {
    let mut lines = Line::lines(message);
    let first = lines.next().ok_or(ProtocolError::UnknownOperation)??;
    match (first.key, first.value) {
        ("get", "1") => match lines.next() {
            None => Ok(Request::Get),
            Some(line) => Err(line?.unexpected()),
        },
        ("set", "1") => parse_update(lines).map(Request::Set),
        _ => Err(ProtocolError::UnknownOperation),
    }
}

fn parse_update<'a>(
    lines: impl Iterator<Item = Result<Line<'a>, ProtocolError>>,
) -> Result<Update, ProtocolError> {
    let mut update = Update::default();
    let mut seen = std::collections::HashSet::new();
    for line in lines {
        let line = line?;
        if line.key == "public_key" {
            let key = line.key("public_key")?;
            if !seen.insert(key) {
                return Err(ProtocolError::DuplicatePeer(line.number));
            }
            update.peers.push(PeerUpdate::new(key));
            continue;
        }
        match update.peers.last_mut() {
            Some(peer) => parse_peer_line(peer, line)?,
            None => match line.key {
                "private_key" => update.private_key = Some(line.key::<PrivateKey>("private_key")?),
                "listen_port" => update.listen_port = Some(line.parse("listen_port")?),
                // An empty value removes the mark, like 0.
                "fwmark" if line.value.is_empty() => update.fwmark = Some(0),
                "fwmark" => update.fwmark = Some(line.parse("fwmark")?),
                "replace_peers" => update.replace_peers = line.flag("replace_peers")?,
                "protocol_version" => version(line)?,
                _ => return Err(line.unexpected()),
            },
        }
    }
    Ok(update)
}

fn parse_peer_line(peer: &mut PeerUpdate, line: Line<'_>) -> Result<(), ProtocolError> {
    match line.key {
        "remove" => peer.remove = line.flag("remove")?,
        "update_only" => peer.update_only = line.flag("update_only")?,
        "preshared_key" => peer.preshared_key = Some(line.key("preshared_key")?),
        "endpoint" => peer.endpoint = Some(line.parse("endpoint")?),
        "persistent_keepalive_interval" => {
            peer.keepalive = Some(line.parse("persistent_keepalive_interval")?);
        }
        "replace_allowed_ips" => peer.replace_allowed_ips = line.flag("replace_allowed_ips")?,
        "allowed_ip" => peer.allowed_ips.push(line.net("allowed_ip")?),
        "protocol_version" => version(line)?,
        _ => return Err(line.unexpected()),
    }
    Ok(())
}

fn version(line: Line<'_>) -> Result<(), ProtocolError> {
    if line.value == "1" { Ok(()) } else { Err(line.bad("protocol_version")) }
}

/// Parses a message from a server. Keys that it does not know are skipped: they are statistics of
/// newer implementations.
pub fn parse_answer(message: &str) -> Result<Answer, ProtocolError> {
    let mut status = DeviceStatus::default();
    let mut errno = None;
    for line in Line::lines(message) {
        let line = line?;
        match line.key {
            "errno" => errno = Some(line.parse("errno")?),
            "public_key" => status.peers.push(PeerStatus::new(line.key::<PublicKey>("public_key")?)),
            "private_key" => {
                let key: PrivateKey = line.key("private_key")?;
                status.private_key = (*key.as_bytes() != [0; 32]).then_some(key);
            }
            "listen_port" => status.listen_port = line.parse("listen_port")?,
            "fwmark" => status.fwmark = line.parse("fwmark")?,
            _ => {
                if let Some(peer) = status.peers.last_mut() {
                    parse_status_line(peer, line)?;
                }
            }
        }
    }
    Ok(Answer { errno: errno.ok_or(ProtocolError::NoErrno)?, status })
}

fn parse_status_line(peer: &mut PeerStatus, line: Line<'_>) -> Result<(), ProtocolError> {
    match line.key {
        "preshared_key" => {
            let key: PresharedKey = line.key("preshared_key")?;
            peer.preshared_key = (!key.is_none()).then_some(key);
        }
        "endpoint" => peer.endpoint = Some(line.parse::<SocketAddr>("endpoint")?),
        "persistent_keepalive_interval" => {
            peer.keepalive = NonZeroU16::new(line.parse("persistent_keepalive_interval")?);
        }
        "last_handshake_time_sec" => {
            let seconds = line.parse("last_handshake_time_sec")?;
            peer.last_handshake =
                later(UNIX_EPOCH, Duration::from_secs(seconds), line)?.filter(|time| *time != UNIX_EPOCH);
        }
        "last_handshake_time_nsec" => {
            let nanoseconds: u32 = line.parse("last_handshake_time_nsec")?;
            if let Some(time) = peer.last_handshake {
                peer.last_handshake = later(time, Duration::from_nanos(nanoseconds.into()), line)?;
            }
        }
        "rx_bytes" => peer.rx_bytes = line.parse("rx_bytes")?,
        "tx_bytes" => peer.tx_bytes = line.parse("tx_bytes")?,
        "allowed_ip" => peer.allowed_ips.push(line.net("allowed_ip")?),
        _ => {}
    }
    Ok(())
}

fn later(time: SystemTime, after: Duration, line: Line<'_>) -> Result<Option<SystemTime>, ProtocolError> {
    time.checked_add(after).map(Some).ok_or_else(|| line.bad("last_handshake_time"))
}

#[cfg(test)]
#[path = "uapi_tests.rs"]
mod tests;

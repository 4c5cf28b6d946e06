//! The join key: one copyable token that holds all that a machine needs to join a mesh.
//!
//! `gwjoin-1-` and base64url of: CA fingerprint (32), auth key id (length byte, bytes), secret (32), number of
//! addresses (1), each address (length byte, bytes), and the first four bytes of the SHA-256 of all that, so that
//! a slip in copying is told apart from a wrong server.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::auth_key::AuthKey;
use crate::keys::Fingerprint;

const PREFIX: &str = "gwjoin-1-";
const CHECKSUM_LEN: usize = 4;
/// Longest token that [`parse`] reads.
pub const MAX_LEN: usize = 8 << 10;
/// Most addresses that a join key holds.
pub const MAX_ADDRESSES: usize = 16;

/// Why a token is not a join key. Never shows any of it: it may be most of a secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JoinKeyError {
    /// Another kind of text.
    #[error(
        "not a join key: it should start with `gwjoin-1-`; copy the whole line that `gwctl key create` printed"
    )]
    NotAJoinKey,
    /// A join key of another version.
    #[error(
        "this join key is of another version than 1; upgrade this program or make the key with an older one"
    )]
    Version,
    /// Too long.
    #[error("the join key is too long; copy only the token itself")]
    TooLong,
    /// Damaged.
    #[error("the join key is damaged ({0}); copy the whole line that `gwctl key create` printed")]
    Damaged(&'static str),
    /// An address that cannot be used.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// Why text is not the address of a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{text:?} is not an address of the form HOST:PORT, such as mesh.example.com:8080 or [2001:db8::1]:8080"
)]
pub struct AddressError {
    text: String,
}

/// Where a coordinator can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    host: String,
    port: u16,
}

/// What a join key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinKey {
    /// SHA-256 of the certificate to trust.
    pub ca: Fingerprint,
    /// What admits the machine.
    pub auth_key: AuthKey,
    /// Where the coordinator is, best first.
    pub addresses: Vec<Address>,
}

impl Address {
    /// Host name or address; IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError { text: text.chars().take(80).collect() };
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(error)?;
        let host = if let Some(inner) = host.strip_prefix('[') {
            let address: Ipv6Addr =
                inner.strip_suffix(']').and_then(|address| address.parse().ok()).ok_or_else(error)?;
            address.to_string()
        } else {
            let name = (1..=253).contains(&host.len())
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
            if !name {
                return Err(error());
            }
            host.to_ascii_lowercase()
        };
        Ok(Self { host, port })
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The token for `key`. Takes the first [`MAX_ADDRESSES`] addresses.
pub fn encode(key: &JoinKey) -> String {
    let mut bytes = key.ca.as_bytes().to_vec();
    put(&mut bytes, key.auth_key.id().as_bytes());
    bytes.extend_from_slice(key.auth_key.secret());
    let addresses = &key.addresses[..key.addresses.len().min(MAX_ADDRESSES)];
    bytes.push(u8::try_from(addresses.len()).unwrap_or(u8::MAX));
    for address in addresses {
        put(&mut bytes, address.to_string().as_bytes());
    }
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum[..CHECKSUM_LEN]);
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Ids are at most 32 bytes and addresses at most 253 + 6: longer ones would have been refused before.
fn put(bytes: &mut Vec<u8>, field: &[u8]) {
    let field = &field[..field.len().min(255)];
    bytes.push(u8::try_from(field.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(field);
}

/// Reads a token. White space around it is ignored.
pub fn parse(token: &str) -> Result<JoinKey, JoinKeyError> {
    let token = token.trim();
    if token.len() > MAX_LEN {
        return Err(JoinKeyError::TooLong);
    }
    let Some(payload) = token.strip_prefix(PREFIX) else {
        return Err(if token.starts_with("gwjoin-") {
            JoinKeyError::Version
        } else {
            JoinKeyError::NotAJoinKey
        });
    };
    let bytes = URL_SAFE_NO_PAD.decode(payload).map_err(|_| JoinKeyError::Damaged("not base64url"))?;
    let split = bytes.len().checked_sub(CHECKSUM_LEN).ok_or(JoinKeyError::Damaged("too short"))?;
    let (body, checksum) = bytes.split_at(split);
    if &Sha256::digest(body)[..CHECKSUM_LEN] != checksum {
        return Err(JoinKeyError::Damaged("checksum does not match"));
    }

    let mut fields = Fields(body);
    let ca = Fingerprint::try_from(fields.take(32)?).map_err(|_| JoinKeyError::Damaged("no fingerprint"))?;
    let id = fields.text()?.to_owned();
    let secret = fields.array()?;
    let auth_key = AuthKey::new(id, secret).map_err(|_| JoinKeyError::Damaged("no auth key"))?;
    let count = usize::from(fields.byte()?);
    if !(1..=MAX_ADDRESSES).contains(&count) {
        return Err(JoinKeyError::Damaged("number of addresses"));
    }
    let addresses = (0..count).map(|_| Ok(fields.text()?.parse()?)).collect::<Result<_, JoinKeyError>>()?;
    if fields.0.is_empty() {
        Ok(JoinKey { ca, auth_key, addresses })
    } else {
        Err(JoinKeyError::Damaged("trailing bytes"))
    }
}

/// Reads fields off the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], JoinKeyError> {
        let (field, rest) = self.0.split_at_checked(count).ok_or(JoinKeyError::Damaged("too short"))?;
        self.0 = rest;
        Ok(field)
    }

    fn byte(&mut self) -> Result<u8, JoinKeyError> {
        Ok(self.take(1)?[0])
    }

    fn array(&mut self) -> Result<[u8; 32], JoinKeyError> {
        self.take(32)?.try_into().map_err(|_| JoinKeyError::Damaged("too short"))
    }

    fn text(&mut self) -> Result<&'a str, JoinKeyError> {
        let length = usize::from(self.byte()?);
        std::str::from_utf8(self.take(length)?).map_err(|_| JoinKeyError::Damaged("not text"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> JoinKey {
        JoinKey {
            ca: Fingerprint::new([9; 32]),
            auth_key: AuthKey::new("k3y", [5; 32]).unwrap(),
            addresses: vec!["mesh.example.com:8080".parse().unwrap(), "[2001:db8::1]:8080".parse().unwrap()],
        }
    }

    #[test]
    fn round_trips() {
        let token = encode(&sample());
        assert!(token.starts_with(PREFIX));
        assert_eq!(parse(&format!("  {token}\n")).unwrap(), sample());
    }

    #[test]
    fn every_truncation_and_every_changed_character_is_noticed() {
        let token = encode(&sample());
        for length in 0..token.len() {
            assert!(parse(&token[..length]).is_err(), "{length}");
        }
        for position in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[position] = if changed[position] == b'x' { b'y' } else { b'x' };
            assert!(parse(std::str::from_utf8(&changed).unwrap()).is_err(), "{position}");
        }
    }

    #[test]
    fn other_versions_are_named() {
        assert_eq!(parse("gwjoin-2-AAAA"), Err(JoinKeyError::Version));
        assert_eq!(parse("tskey-abc"), Err(JoinKeyError::NotAJoinKey));
        assert_eq!(parse(&format!("{PREFIX}{}", "A".repeat(MAX_LEN))), Err(JoinKeyError::TooLong));
    }

    #[test]
    fn addresses_are_checked() {
        for bad in ["", "host", "host:0", "host:65536", ":80", "[::1]", "::1:80", "[::1:80", "a b:80", "h:8o"]
        {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        for good in ["h:1", "10.0.0.1:8080", "[::1]:8080", "mesh.example.com:65535"] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
    }

    proptest! {
        #[test]
        fn any_payload_is_a_join_key_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = body;
            let checksum = Sha256::digest(&bytes);
            bytes.extend_from_slice(&checksum[..CHECKSUM_LEN]);
            let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
            if let Ok(key) = parse(&token) {
                prop_assert_eq!(parse(&encode(&key)).unwrap(), key);
            }
        }

        #[test]
        fn any_text_is_an_error(text in ".{0,200}") {
            prop_assert!(parse(&text).is_err());
        }
    }
}

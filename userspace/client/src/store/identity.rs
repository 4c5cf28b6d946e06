//! Who this machine is, and what its user asked for.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// 32 secret bytes. Never printed, wiped when dropped, written as hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes the bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Fresh from the system's random generator.
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// The bytes, for the one who computes with them.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// Survives `gwctl down`: the same machine comes back under the same name and address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Ed25519 seed: proves to the coordinator that we are the machine that it knows.
    pub machine_key: Secret,
    /// X25519 secret: WireGuard's.
    pub node_key: Secret,
    /// The network this machine belongs to.
    pub membership: Option<Membership>,
}

impl Identity {
    /// A machine that belongs to no network yet.
    pub fn generate() -> Self {
        Self { machine_key: Secret::generate(), node_key: Secret::generate(), membership: None }
    }

    /// WireGuard's public key.
    pub fn node_public(&self) -> [u8; 32] {
        let secret = x25519_dalek::StaticSecret::from(*self.node_key.expose());
        x25519_dalek::PublicKey::from(&secret).to_bytes()
    }
}

/// Where the coordinator is and how to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// `host:port`, tried in turn.
    pub coordinators: Vec<String>,
    /// SHA-256 of the certificate authority that the coordinator's certificate must come from.
    #[serde(with = "hex::serde")]
    pub ca_fingerprint: [u8; 32],
}

/// What the user asked for with `gwctl`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Up, or down until told otherwise.
    pub up: bool,
    /// The name to ask for; empty: the machine's.
    pub hostname: String,
    /// Prefixes to offer to the network.
    pub advertise_routes: Vec<ipnet::IpNet>,
    /// Addresses that the machine cannot see itself, such as those of a port forwarding.
    pub static_endpoints: Vec<std::net::SocketAddr>,
    /// Policy reports, and lets pass.
    pub shadow: bool,
}

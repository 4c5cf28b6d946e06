//! A relay's names and keys, made once and kept in its state directory.

use ghostwire_relay_protocol::derp::handshake::SecretKey;
use ghostwire_relay_protocol::token::RelayId;
use x25519_dalek::StaticSecret;

use crate::state_dir::StateDir;

const RELAY_ID: &str = "relay.id";
const RELAY_KEY: &str = "relay.key";
const DERP_KEY: &str = "derp.key";

/// What the coordinator has to know the public parts of.
pub struct Keys {
    /// The relay's name in tokens.
    pub relay: RelayId,
    /// For requests to the relay.
    pub key: StaticSecret,
    /// The stream relay's.
    pub derp: SecretKey,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("relay", &self.relay).finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads them, or makes them.
    pub fn load(directory: &StateDir) -> anyhow::Result<Self> {
        Ok(Self {
            relay: RelayId(*directory.random(RELAY_ID)?),
            key: StaticSecret::from(*directory.random::<32>(RELAY_KEY)?),
            derp: SecretKey::new(*directory.random(DERP_KEY)?),
        })
    }
}

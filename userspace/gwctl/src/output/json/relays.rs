//! The JSON about relays.

use std::net::IpAddr;

use ghostwire_proto::v1;
use serde::Serialize;

/// A relay, as the coordinator knows it.
#[derive(Clone, Debug, Serialize)]
pub struct Relay {
    /// What nodes call it.
    pub number: u32,
    /// Its region.
    pub region: String,
    /// Where the world reaches it.
    pub addresses: Vec<String>,
    /// Port of STUN and of requests; 0: none.
    pub udp_port: u32,
    /// Port of DERP over TLS; 0: none.
    pub derp_port: u32,
    /// Public key of its DERP server.
    pub derp_key: String,
    /// Whether its stream to the coordinator is open.
    pub connected: bool,
    /// It is about to stop.
    pub draining: bool,
    /// 0 to 1000, of what is scarcest there.
    pub load_permille: u32,
    /// Nodes with a relay port.
    pub nodes: u32,
    /// Pairs of nodes that carry traffic.
    pub pairs: u32,
    /// Clients of its stream.
    pub derp_clients: u32,
    /// Its version.
    pub version: String,
}

impl From<&v1::RelayStatus> for Relay {
    fn from(status: &v1::RelayStatus) -> Self {
        let relay = status.relay.clone().unwrap_or_default();
        let address = |bytes: &Vec<u8>| match (<[u8; 4]>::try_from(&**bytes), <[u8; 16]>::try_from(&**bytes))
        {
            (Ok(v4), _) => Some(IpAddr::from(v4).to_string()),
            (_, Ok(v6)) => Some(IpAddr::from(v6).to_string()),
            _ => None,
        };
        Self {
            number: relay.number,
            region: relay.region,
            addresses: relay.addresses.iter().filter_map(address).collect(),
            udp_port: relay.udp_port,
            derp_port: relay.derp_port,
            derp_key: hex::encode(&relay.derp_key),
            connected: status.connected,
            draining: relay.draining,
            load_permille: relay.load_permille,
            nodes: status.nodes,
            pairs: status.pairs,
            derp_clients: status.clients,
            version: status.version.clone(),
        }
    }
}

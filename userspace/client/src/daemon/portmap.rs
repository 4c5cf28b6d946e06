//! A port of the router for WireGuard's, if the router gives one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use ghostwire_dataplane::netlink::{LocalEndpoint, Rank};
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::{Daemon, Happening};
use crate::portmap::{self, Place};

/// Whether routers are asked to forward a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortMapping {
    /// Where this machine has a private address.
    #[default]
    Auto,
    /// Never.
    Off,
}

impl std::str::FromStr for PortMapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            other => Err(format!("{other:?} is neither auto nor off")),
        }
    }
}

/// A port that is asked for.
#[derive(Debug)]
pub(super) struct Asking {
    place: Place,
    /// Our address outside, once the router forwards it.
    pub(super) mapped: Option<SocketAddr>,
    /// Said when the port is needed no more. Dropping it leaves the port as it is: packets go on without this process.
    give_back: oneshot::Sender<()>,
}

impl Daemon {
    /// Asks the router of the best link, if that link's address is a private one.
    pub(super) fn ask_for_port(&mut self, ends: &[LocalEndpoint], port: u16) {
        let wanted = self.port_place(ends, port);
        if self.port_mapping.as_ref().map(|asking| asking.place) == wanted {
            return;
        }
        self.give_port_back();
        let Some(place) = wanted else { return };
        let (news, mut arriving) = mpsc::channel(4);
        let (give_back, stop) = oneshot::channel();
        let happenings = self.happen_later();
        let nonce = self.port_nonce();
        tokio::spawn(portmap::run(place, nonce, news, stop));
        tokio::spawn(async move {
            while let Some(mapped) = arriving.recv().await {
                if happenings.send(Happening::PortMapped(place, mapped)).await.is_err() {
                    return;
                }
            }
        });
        self.port_mapping = Some(Asking { place, mapped: None, give_back });
    }

    fn port_place(&self, ends: &[LocalEndpoint], port: u16) -> Option<Place> {
        if self.config.port_mapping == PortMapping::Off || port == 0 {
            return None;
        }
        let (local, index) = ends.iter().filter(|end| end.rank != Rank::Internal).find_map(|end| {
            let IpAddr::V4(local) = end.address else { return None };
            is_behind_nat(local).then_some((local, end.index))
        })?;
        let routes = self.netlink.routes().ok()?;
        let default =
            routes.iter().filter(|route| route.index == index && route.destination.prefix_len() == 0);
        let gateway =
            default.filter(|route| route.destination.addr().is_ipv4()).min_by_key(|route| route.metric);
        let Some(IpAddr::V4(gateway)) = gateway?.gateway else { return None };
        Some(Place { gateway, local, port })
    }

    /// The same after a restart, or a router that keeps to RFC 6887 would not renew what we had; nobody can guess it.
    fn port_nonce(&self) -> [u8; 12] {
        let hash = Sha256::new()
            .chain_update(b"ghostwire port mapping")
            .chain_update(self.identity.node_key.expose())
            .finalize();
        let mut nonce = [0; 12];
        nonce.copy_from_slice(&hash[..12]);
        nonce
    }

    /// The port is needed no more.
    pub(super) fn give_port_back(&mut self) {
        if let Some(asking) = self.port_mapping.take() {
            // An error: asking has ended by itself.
            let _ = asking.give_back.send(());
        }
    }

    pub(super) fn on_port_mapped(&mut self, place: Place, mapped: Option<SocketAddr>) {
        let Some(asking) = self.port_mapping.as_mut().filter(|asking| asking.place == place) else { return };
        if let Some(outside) = mapped {
            tracing::info!(%outside, router = %place.gateway, "the router forwards a port");
        } else {
            tracing::warn!(router = %place.gateway, "the router forwards our port no more");
        }
        asking.mapped = mapped;
        self.steer_network(Instant::now());
    }
}

/// RFC 1918, and what providers use behind their own NATs (RFC 6598).
fn is_behind_nat(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    address.is_private() || (first == 100 && second & 0xc0 == 64)
}

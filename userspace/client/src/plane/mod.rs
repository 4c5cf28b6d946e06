//! The data plane: what the session wants becomes what the kernel has.
//!
//! - [`Machinery`] is the list of things that can be done to a machine: [`kernel`] does them, tests pretend to.
//! - `image`: the policy's part of it: an image in the kernel that is left alone, changed in place, or swapped.
//! - [`reconcile`] compares and does them in the one order that never opens a gap.
//! - [`worker`] runs both on a thread of their own, since netlink and map writes block.

mod image;
pub mod kernel;
pub mod reconcile;
pub mod worker;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ghostwire_policy::filter::NodeFilter;
use ghostwire_proto::address::OverlayRanges;
use ghostwire_proto::keys::NodeKey;
use ipnet::IpNet;

/// A peer as WireGuard is to have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedPeer {
    /// Its public key.
    pub key: NodeKey,
    /// What is accepted from it.
    pub allowed: Vec<IpNet>,
    /// Where to send to. If it is not stable: only of a peer that WireGuard does not know yet.
    pub endpoint: Option<SocketAddr>,
    /// The endpoint is one that steering leads on: it never changes, and no keepalive is wanted.
    pub stable: bool,
}

/// A peer as WireGuard has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentPeer {
    /// Its public key.
    pub key: NodeKey,
    /// What is accepted from it.
    pub allowed: Vec<IpNet>,
    /// Where WireGuard sends to.
    pub endpoint: Option<SocketAddr>,
    /// WireGuard sends persistent keepalives.
    pub keepalive: bool,
    /// Time since the last handshake.
    pub handshake_age: Option<Duration>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// What the image in the kernel is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedImage {
    /// Its generation, not 0.
    pub generation: u32,
    /// The rules.
    pub rules: Arc<NodeFilter>,
    /// The node's overlay addresses.
    pub own: Vec<IpAddr>,
    /// The overlay.
    pub overlay: OverlayRanges,
    /// Report, and let pass.
    pub shadow: bool,
}

/// The device as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Interface name.
    pub name: String,
    /// `kernel` or `userspace`, with the reason of the choice.
    pub backend: String,
    /// UDP port.
    pub listen_port: u16,
    /// MTU of the interface.
    pub mtu: u32,
}

/// Why something could not be done: already in words for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlaneError(pub String);

impl PlaneError {
    /// With all its causes.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        Self(text)
    }
}

/// What can be done to a machine.
pub trait Machinery: Send {
    /// Makes the WireGuard device or adopts it, with our key and port.
    fn ensure_device(&mut self) -> Result<Device, PlaneError>;
    /// Attaches the ACL programs or adopts them. Without an image they drop everything.
    fn ensure_programs(&mut self) -> Result<(), PlaneError>;
    /// Generation of the image in force, if there is one.
    fn enforced(&mut self) -> Option<u32>;
    /// Puts an image in force unless it already is; the old one stays if that fails.
    fn ensure_image(&mut self, image: &WantedImage) -> Result<(), PlaneError>;
    /// WireGuard's peers.
    fn peers(&mut self) -> Result<Vec<PresentPeer>, PlaneError>;
    /// Removes a peer.
    fn remove_peer(&mut self, key: NodeKey) -> Result<(), PlaneError>;
    /// Adds a peer, or replaces what is accepted from it and, if there is one, its endpoint.
    fn put_peer(&mut self, peer: &WantedPeer) -> Result<(), PlaneError>;
    /// Exactly these addresses on the interface, and the interface up.
    fn set_addresses(&mut self, addresses: &[IpNet]) -> Result<(), PlaneError>;
    /// Exactly these routes of ours.
    fn set_routes(&mut self, routes: &[IpNet], source: &[IpAddr]) -> Result<(), PlaneError>;
    /// Removes every trace.
    fn tear_down(&mut self) -> Result<(), PlaneError>;
}

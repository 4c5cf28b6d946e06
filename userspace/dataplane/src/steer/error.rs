//! What can go wrong with steering.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::bpf::BpfError;
use crate::netlink;

/// An error of [`super::Steer`].
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// The programs or their maps.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Links, addresses, routes.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The device could not be made or opened.
    #[error("cannot {action} TUN device {name}: {source}")]
    Device {
        /// What was attempted.
        action: &'static str,
        /// The device.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// An interface of the device's name exists and does not carry our mark.
    #[error(
        "interface {0} already exists and was not made by GhostWire: delete it with `ip link delete {0}`"
    )]
    NameTaken(String),
    /// The synthetic addresses lead elsewhere.
    #[error(
        "the network {network} is in use on this host (interface number {holder}); GhostWire needs it for stable endpoints"
    )]
    NetworkInUse {
        /// Which.
        network: ipnet::IpNet,
        /// Index of the interface that it leads to.
        holder: u32,
    },
    /// A socket of the controller.
    #[error("cannot {action} the controller's UDP socket: {source}")]
    Socket {
        /// What was attempted.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Peer number 0, which no node has.
    #[error("0 is no peer's number")]
    NoPeer,
    /// Not one of the uplinks that were set, or not one of its addresses.
    #[error("{local} is not an address of uplink {uplink}")]
    NotAnUplink {
        /// Index of the interface.
        uplink: u32,
        /// The address.
        local: IpAddr,
    },
    /// Nothing leads there.
    #[error("no route to {remote} from {local} by uplink {uplink}")]
    NoRoute {
        /// Where to.
        remote: IpAddr,
        /// Where from.
        local: IpAddr,
        /// By which interface.
        uplink: u32,
    },
    /// A path that would lead a packet back to where it came from, or to nobody.
    #[error("{remote} cannot be the far end of a path: {reason}")]
    Loop {
        /// The far end.
        remote: SocketAddr,
        /// What it is.
        reason: &'static str,
    },
    /// The two ends are of different families.
    #[error("{local} and {remote} are of different families")]
    Families {
        /// Our end.
        local: SocketAddr,
        /// The far end.
        remote: SocketAddr,
    },
    /// A table is full. What was in force stays.
    #[error("no room for another {what}; there are {limit}")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many fit.
        limit: u32,
    },
}

impl From<aya::maps::MapError> for SteerError {
    fn from(error: aya::maps::MapError) -> Self {
        Self::Bpf(error.into())
    }
}

impl From<aya::programs::ProgramError> for SteerError {
    fn from(error: aya::programs::ProgramError) -> Self {
        Self::Bpf(error.into())
    }
}

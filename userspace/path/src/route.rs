//! What a path is: from where, to where, by which carrier.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A link of this node, by its interface index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UplinkId(pub u32);

/// A relay, by the coordinator's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayId(pub u32);

/// A path of one machine. Never used again for another path of the same machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId(pub(crate) u32);

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Whose socket an address belongs to. Candidates are paired with candidates of the same socket only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Socket {
    /// WireGuard's UDP port.
    WireGuard,
    /// The QUIC endpoint's UDP port, where that is another one.
    Quic,
}

/// Where packets leave this node: what RFC 8445 calls a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Base {
    /// The link.
    pub uplink: UplinkId,
    /// Our address on it and the socket's port.
    pub address: SocketAddr,
    /// The socket.
    pub socket: Socket,
}

/// Kinds of path, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// WireGuard's own datagrams from node to node.
    Direct,
    /// WireGuard's datagrams inside of QUIC from node to node.
    Quic,
    /// WireGuard's datagrams through a relay's UDP ports.
    RelayPort,
    /// WireGuard's datagrams through a relay's TLS stream.
    Derp,
}

impl Class {
    /// Whether packets go through a relay.
    pub fn is_relayed(self) -> bool {
        matches!(self, Self::RelayPort | Self::Derp)
    }

    /// Whether the edge has to open something before packets can pass.
    pub fn needs_opening(self) -> bool {
        self != Self::Direct
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Quic => "QUIC",
            Self::RelayPort => "relay (UDP)",
            Self::Derp => "relay (TLS)",
        })
    }
}

/// The way of a path. Two paths of one machine never have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// From a base straight to an address of the peer, by the base's socket.
    Pair {
        /// Where it leaves.
        base: Base,
        /// Where it goes.
        remote: SocketAddr,
    },
    /// Through a relay's UDP port for the peer.
    RelayPort(RelayId),
    /// Through a relay's TLS stream.
    Derp(RelayId),
}

impl Route {
    /// The kind of path.
    pub fn class(&self) -> Class {
        match self {
            Self::Pair { base, .. } => match base.socket {
                Socket::WireGuard => Class::Direct,
                Socket::Quic => Class::Quic,
            },
            Self::RelayPort(_) => Class::RelayPort,
            Self::Derp(_) => Class::Derp,
        }
    }

    /// The peer's address, if the path leads straight to it.
    pub fn remote(&self) -> Option<SocketAddr> {
        match self {
            Self::Pair { remote, .. } => Some(*remote),
            Self::RelayPort(_) | Self::Derp(_) => None,
        }
    }

    /// Where the packets leave, if that is fixed.
    pub fn base(&self) -> Option<Base> {
        match self {
            Self::Pair { base, .. } => Some(*base),
            Self::RelayPort(_) | Self::Derp(_) => None,
        }
    }

    /// The relay.
    pub fn relay(&self) -> Option<RelayId> {
        match self {
            Self::Pair { .. } => None,
            Self::RelayPort(relay) | Self::Derp(relay) => Some(*relay),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pair { base, remote } => write!(f, "{} {} -> {remote}", self.class(), base.address),
            Self::RelayPort(relay) | Self::Derp(relay) => write!(f, "{} {}", self.class(), relay.0),
        }
    }
}

/// How a check is dressed. See the crate's first page for what the edge does with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Framing {
    /// A plain STUN binding request: shows that UDP passes between the addresses.
    Stun,
    /// The same message dressed as the path's traffic: shows that the path carries WireGuard.
    Carried,
}

/// Whether packets can go from one address to the other at all.
pub(crate) fn can_pair(local: IpAddr, remote: IpAddr) -> bool {
    match (local, remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            local.is_link_local() == remote.is_link_local() && !remote.is_loopback()
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) => {
            local.is_unicast_link_local() == remote.is_unicast_link_local() && !remote.is_loopback()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// Whether a peer may make us send there: not to nobody, everybody or ourselves.
pub(crate) fn is_sane(address: SocketAddr) -> bool {
    let ip = address.ip();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback() && !broadcast
}

/// Addresses that only mean something nearby: a path between them stays in the house.
pub(crate) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

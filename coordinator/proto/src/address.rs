//! Addresses on the wire and in programs.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use thiserror::Error;

use crate::v1::{Endpoint, EndpointKind, Overlay, Prefix};

/// Why an address on the wire is not one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// Neither 4 nor 16 bytes.
    #[error("an address has {0} bytes, not 4 or 16")]
    Length(usize),
    /// A prefix length that the family does not have.
    #[error("prefix length {length} is too long for {address}")]
    PrefixLength {
        /// The address.
        address: IpAddr,
        /// The length.
        length: u32,
    },
    /// Address bits beyond the prefix.
    #[error("{address}/{length} has address bits set beyond its length")]
    HostBits {
        /// The address.
        address: IpAddr,
        /// The length.
        length: u8,
    },
    /// Not a port that a packet can be sent to.
    #[error("{0} is not a port number from 1 to 65535")]
    Port(u32),
    /// Not an address that a packet can be sent to.
    #[error("{0} cannot be the address of a node")]
    NotUnicast(IpAddr),
    /// Part of a message is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// Where a node listens for WireGuard, and how it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeEndpoint {
    /// Address and UDP port.
    pub address: SocketAddr,
    /// Told by the operator rather than found on a link.
    pub fixed: bool,
}

/// Reads 4 or 16 bytes.
pub fn ip_from_wire(bytes: &[u8]) -> Result<IpAddr, AddressError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        Ok(v4.into())
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        Ok(v6.into())
    } else {
        Err(AddressError::Length(bytes.len()))
    }
}

/// 4 or 16 bytes in network order.
pub fn ip_to_wire(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

impl TryFrom<&Prefix> for IpNet {
    type Error = AddressError;

    fn try_from(prefix: &Prefix) -> Result<Self, AddressError> {
        let address = ip_from_wire(&prefix.address)?;
        let too_long = || AddressError::PrefixLength { address, length: prefix.length };
        let length = u8::try_from(prefix.length).map_err(|_| too_long())?;
        let net = IpNet::new(address, length).map_err(|_| too_long())?;
        if net.network() == address { Ok(net) } else { Err(AddressError::HostBits { address, length }) }
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Self {
        let net = net.trunc();
        Self { address: ip_to_wire(net.network()), length: net.prefix_len().into() }
    }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        IpNet::from(address).into()
    }
}

impl TryFrom<&Endpoint> for NodeEndpoint {
    type Error = AddressError;

    fn try_from(endpoint: &Endpoint) -> Result<Self, AddressError> {
        let ip = ip_from_wire(&endpoint.address)?;
        let multicast_or_none = match ip {
            IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast() || v4.octets()[0] == 0,
            IpAddr::V6(v6) => v6.is_multicast() || v6.is_unspecified(),
        };
        if multicast_or_none {
            return Err(AddressError::NotUnicast(ip));
        }
        let port = u16::try_from(endpoint.port).ok().filter(|port| *port != 0);
        let port = port.ok_or(AddressError::Port(endpoint.port))?;
        Ok(Self { address: SocketAddr::new(ip, port), fixed: endpoint.kind() == EndpointKind::Static })
    }
}

impl From<NodeEndpoint> for Endpoint {
    fn from(endpoint: NodeEndpoint) -> Self {
        let kind = if endpoint.fixed { EndpointKind::Static } else { EndpointKind::Interface };
        Self {
            address: ip_to_wire(endpoint.address.ip()),
            port: endpoint.address.port().into(),
            kind: kind.into(),
        }
    }
}

/// Reads a list of prefixes.
pub fn prefixes_from_wire(prefixes: &[Prefix]) -> Result<Vec<IpNet>, AddressError> {
    prefixes.iter().map(IpNet::try_from).collect()
}

/// Reads a list of prefixes that must be single addresses.
pub fn addresses_from_wire(prefixes: &[Prefix]) -> Result<Vec<IpAddr>, AddressError> {
    prefixes
        .iter()
        .map(|prefix| {
            let net = IpNet::try_from(prefix)?;
            if net.prefix_len() == net.max_prefix_len() {
                Ok(net.addr())
            } else {
                Err(AddressError::PrefixLength { address: net.addr(), length: prefix.length })
            }
        })
        .collect()
}

/// The overlay's ranges, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayRanges {
    /// The whole IPv4 range.
    pub v4: ipnet::Ipv4Net,
    /// The part of it that nodes are numbered in.
    pub v4_nodes: ipnet::Ipv4Net,
    /// The IPv6 prefix.
    pub v6: ipnet::Ipv6Net,
}

impl TryFrom<&Overlay> for OverlayRanges {
    type Error = AddressError;

    fn try_from(overlay: &Overlay) -> Result<Self, AddressError> {
        let v4 = |prefix: &Option<Prefix>, what| match prefix.as_ref().map(IpNet::try_from).transpose()? {
            Some(IpNet::V4(net)) => Ok(net),
            _ => Err(AddressError::Missing(what)),
        };
        let Some(IpNet::V6(v6)) = overlay.v6.as_ref().map(IpNet::try_from).transpose()? else {
            return Err(AddressError::Missing("the overlay's IPv6 prefix"));
        };
        Ok(Self {
            v4: v4(&overlay.v4, "the overlay's IPv4 range")?,
            v4_nodes: v4(&overlay.v4_nodes, "the overlay's range of nodes")?,
            v6,
        })
    }
}

impl From<OverlayRanges> for Overlay {
    fn from(ranges: OverlayRanges) -> Self {
        Self {
            v4: Some(IpNet::V4(ranges.v4).into()),
            v4_nodes: Some(IpNet::V4(ranges.v4_nodes).into()),
            v6: Some(IpNet::V6(ranges.v6).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_prefix_is_read_back_as_it_was_or_is_an_error(
            address in proptest::collection::vec(any::<u8>(), 0..20), length in 0u32..300,
        ) {
            let prefix = Prefix { address, length };
            if let Ok(net) = IpNet::try_from(&prefix) {
                prop_assert_eq!(Prefix::from(net), prefix);
            }
        }

        #[test]
        fn any_endpoint_is_an_endpoint_or_an_error(
            address in proptest::collection::vec(any::<u8>(), 0..20), port in any::<u32>(), kind in any::<i32>(),
        ) {
            if let Ok(endpoint) = NodeEndpoint::try_from(&Endpoint { address, port, kind }) {
                prop_assert_eq!(NodeEndpoint::try_from(&Endpoint::from(endpoint)).unwrap(), endpoint);
            }
        }
    }

    #[test]
    fn prefixes_are_exact() {
        let prefix = Prefix { address: vec![10, 0, 0, 1], length: 8 };
        assert!(matches!(IpNet::try_from(&prefix), Err(AddressError::HostBits { .. })));
        let prefix = Prefix { address: vec![10, 0, 0, 0], length: 33 };
        assert!(matches!(IpNet::try_from(&prefix), Err(AddressError::PrefixLength { .. })));
        assert!(addresses_from_wire(&[Prefix { address: vec![10, 0, 0, 0], length: 8 }]).is_err());
    }

    #[test]
    fn endpoints_nobody_can_send_to_are_refused() {
        for address in [vec![0, 0, 0, 0], vec![224, 0, 0, 1], vec![255; 4], vec![0; 16], vec![255; 16]] {
            assert!(NodeEndpoint::try_from(&Endpoint { address, port: 1, kind: 1 }).is_err());
        }
        assert!(NodeEndpoint::try_from(&Endpoint { address: vec![10, 0, 0, 1], port: 0, kind: 1 }).is_err());
        assert!(
            NodeEndpoint::try_from(&Endpoint { address: vec![10, 0, 0, 1], port: 65536, kind: 1 }).is_err()
        );
    }
}

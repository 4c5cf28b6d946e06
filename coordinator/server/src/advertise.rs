//! Where nodes find this server when nobody says so.

use std::net::{IpAddr, SocketAddr};

use ghostwire_proto::join_key::Address;
use nix::ifaddrs::getifaddrs;

/// The address listened on, or all addresses of this machine that another machine may reach: public ones first,
/// IPv4 before IPv6. A machine with none of them advertises itself to itself.
pub fn default_addresses(listen: SocketAddr) -> Vec<Address> {
    if !listen.ip().is_unspecified() {
        return vec![listen.into()];
    }
    let mut addresses: Vec<IpAddr> =
        getifaddrs().map(|all| all.filter_map(|i| ip_of(&i)).collect()).unwrap_or_default();
    addresses.retain(|address| listen.is_ipv6() || address.is_ipv4());
    addresses.retain(is_reachable);
    addresses.sort_by_key(|address| (is_private(address), address.is_ipv6(), *address));
    addresses.dedup();
    if addresses.is_empty() {
        addresses.push(IpAddr::from([127, 0, 0, 1]));
    }
    addresses.into_iter().map(|address| SocketAddr::new(address, listen.port()).into()).collect()
}

fn ip_of(interface: &nix::ifaddrs::InterfaceAddress) -> Option<IpAddr> {
    let address = interface.address.as_ref()?;
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
}

fn is_reachable(address: &IpAddr) -> bool {
    match address {
        // 100.64.0.0/10 is the mesh's own.
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let is_overlay = a == 100 && b & 0xc0 == 64;
            !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || is_overlay)
        }
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unique_local(),
    }
}

fn is_private(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_private())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specific_address_is_advertised_as_it_is() {
        let addresses = default_addresses("127.0.0.1:8080".parse().unwrap());
        assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.1:8080"]);
    }

    #[test]
    fn overlay_loopback_and_link_local_addresses_are_not_advertised() {
        for (address, reachable) in [
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("100.64.0.1", false),
            ("100.127.1.1", false),
            ("100.128.0.1", true),
            ("10.0.0.1", true),
            ("fe80::1", false),
            ("fd00::1", false),
            ("2001:db8::1", true),
        ] {
            assert_eq!(is_reachable(&address.parse().unwrap()), reachable, "{address}");
        }
    }
}

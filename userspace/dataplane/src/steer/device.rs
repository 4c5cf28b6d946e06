//! The device that stable endpoints are routed to: a persistent TUN, which works with nobody holding its descriptor.

use std::ffi::{c_char, c_int, c_short};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::SteerError;
use super::address::{Family, network, own};
use crate::netlink::{Link, LinkName, Netlink, Route};

/// Above the rules of the system (main: 32766) and of tools that route by mark.
const RULE_PRIORITY: u32 = 1_018;

/// As large as it can be: what does not fit an uplink is refused there by name, and never fragmented here.
const MTU: u32 = 65_535;

/// The longest interface name that the suffix fits to.
const LONGEST: usize = 9;

/// Name of the device that belongs to a WireGuard interface: `gw0-steer` for `gw0`.
pub(super) fn name_of(interface: &LinkName) -> Result<LinkName, SteerError> {
    let interface = interface.as_str();
    let name = if interface.len() <= LONGEST {
        format!("{interface}-steer")
    } else {
        let start: String = interface.chars().filter(char::is_ascii).take(4).collect();
        format!("{start}{:04x}-steer", number_of(interface))
    };
    Ok(name.parse()?)
}

/// A number for a name, the same in every version: FNV-1a, folded.
pub(super) fn number_of(name: &str) -> u16 {
    let hash =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    u16::try_from((hash >> 16) ^ (hash & 0xffff)).unwrap_or(0)
}

/// `struct ifreq` with flags.
#[repr(C)]
struct InterfaceRequest {
    name: [c_char; libc::IFNAMSIZ],
    flags: c_short,
    rest: [u8; 22],
}

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
/// Checksums may be left to the device, as WireGuard's outer ones are; nobody looks at them at the descriptor.
const TUN_F_CSUM: c_int = 1;

/// Makes the device or adopts it, with its addresses, routes and rules, and opens its descriptor.
pub(super) fn open(
    netlink: &Netlink,
    name: &LinkName,
    wanted: Family,
) -> Result<(Link, OwnedFd), SteerError> {
    let present = netlink.link(name)?;
    if present.as_ref().is_some_and(|link| !link.is_ours()) {
        return Err(SteerError::NameTaken(name.to_string()));
    }
    let descriptor = attach(name)?;
    match set_up(netlink, name, wanted) {
        Ok(link) => Ok((link, descriptor)),
        Err(error) => {
            if present.is_none()
                && let Ok(Some(link)) = netlink.link(name)
            {
                // What was made a moment ago is of no use. The first error is the one to tell of.
                let _gone = netlink.delete_link(&link);
            }
            Err(error)
        }
    }
}

fn set_up(netlink: &Netlink, name: &LinkName, wanted: Family) -> Result<Link, SteerError> {
    let link = netlink.existing_link(name)?;
    refuse_taken_networks(netlink, &link)?;
    if !link.is_ours() {
        netlink.mark_ours(&link)?;
        netlink.make_no_link_local(&link)?;
    }
    netlink.set_mtu(&link, MTU)?;
    for family in [Family::V4, Family::V6] {
        match configure(netlink, &link, family) {
            Err(error) if family == Family::V6 && wanted != Family::V6 => {
                tracing::info!(%error, "no IPv6 stable endpoints on this host; IPv4 ones carry IPv6 paths all the same");
            }
            other => other?,
        }
    }
    netlink.existing_link(name).map_err(SteerError::from)
}

fn configure(netlink: &Netlink, link: &Link, family: Family) -> Result<(), SteerError> {
    let own = own(family);
    let host: IpNet = match own {
        std::net::IpAddr::V4(v4) => Ipv4Net::from(v4).into(),
        std::net::IpAddr::V6(v6) => Ipv6Net::from(v6).into(),
    };
    netlink.add_address(link, host)?;
    netlink.set_up(link)?;
    netlink.replace_route(&Route::through(link, network(family)).from_source(own))?;
    netlink.add_main_rule(network(family), RULE_PRIORITY)?;
    Ok(())
}

/// A second daemon in one network namespace would take the first one's endpoints away.
fn refuse_taken_networks(netlink: &Netlink, link: &Link) -> Result<(), SteerError> {
    for family in [Family::V4, Family::V6] {
        let network = network(family);
        if let Some(route) = netlink
            .routes()?
            .into_iter()
            .find(|route| network.contains(&route.destination) && route.index != link.index)
        {
            return Err(SteerError::NetworkInUse { network: route.destination, holder: route.index });
        }
    }
    Ok(())
}

/// Opens the descriptor of the device, and makes the device if there is none. It stays when the descriptor is closed.
fn attach(name: &LinkName) -> Result<OwnedFd, SteerError> {
    let failed = |action| move |source| SteerError::Device { action, name: name.to_string(), source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(failed("open /dev/net/tun for"))?;
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags: c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).unwrap_or(0),
        rest: [0; 22],
    };
    for (to, from) in request.name.iter_mut().zip(name.as_str().bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    // SAFETY: the request is a whole ifreq, which the kernel reads and writes.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })
        .map_err(failed("attach to (does another daemon run?)"))?;
    // SAFETY: takes a number.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETPERSIST, 1) }).map_err(failed("keep"))?;
    // SAFETY: takes a number.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, TUN_F_CSUM) })
        .map_err(failed("set the offloads of"))?;
    Ok(file.into())
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Removes the device, with its addresses and routes, and the rules. What is not there, or not ours, is left.
pub(super) fn remove(netlink: &Netlink, name: &LinkName) -> Result<(), SteerError> {
    let Some(link) = netlink.link(name)?.filter(Link::is_ours) else { return Ok(()) };
    netlink.delete_link(&link)?;
    for family in [Family::V4, Family::V6] {
        netlink.remove_main_rule(network(family), RULE_PRIORITY)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_has_a_device_with_a_name_that_the_kernel_takes() {
        let name = |text: &str| name_of(&text.parse().unwrap()).unwrap().to_string();
        assert_eq!(name("gw0"), "gw0-steer");
        assert_eq!(name("ninechars"), "ninechars-steer");
        assert!(name("fifteen-bytes-x").ends_with("-steer"));
        assert_ne!(name("fifteen-bytes-x"), name("fifteen-bytes-y"));
    }
}

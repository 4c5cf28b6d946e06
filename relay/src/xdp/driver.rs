//! What drives an interface.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Asks for the name of a driver (linux/ethtool.h).
const ETHTOOL_GDRVINFO: u32 = 3;

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    /// Versions, the bus, and counts that are not looked at.
    rest: [u8; 160],
}

/// The name of the driver of an interface in this network namespace (`ETHTOOL_GDRVINFO`).
pub(super) fn driver(interface: &str) -> io::Result<String> {
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    // SAFETY: all zeroes is a value of ifreq, which holds numbers and addresses.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the request and what it points to live until the call ends; the kernel writes at most 196 bytes there,
    // which is the size of `DriverInfo`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

const _: () = assert!(size_of::<DriverInfo>() == 196, "the layout of the kernel's");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_exist_has_no_driver() {
        assert!(driver("gw-not-there").is_err());
        assert!(driver("a-name-that-no-interface-can-have").is_err());
        // The loopback has none either, and says so.
        assert!(driver("lo").is_err());
    }
}

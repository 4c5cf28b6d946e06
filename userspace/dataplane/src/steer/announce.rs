//! Host firewalls that let in only answers.
//!
//! What comes from a peer arrives from its stable endpoint, and a firewall knows of no question to it until WireGuard has
//! sent something there: a node that never begins would never be reached. So the question is asked here: an empty
//! datagram from WireGuard's port to the stable endpoint, which connection tracking sees leave. It ends at the
//! program on the device, which sends nothing on that has IP options or extension headers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, setsockopt,
    socket, sockopt,
};

use super::PeerId;
use super::address::{Family, own};
use super::carrier::build;

/// Three no-operations and the end of the list (RFC 791 section 3.1).
const OPTIONS4: [u8; 4] = [1, 1, 1, 0];
/// Destination options: UDP follows, eight bytes, all of them padding (RFC 8200 section 4.2).
const OPTIONS6: [u8; 8] = [17, 0, 1, 4, 0, 0, 0, 0];
/// The next header of an IPv6 header before those.
const DESTINATION_OPTIONS: u8 = 60;
const HEADER4: usize = 20;
const HEADER6: usize = 40;

/// See the module.
#[derive(Debug)]
pub(super) struct Announcer {
    socket: OwnedFd,
    family: Family,
}

impl Announcer {
    /// In the node's network namespace. `fwmark`: that of WireGuard's packets.
    pub(super) fn open(family: Family, fwmark: u32) -> io::Result<Self> {
        let domain = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(domain, SockType::Raw, flags, SockProtocol::Raw)?;
        if fwmark != 0 {
            setsockopt(&socket, sockopt::Mark, &fwmark)?;
        }
        Ok(Self { socket, family })
    }

    /// Lets this host's firewall expect packets of the peer, for as long as it remembers a question: 30 s on Linux.
    pub(super) fn announce(&self, peer: PeerId, wireguard_port: u16) -> io::Result<()> {
        let to = peer.stable_endpoint(self.family);
        let packet = question(SocketAddr::new(own(self.family), wireguard_port), to);
        let (descriptor, flags) = (self.socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        match to {
            SocketAddr::V4(to) => sendto(descriptor, &packet, &SockaddrIn::from(to), flags)?,
            SocketAddr::V6(mut to) => {
                // A raw socket's port is its protocol, or nothing.
                to.set_port(0);
                sendto(descriptor, &packet, &SockaddrIn6::from(to), flags)?
            }
        };
        Ok(())
    }
}

/// An empty datagram with options that do nothing. IPv4's length and checksum are the kernel's to fill in.
fn question(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut packet = build(from, to, &[]);
    match from.ip() {
        IpAddr::V4(_) => {
            packet[0] = 0x46;
            packet.splice(HEADER4..HEADER4, OPTIONS4);
        }
        IpAddr::V6(_) => {
            // The payload's length, far below 256.
            packet[5] += 8;
            packet[6] = DESTINATION_OPTIONS;
            packet.splice(HEADER6..HEADER6, OPTIONS6);
        }
    }
    packet
}

#[cfg(test)]
mod tests {
    use ghostwire_packet::SliceReader;
    use ghostwire_packet::outer::{self, Outer};

    use super::*;

    #[test]
    fn a_question_is_nothing_that_the_program_sends_on() {
        for family in [Family::V4, Family::V6] {
            let from = SocketAddr::new(own(family), 51820);
            let packet = question(from, PeerId(7).stable_endpoint(family));
            let reader = SliceReader::new(&packet);
            let passes = match family {
                Family::V4 => matches!(outer::v4(&reader), Outer::Datagram(_)),
                Family::V6 => matches!(outer::v6(&reader), Outer::Datagram(_)),
            };
            assert!(!passes, "{packet:?}");
        }
    }
}

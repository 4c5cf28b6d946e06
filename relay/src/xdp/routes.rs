//! Whether two nodes are behind the same neighbour of the relay, so that a frame can go back to where it came from.
//!
//! The kernel is asked for the route to a node (`RTM_GETROUTE`) and for the neighbour on it (`RTM_GETNEIGH`),
//! rtnetlink(7). The answers stand in pair table entries until routes change.

use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

const RTM_GETROUTE: u16 = 26;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETNEIGH: u16 = 30;
const RTM_NEWNEIGH: u16 = 28;
const NLM_F_REQUEST: u16 = 1;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

const HEADER_LEN: usize = 16;

/// Length of `struct rtmsg`, and of `struct ndmsg`, in bytes.
const BODY_LEN: usize = 12;

/// The kernel answers at once, or not at all.
const PATIENCE: Duration = Duration::from_secs(1);

/// The next machine on the way to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    /// Index of the interface.
    pub interface: u32,
    /// Who is next.
    pub next: Next,
}

/// A neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// By its Ethernet address.
    Ethernet([u8; 6]),
    /// By its IP address: the kernel has not needed the other one yet.
    Ip(IpAddr),
}

/// Asks the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Routes(Socket);

impl Routes {
    /// Opens a socket.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW,
            Some(Protocol::from(libc::NETLINK_ROUTE)),
        )?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// The way to an address. `None`: there is none.
    pub fn way(&mut self, to: IpAddr) -> Option<Way> {
        let family = family(to);
        let bits = if to.is_ipv4() { 32 } else { 128 };
        let body = [family, bits, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let answer = self.ask(RTM_GETROUTE, RTM_NEWROUTE, &body, RTA_DST, to)?;
        let interface = u32::from_ne_bytes(find(&answer, RTA_OIF)?.try_into().ok()?);
        let gateway = find(&answer, RTA_GATEWAY).and_then(ip);
        // A gateway of the other family: its family in two bytes, then its address.
        let via = || find(&answer, RTA_VIA).and_then(|via| ip(via.get(2..)?));
        let next = gateway.or_else(via).unwrap_or(to);
        let next = self.ethernet(interface, next).map_or(Next::Ip(next), Next::Ethernet);
        Some(Way { interface, next })
    }

    fn ethernet(&mut self, interface: u32, neighbour: IpAddr) -> Option<[u8; 6]> {
        let mut body = [0; BODY_LEN];
        body[0] = family(neighbour);
        body[4..8].copy_from_slice(&interface.to_ne_bytes());
        let answer = self.ask(RTM_GETNEIGH, RTM_NEWNEIGH, &body, NDA_DST, neighbour)?;
        find(&answer, NDA_LLADDR)?.try_into().ok()
    }

    /// Asks with one attribute; gives the attributes of the answer.
    fn ask(
        &mut self,
        kind: u16,
        answered: u16,
        body: &[u8; BODY_LEN],
        attribute: u16,
        ip: IpAddr,
    ) -> Option<Vec<u8>> {
        let address = octets(ip);
        let attribute_len = u16::try_from(4 + address.len()).ok()?;
        let len = u32::try_from(HEADER_LEN + BODY_LEN + usize::from(attribute_len)).ok()?;
        let mut request = Vec::with_capacity(64);
        request.extend_from_slice(&len.to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        request.extend_from_slice(&[0; 8]);
        request.extend_from_slice(body);
        request.extend_from_slice(&attribute_len.to_ne_bytes());
        request.extend_from_slice(&attribute.to_ne_bytes());
        request.extend_from_slice(&address);
        self.0.write_all(&request).ok()?;
        let mut answer = vec![0; 8192];
        let len = self.0.read(&mut answer).ok()?;
        answer.truncate(len);
        attributes(&answer, answered).map(<[u8]>::to_vec)
    }
}

/// A subscription to changes of routes and addresses.
pub fn changes() -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    for group in [libc::RTNLGRP_IPV4_ROUTE, libc::RTNLGRP_IPV6_ROUTE] {
        let group = libc::c_int::try_from(group).map_err(io::Error::other)?;
        let len = libc::socklen_t::try_from(size_of_val(&group)).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open, and the value is an `int` that lives through the call, as `len` says.
        let result = unsafe {
            libc::setsockopt(
                std::os::fd::AsRawFd::as_raw_fd(&socket),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                std::ptr::from_ref(&group).cast(),
                len,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn family(ip: IpAddr) -> u8 {
    let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or_default()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// The attributes of the first message, if it is of this kind.
fn attributes(message: &[u8], kind: u16) -> Option<&[u8]> {
    let len = usize::try_from(u32::from_ne_bytes(*message.first_chunk()?)).ok()?;
    let found = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    if found != kind {
        return None;
    }
    message.get(HEADER_LEN + BODY_LEN..len)
}

/// The contents of the first attribute of a kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let found = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let contents = attributes.get(4..len)?;
        if found == kind {
            return Some(contents);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_and_what_is_cut_off_is_not() {
        let list = [5, 0, 1, 0, 9, 0, 0, 0, 8, 0, 4, 0, 1, 2, 3, 4];
        assert_eq!(find(&list, 1), Some(&[9][..]));
        assert_eq!(find(&list, 4), Some(&[1, 2, 3, 4][..]));
        assert_eq!(find(&list, 7), None);
        for len in 0..list.len() {
            assert_eq!(find(&list[..len], 4), None);
        }
        assert_eq!(find(&[0, 0, 9, 0, 0, 0], 1), None, "an attribute without length");
        assert_eq!(attributes(&[0; 40], RTM_NEWROUTE), None);
    }
}

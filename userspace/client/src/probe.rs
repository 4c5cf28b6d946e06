//! Round-trip times by ICMP echo through the tunnel.

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;

/// Where the time is measured: an identifier of ours and a sequence number.
#[derive(Debug)]
pub struct Echo {
    socket: AsyncFd<Socket>,
    target: IpAddr,
    identifier: u16,
}

impl Echo {
    /// For one target, through one interface.
    pub fn new(target: IpAddr, interface: &str) -> io::Result<Self> {
        let (domain, protocol) = match target {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(protocol))?;
        socket.bind_device(Some(interface.as_bytes()))?;
        // From now on the socket hears only what this peer sends.
        socket.connect(&SockAddr::from(SocketAddr::new(target, 0)))?;
        // SAFETY: the AsyncFd owns the socket, whose descriptor is open and stays the same until it is dropped.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self { socket, target, identifier: rand::random() })
    }

    /// Sends one echo request and waits for its reply.
    pub async fn round_trip(&self, sequence: u16, patience: Duration) -> io::Result<Duration> {
        let started = Instant::now();
        self.socket.get_ref().send(&request(self.target, self.identifier, sequence))?;
        let reply = self.wait_for(sequence);
        match tokio::time::timeout(patience, reply).await {
            Ok(arrived) => arrived.map(|at| at.saturating_duration_since(started)),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no reply")),
        }
    }

    async fn wait_for(&self, sequence: u16) -> io::Result<Instant> {
        loop {
            let mut guard = self.socket.readable().await?;
            let mut buffer = [0_u8; 256];
            match self.socket.get_ref().read(&mut buffer) {
                Ok(length) if is_reply(self.target, &buffer[..length], self.identifier, sequence) => {
                    return Ok(Instant::now());
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) => return Err(error),
            }
        }
    }
}

/// An echo request. The kernel computes ICMPv6 checksums (RFC 3542 section 3.1), not those of ICMP.
fn request(target: IpAddr, identifier: u16, sequence: u16) -> [u8; 24] {
    let mut packet = [0_u8; 24];
    packet[0] = if target.is_ipv4() { 8 } else { 128 };
    packet[4..6].copy_from_slice(&identifier.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet[8..].copy_from_slice(b"ghostwire - ping");
    if target.is_ipv4() {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// Whether what a raw socket delivered is the target's reply to the echo request with this identifier and number.
pub fn is_reply(target: IpAddr, bytes: &[u8], identifier: u16, sequence: u16) -> bool {
    // Raw IPv4 sockets deliver the IP header, IPv6 ones do not.
    let (kind, message) = match target {
        IpAddr::V4(_) => {
            let header = usize::from(bytes.first().copied().unwrap_or(0) & 0x0f) * 4;
            (0, bytes.get(header..).unwrap_or_default())
        }
        IpAddr::V6(_) => (129, bytes),
    };
    let [is, _, _, _, id_high, id_low, seq_high, seq_low, ..] = *message else { return false };
    is == kind
        && u16::from_be_bytes([id_high, id_low]) == identifier
        && u16::from_be_bytes([seq_high, seq_low]) == sequence
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_told_from_everything_else() {
        let v4: IpAddr = "100.64.0.9".parse().unwrap();
        let mut packet = request(v4, 7, 9);
        assert_eq!(checksum(&packet), 0, "a right checksum sums to nothing");
        packet[0] = 0;
        let mut with_header = vec![0x45; 20];
        with_header.extend_from_slice(&packet);
        assert!(is_reply(v4, &with_header, 7, 9));
        assert!(!is_reply(v4, &with_header, 7, 8));
        assert!(!is_reply(v4, &with_header, 6, 9));
        for length in 0..with_header.len() - 16 {
            assert!(!is_reply(v4, &with_header[..length], 7, 9));
        }
        let v6: IpAddr = "fd00::9".parse().unwrap();
        let mut packet = request(v6, 7, 9);
        assert!(!is_reply(v6, &packet, 7, 9), "our own request is no reply");
        packet[0] = 129;
        assert!(is_reply(v6, &packet, 7, 9));
    }
}

//! The door of the carriers: what WireGuard sends to a peer whose path is a carrier comes out of the device's
//! descriptor, and what goes in there comes to WireGuard from the peer's stable endpoint.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use ghostwire_packet::checksum::Sum;
use ghostwire_packet::outer::{self, Outer};
use ghostwire_packet::payload::Payload;
use ghostwire_packet::translate::{header4, header6};
use ghostwire_packet::{SliceReader, protocol, version};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::address::{Family, address, own, words};
use super::tables::{Seen, now_ns};
use super::{Class, PeerId, carried};

/// The largest packet of the device.
const LARGEST: usize = 65_536;
const UDP: usize = 8;
const HEADER4: usize = 20;
const HEADER6: usize = 40;
/// Hop limit of what is handed to WireGuard.
const HOPS: u8 = 64;

/// Reads and writes WireGuard's datagrams at the device.
pub struct Carrier {
    device: OwnedFd,
    /// The same, registered with the runtime of the first who waited.
    waiting: OnceLock<AsyncFd<OwnedFd>>,
    family: Family,
    wireguard_port: AtomicU16,
    delivered: Mutex<HashMap<PeerId, [Seen; 4]>>,
    /// Where packets are read to; the headers are cut off.
    packet: Mutex<Vec<u8>>,
}

impl std::fmt::Debug for Carrier {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Carrier").field("family", &self.family).finish_non_exhaustive()
    }
}

impl Carrier {
    pub(super) fn new(device: OwnedFd, family: Family, wireguard_port: u16) -> Self {
        Self {
            device,
            waiting: OnceLock::new(),
            family,
            wireguard_port: AtomicU16::new(wireguard_port),
            delivered: Mutex::default(),
            packet: Mutex::new(vec![0; LARGEST]),
        }
    }

    pub(super) fn set_wireguard_port(&self, port: u16) {
        self.wireguard_port.store(port, Ordering::Relaxed);
    }

    /// The next datagram of WireGuard, the peer that it is for, and its length; one that is longer than the buffer is
    /// lost. Cancel-safe.
    pub async fn recv(&self, payload: &mut [u8]) -> io::Result<(PeerId, usize)> {
        loop {
            let mut guard = self.waiting()?.readable().await?;
            match self.try_recv(payload) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                other => return other,
            }
        }
    }

    /// A datagram that is already there; `WouldBlock`: there is none.
    pub fn try_recv(&self, payload: &mut [u8]) -> io::Result<(PeerId, usize)> {
        let mut packet = self.packet.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            // SAFETY: the buffer is valid for its length.
            let read =
                unsafe { libc::read(self.device.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len()) };
            let length = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
            let Some((peer, datagram)) = parse(packet.get(..length).unwrap_or_default()) else { continue };
            if let Some(to) = payload.get_mut(..datagram.len()) {
                to.copy_from_slice(datagram);
                return Ok((peer, datagram.len()));
            }
        }
    }

    fn waiting(&self) -> io::Result<&AsyncFd<OwnedFd>> {
        if let Some(ready) = self.waiting.get() {
            return Ok(ready);
        }
        let descriptor = self.device.try_clone()?;
        // SAFETY: it owns its descriptor, and nothing replaces or closes it while it is registered.
        let ready = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
        Ok(self.waiting.get_or_init(|| ready))
    }

    /// Hands a datagram that came by a carrier to WireGuard, from the peer's stable endpoint. It must be known that it
    /// came from this peer. `InvalidInput`: it is not WireGuard's.
    pub fn deliver(&self, peer: PeerId, class: Class, payload: &[u8]) -> io::Result<()> {
        if peer.0 == 0 || carried::kind(payload) != Payload::WireGuard || payload.len() > LARGEST - 64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let from = peer.stable_endpoint(self.family);
        let to = SocketAddr::new(own(self.family), self.wireguard_port.load(Ordering::Relaxed));
        let packet = build(from, to, payload);
        // SAFETY: the buffer is valid for its length.
        let written = unsafe { libc::write(self.device.as_raw_fd(), packet.as_ptr().cast(), packet.len()) };
        if written < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut delivered.entry(peer).or_default()[class as usize];
        *seen = seen.and(Seen { packets: 1, bytes: payload.len() as u64, last_ns: now_ns() });
        Ok(())
    }

    /// What was handed to WireGuard of a peer.
    pub(super) fn delivered(&self, peer: PeerId) -> [Seen; 4] {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner).get(&peer).copied().unwrap_or_default()
    }

    pub(super) fn forget(&self, peer: PeerId) {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }
}

/// The peer and the payload of a packet to a stable endpoint.
fn parse(packet: &[u8]) -> Option<(PeerId, &[u8])> {
    let reader = SliceReader::new(packet);
    let (dst, offset, length) = match version(&reader).ok()? {
        4 => match outer::v4(&reader) {
            Outer::Datagram(found) => (address([found.dst, 0, 0, 0], true), HEADER4 + UDP, found.payload),
            _ => return None,
        },
        6 => match outer::v6(&reader) {
            Outer::Datagram(found) => (address(found.dst, false), HEADER6 + UDP, found.payload),
            _ => return None,
        },
        _ => return None,
    };
    let payload = packet.get(offset..)?.get(..usize::try_from(length).ok()?)?;
    Some((PeerId::of_synthetic(dst)?, payload))
}

/// A UDP datagram with all its headers and checksums.
pub(super) fn build(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(UDP + payload.len()).unwrap_or(u16::MAX);
    let (src, dst) = (words(from.ip()), words(to.ip()));
    let header: Vec<u32> = match from.ip() {
        IpAddr::V4(_) => header4(0, length.into(), HOPS, src[0], dst[0]).to_vec(),
        IpAddr::V6(_) => header6(0, length.into(), HOPS, src, dst).to_vec(),
    };
    let mut packet: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let udp = packet.len();
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    let pseudo = u32::from(protocol::UDP).to_be();
    let mut sum = Sum::ZERO.plus_all(src).plus_all(dst).plus(pseudo).plus(u32::from(length).to_be());
    for word in packet[udp..].chunks(4) {
        let mut bytes = [0; 4];
        bytes[..word.len()].copy_from_slice(word);
        sum = sum.plus(u32::from_ne_bytes(bytes));
    }
    // RFC 768: a checksum of 0 is sent as all ones.
    let checksum = match !sum.fold16() {
        0 => u16::MAX,
        checksum => checksum,
    };
    packet[udp + 6..udp + 8].copy_from_slice(&checksum.to_ne_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_can_be_parsed() {
        let payload: Vec<u8> = [4, 0, 0, 0].into_iter().chain(0..=250).collect();
        for family in [Family::V4, Family::V6] {
            let stable = PeerId(0x1234).stable_endpoint(family);
            let packet = build(SocketAddr::new(own(family), 51820), stable, &payload);
            assert_eq!(parse(&packet), Some((PeerId(0x1234), &payload[..])));
            for length in 0..packet.len() {
                assert_eq!(parse(&packet[..length]), None, "{length}");
            }
            let back = build(stable, SocketAddr::new(own(family), 51820), &payload);
            assert_eq!(parse(&back), None, "not to a peer");
        }
    }
}

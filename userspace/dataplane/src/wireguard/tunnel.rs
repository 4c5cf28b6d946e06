//! The engine of a userspace device, gotatun, behind our own vocabulary.
//!
//! Its own configuration socket is not used: it recreates a peer that is changed, which resets the
//! peer's session, and its place in the file system is fixed.

use std::{collections::HashSet, num::NonZeroU16, time::SystemTime};

use gotatun::{
    device::{self, Peer, configure::PeerStats},
    tun::tun_async_device::TunDevice,
    x25519,
};
use ipnet::IpNet;

use super::sockets::DeepSockets;
use super::{DeviceStatus, Error, PeerStatus, PeerUpdate, PresharedKey, PrivateKey, PublicKey, Update};
use crate::netlink::LinkName;

/// A running engine.
pub(super) struct Tunnel {
    device: device::Device<(DeepSockets, TunDevice, TunDevice)>,
    /// Whether the engine's own report of failure can be believed.
    watched: bool,
}

impl Tunnel {
    /// Makes the TUN device and starts the engine on it, without a key.
    pub(super) async fn open(name: &LinkName) -> Result<Self, Error> {
        let failed = |reason: String| Error::Engine { name: name.clone(), reason };
        let tun = TunDevice::from_name(name.as_str()).map_err(|error| failed(error.to_string()))?;
        let device = device::build()
            .with_udp(DeepSockets::default())
            .with_ip(tun)
            .build()
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { device, watched: true })
    }

    /// Waits until the engine cannot go on.
    pub(super) async fn failed(&mut self) {
        if !self.watched {
            std::future::pending::<()>().await;
        }
        self.device.wait().await;
    }

    /// Stops the engine.
    pub(super) async fn stop(self) {
        self.device.stop().await;
    }

    /// What the device is.
    pub(super) async fn status(&self) -> DeviceStatus {
        self.device
            .read(async |device| DeviceStatus {
                private_key: device.private_key().map(|key| PrivateKey::from_bytes(key.to_bytes())),
                listen_port: device.listen_port(),
                fwmark: device.fwmark().unwrap_or(0),
                peers: device.peers().await.into_iter().map(peer_status).collect(),
            })
            .await
    }

    /// Makes a change. The errno is what the configuration protocol answers with.
    pub(super) async fn change(&mut self, update: &Update) -> Result<(), i32> {
        let (has_key, port) =
            self.device.read(async |device| (device.private_key().is_some(), device.listen_port())).await;
        // Without a key the engine can neither listen nor have peers.
        let needs_key = update.listen_port.is_some() || !update.peers.is_empty();
        if needs_key && !has_key && update.private_key.is_none() {
            return Err(libc::ENOKEY);
        }
        if update.private_key.is_some() || update.listen_port.is_some() || update.fwmark.is_some() {
            self.change_device(update, port).await?;
        }
        if update.replace_peers || !update.peers.is_empty() {
            self.change_peers(update).await?;
        }
        Ok(())
    }

    async fn change_device(&mut self, update: &Update, old_port: u16) -> Result<(), i32> {
        let result = self
            .device
            .write(async |device| {
                if let Some(mark) = update.fwmark {
                    device.set_fwmark(mark).map_err(|error| errno(&error))?;
                }
                if let Some(port) = update.listen_port {
                    device.set_listen_port(port);
                }
                if let Some(key) = &update.private_key {
                    device.set_private_key(x25519::StaticSecret::from(*key.as_bytes())).await;
                }
                Ok(())
            })
            .await;
        // Reopening its sockets ends the engine's tasks in an order that makes one of them report a
        // failure, once and for all. What is reported by now is that.
        self.watched = self.watched
            && tokio::time::timeout(std::time::Duration::ZERO, self.device.wait()).await.is_err();
        match result {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!(%error, "the new configuration does not work");
                // The engine has closed its sockets: back to where they were, not to silence.
                if update.listen_port.is_some() {
                    let restored = self.device.write(async |device| device.set_listen_port(old_port)).await;
                    if let Err(error) = restored {
                        tracing::error!(%error, "the former port cannot be opened again");
                    }
                }
                Err(errno(&error))
            }
        }
    }

    async fn change_peers(&self, update: &Update) -> Result<(), i32> {
        self.device
            .write(async |device| {
                if update.replace_peers {
                    let kept: HashSet<_> = update.peers.iter().map(|peer| peer.public_key).collect();
                    for known in device.peers().await {
                        if !kept.contains(&PublicKey::from_bytes(known.peer.public_key.to_bytes())) {
                            device.remove_peer(&known.peer.public_key).await;
                        }
                    }
                }
                for peer in &update.peers {
                    let key = x25519::PublicKey::from(*peer.public_key.as_bytes());
                    if peer.remove {
                        device.remove_peer(&key).await;
                        continue;
                    }
                    let clear = peer.replace_allowed_ips || update.replace_peers;
                    let changed = device.modify_peer(&key, |known| modify(known, peer, clear)).await;
                    if !changed && !peer.update_only {
                        device.add_peer(new_peer(key, peer));
                    }
                }
            })
            .await
            .map_err(|error| errno(&error))
    }
}

fn modify(known: &mut device::configure::PeerMut, peer: &PeerUpdate, clear: bool) {
    if let Some(key) = &peer.preshared_key {
        known.set_preshared_key((!key.is_none()).then(|| *key.as_bytes()));
    }
    if peer.endpoint.is_some() {
        known.set_endpoint(peer.endpoint);
    }
    if let Some(keepalive) = peer.keepalive {
        known.set_keepalive((keepalive != 0).then_some(keepalive));
    }
    if clear {
        known.clear_allowed_ips();
    }
    known.add_allowed_ips(peer.allowed_ips.iter().filter_map(engine_net));
}

fn new_peer(key: x25519::PublicKey, peer: &PeerUpdate) -> Peer {
    let mut new = Peer::new(key).with_allowed_ips(peer.allowed_ips.iter().filter_map(engine_net));
    new.endpoint = peer.endpoint;
    new.keepalive = peer.keepalive.filter(|keepalive| *keepalive != 0);
    new.preshared_key = peer.preshared_key.as_ref().filter(|key| !key.is_none()).map(|key| *key.as_bytes());
    new
}

/// The engine's type for a prefix. A prefix of ours always fits.
fn engine_net(net: &IpNet) -> Option<ipnetwork::IpNetwork> {
    ipnetwork::IpNetwork::new(net.network(), net.prefix_len()).ok()
}

fn peer_status(known: PeerStats) -> PeerStatus {
    let PeerStats { peer, stats, .. } = known;
    PeerStatus {
        public_key: PublicKey::from_bytes(peer.public_key.to_bytes()),
        preshared_key: peer.preshared_key.map(PresharedKey::from_bytes),
        endpoint: peer.endpoint,
        allowed_ips: peer
            .allowed_ips
            .iter()
            .filter_map(|net| IpNet::new(net.ip(), net.prefix()).ok())
            .collect(),
        keepalive: peer.keepalive.and_then(NonZeroU16::new),
        last_handshake: stats.last_handshake.and_then(|ago| SystemTime::now().checked_sub(ago)),
        rx_bytes: u64::try_from(stats.rx_bytes).unwrap_or(u64::MAX),
        tx_bytes: u64::try_from(stats.tx_bytes).unwrap_or(u64::MAX),
    }
}

fn errno(error: &device::Error) -> i32 {
    match error {
        device::Error::Bind(source, _) | device::Error::IoError(source) => {
            source.raw_os_error().unwrap_or(libc::EIO)
        }
        device::Error::DuplicatePeer => libc::EEXIST,
        _ => libc::EIO,
    }
}

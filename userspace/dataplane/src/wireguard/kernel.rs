//! WireGuard in the kernel, over generic netlink.

use std::{collections::HashMap, io, num::NonZeroU16};

use ipnet::IpNet;
use wireguard_control::{
    AllowedIp, Backend, Device as KernelDevice, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder, PeerInfo,
};

use super::{DeviceStatus, Error, PeerStatus, PeerUpdate, PresharedKey, PrivateKey, PublicKey, Update};
use crate::netlink::LinkName;

/// A peer's addresses go to the kernel in pieces of this many: the library sends messages of at most a
/// page, and an address takes up to 40 bytes of it. (A longer piece would be refused with an error
/// that prints the peer, with its shared secret.)
const ADDRESSES_PER_REQUEST: usize = 64;

fn interface(name: &LinkName) -> Result<InterfaceName, Error> {
    name.as_str().parse().map_err(|error: wireguard_control::InvalidInterfaceName| Error::Kernel {
        action: "use the name",
        name: name.clone(),
        source: error.into(),
    })
}

/// Reads the state of a device.
pub(super) fn status(name: &LinkName) -> Result<DeviceStatus, Error> {
    let device = KernelDevice::get(&interface(name)?, Backend::Kernel).map_err(|source| {
        if source.raw_os_error() == Some(libc::ENODEV) {
            return Error::Gone(name.clone());
        }
        Error::Kernel { action: "read the state", name: name.clone(), source }
    })?;
    let mut peers: Vec<PeerStatus> = Vec::with_capacity(device.peers.len());
    let mut known: HashMap<PublicKey, usize> = HashMap::new();
    for info in device.peers {
        let peer = peer_status(info);
        // The kernel splits a peer with many addresses over several messages; only the first one
        // carries more than addresses.
        if let Some(index) = known.get(&peer.public_key) {
            peers[*index].allowed_ips.extend(peer.allowed_ips);
        } else {
            known.insert(peer.public_key, peers.len());
            peers.push(peer);
        }
    }
    Ok(DeviceStatus {
        private_key: device
            .private_key
            .filter(|key| key.0 != [0; 32])
            .map(|key| PrivateKey::from_bytes(key.0)),
        listen_port: device.listen_port.unwrap_or(0),
        fwmark: device.fwmark.unwrap_or(0),
        peers,
    })
}

fn peer_status(info: PeerInfo) -> PeerStatus {
    let allowed = |allowed: &AllowedIp| IpNet::new(allowed.address, allowed.cidr).ok();
    PeerStatus {
        public_key: PublicKey::from_bytes(info.config.public_key.0),
        preshared_key: info
            .config
            .preshared_key
            .map(|key| PresharedKey::from_bytes(key.0))
            .filter(|key| !key.is_none()),
        endpoint: info.config.endpoint,
        allowed_ips: info.config.allowed_ips.iter().filter_map(allowed).collect(),
        keepalive: info.config.persistent_keepalive_interval.and_then(NonZeroU16::new),
        last_handshake: info.stats.last_handshake_time,
        rx_bytes: info.stats.rx_bytes,
        tx_bytes: info.stats.tx_bytes,
    }
}

/// Changes a device that exists.
pub(super) fn apply(name: &LinkName, update: &Update) -> Result<(), Error> {
    let mut request = DeviceUpdate::new();
    if let Some(key) = &update.private_key {
        request = request.set_private_key(Key(*key.as_bytes()));
    }
    if let Some(port) = update.listen_port {
        request = request.set_listen_port(port);
    }
    if let Some(mark) = update.fwmark {
        request = request.set_fwmark(mark);
    }
    if update.replace_peers {
        request = request.replace_peers();
    }
    let mut rest = Vec::new();
    for peer in &update.peers {
        let mut pieces = peer.allowed_ips.chunks(ADDRESSES_PER_REQUEST);
        request = request.add_peer(builder(peer, pieces.next().unwrap_or_default()));
        rest.extend(pieces.map(|piece| {
            PeerConfigBuilder::new(&Key(*peer.public_key.as_bytes())).add_allowed_ips(&allowed(piece))
        }));
    }
    let name_of = interface(name)?;
    let send = |request: DeviceUpdate| {
        request.apply(&name_of, Backend::Kernel).map_err(|source: io::Error| Error::Kernel {
            action: "change the configuration",
            name: name.clone(),
            source,
        })
    };
    send(request)?;
    rest.into_iter().try_for_each(|piece| send(DeviceUpdate::new().add_peer(piece)))
}

fn builder(peer: &PeerUpdate, nets: &[IpNet]) -> PeerConfigBuilder {
    let mut builder = PeerConfigBuilder::new(&Key(*peer.public_key.as_bytes()));
    if peer.remove {
        return builder.remove();
    }
    if let Some(key) = &peer.preshared_key {
        builder = builder.set_preshared_key(Key(*key.as_bytes()));
    }
    if let Some(endpoint) = peer.endpoint {
        builder = builder.set_endpoint(endpoint);
    }
    if let Some(keepalive) = peer.keepalive {
        builder = builder.set_persistent_keepalive_interval(keepalive);
    }
    if peer.replace_allowed_ips {
        builder = builder.replace_allowed_ips();
    }
    builder.add_allowed_ips(&allowed(nets))
}

fn allowed(nets: &[IpNet]) -> Vec<AllowedIp> {
    nets.iter().map(|net| AllowedIp { address: net.addr(), cidr: net.prefix_len() }).collect()
}

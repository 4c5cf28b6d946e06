//! [`Machinery`] for real: WireGuard, netlink and the ACL programs of `ghostwire-dataplane`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::SystemTime;

use ghostwire_dataplane::acl::{self, Acl, AclError, Attachment, Counters, Events, Pins};
use ghostwire_dataplane::netlink::{LinkName, Netlink, Route, tunnel_mtu};
use ghostwire_dataplane::steer::{self, Steer};
use ghostwire_dataplane::wireguard::{
    self, Backend, Choice, Helper, Opened, PeerUpdate, PrivateKey, PublicKey, Update,
};
use ghostwire_ebpf_abi::event::Counter;
use ghostwire_proto::keys::NodeKey;
use ipnet::IpNet;

use super::{Device, Machinery, PlaneError, PresentPeer, WantedImage, WantedPeer, image};
use crate::path::KEEPALIVE_SECONDS;

/// Subnets behind peers yield to networks that this machine is attached to.
const SUBNET_METRIC: u32 = 1_000;

/// What the data plane of one node is called, and where it keeps things.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Interface.
    pub interface: LinkName,
    /// Which WireGuard.
    pub choice: Choice,
    /// UDP port.
    pub listen_port: u16,
    /// Sockets of userspace devices.
    pub uapi_dir: PathBuf,
    /// Pins.
    pub bpf_dir: PathBuf,
    /// Log of the userspace WireGuard process.
    pub helper_log: PathBuf,
}

/// What the programs have counted.
#[derive(Clone, Debug)]
pub struct Observed {
    /// By direction and reason.
    pub counters: Counters,
    /// By remote address.
    pub drops: Vec<(IpAddr, Counter)>,
    /// Remembered connections.
    pub connections: usize,
    /// Size of the image in force.
    pub image_words: usize,
}

/// What an inspection found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspection {
    /// Nothing to object to, or nothing is set up yet.
    Sound,
    /// Something was not as we left it, and is again. In words for the user.
    Mended(String),
    /// Something is not as we left it, and it takes a whole comparison to mend it. In words for the user.
    Broken(String),
}

/// The machine that we run on.
#[derive(Debug)]
pub struct Kernel {
    options: KernelOptions,
    key: PrivateKey,
    netlink: Netlink,
    device: Option<wireguard::Device>,
    described: Option<Device>,
    acl: Option<Acl>,
    /// Index of the interface that the programs are attached to.
    attached_to: u32,
    in_force: Option<WantedImage>,
    /// What a comparison found and mended, for the next inspection to tell.
    mended: Option<String>,
}

impl Kernel {
    /// Changes nothing yet.
    pub fn new(options: KernelOptions, key: [u8; 32]) -> Result<Self, PlaneError> {
        let netlink = Netlink::open().map_err(|error| PlaneError::of(&error))?;
        Ok(Self {
            options,
            key: PrivateKey::from_bytes(key),
            netlink,
            device: None,
            described: None,
            acl: None,
            attached_to: 0,
            in_force: None,
            mended: None,
        })
    }

    /// The device, once there is one.
    pub fn device(&self) -> Option<&Device> {
        self.described.as_ref()
    }

    /// Opens a device that an earlier run left, and makes none; its peers.
    pub fn adopt_existing(&mut self) -> Result<Vec<PresentPeer>, PlaneError> {
        let link = self.netlink.link(&self.options.interface).map_err(|error| PlaneError::of(&error))?;
        if link.is_none_or(|link| !link.is_ours()) {
            return Ok(Vec::new());
        }
        self.open_device()?;
        self.peers()
    }

    /// Looks whether somebody has taken the programs off the device, or the device away. Cheap: a few system calls.
    pub fn inspect(&mut self) -> Inspection {
        if let Some(mended) = self.mended.take() {
            return Inspection::Mended(mended);
        }
        let name = &self.options.interface;
        let Some(acl) = &mut self.acl else { return Inspection::Sound };
        let link = match self.netlink.link(name) {
            Ok(Some(link)) if link.index == self.attached_to => link,
            Ok(_) => {
                let deleted = self.deleted();
                (self.device, self.acl) = (None, None);
                return Inspection::Broken(deleted);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot look after the interface");
                return Inspection::Sound;
            }
        };
        // What cannot be asked is no proof that they are there.
        if acl.is_attached().unwrap_or(false) {
            return Inspection::Sound;
        }
        let Err(error) = acl.attach_again() else { return Inspection::Mended(self.detached()) };
        let error = PlaneError::of(&error);
        let closed = match self.netlink.set_down(&link) {
            Ok(()) => {
                // Nothing to look after until a comparison has made them anew.
                self.acl = None;
                "so the interface was taken down".to_owned()
            }
            Err(second) => format!("and taking the interface down failed: {}", PlaneError::of(&second)),
        };
        Inspection::Broken(format!(
            "somebody detached the policy's programs from {}; they could not be attached again ({error}), {closed}",
            self.options.interface
        ))
    }

    fn deleted(&self) -> String {
        format!(
            "somebody deleted interface {}; until it was made again nothing passed",
            self.options.interface
        )
    }

    fn detached(&self) -> String {
        format!(
            "somebody detached the policy's programs from {}; they were attached again, but for about a second packets \
             passed unchecked",
            self.options.interface
        )
    }

    /// The device, and steering for it: made or adopted.
    pub fn open_steering(&mut self) -> Result<(Device, Steer), PlaneError> {
        let device = self.ensure_device()?;
        let options = steer::Options::new(device.listen_port);
        let opened = Steer::open(&self.options.interface, &self.options.bpf_dir, &options);
        let steer = opened.map_err(|error| PlaneError::of(&error))?;
        tracing::info!(origin = ?steer.origin(), "steering programs are attached");
        Ok((device, steer))
    }

    /// Which hook the programs are attached to.
    pub fn hook(&self) -> Option<Attachment> {
        self.acl.as_ref().map(Acl::attachment)
    }

    /// What is to be said about the place where programs are pinned.
    pub fn pins_warning(&self) -> Option<String> {
        let Pins::Passing(why) = self.acl.as_ref()?.pins() else { return None };
        Some(format!(
            "what is pinned at {} may not outlive the daemon: {why}. Its policy stays in force all the same when it ends, \
             but the next daemon drops everything until it has started, and knows no connections. Run the daemon where \
             the machine's own mounts and processes are: with `nsenter --net=FILE` instead of `ip netns exec`; in a \
             container, with the host's process namespace and /sys/fs/bpf",
            self.options.bpf_dir.display()
        ))
    }

    /// Sends a peer's packets elsewhere.
    pub fn set_endpoint(&mut self, key: NodeKey, endpoint: SocketAddr) -> Result<(), PlaneError> {
        let Some(device) = &self.device else { return Ok(()) };
        device.set_endpoint(&public(key), endpoint).map_err(|error| PlaneError::of(&error))
    }

    /// A reader of the programs' events, once they are attached.
    pub fn events(&self) -> Option<Result<Events, PlaneError>> {
        self.acl.as_ref().map(|acl| acl.events().map_err(|error| PlaneError::of(&error)))
    }

    /// Reports one of `every` accepted packets as well; 0: none.
    pub fn sample_accepted(&mut self, every: u32) -> Result<(), PlaneError> {
        let Some(acl) = &mut self.acl else { return Ok(()) };
        let mut sample = || -> Result<(), AclError> {
            let mut config = acl.config()?;
            if config.accept_sample != every {
                config.accept_sample = every;
                acl.set_config(&config)?;
            }
            Ok(())
        };
        sample().map_err(|error| PlaneError::of(&error))
    }

    /// Counters, if programs are attached.
    pub fn observe(&self) -> Option<Observed> {
        let acl = self.acl.as_ref()?;
        let observed = || -> Result<Observed, AclError> {
            Ok(Observed {
                counters: acl.counters()?,
                drops: acl.drops_by_remote()?,
                connections: acl.connections()?.len(),
                image_words: acl.image_words().map_or(0, |words| words.len()),
            })
        };
        observed().inspect_err(|error| tracing::warn!(%error, "cannot read the policy's counters")).ok()
    }

    fn open_device(&mut self) -> Result<(), PlaneError> {
        let program = std::env::current_exe()
            .map_err(|error| PlaneError(format!("cannot find this program's own file: {error}")))?;
        let options = wireguard::Options {
            name: self.options.interface.clone(),
            choice: self.options.choice,
            uapi_dir: self.options.uapi_dir.clone(),
            helper: Helper::new(program).log_to(&self.options.helper_log),
        };
        let (device, opened) = wireguard::Device::open(&options).map_err(|error| PlaneError::of(&error))?;
        tracing::info!(interface = %options.name, backend = %device.backend(), ?opened, "WireGuard device is open");
        let listen_port = self.choose_port(&device, opened)?;
        let status = device.status().map_err(|error| PlaneError::of(&error))?;
        let update = Update {
            private_key: (status.private_key.as_ref() != Some(&self.key)).then(|| self.key.clone()),
            listen_port: listen_port.filter(|port| *port == 0 || *port != status.listen_port),
            ..Update::default()
        };
        if !update.is_empty() {
            device.change(&update).map_err(|error| PlaneError::of(&error))?;
        }
        let status = device.status().map_err(|error| PlaneError::of(&error))?;
        let reason = match (device.backend(), self.options.choice) {
            (Backend::Kernel, Choice::Auto) => "kernel",
            (Backend::Kernel, _) => "kernel (as told by --wireguard)",
            (Backend::Userspace, Choice::Auto) => "userspace (this kernel has no WireGuard)",
            (Backend::Userspace, _) => "userspace (as told by --wireguard)",
        };
        self.described = Some(Device {
            name: options.name.to_string(),
            backend: reason.to_owned(),
            listen_port: status.listen_port,
            mtu: 0,
        });
        self.device = Some(device);
        Ok(())
    }

    /// The port to set, if one is to be set. Another WireGuard on this machine may have ours: then any free one
    /// will do, since peers learn it from the coordinator.
    fn choose_port(&self, device: &wireguard::Device, opened: Opened) -> Result<Option<u16>, PlaneError> {
        let wanted = self.options.listen_port;
        let has = device.status().map_err(|error| PlaneError::of(&error))?.listen_port;
        if opened == Opened::Adopted && has == wanted {
            return Ok(None);
        }
        let free =
            [SocketAddr::from((Ipv4Addr::UNSPECIFIED, wanted)), (Ipv6Addr::UNSPECIFIED, wanted).into()]
                .iter()
                .all(|address| match UdpSocket::bind(address) {
                    Err(error) => error.kind() != std::io::ErrorKind::AddrInUse,
                    Ok(_) => true,
                });
        if free {
            return Ok(Some(wanted));
        }
        tracing::warn!(port = wanted, "the UDP port is in use by another program; taking another one");
        Ok((opened == Opened::Created || has == 0).then_some(0))
    }

    fn link(&self) -> Result<ghostwire_dataplane::netlink::Link, PlaneError> {
        self.netlink.existing_link(&self.options.interface).map_err(|error| PlaneError::of(&error))
    }
}

impl Machinery for Kernel {
    fn ensure_device(&mut self) -> Result<Device, PlaneError> {
        let gone = self.device.as_ref().is_some_and(|device| device.status().is_err());
        if gone {
            tracing::warn!(interface = %self.options.interface, "the WireGuard device is gone; making it again");
            self.mended = Some(self.deleted());
            self.device = None;
        }
        if self.device.is_none() {
            self.open_device()?;
        }
        let link = self.link()?;
        let mtu = self.netlink.local_endpoints().map(|endpoints| tunnel_mtu(&endpoints));
        let mtu = mtu.map_err(|error| PlaneError::of(&error))?;
        if link.mtu != mtu {
            self.netlink.set_mtu(&link, mtu).map_err(|error| PlaneError::of(&error))?;
        }
        let described = self.described.as_mut().ok_or_else(|| PlaneError("no device".to_owned()))?;
        described.mtu = mtu;
        Ok(described.clone())
    }

    fn ensure_programs(&mut self) -> Result<(), PlaneError> {
        let index = self.link()?.index;
        if let Some(acl) = &self.acl
            && self.attached_to == index
        {
            if acl.is_attached().unwrap_or(false) {
                return Ok(());
            }
            self.mended = Some(self.detached());
        }
        self.acl = None;
        let name = self.options.interface.to_string();
        let acl = Acl::open_or_create(&name, &self.options.bpf_dir, &acl::Options::default())
            .map_err(|error| PlaneError::of(&error))?;
        tracing::info!(interface = %name, origin = ?acl.origin(), hook = ?acl.attachment(), "policy programs are attached");
        self.acl = Some(acl);
        self.attached_to = index;
        self.in_force = None;
        Ok(())
    }

    fn enforced(&mut self) -> Option<u32> {
        self.acl.as_ref()?.generation().ok().flatten()
    }

    fn ensure_image(&mut self, wanted: &WantedImage) -> Result<(), PlaneError> {
        if self.in_force.as_ref() == Some(wanted) {
            return Ok(());
        }
        let acl = self.acl.as_mut().ok_or_else(|| PlaneError("the programs are not attached".to_owned()))?;
        image::put_in_force(acl, wanted)?;
        self.in_force = Some(wanted.clone());
        Ok(())
    }

    fn peers(&mut self) -> Result<Vec<PresentPeer>, PlaneError> {
        let Some(device) = &self.device else { return Ok(Vec::new()) };
        let status = device.status().map_err(|error| PlaneError::of(&error))?;
        if let Some(described) = &mut self.described {
            described.listen_port = status.listen_port;
        }
        let now = SystemTime::now();
        let peers = status.peers.into_iter().map(|peer| PresentPeer {
            key: NodeKey::new(*peer.public_key.as_bytes()),
            allowed: peer.allowed_ips,
            endpoint: peer.endpoint,
            keepalive: peer.keepalive.is_some(),
            handshake_age: peer.last_handshake.map(|then| now.duration_since(then).unwrap_or_default()),
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
        });
        Ok(peers.collect())
    }

    fn remove_peer(&mut self, key: NodeKey) -> Result<(), PlaneError> {
        self.change_peer(PeerUpdate::removal(public(key)))
    }

    fn put_peer(&mut self, peer: &WantedPeer) -> Result<(), PlaneError> {
        self.change_peer(PeerUpdate {
            endpoint: peer.endpoint,
            // With steering the path machine keeps mappings alive, and lets idle peers sleep.
            keepalive: Some(if peer.stable { 0 } else { KEEPALIVE_SECONDS }),
            replace_allowed_ips: true,
            allowed_ips: peer.allowed.clone(),
            ..PeerUpdate::new(public(peer.key))
        })
    }

    fn set_addresses(&mut self, addresses: &[IpNet]) -> Result<(), PlaneError> {
        let link = self.link()?;
        self.netlink
            .set_addresses(&link, addresses)
            .and_then(|_| self.netlink.set_up(&link))
            .map_err(|error| PlaneError::of(&error))
    }

    fn set_routes(&mut self, routes: &[IpNet], source: &[IpAddr]) -> Result<(), PlaneError> {
        let link = self.link()?;
        let wanted: Vec<Route> = routes
            .iter()
            .map(|net| {
                let mut route = Route::through(&link, *net);
                if let Some(own) = source.iter().find(|own| own.is_ipv4() == net.addr().is_ipv4()) {
                    route = route.from_source(*own);
                    if !net.contains(own) {
                        route = route.with_metric(SUBNET_METRIC);
                    }
                }
                route
            })
            .collect();
        self.netlink.set_routes(&link, &wanted).map(drop).map_err(|error| PlaneError::of(&error))
    }

    fn tear_down(&mut self) -> Result<(), PlaneError> {
        self.in_force = None;
        self.mended = None;
        self.attached_to = 0;
        self.described = None;
        let name = self.options.interface.clone();
        let wrong = |error: &dyn std::error::Error| PlaneError(error.to_string());
        let ours = self
            .netlink
            .link(&name)
            .map_err(|error| wrong(&error))?
            .filter(ghostwire_dataplane::netlink::Link::is_ours);
        if let Some(link) = &ours {
            // Down first: without programs the device would pass everything.
            self.netlink.set_down(link).map_err(|error| wrong(&error))?;
        }
        Steer::remove(&name, &self.options.bpf_dir).map_err(|error| PlaneError::of(&error))?;
        let programs = match self.acl.take() {
            Some(acl) => acl.detach(),
            None => Acl::remove(name.as_str(), &self.options.bpf_dir),
        };
        programs.map_err(|error| PlaneError::of(&error))?;
        if ours.is_some() && self.device.is_none() {
            self.open_device()?;
            self.described = None;
        }
        match self.device.take() {
            Some(device) => device.delete().map_err(|error| PlaneError::of(&error)),
            None => Ok(()),
        }
    }
}

impl Kernel {
    fn change_peer(&self, change: PeerUpdate) -> Result<(), PlaneError> {
        let Some(device) = &self.device else { return Err(PlaneError("there is no device".to_owned())) };
        let update = Update { peers: vec![change], ..Update::default() };
        device.change(&update).map_err(|error| PlaneError::of(&error))
    }
}

fn public(key: NodeKey) -> PublicKey {
    PublicKey::from_bytes(*key.as_bytes())
}

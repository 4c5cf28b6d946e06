//! Stable endpoints: WireGuard sends to addresses that never change, and these programs choose the way.
//!
//! ```text
//! WireGuard ─► 198.18.x.y ─► gw0-steer ── steer_out: set_path ─┬─► uplink, rewritten to the path's ends
//!                                                              └─► Carrier: QUIC, relay streams
//! uplink ── steer_in ─┬─ admitted remotes ─► gw0-steer's ingress, as from 198.18.x.y ─► WireGuard
//!                     └─ STUN, checks, unknown sources ─► Controller
//! Controller ─► uplink_out: leaves from WireGuard's port
//! ```
//!
//! - [`device`](self): a TUN device, routed to; persistent. `address`: what stands for whom.
//! - `tables`: the maps. `paths`: which way packets take ([`Steer::set_path`]). `admissions`: who is let in.
//! - `uplinks`: where the programs are ([`Steer::set_uplinks`]).
//! - `controller`, `carrier`: what userspace reads and writes. [`carried`]: a check in WireGuard's dress.
//!
//! Links and maps are pinned below `<bpf_dir>/<interface>/steer/`, and the device persists: a daemon that is killed leaves
//! every path as it was, and the next one adopts them. One daemon in a network namespace: the synthetic networks are
//! its own.
//!
//! # What is refused
//!
//! What is for WireGuard's port at an uplink never reaches WireGuard from a source that is not admitted, because
//! WireGuard would send to where that came from. A path's far end is never a synthetic address, this host, nobody or
//! everybody; an interface of ours is no uplink.

mod address;
mod admissions;
mod announce;
pub mod carried;
mod carrier;
mod controller;
mod counters;
mod device;
mod error;
mod object;
mod paths;
mod tables;
mod uplinks;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use aya::Ebpf;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, TestRunResult};
use ghostwire_ebpf_abi::event::Direction;
use ghostwire_ebpf_abi::steer::Config;

use crate::bpf::attach::Place;
use crate::bpf::object::program;
use crate::bpf::{Attach, Attachment, BpfError, Origin, bpffs};
use crate::netlink::{Link, LinkName, Netlink};

pub use address::{Class, Family, PeerId};
pub use carrier::Carrier;
pub use controller::{Arrival, Controller, Kind};
pub use counters::{Count, Counters, Traffic};
pub use error::SteerError;
pub use ghostwire_ebpf_abi::steer::Reason;
pub use object::{OBJECT, PROGRAMS};
pub use paths::Path;
pub use uplinks::{Uplink, UplinkReport};

use admissions::Admission;
use announce::Announcer;
use paths::{PeerState, Slots};
use tables::{Seen, Tables};
use uplinks::Attached;

/// How to steer.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to attach the programs.
    pub attach: Attach,
    /// WireGuard's listen port: the node's one port.
    pub wireguard_port: u16,
    /// WireGuard's firewall mark, which the controller's packets get too. 0: none.
    pub fwmark: u32,
    /// Family of the stable endpoints.
    pub family: Family,
    /// WireGuard's packets from unknown sources that reach the controller, per second and CPU.
    pub unknown_per_second: u32,
    /// STUN messages and checks that reach the controller, per second and CPU.
    pub control_per_second: u32,
    /// Bytes in front of the IP header of what leaves WireGuard. 0 but for `BPF_PROG_TEST_RUN`.
    pub l3_offset: u32,
}

impl Options {
    /// With a listen port, and everything else as it should be.
    pub fn new(wireguard_port: u16) -> Self {
        Self {
            attach: Attach::Auto,
            wireguard_port,
            fwmark: 0,
            family: Family::V4,
            unknown_per_second: 200,
            control_per_second: 20_000,
            l3_offset: 0,
        }
    }
}

/// The steering of one WireGuard interface.
pub struct Steer {
    dir: PathBuf,
    options: Options,
    origin: Origin,
    attachment: Attachment,
    /// Number of the program on the device.
    out_program: u32,
    /// Of our clsact filters.
    handle: u16,
    device: Link,
    ebpf: Ebpf,
    tables: Tables,
    slots: Slots,
    peers: BTreeMap<PeerId, PeerState>,
    admissions: BTreeMap<SocketAddr, Admission>,
    /// Counters of admissions that are over.
    received: BTreeMap<PeerId, [Seen; 4]>,
    uplinks: BTreeMap<u32, Attached>,
    /// Interfaces on which an earlier process left programs.
    stale: BTreeSet<u32>,
    controller: Arc<Controller>,
    carrier: Arc<Carrier>,
    announcer: Option<Announcer>,
}

impl std::fmt::Debug for Steer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Steer")
            .field("device", &self.device.name)
            .field("origin", &self.origin)
            .field("attachment", &self.attachment)
            .field("uplinks", &self.uplinks)
            .finish_non_exhaustive()
    }
}

fn folder(bpf_dir: &FsPath, interface: &LinkName) -> PathBuf {
    bpf_dir.join(bpffs::folder_name(interface.as_str())).join("steer")
}

impl Steer {
    /// Makes everything for a WireGuard interface, or adopts what an earlier process left: device, addresses, routes,
    /// programs, maps, sockets. To be called in the node's network namespace, before WireGuard has peers.
    pub fn open(interface: &LinkName, bpf_dir: &FsPath, options: &Options) -> Result<Self, SteerError> {
        bpffs::ensure_mounted(bpf_dir)?;
        let dir = folder(bpf_dir, interface);
        let netlink = Netlink::open()?;
        let name = device::name_of(interface)?;
        let (device, descriptor) = device::open(&netlink, &name, options.family)?;
        bpffs::create(&dir)?;
        let pins = bpffs::pins(&dir);
        let attachment = Attachment::choose(options.attach, &pins);
        let handle = uplinks::handle_of(&device.name);
        let place = out_place(&dir, handle, &device.name, device.index);
        place.refuse_others()?;
        let (mut ebpf, origin) = object::load(&dir, options.l3_offset)?;
        let mut tables = Tables::take(&mut ebpf)?;
        tables.close_ports();
        let (peers, mut used) = paths::adopt(&tables)?;
        let (admissions, counting) = admissions::adopt(&tables)?;
        used.extend(counting);
        let before = u16::from_be(tables.config()?.controller_port_be);
        let controller = Controller::open(before, options.wireguard_port, options.fwmark)?;
        for remote in admissions.keys() {
            controller.admit(*remote);
        }
        tables.set_config(config(options, device.index, &controller))?;
        let out = program(&mut ebpf, object::OUT)?;
        place.attach(out, attachment)?;
        let out_program = out.info()?.id();
        place.remove_other(attachment)?;
        let mut stale = uplinks::left_behind(&dir, handle, &netlink.links()?)?;
        stale.remove(&device.index);
        let announcer = Announcer::open(options.family, options.fwmark).inspect_err(|error| {
            tracing::warn!(%error, "a firewall on this host that lets in only answers may keep peers out");
        });
        tracing::debug!(device = %device.name, ?origin, ?attachment, peers = peers.len(), "steering is in place");
        Ok(Self {
            dir,
            origin,
            attachment,
            out_program,
            handle,
            ebpf,
            tables,
            slots: Slots::without(&used),
            peers,
            admissions,
            received: BTreeMap::new(),
            uplinks: BTreeMap::new(),
            stale,
            controller: Arc::new(controller),
            carrier: Arc::new(Carrier::new(descriptor, options.family, options.wireguard_port)),
            announcer: announcer.ok(),
            options: options.clone(),
            device,
        })
    }

    /// Removes every trace: programs, pins, device, routes. Nothing there is no error. Before [`crate::acl::Acl::remove`],
    /// which removes the folder that all of it is in.
    pub fn remove(interface: &LinkName, bpf_dir: &FsPath) -> Result<(), SteerError> {
        let dir = folder(bpf_dir, interface);
        let name = device::name_of(interface)?;
        let netlink = Netlink::open()?;
        let handle = uplinks::handle_of(name.as_str());
        let links = netlink.links()?;
        for index in uplinks::left_behind(&dir, handle, &links)? {
            let link = links.iter().find(|link| link.index == index);
            uplinks::detach_uplink(&dir, handle, index, link)?;
        }
        let device = links.iter().find(|link| link.name == name.as_str());
        out_place(&dir, handle, name.as_str(), device.map_or(0, |link| link.index))
            .remove_link(device.map(|link| link.index))?;
        device::remove(&netlink, &name)?;
        Ok(bpffs::remove(&dir)?)
    }

    /// What was found.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// How the programs are attached.
    pub fn attachment(&self) -> Attachment {
        self.attachment
    }

    /// The device that stable endpoints are routed to.
    pub fn device(&self) -> &Link {
        &self.device
    }

    /// What WireGuard gets as a peer's endpoint, once and for all.
    pub fn stable_endpoint(&self, peer: PeerId) -> SocketAddr {
        peer.stable_endpoint(self.options.family)
    }

    /// The controller's sockets.
    pub fn controller(&self) -> Arc<Controller> {
        Arc::clone(&self.controller)
    }

    /// The door of the carriers.
    pub fn carrier(&self) -> Arc<Carrier> {
        Arc::clone(&self.carrier)
    }

    /// Lets a firewall of this host that passes only answers expect packets of the peer, for the 30 s for which connection
    /// tracking remembers a question.
    pub fn announce(&self, peer: PeerId) -> std::io::Result<()> {
        let port = self.options.wireguard_port;
        self.announcer.as_ref().map_or(Ok(()), |announcer| announcer.announce(peer, port))
    }

    /// Follows WireGuard to another listen port. Paths keep the local port that they were given: set them anew.
    pub fn set_wireguard_port(&mut self, port: u16) -> Result<(), SteerError> {
        self.options.wireguard_port = port;
        self.controller.set_wireguard_port(port);
        self.carrier.set_wireguard_port(port);
        self.tables.set_config(config(&self.options, self.device.index, &self.controller))
    }

    /// Treats a further UDP port like WireGuard's: its packets from admitted remotes go to WireGuard, everything else to
    /// whoever is bound there. Not kept over a restart.
    pub fn open_port(&mut self, port: u16) -> Result<(), SteerError> {
        self.tables.set_port(port, true);
        Ok(())
    }

    /// Ends [`Steer::open_port`].
    pub fn close_port(&mut self, port: u16) -> Result<(), SteerError> {
        self.tables.set_port(port, false);
        Ok(())
    }

    /// Does what waits for its time: ends admissions, frees slots. Returns when it has to be called again.
    pub fn housekeep(&mut self, now: Instant) -> Option<Instant> {
        let next = self.end_admissions(now).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot end an admission; trying again");
            Some(now + std::time::Duration::from_secs(1))
        });
        [next, self.slots.wake(now)].into_iter().flatten().min()
    }

    /// Forgets a peer: its paths, the remotes that are let in as it, its counters.
    pub fn forget_peer(&mut self, peer: PeerId) -> Result<(), SteerError> {
        if peer.0 != 0 {
            self.set_path(peer, None, None)?;
        }
        let remotes: Vec<SocketAddr> = self
            .admissions
            .iter()
            .filter(|(_, known)| known.peer == peer)
            .map(|(remote, _)| *remote)
            .collect();
        for remote in remotes {
            self.shut_out(remote)?;
        }
        self.peers.remove(&peer);
        self.received.remove(&peer);
        self.carrier.forget(peer);
        Ok(())
    }

    /// Attaches again what somebody has detached.
    pub fn attach_again(&mut self) -> Result<(), SteerError> {
        bpffs::create(&self.dir)?;
        let name = self.device.name.clone();
        let place = out_place(&self.dir, self.handle, &name, self.device.index);
        if !place.holds(self.attachment, self.out_program)? {
            place.attach(program(&mut self.ebpf, object::OUT)?, self.attachment)?;
        }
        let uplinks: Vec<Uplink> = self
            .uplinks
            .iter()
            .map(|(index, uplink)| Uplink { index: *index, addresses: uplink.addresses.clone() })
            .collect();
        let report = self.set_uplinks(&uplinks)?;
        report.failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Runs a program on a packet with an Ethernet header.
    pub fn test_run(
        &self,
        program: &'static str,
        options: TestRunOptions<'_>,
    ) -> Result<TestRunResult, SteerError> {
        Ok(self.program(program)?.test_run(options)?)
    }

    /// One of [`PROGRAMS`].
    pub fn program(&self, name: &'static str) -> Result<&SchedClassifier, SteerError> {
        let program = self.ebpf.program(name).ok_or(BpfError::Object { what: name })?;
        Ok(program.try_into()?)
    }

    fn device_place(&self) -> Place<'_> {
        out_place(&self.dir, self.handle, &self.device.name, self.device.index)
    }
}

fn out_place<'a>(dir: &FsPath, handle: u16, interface: &'a str, index: u32) -> Place<'a> {
    Place {
        interface,
        index,
        side: Direction::Egress,
        pin: dir.join("out"),
        marker: dir.join("clsact"),
        handle,
    }
}

fn config(options: &Options, device: u32, controller: &Controller) -> Config {
    Config {
        device,
        wireguard_port_be: options.wireguard_port.to_be(),
        controller_port_be: controller.port().to_be(),
        family: match options.family {
            Family::V4 => 4,
            Family::V6 => 6,
        },
        unknown_per_second: options.unknown_per_second,
        control_per_second: options.control_per_second,
    }
}

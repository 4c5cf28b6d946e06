//! The links that packets leave and enter by: which programs are on them, and which addresses are ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ghostwire_ebpf_abi::event::Direction;

use super::device::number_of;
use super::{PeerId, Steer, SteerError, object};
use crate::bpf::attach::{Place, remove_qdisc};
use crate::bpf::object::program;
use crate::netlink::{Link, Netlink};

/// A link of this node that leads to the world: not WireGuard's, not loopback, no other tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Index of the interface.
    pub index: u32,
    /// Its usable addresses.
    pub addresses: Vec<IpAddr>,
}

/// What [`Steer::set_uplinks`] did.
#[derive(Debug, Default)]
pub struct UplinkReport {
    /// Interfaces that the programs were attached to.
    pub attached: Vec<u32>,
    /// Interfaces that they were detached from, or that are gone.
    pub detached: Vec<u32>,
    /// Interfaces where that failed. Paths by them are refused.
    pub failed: Vec<(u32, SteerError)>,
    /// Peers that lost a path: its uplink, its address or its route is gone.
    pub lost: Vec<PeerId>,
}

/// An uplink in use.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) mtu: u32,
    /// Without an Ethernet header.
    pub(super) layer3: bool,
    /// Numbers of the programs, ingress and egress.
    programs: [u32; 2],
}

const SIDES: [Direction; 2] = [Direction::Ingress, Direction::Egress];

impl Steer {
    /// Makes these the uplinks: attaches to new ones, detaches from what is not named, follows their addresses, and looks
    /// whether there still is a way for every path. To be called whenever links, addresses or routes have changed. An uplink that
    /// fails does not keep the others from being used.
    pub fn set_uplinks(&mut self, wanted: &[Uplink]) -> Result<UplinkReport, SteerError> {
        let netlink = Netlink::open()?;
        let links: BTreeMap<u32, Link> =
            netlink.links()?.into_iter().map(|link| (link.index, link)).collect();
        let mut report = UplinkReport::default();
        let mut uplinks = BTreeMap::new();
        for uplink in wanted {
            let Some(link) = links.get(&uplink.index).filter(|link| !link.is_ours() && !link.loopback) else {
                let local = uplink.addresses.first().copied().unwrap_or(IpAddr::from([0; 4]));
                report.failed.push((uplink.index, SteerError::NotAnUplink { uplink: uplink.index, local }));
                continue;
            };
            match self.attach_uplink(link, uplink) {
                Ok((attached, is_new)) => {
                    if is_new {
                        report.attached.push(link.index);
                    }
                    uplinks.insert(link.index, attached);
                }
                Err(error) => report.failed.push((link.index, error)),
            }
        }
        let stale: BTreeSet<u32> = self.stale.iter().chain(self.uplinks.keys()).copied().collect();
        for index in stale.into_iter().filter(|index| !uplinks.contains_key(index)) {
            detach_uplink(&self.dir, self.handle, index, links.get(&index))?;
            report.detached.push(index);
        }
        self.stale.clear();
        let locals: Vec<(IpAddr, u32)> = uplinks
            .iter()
            .flat_map(|(index, uplink)| uplink.addresses.iter().map(|address| (*address, *index)))
            .collect();
        self.uplinks = uplinks;
        self.tables.set_locals(&locals)?;
        report.lost = self.refresh_paths()?;
        Ok(report)
    }

    /// Whether all programs are where they were attached. A few system calls for each uplink.
    pub fn is_attached(&self) -> Result<bool, SteerError> {
        if !self.device_place().holds(self.attachment, self.out_program)? {
            return Ok(false);
        }
        for (index, uplink) in &self.uplinks {
            for (place, program) in
                places(&self.dir, self.handle, &uplink.name, *index).iter().zip(uplink.programs)
            {
                if !place.holds(self.attachment, program)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Puts the programs onto an uplink unless they are there. True: they were not.
    fn attach_uplink(&mut self, link: &Link, uplink: &Uplink) -> Result<(Attached, bool), SteerError> {
        let layer3 = link.hardware != libc::ARPHRD_ETHER;
        let names =
            if layer3 { [object::IN_IP, object::UPLINK_OUT_IP] } else { [object::IN, object::UPLINK_OUT] };
        let places = places(&self.dir, self.handle, &link.name, link.index);
        let mut programs = [0; 2];
        for (number, name) in programs.iter_mut().zip(names) {
            *number = program(&mut self.ebpf, name)?.info()?.id();
        }
        let mut is_new = false;
        for ((place, name), number) in places.iter().zip(names).zip(programs) {
            if !place.holds(self.attachment, number)? {
                place.refuse_others()?;
                place.attach(program(&mut self.ebpf, name)?, self.attachment)?;
                place.remove_other(self.attachment)?;
                is_new = true;
            }
        }
        let attached = Attached {
            name: link.name.clone(),
            addresses: uplink.addresses.clone(),
            mtu: link.mtu,
            layer3,
            programs,
        };
        Ok((attached, is_new))
    }
}

/// Ingress and egress of an uplink.
fn places<'a>(dir: &Path, handle: u16, interface: &'a str, index: u32) -> [Place<'a>; 2] {
    SIDES.map(|side| Place {
        interface,
        index,
        side,
        pin: dir.join(format!("{index}-{}", if side == Direction::Ingress { "in" } else { "out" })),
        marker: marker(dir, index),
        handle,
    })
}

/// Folder that says that the clsact qdisc of an interface is of our making.
fn marker(dir: &Path, index: u32) -> std::path::PathBuf {
    dir.join(format!("{index}-clsact"))
}

/// Takes the programs off an interface, or forgets one that is gone.
pub(super) fn detach_uplink(
    dir: &Path,
    handle: u16,
    index: u32,
    link: Option<&Link>,
) -> Result<(), SteerError> {
    let name = link.map_or("", |link| link.name.as_str());
    for place in places(dir, handle, name, index) {
        place.remove_link(link.map(|_| index))?;
        if link.is_some() {
            place.remove_filter()?;
        }
    }
    if link.is_some() {
        remove_qdisc(name, index, &marker(dir, index))?;
    } else if marker(dir, index).exists() {
        // The qdisc has gone with the interface.
        let _gone = fs::remove_dir(marker(dir, index));
    }
    Ok(())
}

/// Interfaces where an earlier process left programs: by pins and markers, and by filters where there are no pins.
pub(super) fn left_behind(dir: &Path, handle: u16, links: &[Link]) -> Result<BTreeSet<u32>, SteerError> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(index) = name.split_once('-').and_then(|(index, _)| index.parse().ok()) {
            found.insert(index);
        }
    }
    for link in links {
        for place in places(dir, handle, &link.name, link.index) {
            if place.has_filter()? {
                found.insert(link.index);
            }
        }
    }
    Ok(found)
}

/// The number by which our clsact filters are known among those of other daemons.
pub(super) fn handle_of(device: &str) -> u16 {
    number_of(device) | 1
}

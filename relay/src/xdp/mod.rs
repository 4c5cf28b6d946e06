//! The XDP program: loaded, attached to interfaces, pinned, fed and counted.
//!
//! Maps and links are pinned, so the program goes on relaying when this process is stopped, killed or upgraded; the
//! next one takes the maps over and replaces the program in the links, each in one step.

mod bpffs;
mod driver;
pub mod routes;

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp as Program, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod};
use ghostwire_relay_fastpath::abi::{
    COUNTERS, COUNTERS_LEN, Counter, CounterWords, INTERFACES, PAIRS, PROGRAM, SETTINGS, Settings,
    SettingsWords,
};
use ghostwire_relay_fastpath::pace::EventPace;
use ghostwire_relay_fastpath::table::WORDS;
use nix::ifaddrs::InterfaceAddress;
use nix::net::if_::InterfaceFlags;
use thiserror::Error;
use tracing::{info, warn};

use crate::limits::Rate;
use crate::sessions::config::{Config, Limits};
use crate::table::MapTable;

/// The program, as the build made it from source.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("GHOSTWIRE_RELAY_EBPF_OBJECT"));

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By the driver where it can, else by the kernel's generic code.
    Auto,
    /// By the driver, or not at all.
    Native,
    /// By the kernel's generic code.
    Generic,
}

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder in the BPF filesystem.
    pub dir: PathBuf,
    /// Where to attach.
    pub interfaces: Vec<String>,
    /// How.
    pub mode: Mode,
    /// Lines of the pair table.
    pub lines: u32,
    /// Limits of handshakes, STUN requests and reports.
    pub settings: Settings,
}

/// What failed.
#[derive(Debug, Error)]
pub enum XdpError {
    /// The object cannot be loaded.
    #[error("cannot load the XDP program; it takes root (CAP_BPF, CAP_NET_ADMIN) and Linux 6.1")]
    Load(#[from] EbpfError),
    /// The kernel refuses the program.
    #[error("the kernel refuses the XDP program")]
    Program(#[from] ProgramError),
    /// A map cannot be used.
    #[error("a map of the XDP program cannot be used")]
    Map(#[from] MapError),
    /// The object lacks something.
    #[error("the XDP object holds no {0}")]
    Object(&'static str),
    /// The pair table cannot be mapped.
    #[error("the pair table cannot be mapped into memory")]
    Table(#[source] io::Error),
    /// The program cannot be attached.
    #[error(
        "cannot attach the XDP program to {interface}; is another one there (`ip link show {interface}`)?"
    )]
    Attach {
        /// Where.
        interface: String,
        /// Why.
        source: ProgramError,
    },
    /// A link cannot be kept.
    #[error("cannot pin or open the XDP link at {path}")]
    Link {
        /// Where.
        path: PathBuf,
        /// Why.
        source: LinkError,
    },
    /// The BPF filesystem.
    #[error("cannot {action} {path}")]
    Pin {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nowhere to attach.
    #[error(
        "no interface but the loopback device has the relay's addresses; name those for the XDP program \
         (--xdp-interface)"
    )]
    NoInterface,
    /// Not the BPF filesystem.
    #[error(
        "{path} is not on a BPF filesystem; mount one (`mount -t bpf bpf /sys/fs/bpf`) or choose a folder there"
    )]
    NotBpffs {
        /// Where.
        path: PathBuf,
    },
}

/// How an interface got its program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Which.
    pub interface: String,
    /// Whether the driver runs it.
    pub native: bool,
    /// Whether it was there before, and has gone on without a break.
    pub adopted: bool,
}

/// The program at work. Dropping it leaves everything as it is; [`remove`] takes it away.
pub struct Xdp {
    counters: PerCpuArray<MapData, Counters>,
    attached: Vec<Attached>,
    table: MapTable,
    // The links are the kernel's by their pins; the program's and the maps' descriptors are kept for tests and metrics.
    ebpf: Ebpf,
}

impl std::fmt::Debug for Xdp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Xdp").field("attached", &self.attached).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Counters(CounterWords);

// SAFETY: words of 64 bits, any of which is valid.
unsafe impl Pod for Counters {}

/// Settings of a relay with these limits.
pub fn settings(limits: &Limits) -> Settings {
    Settings {
        handshakes: pace(limits.session.handshakes),
        stun: pace(limits.control),
        reports: pace(Rate { per_second: 100, burst: 20 }),
    }
}

fn pace(rate: Rate) -> EventPace {
    let cost = 1_000_000_000 / rate.per_second.max(1);
    EventPace { cost, burst: cost.saturating_mul(rate.burst) }
}

impl Xdp {
    /// Loads the program and attaches it; goes on with what an earlier process has left, if that fits.
    pub fn open(options: &Options) -> Result<Self, XdpError> {
        bpffs::prepare(&options.dir)?;
        let names = [PAIRS, SETTINGS, COUNTERS, INTERFACES, "BYTES", "HANDSHAKES", "STUN", "REPORTS"];
        if !fits(&options.dir.join(PAIRS), options.lines) {
            bpffs::remove_maps(&options.dir)?;
        }
        let mut loader = EbpfLoader::new();
        loader.map_max_entries(PAIRS, options.lines);
        for name in names {
            loader.map_pin_path(name, options.dir.join(name));
        }
        let mut this = Self::from_ebpf(loader.load(OBJECT)?, options.lines, &options.settings)?;
        this.attach(options)?;
        Ok(this)
    }

    /// Loads the program and attaches it nowhere, with maps of its own: for tests and benchmarks.
    pub fn detached(lines: u32, settings: &Settings) -> Result<Self, XdpError> {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries(PAIRS, lines);
        Self::from_ebpf(loader.load(OBJECT)?, lines, settings)
    }

    fn from_ebpf(mut ebpf: Ebpf, lines: u32, settings: &Settings) -> Result<Self, XdpError> {
        let program: &mut Program = ebpf.program_mut(PROGRAM).ok_or(XdpError::Object(PROGRAM))?.try_into()?;
        program.load()?;
        let pairs = ebpf.map(PAIRS).ok_or(XdpError::Object(PAIRS))?;
        let Map::Array(pairs) = pairs else { return Err(XdpError::Object(PAIRS)) };
        let table = MapTable::new(pairs.fd().as_fd(), lines).map_err(XdpError::Table)?;
        let map = ebpf.map_mut(SETTINGS).ok_or(XdpError::Object(SETTINGS))?;
        Array::<_, SettingsWords>::try_from(map)?.set(0, settings.words(), 0)?;
        let counters = ebpf.take_map(COUNTERS).ok_or(XdpError::Object(COUNTERS))?;
        Ok(Self { counters: counters.try_into()?, attached: Vec::new(), table, ebpf })
    }

    /// The pair table's memory.
    pub fn table(&self) -> &MapTable {
        &self.table
    }

    /// Where the program is.
    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// The program, to run it on frames.
    pub fn program(&self) -> Result<&Program, XdpError> {
        Ok(self.ebpf.program(PROGRAM).ok_or(XdpError::Object(PROGRAM))?.try_into()?)
    }

    /// Packets and bytes by what became of them, over all processors.
    pub fn counters(&self) -> Result<[[u64; 2]; COUNTERS_LEN], XdpError> {
        let mut sums = [[0; 2]; COUNTERS_LEN];
        for Counters(each) in self.counters.get(&0, 0)?.iter() {
            for (sum, value) in sums.iter_mut().flatten().zip(each) {
                *sum += value;
            }
        }
        Ok(sums)
    }

    /// Packets of one kind.
    pub fn packets(&self, counter: Counter) -> Result<u64, XdpError> {
        Ok(self.counters()?.get(counter as usize).map_or(0, |[packets, _]| *packets))
    }

    fn attach(&mut self, options: &Options) -> Result<(), XdpError> {
        let mut left = bpffs::links(&options.dir)?;
        for link in left.iter().filter(|link| !options.interfaces.contains(&link.interface)) {
            info!(
                interface = link.interface,
                "the XDP program is detached: the interface is not to be used any more"
            );
            bpffs::remove(&link.path)?;
        }
        left.retain(|link| options.interfaces.contains(&link.interface));
        for interface in &options.interfaces {
            let earlier = left.iter().filter(|link| link.interface == *interface);
            let attached = match self.adopt(earlier)? {
                Some(attached) => attached,
                None => self.attach_anew(interface, options)?,
            };
            info!(interface, native = attached.native, adopted = attached.adopted, "XDP program attached");
            self.attached.push(attached);
        }
        self.allow(&options.interfaces)
    }

    /// Says where frames may be redirected to.
    fn allow(&mut self, interfaces: &[String]) -> Result<(), XdpError> {
        let map = self.ebpf.map_mut(INTERFACES).ok_or(XdpError::Object(INTERFACES))?;
        let mut allowed: HashMap<_, u32, u32> = map.try_into()?;
        let index = |name: &String| nix::net::if_::if_nametoindex(name.as_str()).ok();
        let wanted: Vec<u32> = interfaces.iter().filter_map(index).collect();
        let old: Vec<u32> = allowed.keys().collect::<Result<_, _>>()?;
        for index in old.iter().filter(|index| !wanted.contains(index)) {
            allowed.remove(index)?;
        }
        for index in wanted {
            allowed.insert(index, 0, 0)?;
        }
        Ok(())
    }

    /// Goes on with an earlier process's link.
    fn adopt<'a>(
        &mut self,
        links: impl Iterator<Item = &'a bpffs::Link>,
    ) -> Result<Option<Attached>, XdpError> {
        let mut adopted = None;
        for link in links {
            let program: &mut Program =
                self.ebpf.program_mut(PROGRAM).ok_or(XdpError::Object(PROGRAM))?.try_into()?;
            match replace(program, &link.path) {
                Ok(()) => {
                    let (interface, native) = (link.interface.clone(), link.native);
                    adopted = Some(Attached { interface, native, adopted: true });
                }
                // The link of an interface that is gone; one of the same name has come in its place.
                Err(error) => {
                    warn!(interface = link.interface, %error, "an earlier link cannot be taken over");
                    bpffs::remove(&link.path)?;
                }
            }
        }
        Ok(adopted)
    }

    fn attach_anew(&mut self, interface: &str, options: &Options) -> Result<Attached, XdpError> {
        let program: &mut Program =
            self.ebpf.program_mut(PROGRAM).ok_or(XdpError::Object(PROGRAM))?.try_into()?;
        let failed = |source| XdpError::Attach { interface: interface.to_owned(), source };
        let (id, native) = match options.mode {
            Mode::Native => (program.attach(interface, XdpMode::Driver).map_err(failed)?, true),
            Mode::Generic => (program.attach(interface, XdpMode::Skb).map_err(failed)?, false),
            // veth delivers what a program sends back only while its other end has a program, too, which cannot be
            // seen from here: packets would vanish (veth_xdp_flush, Linux 7.3).
            Mode::Auto if driver::driver(interface).is_ok_and(|name| name == "veth") => {
                (program.attach(interface, XdpMode::Skb).map_err(failed)?, false)
            }
            Mode::Auto => match program.attach(interface, XdpMode::Driver) {
                Ok(id) => (id, true),
                Err(error) => {
                    warn!(interface, %error, "the driver does not run XDP programs; the kernel's generic code does");
                    (program.attach(interface, XdpMode::Skb).map_err(failed)?, false)
                }
            },
        };
        let link: XdpLink = program.take_link(id)?;
        let path = bpffs::Link::new(&options.dir, interface, native).path;
        let link: FdLink = link.try_into().map_err(|source| XdpError::Link { path: path.clone(), source })?;
        link.pin(&path).map_err(|error| bpffs::pin_error("pin a link at", &path, io::Error::other(error)))?;
        Ok(Attached { interface: interface.to_owned(), native, adopted: false })
    }
}

/// Replaces the program of a pinned link.
fn replace(program: &mut Program, path: &Path) -> Result<(), XdpError> {
    let link_error = |source| XdpError::Link { path: path.to_owned(), source };
    let link: FdLink = PinnedLink::from_pin(path).map_err(link_error)?.into();
    let link: XdpLink = link.try_into().map_err(link_error)?;
    let id = program.attach_to_link(link)?;
    // The pin keeps it; this process shall not detach it when it ends.
    let link: XdpLink = program.take_link(id)?;
    let _descriptor: FdLink = link.try_into().map_err(link_error)?;
    Ok(())
}

/// Whether a pinned pair table has this size and shape.
fn fits(path: &Path, lines: u32) -> bool {
    let Ok(info) = MapInfo::from_pin(path) else { return false };
    info.max_entries() == lines && info.value_size() as usize == WORDS * 8
}

/// Detaches the program and removes everything of it.
pub fn remove(dir: &Path) -> Result<(), XdpError> {
    if !dir.exists() {
        return Ok(());
    }
    // The link is destroyed with its last reference, which is the pin unless a relay is at work.
    bpffs::remove_folder(dir)
}

/// The interfaces that have the relay's addresses, but for the loopback device.
pub fn interfaces_of(config: &Config) -> Result<Vec<String>, XdpError> {
    let mut names = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let ours = ip_of(&interface).is_some_and(|ip| config.locals.iter().any(|local| local.local == ip));
        let loopback = interface.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        if ours && !loopback && !names.contains(&interface.interface_name) {
            names.push(interface.interface_name);
        }
    }
    if names.is_empty() { Err(XdpError::NoInterface) } else { Ok(names) }
}

fn ip_of(interface: &InterfaceAddress) -> Option<IpAddr> {
    let address = interface.address?;
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

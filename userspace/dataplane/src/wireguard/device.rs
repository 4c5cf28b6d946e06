//! One device with one of two engines behind it.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use super::{
    DeviceConfig, DeviceStatus, Error, Helper, PeerConfig, PeerUpdate, PublicKey, Update, UserspaceDevice,
    adopt, difference, kernel, spawn_userspace,
};
use crate::netlink::{Link, LinkName, Netlink};

/// Which engine runs a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// WireGuard in the kernel.
    Kernel,
    /// gotatun on a TUN device, in a process of its own.
    Userspace,
}

impl Backend {
    /// What this kernel offers: tries to make a WireGuard interface (which loads the module if it
    /// can be loaded) and deletes it again.
    pub fn detect() -> Result<Self, Error> {
        let netlink = Netlink::open()?;
        let name: LinkName = format!("gwtry{:x}", std::process::id()).parse()?;
        match netlink.create_wireguard_link(&name) {
            Ok(()) => {
                if let Some(link) = netlink.link(&name)? {
                    netlink.delete_link(&link)?;
                }
                Ok(Self::Kernel)
            }
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => Ok(Self::Userspace),
            Err(error) => Err(error.into()),
        }
    }

    /// Its name for people: `kernel` or `userspace`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Which engine is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// What is there already; else the kernel's if it has one; else userspace.
    #[default]
    Auto,
    /// The kernel's or none.
    Kernel,
    /// Userspace even if the kernel has one.
    Userspace,
}

impl Choice {
    /// Whether this engine will do.
    fn accepts(self, backend: Backend) -> bool {
        match self {
            Self::Auto => true,
            Self::Kernel => backend == Backend::Kernel,
            Self::Userspace => backend == Backend::Userspace,
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "kernel" => Ok(Self::Kernel),
            "userspace" => Ok(Self::Userspace),
            other => Err(format!("{other:?} is not one of auto, kernel, userspace")),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        })
    }
}

/// How to open a device.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the interface.
    pub name: LinkName,
    /// Which engine.
    pub choice: Choice,
    /// Where userspace devices keep their sockets.
    pub uapi_dir: PathBuf,
    /// How to start a userspace device.
    pub helper: Helper,
}

/// Where an open device came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// It was made just now: without key, peers and addresses, and down.
    Created,
    /// An earlier run left it: with its peers, sessions and addresses, passing packets.
    Adopted,
}

/// A WireGuard device that is ours.
#[derive(Debug)]
pub struct Device {
    name: LinkName,
    netlink: Netlink,
    engine: Engine,
}

#[derive(Debug)]
enum Engine {
    Kernel,
    Userspace(UserspaceDevice),
}

impl Device {
    /// Adopts the device of this name that is ours, or makes it, in the calling thread's network
    /// namespace. Refuses an interface of this name that is not ours. A device of ours with another
    /// engine than the chosen one is replaced, as is a userspace device that does not answer.
    pub fn open(options: &Options) -> Result<(Self, Opened), Error> {
        let netlink = Netlink::open()?;
        let name = &options.name;
        if let Some(link) = netlink.link(name)? {
            if !link.is_ours() {
                let kind = link.kind.unwrap_or_else(|| "hardware".to_owned());
                return Err(Error::NameTaken { name: name.clone(), kind });
            }
            if let Some(engine) = find_engine(options, &link)? {
                return Ok((Self { name: name.clone(), netlink, engine }, Opened::Adopted));
            }
            tracing::info!(interface = %name, "replacing an interface of ours that does not serve");
            stop(options, &netlink, &link)?;
        }
        let engine = create(options, &netlink)?;
        Ok((Self { name: name.clone(), netlink, engine }, Opened::Created))
    }

    /// Which engine runs it.
    pub fn backend(&self) -> Backend {
        match self.engine {
            Engine::Kernel => Backend::Kernel,
            Engine::Userspace(_) => Backend::Userspace,
        }
    }

    /// Name of its interface.
    pub fn name(&self) -> &LinkName {
        &self.name
    }

    /// Its interface, for addresses, routes and MTU.
    pub fn link(&self) -> Result<Link, Error> {
        self.netlink.link(&self.name)?.filter(Link::is_ours).ok_or_else(|| Error::Gone(self.name.clone()))
    }

    /// What it is: key, port, peers with endpoints, handshakes and bytes.
    pub fn status(&self) -> Result<DeviceStatus, Error> {
        match &self.engine {
            Engine::Kernel => kernel::status(&self.name),
            Engine::Userspace(device) => device.status(),
        }
    }

    /// Makes the device what it is to be, and returns what had to be changed. Nothing else is
    /// touched: peers that stay as they are keep their sessions.
    pub fn apply(&self, device: &DeviceConfig, peers: &[PeerConfig]) -> Result<Update, Error> {
        let update = difference(&self.status()?, device, peers);
        if !update.is_empty() {
            self.change(&update)?;
        }
        Ok(update)
    }

    /// Makes exactly this change.
    pub fn change(&self, update: &Update) -> Result<(), Error> {
        match &self.engine {
            Engine::Kernel => {
                // The library below makes an interface that is not there.
                self.link()?;
                kernel::apply(&self.name, update)
            }
            Engine::Userspace(device) => device.change(update),
        }
    }

    /// Sends a peer's packets elsewhere from now on. Its session goes on.
    pub fn set_endpoint(&self, peer: &PublicKey, endpoint: SocketAddr) -> Result<(), Error> {
        let change = PeerUpdate { endpoint: Some(endpoint), update_only: true, ..PeerUpdate::new(*peer) };
        self.change(&Update { peers: vec![change], ..Update::default() })
    }

    /// Removes the device with everything in it. It is no error if it is gone already.
    pub fn delete(self) -> Result<(), Error> {
        if let Engine::Userspace(device) = &self.engine {
            device.stop()?;
        }
        if let Some(link) = self.netlink.link(&self.name)?.filter(Link::is_ours) {
            self.netlink.delete_link(&link)?;
        }
        Ok(())
    }
}

/// The engine behind an interface of ours, if it is a wanted one and alive.
fn find_engine(options: &Options, link: &Link) -> Result<Option<Engine>, Error> {
    let backend = match link.kind.as_deref() {
        Some("wireguard") => Backend::Kernel,
        Some("tun") => Backend::Userspace,
        _ => return Ok(None),
    };
    if !options.choice.accepts(backend) {
        return Ok(None);
    }
    match backend {
        Backend::Kernel => Ok(Some(Engine::Kernel)),
        Backend::Userspace => Ok(adopt(&options.name, &options.uapi_dir)?.map(Engine::Userspace)),
    }
}

/// Ends what is behind an interface of ours.
fn stop(options: &Options, netlink: &Netlink, link: &Link) -> Result<(), Error> {
    if let Some(device) = adopt(&options.name, &options.uapi_dir)? {
        device.stop()?;
    }
    // A userspace process whose TUN device is deleted ends by itself.
    Ok(netlink.delete_link(link)?)
}

fn create(options: &Options, netlink: &Netlink) -> Result<Engine, Error> {
    if options.choice != Choice::Userspace {
        match netlink.create_wireguard_link(&options.name) {
            Ok(()) => {
                let link = netlink.existing_link(&options.name)?;
                let marked = netlink.make_no_link_local(&link).and_then(|()| netlink.mark_ours(&link));
                if let Err(error) = marked {
                    // Left unmarked it would be refused the next time.
                    netlink.delete_link(&link)?;
                    return Err(error.into());
                }
                return Ok(Engine::Kernel);
            }
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => {
                if options.choice == Choice::Kernel {
                    return Err(Error::NoKernelSupport);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    spawn_userspace(&options.helper, &options.name, &options.uapi_dir).map(Engine::Userspace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_read_as_they_are_written() {
        for choice in [Choice::Auto, Choice::Kernel, Choice::Userspace] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert!("Kernel".parse::<Choice>().is_err());
    }
}

//! Addresses of interfaces.

use std::net::IpAddr;

use ipnet::IpNet;
use neli::{
    consts::{
        nl::NlmF,
        rtnl::{Ifa, IfaF, RtAddrFamily, RtScope, Rtm},
    },
    rtnl::{Ifaddrmsg, IfaddrmsgBuilder},
    types::{Buffer, RtBuffer},
};

use super::{
    Error, Link, Netlink,
    connection::{attribute, attributes, find, ip, number, octets},
};

/// One address of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub index: u32,
    /// The address and its prefix length.
    pub net: IpNet,
    /// IFA_F_* flags.
    pub flags: u32,
}

impl Address {
    /// Whether packets may leave from it now: duplicate detection is over and it has not run out.
    pub fn usable(&self) -> bool {
        self.flags & (libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED | libc::IFA_F_DEPRECATED) == 0
    }

    /// Whether it is a link-local address, which the kernel manages itself.
    pub fn link_local(&self) -> bool {
        match self.net.addr() {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        }
    }

    pub(super) fn from_message(message: &Ifaddrmsg) -> Option<Self> {
        let list = message.rtattrs();
        // On point-to-point interfaces IFA_ADDRESS is the far end.
        let address = find(list, Ifa::Local).or_else(|| find(list, Ifa::Address)).and_then(ip)?;
        let flags = find(list, Ifa::Flags).and_then(number);
        Some(Self {
            index: *message.ifa_index(),
            net: IpNet::new(address, *message.ifa_prefixlen()).ok()?,
            flags: flags.unwrap_or_else(|| message.ifa_flags().bits().into()),
        })
    }
}

fn family(address: IpAddr) -> RtAddrFamily {
    if address.is_ipv4() { RtAddrFamily::Inet } else { RtAddrFamily::Inet6 }
}

fn message(index: u32, net: IpNet, action: impl FnOnce() -> String) -> Result<Ifaddrmsg, Error> {
    let bytes = octets(net.addr());
    IfaddrmsgBuilder::default()
        .ifa_family(family(net.addr()))
        .ifa_prefixlen(net.prefix_len())
        // Overlay addresses are unique by assignment; duplicate detection would only delay them.
        .ifa_flags(if net.addr().is_ipv6() { IfaF::NODAD } else { IfaF::empty() })
        .ifa_scope(RtScope::Universe)
        .ifa_index(index)
        .rtattrs(attributes([attribute(Ifa::Local, &bytes), attribute(Ifa::Address, &bytes)]))
        .build()
        .map_err(|error| Error::Exchange { action: action(), reason: error.to_string() })
}

impl Netlink {
    /// All addresses of all interfaces.
    pub fn addresses(&self) -> Result<Vec<Address>, Error> {
        let action = || "list the addresses of the network interfaces".to_owned();
        let message = IfaddrmsgBuilder::default()
            .ifa_family(RtAddrFamily::Unspecified)
            .ifa_prefixlen(0)
            .ifa_scope(RtScope::Universe)
            .ifa_index(0)
            .rtattrs(RtBuffer::<Ifa, Buffer>::new())
            .build()
            .map_err(|error| Error::Exchange { action: action(), reason: error.to_string() })?;
        let answers: Vec<Ifaddrmsg> = self.query(Rtm::Getaddr, NlmF::DUMP, &message, action)?;
        Ok(answers.iter().filter_map(Address::from_message).collect())
    }

    /// Gives an interface an address; nothing happens if it has it already.
    pub fn add_address(&self, link: &Link, net: IpNet) -> Result<(), Error> {
        let action = || format!("add address {net} to interface {}", link.name);
        let message = message(link.index, net, action)?;
        match self.change(Rtm::Newaddr, NlmF::CREATE | NlmF::REPLACE, message, action) {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Takes an address away; it is no error if it is not there.
    pub fn remove_address(&self, link: &Link, net: IpNet) -> Result<(), Error> {
        let action = || format!("remove address {net} from interface {}", link.name);
        let message = message(link.index, net, action)?;
        match self.change(Rtm::Deladdr, NlmF::empty(), message, action) {
            Err(error) if error.errno() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            other => other,
        }
    }

    /// Makes `wanted` the addresses of an interface that is ours: adds what is missing, then removes
    /// what is too much. Link-local addresses are the kernel's and stay. Returns whether anything
    /// changed.
    pub fn set_addresses(&self, link: &Link, wanted: &[IpNet]) -> Result<bool, Error> {
        let present: Vec<IpNet> = self
            .addresses()?
            .into_iter()
            .filter(|address| address.index == link.index && !address.link_local())
            .map(|address| address.net)
            .collect();
        let mut changed = false;
        for net in wanted.iter().filter(|net| !present.contains(net)) {
            self.add_address(link, *net)?;
            changed = true;
        }
        for net in present.iter().filter(|net| !wanted.contains(net)) {
            self.remove_address(link, *net)?;
            changed = true;
        }
        Ok(changed)
    }
}

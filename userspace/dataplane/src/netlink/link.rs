//! Network interfaces.

use std::{fmt, io::Cursor, str::FromStr};

use neli::{
    FromBytesWithInput,
    consts::{
        nl::NlmF,
        rtnl::{Arphrd, Iff, Ifla, IflaInfo, RtAddrFamily, Rtm},
    },
    rtnl::{Ifinfomsg, IfinfomsgBuilder, RtattrBuilder},
    types::{Buffer, RtBuffer},
};

use super::{
    Error, Netlink,
    connection::{attribute, attributes, find, number, string},
};

/// The alias (IFLA_IFALIAS) that marks an interface as made by us. An interface of the same name
/// without it belongs to somebody else and is refused.
pub const OWNER_ALIAS: &str = "ghostwire";

/// An interface name that the kernel would accept.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName(String);

impl LinkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LinkName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let fits = !name.is_empty() && name.len() < libc::IFNAMSIZ && name != "." && name != "..";
        let clean = !name.bytes().any(|byte| {
            byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0 || byte == 0x0b
        });
        if fits && clean { Ok(Self(name.to_owned())) } else { Err(Error::InvalidName(name.to_owned())) }
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

/// One interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique in the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The kind of a virtual interface (`wireguard`, `tun`, `veth`, `bridge`); hardware has none.
    pub kind: Option<String>,
    /// Free text that its maker attached.
    pub alias: Option<String>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Hardware type (ARPHRD_*).
    pub hardware: u16,
    /// Administratively up.
    pub up: bool,
    /// It has a carrier.
    pub carrier: bool,
    /// It is the loopback interface.
    pub loopback: bool,
    /// Index of the bridge or bond that it is enslaved to.
    pub master: Option<u32>,
}

impl Link {
    /// Whether we made this interface.
    pub fn is_ours(&self) -> bool {
        self.alias.as_deref() == Some(OWNER_ALIAS)
    }

    pub(super) fn from_message(message: &Ifinfomsg) -> Option<Self> {
        let list = message.rtattrs();
        let flags = *message.ifi_flags();
        Some(Self {
            index: u32::try_from(*message.ifi_index()).ok()?,
            name: string(find(list, Ifla::Ifname)?),
            kind: find(list, Ifla::Linkinfo).and_then(kind_of),
            alias: find(list, Ifla::Ifalias).map(string).filter(|alias| !alias.is_empty()),
            mtu: find(list, Ifla::Mtu).and_then(number).unwrap_or(0),
            hardware: (*message.ifi_type()).into(),
            up: flags.contains(Iff::UP),
            carrier: flags.contains(Iff::LOWERUP),
            loopback: flags.contains(Iff::LOOPBACK),
            master: find(list, Ifla::Master).and_then(number),
        })
    }
}

fn kind_of(linkinfo: &[u8]) -> Option<String> {
    let nested =
        RtBuffer::<IflaInfo, Buffer>::from_bytes_with_input(&mut Cursor::new(linkinfo), linkinfo.len())
            .ok()?;
    find(&nested, IflaInfo::Kind).map(string)
}

/// A request about interface `index` (0: named by an attribute) that changes `flags`.
fn request(
    index: u32,
    flags: Iff,
    list: RtBuffer<Ifla, Buffer>,
    action: impl FnOnce() -> String,
) -> Result<Ifinfomsg, Error> {
    IfinfomsgBuilder::default()
        .ifi_family(RtAddrFamily::Unspecified)
        .ifi_type(Arphrd::from(0))
        .ifi_index(index.cast_signed())
        .ifi_flags(flags)
        .ifi_change(Iff::UP)
        .rtattrs(list)
        .build()
        .map_err(|error| Error::Exchange { action: action(), reason: error.to_string() })
}

/// Address family of [`nested`] attributes of IPv6 (socket.h).
const AF_INET6: u16 = 10;
/// linux/if_link.h.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// An attribute whose type is not one of the library's, with its padding.
fn nested(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + payload.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

impl Netlink {
    /// All interfaces of the namespace.
    pub fn links(&self) -> Result<Vec<Link>, Error> {
        let action = || "list the network interfaces".to_owned();
        let message = request(0, Iff::empty(), RtBuffer::new(), action)?;
        let answers: Vec<Ifinfomsg> = self.query(Rtm::Getlink, NlmF::DUMP, &message, action)?;
        Ok(answers.iter().filter_map(Link::from_message).collect())
    }

    /// The interface of this name, if there is one.
    pub fn link(&self, name: &LinkName) -> Result<Option<Link>, Error> {
        let action = || format!("look up interface {name}");
        let list = attributes([attribute(Ifla::Ifname, &terminated(name.as_str()))]);
        let message = request(0, Iff::empty(), list, action)?;
        match self.query::<_, Ifinfomsg>(Rtm::Getlink, NlmF::ACK, &message, action) {
            Ok(answers) => Ok(answers.iter().find_map(Link::from_message)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The interface of this name; it is an error if there is none.
    pub fn existing_link(&self, name: &LinkName) -> Result<Link, Error> {
        self.link(name)?.ok_or_else(|| Error::NoSuchLink(name.clone()))
    }

    /// Makes a kernel WireGuard interface, down and not yet marked as ours. Fails with EEXIST if the
    /// name is taken, EOPNOTSUPP if the kernel has no WireGuard.
    pub fn create_wireguard_link(&self, name: &LinkName) -> Result<(), Error> {
        self.create_link(name, "wireguard")
    }

    fn create_link(&self, name: &LinkName, kind: &str) -> Result<(), Error> {
        let action = || format!("create {kind} interface {name}");
        let info = attributes([attribute(IflaInfo::Kind, kind.as_bytes())]);
        let info = RtattrBuilder::default().rta_type(Ifla::Linkinfo).rta_payload(info).build().ok();
        let list = attributes([attribute(Ifla::Ifname, &terminated(name.as_str())), info]);
        let message = request(0, Iff::empty(), list, action)?;
        self.change(Rtm::Newlink, NlmF::CREATE | NlmF::EXCL, message, action)
    }

    /// Marks an interface as made by us.
    pub fn mark_ours(&self, link: &Link) -> Result<(), Error> {
        let action = || format!("set the alias of interface {}", link.name);
        let list = attributes([attribute(Ifla::Ifalias, OWNER_ALIAS.as_bytes())]);
        let message = self.setting(link, list, action)?;
        self.change(Rtm::Setlink, NlmF::empty(), message, action)
    }

    /// Has the kernel make no link-local address of its own for an interface (IFLA_INET6_ADDR_GEN_MODE none): a mesh
    /// carries none, and with one come router solicitations and multicast reports. For before it is first brought up.
    /// Where IPv6 is switched off there is nothing to do.
    pub fn make_no_link_local(&self, link: &Link) -> Result<(), Error> {
        let action = || format!("keep interface {} from making link-local addresses", link.name);
        let mode = nested(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
        let list = attributes([attribute(Ifla::AfSpec, &nested(AF_INET6, &mode))]);
        let message = self.setting(link, list, action)?;
        match self.change(Rtm::Setlink, NlmF::empty(), message, action) {
            Err(error) if error.errno() == Some(libc::EAFNOSUPPORT) => Ok(()),
            other => other,
        }
    }

    /// Sets the MTU; nothing happens if it is so already.
    pub fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), Error> {
        let action = || format!("set the MTU of interface {} to {mtu}", link.name);
        let list = attributes([attribute(Ifla::Mtu, &mtu.to_ne_bytes())]);
        let message = self.setting(link, list, action)?;
        self.change(Rtm::Setlink, NlmF::empty(), message, action)
    }

    /// Brings an interface up.
    pub fn set_up(&self, link: &Link) -> Result<(), Error> {
        let action = || format!("bring up interface {}", link.name);
        let message = request(link.index, Iff::UP, RtBuffer::new(), action)?;
        self.change(Rtm::Setlink, NlmF::empty(), message, action)
    }

    /// Takes an interface down. Its routes go with it.
    pub fn set_down(&self, link: &Link) -> Result<(), Error> {
        let action = || format!("take down interface {}", link.name);
        let message = request(link.index, Iff::empty(), RtBuffer::new(), action)?;
        self.change(Rtm::Setlink, NlmF::empty(), message, action)
    }

    /// Deletes an interface; it is no error if it is gone already.
    pub fn delete_link(&self, link: &Link) -> Result<(), Error> {
        let action = || format!("delete interface {}", link.name);
        let message = request(link.index, Iff::empty(), RtBuffer::new(), action)?;
        match self.change(Rtm::Dellink, NlmF::empty(), message, action) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// A request that leaves the up flag as it is.
    #[expect(clippy::unused_self, reason = "reads as part of the methods that use it")]
    fn setting(
        &self,
        link: &Link,
        list: RtBuffer<Ifla, Buffer>,
        action: impl FnOnce() -> String,
    ) -> Result<Ifinfomsg, Error> {
        IfinfomsgBuilder::default()
            .ifi_family(RtAddrFamily::Unspecified)
            .ifi_index(link.index.cast_signed())
            .rtattrs(list)
            .build()
            .map_err(|error| Error::Exchange { action: action(), reason: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_refuses_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-byte-nam", "tab\t", "nul\0"] {
            assert!(bad.parse::<LinkName>().is_err(), "{bad:?}");
        }
        for good in ["gw0", "fifteen-bytes-x", "a.b", "wg-home"] {
            assert_eq!(good.parse::<LinkName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn truncated_link_information_has_no_kind() {
        for length in 0..8 {
            let bytes = [12_u8, 0, 1, 0, b'w', b'g', 0, 0];
            assert_eq!(kind_of(&bytes[..length]), None, "{length}");
        }
    }
}

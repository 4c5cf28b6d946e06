//! Policy routing, and what it comes to.

use std::net::IpAddr;

use ipnet::IpNet;
use neli::{
    consts::{
        nl::NlmF,
        rtnl::{Rtm, Rtn},
    },
    rtnl::Rtmsg,
    types::Buffer,
};

use super::{Error, Netlink, ROUTE_PROTOCOL, connection::octets};

/// `FR_ACT_TO_TBL` of linux/fib_rules.h.
const TO_TABLE: u8 = 1;
const FRA_DST: u16 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_PROTOCOL: u16 = 21;

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_MARK: u16 = 16;
/// `RTM_F_FIB_MATCH`: the entry of the table, and none made up.
const FIB_MATCH: u32 = 0x2000;

/// What the kernel answers where there is no way.
const NO_WAY: [i32; 7] = [
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::ENODEV,
    libc::EINVAL,
    libc::EACCES,
    libc::ENETDOWN,
    libc::EADDRNOTAVAIL,
];

/// A message: eight bytes, flags, attributes.
fn message(head: [u8; 8], flags: u32, attributes: &[(u16, &[u8])]) -> Buffer {
    let mut bytes = head.to_vec();
    bytes.extend(flags.to_ne_bytes());
    for (kind, payload) in attributes {
        let length = u16::try_from(4 + payload.len()).unwrap_or(u16::MAX);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(*payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    Buffer::from(bytes)
}

fn family(address: IpAddr) -> u8 {
    u8::try_from(if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }).unwrap_or(0)
}

/// The rule that packets to `to` look into the main table.
fn to_main(to: IpNet, priority: u32) -> Buffer {
    let head = [family(to.addr()), to.prefix_len(), 0, 0, libc::RT_TABLE_MAIN, 0, 0, TO_TABLE];
    let (address, priority) = (octets(to.addr()), priority.to_ne_bytes());
    message(head, 0, &[(FRA_DST, &address), (FRA_PRIORITY, &priority), (FRA_PROTOCOL, &[ROUTE_PROTOCOL])])
}

impl Netlink {
    /// Has all packets to `to` look into the main table first, marked or not: other rules must not lead them elsewhere.
    /// A kernel without policy routing has no such rules.
    pub fn add_main_rule(&self, to: IpNet, priority: u32) -> Result<(), Error> {
        let action = || format!("add a rule for {to}");
        match self.change(Rtm::Newrule, NlmF::CREATE | NlmF::EXCL, to_main(to, priority), action) {
            Err(error)
                if matches!(error.errno(), Some(libc::EEXIST | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Removes that rule; it is no error if it is not there.
    pub fn remove_main_rule(&self, to: IpNet, priority: u32) -> Result<(), Error> {
        let action = || format!("remove the rule for {to}");
        match self.change(Rtm::Delrule, NlmF::empty(), to_main(to, priority), action) {
            Err(error)
                if matches!(error.errno(), Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Whether a packet from `local` to `remote` can leave by interface `uplink`. (Asked without the table's entry, the
    /// kernel would make up that `remote` is on the link.)
    pub fn has_route(&self, remote: IpAddr, local: IpAddr, uplink: u32, mark: u32) -> Result<bool, Error> {
        let action = || format!("look up the route to {remote} by interface {uplink}");
        let (to, from) = (octets(remote), octets(local));
        let bits = u8::try_from(to.len() * 8).unwrap_or(0);
        let (oif, mark) = (uplink.to_ne_bytes(), mark.to_ne_bytes());
        let attributes: [(u16, &[u8]); 4] =
            [(RTA_DST, &to), (RTA_SRC, &from), (RTA_OIF, &oif), (RTA_MARK, &mark)];
        let request = message([family(remote), bits, bits, 0, 0, 0, 0, 0], FIB_MATCH, &attributes);
        match self.query::<_, Rtmsg>(Rtm::Getroute, NlmF::ACK, &request, action) {
            Ok(entries) => Ok(entries.iter().any(|entry| *entry.rtm_type() == Rtn::Unicast)),
            Err(error) if error.errno().is_some_and(|errno| NO_WAY.contains(&errno)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

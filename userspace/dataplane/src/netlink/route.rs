//! Routes. Ours carry a protocol number of our own; no other route is ever changed or removed.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use neli::{
    consts::{
        nl::NlmF,
        rtnl::{RtAddrFamily, RtScope, RtTable, Rta, Rtm, RtmF, Rtn, Rtprot},
    },
    rtnl::{Rtmsg, RtmsgBuilder},
    types::{Buffer, RtBuffer},
};

use super::{
    Error, Link, Netlink,
    connection::{attribute, find, ip, number, octets},
};

/// Who made a route (`rtm_protocol`): 71, the letter G. Not in use in iproute2's rt_protos.
pub const ROUTE_PROTOCOL: u8 = 71;

/// Metric that the kernel gives IPv6 routes that ask for none.
const IPV6_DEFAULT_METRIC: u32 = 1024;

/// One route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it leads; the host part of the address is zero.
    pub destination: IpNet,
    /// Index of the interface it leaves by, 0 for none (unreachable, multipath).
    pub index: u32,
    /// Next hop, if it is not on the link.
    pub gateway: Option<IpAddr>,
    /// Source address for packets that have none yet.
    pub source: Option<IpAddr>,
    /// Preference, lower first.
    pub metric: u32,
    /// Who made it.
    pub protocol: u8,
}

impl Route {
    /// A route of ours to `destination` through `link`, on the link.
    pub fn through(link: &Link, destination: IpNet) -> Self {
        let destination = destination.trunc();
        Self {
            destination,
            index: link.index,
            gateway: None,
            source: None,
            metric: if destination.addr().is_ipv4() { 0 } else { IPV6_DEFAULT_METRIC },
            protocol: ROUTE_PROTOCOL,
        }
    }

    /// The same with a source address for packets that have none yet.
    #[must_use]
    pub fn from_source(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// The same with a preference of its own.
    #[must_use]
    pub fn with_metric(mut self, metric: u32) -> Self {
        self.metric = metric;
        self
    }

    /// Whether we made it.
    pub fn is_ours(&self) -> bool {
        self.protocol == ROUTE_PROTOCOL
    }

    /// Whether the kernel would take it for the same place in the table.
    fn collides(&self, other: &Self) -> bool {
        self.destination == other.destination && self.metric == other.metric
    }

    pub(super) fn from_message(message: &Rtmsg) -> Option<Self> {
        let list = message.rtattrs();
        let table = find(list, Rta::Table).and_then(number);
        let main = u32::from(libc::RT_TABLE_MAIN);
        if table.unwrap_or_else(|| u8::from(*message.rtm_table()).into()) != main
            || message.rtm_flags().contains(RtmF::CLONED)
        {
            return None;
        }
        let length = *message.rtm_dst_len();
        let destination = match (*message.rtm_family(), find(list, Rta::Dst).and_then(ip)) {
            (_, Some(address)) => IpNet::new(address, length).ok()?,
            (RtAddrFamily::Inet, None) => IpNet::V4(Ipv4Net::default()),
            (RtAddrFamily::Inet6, None) => IpNet::V6(Ipv6Net::default()),
            _ => return None,
        };
        Some(Self {
            destination,
            index: find(list, Rta::Oif).and_then(number).unwrap_or(0),
            gateway: find(list, Rta::Gateway).and_then(ip),
            source: find(list, Rta::Prefsrc).and_then(ip),
            metric: find(list, Rta::Priority).and_then(number).unwrap_or(0),
            protocol: (*message.rtm_protocol()).into(),
        })
    }

    fn to_message(&self, action: impl FnOnce() -> String) -> Result<Rtmsg, Error> {
        let mut list = RtBuffer::<Rta, Buffer>::new();
        let parts = [
            attribute(Rta::Dst, &octets(self.destination.addr())),
            attribute(Rta::Oif, &self.index.to_ne_bytes()),
            self.gateway.and_then(|gateway| attribute(Rta::Gateway, &octets(gateway))),
            self.source.and_then(|source| attribute(Rta::Prefsrc, &octets(source))),
            (self.metric != 0).then(|| attribute(Rta::Priority, &self.metric.to_ne_bytes())).flatten(),
        ];
        for part in parts.into_iter().flatten() {
            list.push(part);
        }
        let on_link = self.gateway.is_none() && self.destination.addr().is_ipv4();
        RtmsgBuilder::default()
            .rtm_family(family(self.destination))
            .rtm_dst_len(self.destination.prefix_len())
            .rtm_src_len(0)
            .rtm_tos(0)
            .rtm_table(RtTable::Main)
            .rtm_protocol(Rtprot::from(self.protocol))
            .rtm_scope(if on_link { RtScope::Link } else { RtScope::Universe })
            .rtm_type(Rtn::Unicast)
            .rtattrs(list)
            .build()
            .map_err(|error| Error::Exchange { action: action(), reason: error.to_string() })
    }
}

fn family(net: IpNet) -> RtAddrFamily {
    if net.addr().is_ipv4() { RtAddrFamily::Inet } else { RtAddrFamily::Inet6 }
}

impl Netlink {
    /// The main table, both families, whoever made the routes.
    pub fn routes(&self) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for family in [RtAddrFamily::Inet, RtAddrFamily::Inet6] {
            let action = || "list the routes".to_owned();
            let message = RtmsgBuilder::default()
                .rtm_family(family)
                .rtm_dst_len(0)
                .rtm_src_len(0)
                .rtm_tos(0)
                .rtm_table(RtTable::Unspec)
                .rtm_protocol(Rtprot::Unspec)
                .rtm_scope(RtScope::Universe)
                .rtm_type(Rtn::Unspec)
                .rtattrs(RtBuffer::new())
                .build()
                .map_err(|error| Error::Exchange { action: action(), reason: error.to_string() })?;
            let answers: Vec<Rtmsg> = self.query(Rtm::Getroute, NlmF::DUMP, &message, action)?;
            routes.extend(answers.iter().filter_map(Route::from_message));
        }
        Ok(routes)
    }

    /// Our routes of the main table.
    pub fn own_routes(&self) -> Result<Vec<Route>, Error> {
        let mut routes = self.routes()?;
        routes.retain(Route::is_ours);
        Ok(routes)
    }

    /// Makes sure that a route of ours is there, replacing only a route of ours.
    pub fn replace_route(&self, route: &Route) -> Result<(), Error> {
        self.place_route(route, &self.routes()?).map(|_| ())
    }

    /// Removes a route of ours; it is no error if it is not there.
    pub fn remove_route(&self, route: &Route) -> Result<(), Error> {
        let action = || format!("remove route {}", route.destination);
        // The protocol is part of the request, so that the kernel matches only ours.
        let message = route.to_message(action)?;
        match self.change(Rtm::Delroute, NlmF::empty(), message, action) {
            Err(error) if error.errno() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Makes `wanted` our routes through `link`: adds and corrects, then removes what is too much.
    /// Returns whether anything changed. A foreign route in the place of one of ours does not keep
    /// the others from being set: it is reported at the end.
    pub fn set_routes(&self, link: &Link, wanted: &[Route]) -> Result<bool, Error> {
        let present = self.routes()?;
        let mut changed = false;
        let mut conflict = None;
        for route in wanted {
            match self.place_route(route, &present) {
                Ok(placed) => changed |= placed,
                Err(error @ Error::ForeignRoute { .. }) => conflict = Some(error),
                Err(error) => return Err(error),
            }
        }
        let stale = present.iter().filter(|route| {
            route.is_ours()
                && route.index == link.index
                && !wanted.iter().any(|wanted| wanted.collides(route))
        });
        for route in stale {
            self.remove_route(route)?;
            changed = true;
        }
        conflict.map_or(Ok(changed), Err)
    }

    fn place_route(&self, route: &Route, present: &[Route]) -> Result<bool, Error> {
        let action = || format!("add route {}", route.destination);
        let flags = match present.iter().find(|other| other.collides(route)) {
            Some(same) if same == route => return Ok(false),
            Some(ours) if ours.is_ours() => NlmF::REPLACE,
            Some(foreign) => return Err(foreign.in_the_way()),
            None => NlmF::EXCL,
        };
        let message = route.to_message(action)?;
        match self.change(Rtm::Newroute, NlmF::CREATE | flags, message, action) {
            // Somebody was faster than we were between listing and adding.
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                let now = self.routes()?;
                match now.iter().find(|other| other.collides(route)) {
                    Some(same) if same == route => Ok(true),
                    Some(other) => Err(other.in_the_way()),
                    None => Err(error),
                }
            }
            other => other.map(|()| true),
        }
    }
}

impl Route {
    fn in_the_way(&self) -> Error {
        Error::ForeignRoute {
            destination: self.destination,
            metric: self.metric,
            protocol: self.protocol,
            index: self.index,
        }
    }
}

//! What others change: links, addresses, routes and packet filters, as it happens.

use std::{collections::VecDeque, io::Cursor};

use neli::{
    FromBytesWithInput,
    consts::{rtnl::Rtm, socket::NlFamily},
    nl::NlPayload,
    rtnl::{Ifaddrmsg, Ifinfomsg, Rtmsg},
    socket::asynchronous::NlSocketHandle,
    types::Buffer,
    utils::Groups,
};

use super::{
    Address, Error, Link, Route,
    connection::{io_error, number},
};

/// One change to the namespace's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An interface appeared or changed.
    Link(Link),
    /// An interface went away.
    LinkGone(Link),
    /// An interface got an address, or the address changed its state.
    Address(Address),
    /// An interface lost an address.
    AddressGone(Address),
    /// A route of the main table appeared or changed.
    Route(Route),
    /// A route of the main table went away.
    RouteGone(Route),
    /// An interface lost a clsact filter, or a qdisc with all its filters. Links of programs (tcx) go unannounced.
    FilterGone {
        /// Index of the interface.
        interface: u32,
    },
    /// The kernel had more to tell than the socket holds: list everything anew.
    Lost,
}

/// A subscription to the changes in the network namespace of the thread that opened it.
pub struct Monitor {
    socket: NlSocketHandle,
    pending: VecDeque<Change>,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Monitor").field("pending", &self.pending).finish_non_exhaustive()
    }
}

impl Monitor {
    /// Subscribes. Must be called within a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: subscribe()?, pending: VecDeque::new() })
    }

    /// The next change. Cancel safe: a change is never lost by dropping the future.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Ok(change);
            }
            let error = match self.socket.recv::<u16, Buffer>().await {
                Ok((messages, _)) => {
                    let changes = messages.map_while(Result::ok).filter_map(|message| {
                        let NlPayload::Payload(payload) = message.nl_payload() else { return None };
                        parse(Rtm::from(*message.nl_type()), payload.as_ref())
                    });
                    self.pending.extend(changes);
                    continue;
                }
                Err(error) => io_error(error),
            };
            if error.raw_os_error() != Some(libc::ENOBUFS) {
                return Err(Error::Exchange {
                    action: "watch the network for changes".to_owned(),
                    reason: error.to_string(),
                });
            }
            // The kernel drops more, silently, until the full socket has been drained. A new one
            // misses nothing that happens after this change has been handed out.
            self.socket = subscribe()?;
            return Ok(Change::Lost);
        }
    }
}

fn subscribe() -> Result<NlSocketHandle, Error> {
    let groups = Groups::new_groups(&[
        libc::RTNLGRP_LINK,
        libc::RTNLGRP_IPV4_IFADDR,
        libc::RTNLGRP_IPV6_IFADDR,
        libc::RTNLGRP_IPV4_ROUTE,
        libc::RTNLGRP_IPV6_ROUTE,
        libc::RTNLGRP_TC,
    ]);
    NlSocketHandle::connect(NlFamily::Route, None, groups).map_err(|error| Error::Open(io_error(error)))
}

/// The change that a notification tells of, if it is one of those that we follow.
fn parse(kind: Rtm, payload: &[u8]) -> Option<Change> {
    let mut cursor = Cursor::new(payload);
    let length = payload.len();
    match kind {
        Rtm::Newlink | Rtm::Dellink => {
            let message = Ifinfomsg::from_bytes_with_input(&mut cursor, length).ok()?;
            let link = Link::from_message(&message)?;
            Some(if kind == Rtm::Newlink { Change::Link(link) } else { Change::LinkGone(link) })
        }
        Rtm::Newaddr | Rtm::Deladdr => {
            let message = Ifaddrmsg::from_bytes_with_input(&mut cursor, length).ok()?;
            let address = Address::from_message(&message)?;
            Some(if kind == Rtm::Newaddr { Change::Address(address) } else { Change::AddressGone(address) })
        }
        Rtm::Newroute | Rtm::Delroute => {
            let message = Rtmsg::from_bytes_with_input(&mut cursor, length).ok()?;
            let route = Route::from_message(&message)?;
            Some(if kind == Rtm::Newroute { Change::Route(route) } else { Change::RouteGone(route) })
        }
        // `struct tcmsg` of linux/rtnetlink.h: the family and padding, then the interface.
        Rtm::Deltfilter | Rtm::Delqdisc => {
            Some(Change::FilterGone { interface: number(payload.get(4..8)?)? })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parsing_is_total(kind in 16_u16..48, bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            drop(parse(Rtm::from(kind), &bytes));
        }
    }
}

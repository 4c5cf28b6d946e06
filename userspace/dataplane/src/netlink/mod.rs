//! Links, addresses and routes of the calling thread's network namespace, over rtnetlink.
//!
//! [`Netlink`] is one request socket; its methods live with what they act on: [`Link`] in `link`,
//! [`Address`] in `address`, [`Route`] in `route`. [`Monitor`] reports what others change. [`uplinks`]
//! turns what the kernel lists into what a node tells its peers: the local addresses it may be
//! reached at, best first, and the MTU that its tunnel can afford.
//!
//! Requests block for the microseconds that the kernel takes; they are fine on an async thread.
//! Every change is idempotent: what is already so is left alone, and what exists but is not ours is
//! never replaced.

mod address;
mod connection;
mod link;
mod monitor;
mod route;
mod rule;
mod uplinks;

pub use address::Address;
pub use connection::Netlink;
pub use link::{Link, LinkName, OWNER_ALIAS};
pub use monitor::{Change, Monitor};
pub use route::{ROUTE_PROTOCOL, Route};
pub use uplinks::{DEFAULT_MTU, LocalEndpoint, MINIMUM_MTU, Rank, WIREGUARD_OVERHEAD, tunnel_mtu};

use std::io;

use ipnet::IpNet;

/// Why a netlink operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket could be opened.
    #[error("cannot open a netlink socket to the kernel")]
    Open(#[source] io::Error),
    /// The kernel refused a request.
    #[error("cannot {action}{}", explain(explanation.as_deref()))]
    Refused {
        /// What was asked for, and on what: `add address 100.64.0.2/32 to gw0`.
        action: String,
        /// The kernel's own words, if it had any.
        explanation: Option<String>,
        /// The errno that it answered with.
        #[source]
        source: io::Error,
    },
    /// The conversation with the kernel broke down.
    #[error("cannot {action}: the netlink exchange failed: {reason}")]
    Exchange {
        /// What was asked for, and on what.
        action: String,
        /// What went wrong.
        reason: String,
    },
    /// A listing kept changing while it was being read.
    #[error("cannot {0}: it changes faster than it can be read")]
    Unstable(String),
    /// Nothing of this name in this network namespace.
    #[error("there is no network interface {0}")]
    NoSuchLink(LinkName),
    /// Not a name that the kernel accepts for an interface.
    #[error(
        "{0:?} is not an interface name: 1 to 15 bytes, no slash, no colon, no white space, not `.` or `..`"
    )]
    InvalidName(String),
    /// Somebody else's route has the place of ours.
    #[error(
        "route {destination} (metric {metric}) already exists and is not ours (protocol {protocol}, interface {index}): \
         remove it, or withdraw the subnet from the network's policy"
    )]
    ForeignRoute {
        /// Where both lead.
        destination: IpNet,
        /// Their metric.
        metric: u32,
        /// Who made the other one, as in /etc/iproute2/rt_protos.
        protocol: u8,
        /// The interface that the other one leaves by, 0 for none.
        index: u32,
    },
}

impl Error {
    /// The errno that the kernel answered with, if it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

fn explain(words: Option<&str>) -> String {
    words.map_or_else(String::new, |words| format!(" (the kernel says: {words})"))
}

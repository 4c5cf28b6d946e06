//! Pairs: two nodes and the address of each towards the other.

use std::net::SocketAddr;
use std::time::Duration;

use ghostwire_relay_protocol::token::NodeId;

use super::{Order, Owner};
use crate::limits::SessionRate;

/// Two nodes of a network, whichever asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PairId {
    low: Owner,
    high: Owner,
}

impl PairId {
    /// The pair of a node and its peer. `None`: a node is no peer of itself.
    pub(super) fn new(owner: Owner, peer: NodeId) -> Option<Self> {
        let peer = Owner { network: owner.network, node: peer };
        match owner.cmp(&peer) {
            std::cmp::Ordering::Less => Some(Self { low: owner, high: peer }),
            std::cmp::Ordering::Greater => Some(Self { low: peer, high: owner }),
            std::cmp::Ordering::Equal => None,
        }
    }

    /// Both nodes; a node's place here is its leg's place in [`PairState::legs`].
    pub(super) fn owners(self) -> [Owner; 2] {
        [self.low, self.high]
    }

    /// A node's place.
    pub(super) fn side(self, owner: Owner) -> usize {
        usize::from(self.high == owner)
    }
}

/// Where a node is towards its peer: the address from which it bound to the peer's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leg {
    /// The relay's address that it spoke to.
    pub(super) local: u8,
    /// Its address.
    pub(super) source: SocketAddr,
    /// When it ends without a refresh.
    pub(super) expires: Duration,
}

/// What is known of a pair.
#[derive(Clone, Debug)]
pub(super) struct PairState {
    /// Its number in the table.
    pub(super) session: u32,
    /// How often it has changed.
    pub(super) generation: u32,
    /// What it may send.
    pub(super) rate: SessionRate,
    /// The two legs, as [`PairId::owners`] orders the nodes.
    pub(super) legs: [Option<Leg>; 2],
    /// The newest request of each side. Outlives the leg: an old bind must not bring back what was released.
    pub(super) orders: [Option<Order>; 2],
    /// Both legs are behind the same neighbour of the relay, as far as is known.
    pub(super) same_way: bool,
    /// When the last leg ended.
    pub(super) empty_since: Option<Duration>,
}

impl PairState {
    pub(super) fn new(session: u32, rate: SessionRate) -> Self {
        Self {
            session,
            generation: 0,
            rate,
            legs: [None, None],
            orders: [None, None],
            same_way: false,
            empty_since: None,
        }
    }

    /// Whether it carries traffic.
    pub(super) fn is_complete(&self) -> bool {
        self.legs.iter().all(Option::is_some)
    }
}

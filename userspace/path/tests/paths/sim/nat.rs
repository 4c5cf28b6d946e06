//! NATs after RFC 4787.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

/// What a mapping or a filter depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// Endpoint-independent.
    Any,
    /// Address-dependent.
    Address,
    /// Address- and port-dependent.
    AddressPort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Behaviour {
    pub(crate) mapping: Scope,
    pub(crate) filtering: Scope,
    pub(crate) preserves_ports: bool,
    pub(crate) hairpins: bool,
}

/// Mappings die after this long without a packet from inside.
const LIFETIME: Duration = Duration::from_mins(1);

type Key = (SocketAddr, Option<IpAddr>, Option<u16>);

#[derive(Debug)]
struct Mapping {
    key: Key,
    /// To whom it was sent, and when last.
    sent: HashMap<(IpAddr, Option<u16>), Instant>,
    last: Instant,
}

#[derive(Debug)]
pub(crate) struct Nat {
    pub(crate) behaviour: Behaviour,
    pub(crate) outside: IpAddr,
    by_key: HashMap<Key, u16>,
    by_port: HashMap<u16, Mapping>,
}

fn scoped(scope: Scope, address: SocketAddr) -> (Option<IpAddr>, Option<u16>) {
    match scope {
        Scope::Any => (None, None),
        Scope::Address => (Some(address.ip()), None),
        Scope::AddressPort => (Some(address.ip()), Some(address.port())),
    }
}

impl Nat {
    pub(crate) fn new(behaviour: Behaviour, outside: IpAddr) -> Self {
        Self { behaviour, outside, by_key: HashMap::new(), by_port: HashMap::new() }
    }

    /// A reboot, or the provider's NAT losing its memory.
    pub(crate) fn forget(&mut self) {
        self.by_key.clear();
        self.by_port.clear();
    }

    pub(crate) fn outbound(
        &mut self,
        now: Instant,
        rng: &mut StdRng,
        from: SocketAddr,
        to: SocketAddr,
    ) -> SocketAddr {
        let (ip, port) = scoped(self.behaviour.mapping, to);
        let key = (from, ip, port);
        let alive = self.by_key.get(&key).copied().filter(|port| {
            self.by_port.get(port).is_some_and(|mapping| mapping.key == key && now < mapping.last + LIFETIME)
        });
        let port = alive.unwrap_or_else(|| self.new_port(now, rng, from.port()));
        self.by_key.insert(key, port);
        let mapping =
            self.by_port.entry(port).or_insert_with(|| Mapping { key, sent: HashMap::new(), last: now });
        mapping.last = now;
        mapping.sent.insert((to.ip(), Some(to.port())), now);
        mapping.sent.insert((to.ip(), None), now);
        SocketAddr::new(self.outside, port)
    }

    fn new_port(&mut self, now: Instant, rng: &mut StdRng, wanted: u16) -> u16 {
        let mut port =
            if self.behaviour.preserves_ports { wanted } else { rng.random_range(1024..=u16::MAX) };
        while self.by_port.get(&port).is_some_and(|mapping| now < mapping.last + LIFETIME) {
            port = rng.random_range(1024..=u16::MAX);
        }
        self.by_port.remove(&port);
        port
    }

    pub(crate) fn inbound(&mut self, now: Instant, from: SocketAddr, port: u16) -> Option<SocketAddr> {
        let mapping = self.by_port.get(&port).filter(|mapping| now < mapping.last + LIFETIME)?;
        let passes = match self.behaviour.filtering {
            Scope::Any => true,
            Scope::Address => mapping.sent.contains_key(&(from.ip(), None)),
            Scope::AddressPort => mapping.sent.contains_key(&(from.ip(), Some(from.port()))),
        };
        passes.then_some(mapping.key.0)
    }
}

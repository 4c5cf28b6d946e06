//! The network between the two hosts: the Internet, NATs in front of each other, host firewalls.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ghostwire_path::UplinkId;
use rand::rngs::StdRng;

use super::nat::{Behaviour, Nat};

/// The Internet is 0, the inside of the n-th NAT n + 1.
pub(crate) type Realm = usize;
pub(crate) const INTERNET: Realm = 0;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Uplink {
    pub(crate) id: UplinkId,
    pub(crate) realm: Realm,
    pub(crate) address: IpAddr,
    pub(crate) up: bool,
}

/// How a packet looks to a middlebox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Stun,
    WireGuard,
    Quic,
}

#[derive(Debug, Default)]
pub(crate) struct HostNet {
    pub(crate) uplinks: Vec<Uplink>,
    /// Default drop: only what was sent to may answer.
    pub(crate) firewall: bool,
    sent: HashMap<(SocketAddr, SocketAddr), Instant>,
    pub(crate) udp_blocked: bool,
    pub(crate) wireguard_blocked: bool,
}

impl HostNet {
    pub(crate) fn passes(&self, shape: Shape) -> bool {
        let dropped = self.wireguard_blocked && shape == Shape::WireGuard;
        !(self.udp_blocked || dropped)
    }

    pub(crate) fn forget(&mut self) {
        self.sent.clear();
    }
}

#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) nats: Vec<(Realm, Nat)>,
    pub(crate) hosts: [HostNet; 2],
}

/// Where a packet comes out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) host: usize,
    pub(crate) uplink: UplinkId,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// It crossed the Internet.
    pub(crate) far: bool,
}

const FIREWALL_MEMORY: Duration = Duration::from_mins(1);

impl Net {
    pub(crate) fn new() -> Self {
        Self { nats: Vec::new(), hosts: [HostNet::default(), HostNet::default()] }
    }

    pub(crate) fn add_nat(&mut self, parent: Realm, behaviour: Behaviour, outside: IpAddr) -> Realm {
        self.nats.push((parent, Nat::new(behaviour, outside)));
        self.nats.len()
    }

    fn host_at(&self, realm: Realm, address: IpAddr) -> Option<(usize, UplinkId)> {
        (0..2).find_map(|host| {
            let here = |uplink: &&Uplink| uplink.up && uplink.realm == realm && uplink.address == address;
            self.hosts[host].uplinks.iter().find(here).map(|uplink| (host, uplink.id))
        })
    }

    /// Carries a packet from a host, or drops it.
    pub(crate) fn carry(
        &mut self,
        now: Instant,
        rng: &mut StdRng,
        host: usize,
        shape: Shape,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<Arrival> {
        let uplink =
            self.hosts[host].uplinks.iter().find(|uplink| uplink.up && uplink.address == from.ip())?;
        if !self.hosts[host].passes(shape) {
            return None;
        }
        let mut realm = uplink.realm;
        self.hosts[host].sent.insert((from, to), now);
        let (mut from, mut to, mut far) = (from, to, realm == INTERNET);
        for _ in 0..8 {
            if let Some((receiver, uplink)) = self.host_at(realm, to.ip()) {
                if from.is_ipv4() != to.is_ipv4() {
                    return None;
                }
                let net = &self.hosts[receiver];
                let known = net.sent.get(&(to, from)).is_some_and(|sent| now < *sent + FIREWALL_MEMORY);
                let passes = net.passes(shape) && (!net.firewall || known);
                return passes.then_some(Arrival { host: receiver, uplink, from, to, far });
            }
            let inwards =
                self.nats.iter().position(|(parent, nat)| *parent == realm && nat.outside == to.ip());
            if let Some(at) = inwards {
                to = self.nats[at].1.inbound(now, from, to.port())?;
                realm = at + 1;
                continue;
            }
            let (parent, nat) = self.nats.get_mut(realm.checked_sub(1)?)?;
            from = nat.outbound(now, rng, from, to);
            if nat.outside == to.ip() {
                if !nat.behaviour.hairpins {
                    return None;
                }
                to = nat.inbound(now, from, to.port())?;
                continue;
            }
            realm = *parent;
            far |= realm == INTERNET;
        }
        None
    }

    /// What a STUN server on the Internet sees.
    pub(crate) fn reflexive(
        &mut self,
        now: Instant,
        rng: &mut StdRng,
        host: usize,
        from: SocketAddr,
        server: SocketAddr,
    ) -> Option<SocketAddr> {
        let uplink =
            self.hosts[host].uplinks.iter().find(|uplink| uplink.up && uplink.address == from.ip())?;
        if !self.hosts[host].passes(Shape::Stun) {
            return None;
        }
        let (mut realm, mut from) = (uplink.realm, from);
        while let Some((parent, nat)) = realm.checked_sub(1).and_then(|at| self.nats.get_mut(at)) {
            from = nat.outbound(now, rng, from, server);
            realm = *parent;
        }
        Some(from)
    }
}

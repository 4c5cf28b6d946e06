//! One node: the machine and what the edge around it remembers, with what the tests want to know.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ghostwire_path::timing::MAX_PATHS;
use ghostwire_path::{
    Base, CandidateKind, Class, Config, Credentials, Generation, InUse, LocalCandidate, Mapping, NatReport,
    PathMachine, PathState, Reach, RelayId, RelayOffer, Route, Signal, Socket, UplinkId,
};
use rand::RngExt;
use rand::rngs::StdRng;

use super::net::{HostNet, Net, Shape};
use super::{QUIC_PORT, Relay, WIREGUARD_PORT};

pub(crate) struct Node {
    pub(crate) machine: PathMachine,
    generation: u64,
    controlling: bool,
    pub(crate) running: bool,
    /// The daemon runs; without it the kernel carries on, and streams and checks do not.
    pub(crate) daemon: bool,
    /// Carriers asked for.
    pub(crate) wanted: Vec<Route>,
    bound: Vec<(Route, u32)>,
    quic: Vec<Route>,
    pub(crate) admitted: Vec<Route>,
    pub(crate) auxiliary: Vec<Base>,
    pub(crate) last_signal: Option<Box<Signal>>,
    pub(crate) sent: u64,
    pub(crate) last_sent: Instant,
    pub(crate) outputs: u64,
    pub(crate) checks: u64,
    recent_checks: VecDeque<Instant>,
    pub(crate) most_checks_in_a_second: usize,
    wakes: (Option<Instant>, u32),
    /// Changes of the first path: when and to what.
    pub(crate) switches: Vec<(Instant, Option<Route>)>,
    /// What arrived first: when, by which way.
    pub(crate) delivered: Vec<(Instant, u64, Class)>,
}

fn machine(
    rng: &mut StdRng,
    controlling: bool,
    generation: u64,
    credentials: Option<Credentials>,
) -> PathMachine {
    PathMachine::new(Config {
        controlling,
        generation: Generation(generation),
        credentials,
        birthday: true,
        seed: rng.random(),
    })
}

impl Node {
    pub(crate) fn new(host: usize, now: Instant, rng: &mut StdRng) -> Self {
        let controlling = host == 0;
        Self {
            machine: machine(rng, controlling, 1, None),
            generation: 1,
            controlling,
            running: true,
            daemon: true,
            wanted: Vec::new(),
            bound: Vec::new(),
            quic: Vec::new(),
            admitted: Vec::new(),
            auxiliary: Vec::new(),
            last_signal: None,
            sent: 0,
            last_sent: now,
            outputs: 0,
            checks: 0,
            recent_checks: VecDeque::new(),
            most_checks_in_a_second: 0,
            wakes: (None, 0),
            switches: Vec::new(),
            delivered: Vec::new(),
        }
    }

    pub(crate) fn reboot(&mut self, rng: &mut StdRng, credentials: Option<Credentials>) {
        self.generation += 1;
        self.machine = machine(rng, self.controlling, self.generation, credentials);
        self.wanted.clear();
        self.bound.clear();
        self.quic.clear();
        self.admitted.clear();
        self.auxiliary.clear();
    }

    pub(crate) fn has_port(&self, base: Base) -> bool {
        [WIREGUARD_PORT, QUIC_PORT].contains(&base.address.port()) || self.auxiliary.contains(&base)
    }

    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.machine.poll_timeout().filter(|_| self.running && self.daemon)
    }

    /// The machine never asks to be called again and again at the same time.
    pub(crate) fn count_wake(&mut self, now: Instant) {
        let (last, count) = self.wakes;
        let count = if last == Some(now) { count + 1 } else { 0 };
        assert!(count < 200, "busy loop: {}", self.machine.why(now));
        self.wakes = (Some(now), count);
    }

    pub(crate) fn count_check(&mut self, now: Instant) {
        self.checks += 1;
        self.recent_checks.push_back(now);
        while self.recent_checks.front().is_some_and(|at| *at + Duration::from_secs(1) <= now) {
            self.recent_checks.pop_front();
        }
        self.most_checks_in_a_second = self.most_checks_in_a_second.max(self.recent_checks.len());
    }

    pub(crate) fn audit(&self, now: Instant) {
        assert!(self.machine.path_count() <= MAX_PATHS, "{}", self.machine.path_count());
        // An explanation costs more than everything else here: now and then.
        if self.outputs.is_multiple_of(64)
            && let Some((id, _)) = self.machine.in_use().primary
        {
            let why = self.machine.why(now);
            assert!(why.paths.iter().any(|path| path.id == id), "uses a path that is gone: {why}");
        }
    }

    pub(crate) fn switch(&mut self, now: Instant, in_use: InUse) {
        let route = in_use.primary.map(|(_, route)| route);
        if self.switches.last().is_none_or(|(_, last)| *last != route) {
            self.switches.push((now, route));
        }
    }

    pub(crate) fn deliver(&mut self, now: Instant, number: u64, route: Route) {
        let known = self.delivered.iter().rev().take(40).any(|(_, held, _)| *held == number);
        if !known {
            self.delivered.push((now, number, route.class()));
        }
    }

    pub(crate) fn proven_class(&self, now: Instant) -> Option<Class> {
        let why = self.machine.why(now);
        let primary = why.paths.iter().find(|path| Some(path.id) == why.primary)?;
        matches!(primary.state, PathState::Proven | PathState::Doubtful(_)).then(|| primary.route.class())
    }

    /// The longest time without any delivery in the span.
    pub(crate) fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let within = self.delivered.iter().map(|(at, ..)| *at).filter(|at| *at > from && *at < to);
        let mut last = from;
        let mut longest = Duration::ZERO;
        for at in within.chain([to]) {
            longest = longest.max(at.duration_since(last));
            last = at;
        }
        longest
    }

    // Carriers

    pub(crate) fn open(&mut self, route: Route, epoch: u32) -> bool {
        let wanted = self.wanted.contains(&route);
        if wanted {
            self.bound.retain(|(held, _)| *held != route);
            self.bound.push((route, epoch));
        }
        wanted
    }

    pub(crate) fn not_opened(&mut self, route: Route) -> bool {
        let wanted = self.wanted.contains(&route);
        self.wanted.retain(|held| *held != route);
        wanted
    }

    /// True: a QUIC connection ended, which the other side hears.
    pub(crate) fn close(&mut self, route: Route) -> bool {
        let connected = self.quic.contains(&route);
        self.wanted.retain(|held| *held != route);
        self.bound.retain(|(held, _)| *held != route);
        self.quic.retain(|held| *held != route);
        connected
    }

    pub(crate) fn lose_quic(&mut self) -> Vec<Route> {
        std::mem::take(&mut self.quic)
    }

    pub(crate) fn is_bound(&self, route: Route, epoch: u32) -> bool {
        self.bound.contains(&(route, epoch))
    }

    pub(crate) fn is_open(&self, route: Route) -> bool {
        self.quic.contains(&route)
    }

    pub(crate) fn quic_open(&mut self, route: Route) -> bool {
        let new = !self.quic.contains(&route);
        if new {
            self.quic.push(route);
        }
        new
    }
}

/// Which of our sockets has this address.
pub(crate) fn base_at(uplink: UplinkId, address: SocketAddr) -> Option<Base> {
    let socket = match address.port() {
        WIREGUARD_PORT | 40_000..=40_999 => Socket::WireGuard,
        QUIC_PORT => Socket::Quic,
        _ => return None,
    };
    Some(Base { uplink, address, socket })
}

pub(crate) fn gather(
    now: Instant,
    rng: &mut StdRng,
    net: &mut Net,
    host: usize,
    servers: [SocketAddr; 2],
) -> (Vec<LocalCandidate>, NatReport) {
    let mut candidates = Vec::new();
    let mut mapping = Mapping::Unknown;
    let mut udp = None;
    let uplinks: Vec<_> = net.hosts[host].uplinks.iter().filter(|uplink| uplink.up).copied().collect();
    for uplink in uplinks {
        for port in [WIREGUARD_PORT, QUIC_PORT] {
            let address = SocketAddr::new(uplink.address, port);
            let Some(base) = base_at(uplink.id, address) else { continue };
            candidates.push(LocalCandidate { base, kind: CandidateKind::Host, address });
            if address.is_ipv6() {
                udp = Some(net.hosts[host].passes(Shape::Stun));
                continue;
            }
            let seen = servers.map(|server| net.reflexive(now, rng, host, address, server));
            udp = Some(seen[0].is_some());
            let [Some(first), Some(second)] = seen else { continue };
            let kind = CandidateKind::ServerReflexive;
            candidates.push(LocalCandidate { base, kind, address: first });
            if port == WIREGUARD_PORT {
                mapping =
                    if first == second { Mapping::EndpointIndependent } else { Mapping::EndpointDependent };
            }
        }
    }
    (candidates, NatReport { mapping, udp })
}

/// What the node measures about the relays.
pub(crate) fn offers(relays: &[Relay], net: &HostNet) -> Vec<RelayOffer> {
    let offer = |(at, relay): (usize, &Relay)| RelayOffer {
        relay: RelayId(u32::try_from(at).unwrap()),
        udp: if net.passes(Shape::WireGuard) { Reach::Answers(relay.leg * 2) } else { Reach::Blocked },
        tls: Reach::Answers(relay.leg * 2),
    };
    relays.iter().enumerate().map(offer).collect()
}

//! Two nodes, the network between them, a coordinator and relays, all simulated: the edge that a real daemon
//! would be, without sockets. Time jumps from event to event.

pub(crate) mod nat;
pub(crate) mod net;
pub(crate) mod node;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ghostwire_path::{
    Check, Class, Credentials, Framing, InUse, Input, Output, RelayId, Route, Signal, Transaction, UplinkId,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::net::{Arrival, INTERNET, Net, Shape};
use self::node::Node;

pub(crate) const WIREGUARD_PORT: u16 = 51_820;
pub(crate) const QUIC_PORT: u16 = 443;

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Check { check: Check, credentials: Credentials },
    Answer { transaction: Transaction },
    Data { number: u64 },
    QuicHello,
    QuicWelcome,
}

#[derive(Clone, Debug)]
enum Event {
    Packet { arrival: Arrival, body: Body },
    Relayed { host: usize, route: Route, body: Body },
    Signal { host: usize, signal: Box<Signal> },
    Opened { host: usize, route: Route, epoch: u32 },
    NotOpened { host: usize, route: Route },
    Auxiliary { host: usize, bases: Vec<ghostwire_path::Base> },
    QuicAgain { host: usize, route: Route, left: u8 },
    QuicClosed { host: usize },
    Traffic { host: usize },
    Gather { host: usize },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Relay {
    pub(crate) udp: bool,
    pub(crate) tls: bool,
    pub(crate) leg: Duration,
    /// Grows when it restarts: bindings are gone.
    pub(crate) epoch: u32,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) begin: Instant,
    pub(crate) rng: StdRng,
    pub(crate) net: Net,
    pub(crate) relays: Vec<Relay>,
    pub(crate) nodes: [Node; 2],
    pub(crate) coordinator: bool,
    pub(crate) loss: f64,
    pub(crate) delay: Duration,
    pub(crate) delay_v6: Duration,
    pub(crate) jitter: Duration,
    /// Between two packets of an application; `None`: silence.
    pub(crate) traffic: [Option<Duration>; 2],
    queue: BTreeMap<(Instant, u64), Event>,
    next_event: u64,
    undelivered: [Option<Box<Signal>>; 2],
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let now = Instant::now();
        let relay = Relay { udp: true, tls: true, leg: Duration::from_millis(15), epoch: 0 };
        let nodes = [Node::new(0, now, &mut rng), Node::new(1, now, &mut rng)];
        Self {
            now,
            begin: now,
            rng,
            net: Net::new(),
            relays: vec![relay, Relay { leg: Duration::from_millis(25), ..relay }],
            nodes,
            coordinator: true,
            loss: 0.0,
            delay: Duration::from_millis(20),
            delay_v6: Duration::from_millis(20),
            jitter: Duration::from_millis(2),
            traffic: [Some(Duration::from_millis(100)); 2],
            queue: BTreeMap::new(),
            next_event: 0,
            undelivered: [None, None],
        }
    }

    pub(crate) fn start(&mut self) {
        for host in 0..2 {
            self.gather(host);
            self.after(Duration::from_millis(10), Event::Traffic { host });
            self.after(Duration::from_secs(20), Event::Gather { host });
        }
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.now.duration_since(self.begin).as_secs_f64()
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.next_event += 1;
        self.queue.insert((at, self.next_event), event);
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    pub(crate) fn run_for(&mut self, how_long: Duration) {
        let end = self.now + how_long;
        while self.step(end) {}
        self.now = end;
    }

    /// Until the condition holds; how long it took.
    pub(crate) fn run_until(
        &mut self,
        most: Duration,
        mut holds: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let (begin, end) = (self.now, self.now + most);
        while !holds(self) {
            if !self.step(end) {
                return None;
            }
        }
        Some(self.now - begin)
    }

    /// The next thing that happens before `end`.
    fn step(&mut self, end: Instant) -> bool {
        let timer = (0..2).filter_map(|host| Some((self.nodes[host].wake_at()?, host))).min();
        let event = self.queue.first_key_value().map(|((at, _), _)| *at);
        match (timer, event) {
            (Some((at, host)), event) if event.is_none_or(|event| at < event) => {
                if at > end {
                    return false;
                }
                self.now = self.now.max(at);
                self.nodes[host].count_wake(self.now);
                self.input(host, Input::Tick);
                true
            }
            (_, Some(at)) if at <= end => {
                self.now = self.now.max(at);
                if let Some((_, event)) = self.queue.pop_first() {
                    self.handle(event);
                }
                true
            }
            _ => false,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Packet { arrival, body } => self.arrive(arrival, body),
            Event::Relayed { host, route, body } => self.arrive_relayed(host, route, body),
            Event::Signal { host, signal } => self.input(host, Input::Signal(signal)),
            Event::Opened { host, route, epoch } => {
                if self.nodes[host].open(route, epoch) {
                    self.input(host, Input::CarrierUp(route));
                }
            }
            Event::NotOpened { host, route } => {
                if self.nodes[host].not_opened(route) {
                    let why = ghostwire_path::CarrierFailure::Unreachable;
                    self.input(host, Input::CarrierDown(route, why));
                }
            }
            Event::Auxiliary { host, bases } => {
                self.nodes[host].auxiliary.clone_from(&bases);
                self.input(host, Input::AuxiliaryPorts(bases));
            }
            Event::QuicAgain { host, route, left } => self.quic_hello(host, route, left),
            Event::QuicClosed { host } => {
                for route in self.nodes[host].lose_quic() {
                    self.input(host, Input::CarrierDown(route, ghostwire_path::CarrierFailure::Lost));
                }
            }
            Event::Traffic { host } => {
                self.after(self.traffic[host].unwrap_or(Duration::from_millis(500)), Event::Traffic { host });
                if self.traffic[host].is_some() && self.nodes[host].running {
                    self.send_data(host);
                }
            }
            Event::Gather { host } => {
                // The edge asks the STUN server again while any peer is active.
                if self.nodes[host].running && self.nodes[host].machine.is_awake() {
                    self.gather(host);
                }
                self.after(Duration::from_secs(20), Event::Gather { host });
            }
        }
    }

    /// Tells a machine something and does what it wants.
    pub(crate) fn input(&mut self, host: usize, input: Input) {
        if !self.nodes[host].running || !self.nodes[host].daemon {
            return;
        }
        self.nodes[host].machine.handle_input(self.now, input);
        while let Some(output) = self.nodes[host].machine.poll_output() {
            self.output(host, output);
        }
        self.nodes[host].audit(self.now);
    }

    fn output(&mut self, host: usize, output: Output) {
        self.nodes[host].outputs += 1;
        match output {
            Output::SendCheck(check) => {
                self.nodes[host].count_check(self.now);
                let Some(credentials) = self.nodes[host].machine.peer_credentials().cloned() else { return };
                let shape = shape_of(&check.route, check.framing);
                self.send(host, check.route, shape, Body::Check { check, credentials });
            }
            Output::Answer { route, framing, transaction } => {
                let shape = shape_of(&route, framing);
                self.send(host, route, shape, Body::Answer { transaction });
            }
            Output::Signal(signal) => {
                self.nodes[host].last_signal = Some(signal.clone());
                if self.coordinator {
                    self.after(Duration::from_millis(30), Event::Signal { host: 1 - host, signal });
                } else {
                    self.undelivered[host] = Some(signal);
                }
            }
            Output::Open(_, route) => self.open(host, route),
            Output::Close(_, route) => {
                if self.nodes[host].close(route) {
                    self.after(self.delay, Event::QuicClosed { host: 1 - host });
                }
            }
            Output::Admit(_, route) => self.nodes[host].admitted.push(route),
            Output::Dismiss(_, route) => self.nodes[host].admitted.retain(|held| *held != route),
            Output::Use(in_use) => {
                let now = self.now;
                self.nodes[host].switch(now, in_use);
            }
            Output::OpenAuxiliaryPorts { base, count } => {
                let port = |at: u16| SocketAddr::new(base.address.ip(), 40_000 + at);
                let bases = (0..count).map(|at| ghostwire_path::Base { address: port(at), ..base }).collect();
                self.after(Duration::from_millis(5), Event::Auxiliary { host, bases });
            }
            Output::CloseAuxiliaryPorts(bases) => {
                self.nodes[host].auxiliary.retain(|held| !bases.contains(held));
            }
        }
    }

    fn send_data(&mut self, host: usize) {
        self.nodes[host].sent += 1;
        let number = self.nodes[host].sent;
        self.send_by_all(host, number);
        self.input(host, Input::Sent);
    }

    /// WireGuard's passive keepalive: who receives and has nothing to say answers after 10 s.
    fn keepalive(&mut self, host: usize) {
        if self.now.duration_since(self.nodes[host].last_sent) >= Duration::from_secs(10) {
            self.send_by_all(host, 0);
        }
    }

    fn send_by_all(&mut self, host: usize, number: u64) {
        self.nodes[host].last_sent = self.now;
        let InUse { primary, also } = self.nodes[host].machine.in_use();
        for (_, route) in [primary, also].into_iter().flatten() {
            self.send(host, route, shape_of(&route, Framing::Carried), Body::Data { number });
        }
    }

    fn send(&mut self, host: usize, route: Route, shape: Shape, body: Body) {
        if self.rng.random_bool(self.loss) {
            return;
        }
        let jitter = self.jitter.mul_f64(self.rng.random());
        match route {
            Route::Pair { base, remote } => {
                if shape == Shape::Quic && !self.nodes[host].is_open(route) {
                    let opening = matches!(body, Body::QuicHello | Body::QuicWelcome);
                    if !opening {
                        return;
                    }
                }
                let (now, rng) = (self.now, &mut self.rng);
                let Some(arrival) = self.net.carry(now, rng, host, shape, base.address, remote) else {
                    return;
                };
                let far = if remote.is_ipv6() { self.delay_v6 } else { self.delay };
                let delay = if arrival.far { far } else { Duration::from_micros(500) };
                self.after(delay + jitter, Event::Packet { arrival, body });
            }
            Route::RelayPort(relay) | Route::Derp(relay) => {
                let Some(state) = self.relay(relay) else { return };
                if route.class() == Class::Derp && !self.nodes[host].daemon {
                    return;
                }
                if !self.nodes[host].is_bound(route, state.epoch) || !self.reaches(host, route) {
                    return;
                }
                let delay = state.leg * 2 + jitter;
                self.after(delay, Event::Relayed { host: 1 - host, route, body });
            }
        }
    }

    fn relay(&self, relay: RelayId) -> Option<Relay> {
        self.relays.get(usize::try_from(relay.0).ok()?).copied()
    }

    /// Whether a host's packets get to and from the relay.
    pub(crate) fn reaches(&self, host: usize, route: Route) -> bool {
        let net = &self.net.hosts[host];
        let online = net.uplinks.iter().any(|uplink| uplink.up);
        let Some(relay) = route.relay().and_then(|relay| self.relay(relay)) else { return false };
        online
            && match route {
                Route::RelayPort(_) => relay.udp && net.passes(Shape::WireGuard),
                Route::Derp(_) => relay.tls,
                Route::Pair { .. } => false,
            }
    }

    fn arrive_relayed(&mut self, host: usize, route: Route, body: Body) {
        let Some(relay) = route.relay().and_then(|relay| self.relay(relay)) else { return };
        // The stream to the relay belongs to the node; the ports have to be bound for the peer.
        let bound = match route.class() {
            Class::Derp => self.nodes[host].daemon,
            _ => self.nodes[host].is_bound(route, relay.epoch),
        };
        if bound && self.reaches(host, route) {
            self.receive(host, route, body);
        }
    }

    fn arrive(&mut self, arrival: Arrival, body: Body) {
        let host = arrival.host;
        let Some(base) = node::base_at(arrival.uplink, arrival.to) else { return };
        if !self.nodes[host].has_port(base) {
            return;
        }
        self.receive(host, Route::Pair { base, remote: arrival.from }, body);
    }

    fn receive(&mut self, host: usize, route: Route, body: Body) {
        if !self.nodes[host].running {
            return;
        }
        match body {
            Body::Check { check, credentials } => {
                if credentials != *self.nodes[host].machine.credentials() {
                    return;
                }
                if route.class() == Class::Quic
                    && check.framing == Framing::Carried
                    && !self.nodes[host].is_open(route)
                {
                    return;
                }
                self.input(host, Input::CheckReceived(Check { route, ..check }));
            }
            Body::Answer { transaction } => self.input(host, Input::CheckAnswered { transaction, route }),
            Body::Data { number } => {
                // The data plane lets in only what was admitted.
                let closed = route.class() == Class::Quic && !self.nodes[host].is_open(route);
                if route.class().is_relayed() || !closed && self.nodes[host].admitted.contains(&route) {
                    if number > 0 {
                        self.nodes[host].deliver(self.now, number, route);
                        self.keepalive(host);
                    }
                    self.input(host, Input::Received);
                }
            }
            Body::QuicHello => {
                self.nodes[host].quic_open(route);
                self.send(host, route, Shape::Quic, Body::QuicWelcome);
                self.input(host, Input::CarrierUp(route));
            }
            Body::QuicWelcome => {
                if self.nodes[host].quic_open(route) {
                    self.input(host, Input::CarrierUp(route));
                }
            }
        }
    }

    fn open(&mut self, host: usize, route: Route) {
        self.nodes[host].wanted.push(route);
        match route {
            Route::Pair { .. } => self.quic_hello(host, route, 5),
            Route::RelayPort(_) | Route::Derp(_) => {
                let relay = route.relay().and_then(|relay| self.relay(relay));
                let trips = if route.class() == Class::Derp { 6 } else { 4 };
                match relay.filter(|_| self.reaches(host, route)) {
                    Some(relay) => {
                        let event = Event::Opened { host, route, epoch: relay.epoch };
                        self.after(relay.leg * trips, event);
                    }
                    None => self.after(Duration::from_secs(2), Event::NotOpened { host, route }),
                }
            }
        }
    }

    fn quic_hello(&mut self, host: usize, route: Route, left: u8) {
        if !self.nodes[host].wanted.contains(&route) || self.nodes[host].is_open(route) {
            return;
        }
        if left > 0 {
            self.send(host, route, Shape::Quic, Body::QuicHello);
            self.after(Duration::from_millis(400), Event::QuicAgain { host, route, left: left - 1 });
        } else {
            self.handle(Event::NotOpened { host, route });
        }
    }

    // What happens to the network

    /// What the edge does whenever links change, and now and then.
    pub(crate) fn gather(&mut self, host: usize) {
        let servers = [
            SocketAddr::new(IpAddr::V4(Ipv4Addr::new(9, 9, 9, 1)), 3478),
            SocketAddr::new(IpAddr::V4(Ipv4Addr::new(9, 9, 9, 2)), 3478),
        ];
        let (now, rng) = (self.now, &mut self.rng);
        let (candidates, nat) = node::gather(now, rng, &mut self.net, host, servers);
        let relays = node::offers(&self.relays, &self.net.hosts[host]);
        self.input(host, Input::Nat(nat));
        self.input(host, Input::Relays(relays));
        self.input(host, Input::LocalCandidates(candidates));
    }

    pub(crate) fn set_uplink(&mut self, host: usize, id: u32, up: bool) {
        for uplink in &mut self.net.hosts[host].uplinks {
            if uplink.id == UplinkId(id) {
                uplink.up = up;
            }
        }
        self.gather(host);
    }

    pub(crate) fn set_coordinator(&mut self, up: bool) {
        self.coordinator = up;
        if up {
            for host in 0..2 {
                if let Some(signal) = self.undelivered[host].take() {
                    self.after(Duration::from_millis(30), Event::Signal { host: 1 - host, signal });
                }
            }
        }
    }

    pub(crate) fn set_relay(&mut self, relay: usize, up: bool) {
        let state = &mut self.relays[relay];
        if up && !state.tls {
            state.epoch += 1;
        }
        state.udp = up;
        state.tls = up;
    }

    pub(crate) fn rebind(&mut self, nat: usize) {
        if let Some((_, nat)) = self.net.nats.get_mut(nat) {
            nat.forget();
        }
    }

    pub(crate) fn reboot(&mut self, host: usize, keeps_credentials: bool) {
        let kept = keeps_credentials.then(|| self.nodes[host].machine.credentials().clone());
        self.nodes[host].reboot(&mut self.rng, kept);
        self.net.hosts[host].forget();
        self.undelivered[host] = None;
        self.gather(host);
        // The daemon stores the peer's last signal with its map; the coordinator's snapshot brings a newer one.
        if let Some(signal) =
            self.nodes[1 - host].last_signal.clone().filter(|_| self.coordinator || keeps_credentials)
        {
            self.input(host, Input::Signal(signal));
        }
    }

    /// A host sleeps: its clock stands still, everybody else's goes on.
    pub(crate) fn sleep(&mut self, host: usize, how_long: Duration) {
        self.nodes[host].running = false;
        self.run_for(how_long);
        self.nodes[host].running = true;
        self.input(host, Input::Resumed);
        self.gather(host);
    }

    pub(crate) fn class(&self, host: usize) -> Option<Class> {
        self.nodes[host].proven_class(self.now)
    }

    pub(crate) fn both(&self, class: Class) -> bool {
        (0..2).all(|host| self.class(host) == Some(class))
    }

    pub(crate) fn uplink(&mut self, host: usize, id: u32, realm: usize, address: &str) {
        let address = address.parse().unwrap();
        self.net.hosts[host].uplinks.push(net::Uplink { id: UplinkId(id), realm, address, up: true });
    }

    pub(crate) fn public(&mut self, host: usize) {
        self.uplink(host, 1, INTERNET, &format!("198.51.100.{}", host + 1));
    }
}

fn shape_of(route: &Route, framing: Framing) -> Shape {
    match (route.class(), framing) {
        (_, Framing::Stun) => Shape::Stun,
        (Class::Quic, Framing::Carried) => Shape::Quic,
        (_, Framing::Carried) => Shape::WireGuard,
    }
}

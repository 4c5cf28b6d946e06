//! What the world sees of us: plain STUN questions to the relays, from every base. The answers give server-reflexive
//! candidates, the latency of each relay, whether UDP leaves this network, and how the NAT assigns ports.
//!
//! A round asks every server from every base, up to [`TRIES`] times, each time anew so that round trips are exact.
//! Rounds repeat often while there is traffic ([`ACTIVE`]), which also keeps the NAT's mapping alive, and rarely while
//! there is none ([`QUIET`]).

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ghostwire_path::{Base, Mapping, NatReport, Reach, RelayId, Socket, Transaction};
use ghostwire_relay_protocol::stun::Message;
use rand::RngExt;

use super::checks;

/// Between rounds while peers are talked to: below the 30 s after which strict NATs forget a mapping.
pub const ACTIVE: Duration = Duration::from_secs(25);
/// Between rounds otherwise.
pub const QUIET: Duration = Duration::from_mins(5);
/// Questions to one server in a round.
pub const TRIES: u32 = 3;
/// After the first and the second question of a round.
const PATIENCE: Duration = Duration::from_millis(400);
/// After the last one: then the round is over.
const LAST_PATIENCE: Duration = Duration::from_millis(1_500);
/// What was seen within this time was seen through the same mapping, if there is one.
const TOGETHER: Duration = Duration::from_secs(20);
/// What a relay has told is forgotten after this: the NAT may have forgotten it too.
const TOLD_FOR: Duration = Duration::from_mins(2);
/// Questions that may be open.
const MOST_OPEN: usize = 512;

/// A datagram to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// From where.
    pub base: Base,
    /// To which server.
    pub server: SocketAddr,
    /// What.
    pub bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    base: Base,
    server: SocketAddr,
    sent: Instant,
}

/// What one server said to one base.
#[derive(Clone, Copy, Debug)]
struct Seen {
    mapped: SocketAddr,
    /// `None`: told by a relay, which was not asked for the time.
    latency: Option<Duration>,
    at: Instant,
    round: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No round yet, or nobody to ask.
    Idle,
    /// So many questions were asked to each; the next step is at ..
    Asking { tries: u32, next: Instant },
    /// Over; the next round begins at ..
    Over { next: Instant },
}

/// See the module.
#[derive(Debug)]
pub struct Survey {
    bases: Vec<Base>,
    servers: Vec<(RelayId, SocketAddr)>,
    open: HashMap<[u8; 12], Open>,
    seen: BTreeMap<(Base, SocketAddr), Seen>,
    /// How the NAT in front of a base assigns ports; stays until something else is seen.
    mappings: BTreeMap<Base, Mapping>,
    phase: Phase,
    round: u64,
    /// The last round that was over.
    complete: Option<u64>,
    active: bool,
}

impl Default for Survey {
    fn default() -> Self {
        Self::new()
    }
}

impl Survey {
    /// Knows nothing.
    pub fn new() -> Self {
        Self {
            bases: Vec::new(),
            servers: Vec::new(),
            open: HashMap::new(),
            seen: BTreeMap::new(),
            mappings: BTreeMap::new(),
            phase: Phase::Idle,
            round: 0,
            complete: None,
            active: false,
        }
    }

    /// Where from and whom to ask. Something new begins a round at once.
    pub fn set(&mut self, now: Instant, bases: Vec<Base>, servers: Vec<(RelayId, SocketAddr)>) {
        if bases == self.bases && servers == self.servers {
            return;
        }
        if bases != self.bases {
            // Another network: what was seen from the old one says nothing.
            self.complete = None;
            self.mappings.clear();
        }
        self.bases = bases;
        self.servers = servers;
        let (bases, servers) = (&self.bases, &self.servers);
        // Relays' own ports may have told something too: by address only.
        self.seen.retain(|(base, server), _| {
            bases.contains(base) && servers.iter().any(|(_, known)| known.ip() == server.ip())
        });
        self.open.clear();
        self.begin(now);
    }

    /// Whether there is traffic with any peer.
    pub fn set_active(&mut self, now: Instant, active: bool) {
        let woke = active && !self.active;
        self.active = active;
        if let Phase::Over { next } = self.phase
            && woke
        {
            // What was seen may be up to five minutes old.
            self.phase = Phase::Over { next: next.min(now) };
        }
    }

    /// Asks everybody again now: an operator wants to know, or the network may have changed.
    pub fn begin(&mut self, now: Instant) {
        self.round += 1;
        let anybody = self.pairs().next().is_some();
        self.phase = if anybody { Phase::Asking { tries: 0, next: now } } else { Phase::Idle };
    }

    /// Whether a round is running.
    pub fn is_asking(&self) -> bool {
        matches!(self.phase, Phase::Asking { .. })
    }

    fn pairs(&self) -> impl Iterator<Item = (Base, SocketAddr)> + '_ {
        let fits = |base: &Base, server: &SocketAddr| base.address.is_ipv4() == server.is_ipv4();
        self.bases.iter().flat_map(move |base| {
            let servers = self.servers.iter().map(|(_, server)| *server);
            servers.filter(move |server| fits(base, server)).map(|server| (*base, server))
        })
    }

    /// When to call [`Self::on_time`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Idle => None,
            Phase::Asking { next, .. } | Phase::Over { next } => Some(next),
        }
    }

    /// What is to be asked now.
    pub fn on_time(&mut self, now: Instant, rng: &mut impl RngExt) -> Vec<Question> {
        let tries = match self.phase {
            Phase::Over { next } if next <= now => {
                self.round += 1;
                0
            }
            Phase::Asking { tries, next } if next <= now => tries,
            _ => return Vec::new(),
        };
        let unanswered: Vec<(Base, SocketAddr)> = self
            .pairs()
            .filter(|pair| self.seen.get(pair).is_none_or(|seen| seen.round != self.round))
            .collect();
        if tries >= TRIES || (unanswered.is_empty() && tries > 0) {
            self.complete = Some(self.round);
            let round = self.round;
            self.seen.retain(|_, seen| match seen.latency {
                Some(_) => seen.round == round,
                None => now.saturating_duration_since(seen.at) < TOLD_FOR,
            });
            let pause = if self.active { ACTIVE } else { QUIET };
            self.phase = Phase::Over { next: now + pause * rng.random_range(90..=110) / 100 };
            return Vec::new();
        }
        let patience = if tries + 1 == TRIES { LAST_PATIENCE } else { PATIENCE };
        self.phase = Phase::Asking { tries: tries + 1, next: now + patience };
        self.open.retain(|_, open| now.saturating_duration_since(open.sent) < LAST_PATIENCE * 2);
        let mut questions = Vec::new();
        for (base, server) in unanswered {
            let transaction: [u8; 12] = rng.random();
            let Ok(bytes) = checks::question(Transaction(transaction)) else { continue };
            if self.open.len() < MOST_OPEN {
                self.open.insert(transaction, Open { base, server, sent: now });
                questions.push(Question { base, server, bytes });
            }
        }
        questions
    }

    /// Takes an answer. False: it answers no question of ours.
    pub fn on_answer(&mut self, now: Instant, from: SocketAddr, message: &Message<'_>) -> bool {
        let transaction = message.transaction().0;
        let Some(open) = self.open.get(&transaction).copied().filter(|open| open.server == from) else {
            return false;
        };
        self.open.remove(&transaction);
        let Some(mapped) = checks::mapped_address(message) else { return true };
        if mapped.is_ipv4() != open.base.address.is_ipv4() {
            return true;
        }
        let latency = Some(now.saturating_duration_since(open.sent));
        self.seen.insert((open.base, from), Seen { mapped, latency, at: now, round: self.round });
        self.judge(now, open.base);
        let all = self.pairs().all(|pair| self.seen.get(&pair).is_some_and(|seen| seen.round == self.round));
        if let Phase::Asking { tries, .. } = self.phase
            && all
        {
            self.phase = Phase::Asking { tries, next: now };
        }
        true
    }

    /// A relay has told our address as one of its ports sees it.
    pub fn note(&mut self, now: Instant, base: Base, from: SocketAddr, mapped: SocketAddr) {
        if self.bases.contains(&base) && mapped.is_ipv4() == base.address.is_ipv4() {
            let latency = self.seen.get(&(base, from)).and_then(|seen| seen.latency);
            self.seen.insert((base, from), Seen { mapped, latency, at: now, round: self.round });
            self.judge(now, base);
        }
    }

    /// Two that saw the same at the same time tell of one mapping, two that did not of several.
    fn judge(&mut self, now: Instant, base: Base) {
        let recent = self
            .seen
            .iter()
            .filter(|((of, _), seen)| *of == base && now.saturating_duration_since(seen.at) < TOGETHER)
            .map(|(_, seen)| seen.mapped);
        let recent: Vec<SocketAddr> = recent.collect();
        let Some(first) = recent.first() else { return };
        let mapping = match recent.len() {
            _ if recent.iter().any(|mapped| mapped != first) => Mapping::EndpointDependent,
            1 if *first != base.address => return,
            _ => Mapping::EndpointIndependent,
        };
        self.mappings.insert(base, mapping);
    }

    /// Our addresses as others see them, without those that are our own.
    pub fn reflexive(&self) -> Vec<(Base, SocketAddr)> {
        let mut found: Vec<(Base, SocketAddr)> = Vec::new();
        for ((base, _), seen) in &self.seen {
            if seen.mapped != base.address && !found.contains(&(*base, seen.mapped)) {
                found.push((*base, seen.mapped));
            }
        }
        found
    }

    /// What is known about the NAT.
    pub fn report(&self) -> NatReport {
        let udp = match self.complete {
            _ if self.seen.values().any(|seen| seen.latency.is_some()) => Some(true),
            Some(_) if self.pairs().next().is_some() => Some(false),
            _ => None,
        };
        NatReport { mapping: self.mapping(), udp }
    }

    /// Hard NATs are a matter of IPv4: with both families, IPv4 tells.
    fn mapping(&self) -> Mapping {
        let v4 = self.mappings.keys().any(|base| base.address.is_ipv4());
        let mappings = self.mappings.iter().filter(|(base, _)| base.address.is_ipv4() == v4);
        let mappings: Vec<Mapping> = mappings.map(|(_, mapping)| *mapping).collect();
        if mappings.contains(&Mapping::EndpointDependent) {
            return Mapping::EndpointDependent;
        }
        mappings.first().copied().unwrap_or_default()
    }

    /// How a relay answers.
    pub fn reach(&self, relay: RelayId) -> Reach {
        let of = |server: &SocketAddr| self.servers.iter().any(|(known, at)| *known == relay && at == server);
        // Its ports are reached from WireGuard's.
        let answers =
            self.seen.iter().filter(|((base, server), _)| of(server) && base.socket == Socket::WireGuard);
        if let Some(latency) = answers.filter_map(|(_, seen)| seen.latency).min() {
            return Reach::Answers(latency);
        }
        let asked = self.pairs().any(|(_, server)| of(&server));
        match self.complete {
            Some(_) if asked => Reach::Blocked,
            _ => Reach::Unknown,
        }
    }

    /// Every answer: from which base, which server, what it saw, how long it took.
    pub fn answers(&self) -> impl Iterator<Item = (Base, SocketAddr, SocketAddr, Option<Duration>)> + '_ {
        self.seen.iter().map(|((base, server), seen)| (*base, *server, seen.mapped, seen.latency))
    }
}

#[cfg(test)]
mod tests {
    use ghostwire_path::UplinkId;
    use ghostwire_relay_protocol::stun::{Class, Kind, Method, TransactionId, Writer};
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn base(address: &str) -> Base {
        Base { uplink: UplinkId(2), address: address.parse().unwrap(), socket: Socket::WireGuard }
    }

    fn server(relay: u32, address: &str) -> (RelayId, SocketAddr) {
        (RelayId(relay), address.parse().unwrap())
    }

    /// Answers questions as a NAT lets the world see them.
    struct World {
        survey: Survey,
        now: Instant,
        rng: StdRng,
        asked: usize,
    }

    impl World {
        fn new(bases: &[Base], servers: &[(RelayId, SocketAddr)]) -> Self {
            let now = Instant::now();
            let mut survey = Survey::new();
            survey.set(now, bases.to_vec(), servers.to_vec());
            Self { survey, now, rng: StdRng::seed_from_u64(1), asked: 0 }
        }

        /// Runs until the round is over.
        fn round(&mut self, nat: impl Fn(Base, SocketAddr) -> Option<SocketAddr>) {
            for _ in 0..20 {
                let Some(at) = self.survey.poll_timeout() else { return };
                self.now = self.now.max(at);
                for question in self.survey.on_time(self.now, &mut self.rng) {
                    self.asked += 1;
                    let Some(mapped) = nat(question.base, question.server) else { continue };
                    let request = Message::parse(&question.bytes).unwrap();
                    let mut buffer = [0; 64];
                    let TransactionId(id) = request.transaction();
                    let mut writer =
                        Writer::new(&mut buffer, Class::Success, Method::BINDING, TransactionId(id)).unwrap();
                    writer.xor_address(Kind::XOR_MAPPED_ADDRESS, mapped).unwrap();
                    let answer = writer.finish().to_vec();
                    self.now += Duration::from_millis(20);
                    let stranger = "203.0.113.99:3478".parse().unwrap();
                    let answer = Message::parse(&answer).unwrap();
                    assert!(!self.survey.on_answer(self.now, stranger, &answer));
                    assert!(self.survey.on_answer(self.now, question.server, &answer));
                    assert!(!self.survey.on_answer(self.now, question.server, &answer), "answered twice");
                }
                if !self.survey.is_asking() {
                    return;
                }
            }
            panic!("the round does not end");
        }
    }

    const HOME: &str = "192.168.1.2:51820";

    #[test]
    fn nats_are_told_apart() {
        let (home, one, two) = (base(HOME), server(1, "203.0.113.1:3478"), server(2, "203.0.113.2:3478"));
        let public = |port| SocketAddr::new("198.51.100.7".parse().unwrap(), port);
        let mut world = World::new(&[home], &[one, two]);
        assert_eq!(world.survey.report(), NatReport::default());
        world.round(|_, _| Some(public(51_820)));
        let report = world.survey.report();
        assert_eq!((report.mapping, report.udp), (Mapping::EndpointIndependent, Some(true)));
        assert_eq!(world.survey.reflexive(), [(home, public(51_820))]);
        assert!(matches!(world.survey.reach(RelayId(1)), Reach::Answers(_)));

        let mut world = World::new(&[home], &[one, two]);
        world.round(|_, server| Some(public(1_000 + u16::from(server == two.1))));
        assert_eq!(world.survey.report().mapping, Mapping::EndpointDependent);
        assert_eq!(world.survey.reflexive().len(), 2);

        let mut world = World::new(&[home], &[one]);
        world.round(|_, _| Some(public(9)));
        assert_eq!(world.survey.report().mapping, Mapping::Unknown, "one server cannot tell");
        // The relay's other port sees another one.
        let port: SocketAddr = "203.0.113.1:40000".parse().unwrap();
        world.survey.note(world.now, home, port, public(10));
        assert_eq!(world.survey.report().mapping, Mapping::EndpointDependent);
        // Long after, the NAT has another mapping; what the port saw then says nothing about it.
        world.survey.note(world.now, home, port, public(9));
        assert_eq!(world.survey.report().mapping, Mapping::EndpointIndependent);
        world.now += TOGETHER;
        world.round(|_, _| Some(public(77)));
        assert_eq!(world.survey.report().mapping, Mapping::EndpointIndependent);

        let mut world = World::new(&[home], &[one]);
        world.round(|base, _| Some(base.address));
        assert_eq!(world.survey.report().mapping, Mapping::EndpointIndependent, "no NAT");
        assert_eq!(world.survey.reflexive(), []);
    }

    #[test]
    fn silence_is_blocked_udp_and_another_network_is_asked_anew() {
        let (home, relay) = (base(HOME), server(1, "203.0.113.1:3478"));
        let mut world = World::new(&[home], &[relay]);
        world.round(|_, _| None);
        assert_eq!(world.asked, 3);
        assert_eq!(world.survey.report().udp, Some(false));
        assert_eq!(world.survey.reach(RelayId(1)), Reach::Blocked);
        let other = base("10.0.0.9:51820");
        world.survey.set(world.now, vec![other], vec![relay]);
        assert_eq!(world.survey.report().udp, None);
        assert_eq!(world.survey.reach(RelayId(1)), Reach::Unknown);
        world.round(|_, _| Some("198.51.100.7:1".parse().unwrap()));
        assert_eq!(world.survey.report().udp, Some(true));
    }

    #[test]
    fn families_do_not_mix_and_nobody_to_ask_is_no_blocked_network() {
        let mut world = World::new(&[base("[2001:db8::2]:51820")], &[server(1, "203.0.113.1:3478")]);
        assert_eq!(world.survey.poll_timeout(), None);
        assert_eq!(world.survey.report(), NatReport::default());
        world.survey.set(world.now, vec![base(HOME)], Vec::new());
        assert_eq!(world.survey.poll_timeout(), None);
    }

    #[test]
    fn traffic_makes_rounds_frequent() {
        let mut world = World::new(&[base(HOME)], &[server(1, "203.0.113.1:3478")]);
        let nat = |_, _| Some("198.51.100.7:1".parse().unwrap());
        world.round(nat);
        let quiet = world.survey.poll_timeout().unwrap() - world.now;
        assert!(quiet > QUIET / 2);
        world.survey.set_active(world.now, true);
        world.round(nat);
        let active = world.survey.poll_timeout().unwrap() - world.now;
        assert!(active < ACTIVE * 2, "{active:?}");
    }
}

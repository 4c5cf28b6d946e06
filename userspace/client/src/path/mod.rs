//! By which way to a peer: one [`PeerPath`] per peer, without sockets or clock.
//!
//! It is told what WireGuard reports about the peer ([`Observation`]) and what the network map and the local
//! links say, and answers with the endpoint that WireGuard should use, and with the reason. For now every way
//! is a direct one to an address that the peer announced; relays and other carriers are further kinds of
//! candidates.
//!
//! How it decides:
//! - an endpoint that carries packets is kept, also one that WireGuard roamed to by itself;
//! - otherwise candidates on a network that we are attached to come first, then the others in the peer's order;
//! - each gets [`TRIAL`] to produce a handshake, then the next has its turn, without end;
//! - with persistent keepalive a live peer is heard at least every [`KEEPALIVE_SECONDS`]; a path that is silent
//!   for [`SILENT`] is taken for dead.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

/// WireGuard's persistent keepalive.
pub const KEEPALIVE_SECONDS: u16 = 25;
/// WireGuard repeats an unanswered handshake every 5 s (REKEY_TIMEOUT) plus a jitter of a third of a second.
pub const TRIAL: Duration = Duration::from_millis(5_600);
/// Two keepalives and a little.
pub const SILENT: Duration = Duration::from_mins(1);
/// WireGuard throws a session away after this long (REJECT_AFTER_TIME).
pub const SESSION: Duration = Duration::from_mins(3);
/// After this many rounds over all candidates without success, each gets longer.
const EAGER_ROUNDS: u32 = 3;
/// How long each then gets.
const PATIENT_TRIAL: Duration = Duration::from_secs(30);

/// What WireGuard says about a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Where it sends to.
    pub endpoint: Option<SocketAddr>,
    /// Time since the last handshake, if there was one.
    pub handshake_age: Option<Duration>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// What this machine is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Networks on its links, each with our own address in it.
    pub networks: Vec<IpNet>,
}

impl Surroundings {
    fn is_own(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|net| net.addr() == address)
    }

    fn is_near(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|net| net.contains(&address))
    }

    fn has_family_of(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|net| net.addr().is_ipv4() == address.is_ipv4())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No candidate.
    Nowhere,
    /// A candidate has its turn.
    Trying { index: usize, since: Instant, tried: u32 },
    /// Packets arrive.
    Working { heard: Instant },
}

/// The way to one peer.
#[derive(Clone, Debug)]
pub struct PeerPath {
    candidates: Vec<SocketAddr>,
    /// Candidates that cannot be reached from here, for `why`.
    unusable: Vec<(SocketAddr, &'static str)>,
    near: usize,
    state: State,
    seen: Observation,
    online: bool,
    /// Endpoint that WireGuard was told last and not yet asked for.
    pending: Option<SocketAddr>,
    /// Time to try again at once when candidates appear.
    lost: bool,
}

impl PeerPath {
    /// A peer of which nothing is known.
    pub fn new() -> Self {
        Self {
            candidates: Vec::new(),
            unusable: Vec::new(),
            near: 0,
            state: State::Nowhere,
            seen: Observation::default(),
            online: false,
            pending: None,
            lost: false,
        }
    }

    /// What the network map says of the peer, or a change of our own links.
    pub fn set_candidates(
        &mut self,
        now: Instant,
        announced: &[SocketAddr],
        online: bool,
        around: &Surroundings,
    ) {
        let came_online = online && !self.online;
        self.online = online;
        let mut near = Vec::new();
        let mut far = Vec::new();
        self.unusable.clear();
        for candidate in announced {
            if near.contains(candidate) || far.contains(candidate) {
                continue;
            }
            if around.is_own(candidate.ip()) {
                self.unusable.push((*candidate, "an address of this machine too"));
            } else if !around.has_family_of(candidate.ip()) {
                self.unusable.push((*candidate, "no network of its family here"));
            } else if around.is_near(candidate.ip()) {
                near.push(*candidate);
            } else {
                far.push(*candidate);
            }
        }
        self.near = near.len();
        near.append(&mut far);
        if near == self.candidates && !came_online {
            return;
        }
        let changed = near != self.candidates;
        self.candidates = near;
        if matches!(self.state, State::Working { .. }) {
            return;
        }
        if changed || came_online {
            self.start(now);
        }
    }

    /// What WireGuard reports.
    pub fn observe(&mut self, now: Instant, seen: Observation) {
        let heard = seen.rx_bytes > self.seen.rx_bytes;
        let shaken = match (seen.handshake_age, self.seen.handshake_age) {
            (Some(age), Some(before)) => age < before,
            (Some(_), None) => true,
            _ => false,
        };
        let session = seen.handshake_age.is_some_and(|age| age < SESSION);
        self.seen = seen;
        match self.state {
            State::Working { .. } if heard || shaken => self.state = State::Working { heard: now },
            State::Working { heard } => {
                if !session || now.saturating_duration_since(heard) >= SILENT {
                    self.lost = true;
                    self.start_after(now, seen.endpoint);
                }
            }
            // What an adopted device brings along counts: a restart of the daemon changes no endpoint.
            State::Trying { .. } | State::Nowhere if session && (heard || shaken) => {
                self.lost = false;
                self.pending = None;
                self.state = State::Working { heard: now };
            }
            // WireGuard has lost what it was told: the peer was removed and added again, or the device was.
            State::Trying { index, .. } if seen.endpoint.is_none() => {
                self.pending = self.candidates.get(index).copied();
            }
            State::Trying { .. } | State::Nowhere => {}
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        let State::Trying { index, since, tried } = self.state else { return };
        if now.saturating_duration_since(since) >= self.trial(tried) && !self.candidates.is_empty() {
            let index = (index + 1) % self.candidates.len();
            self.state = State::Trying { index, since: now, tried: tried.saturating_add(1) };
            let next = self.candidates[index];
            if self.seen.endpoint != Some(next) {
                self.pending = Some(next);
            }
        }
    }

    /// The endpoint to give to WireGuard, once per decision.
    pub fn poll_endpoint(&mut self) -> Option<SocketAddr> {
        self.pending.take()
    }

    /// When to call [`Self::tick`] at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Trying { since, tried, .. } if self.candidates.len() > 1 => {
                Some(since + self.trial(tried))
            }
            State::Trying { .. } | State::Working { .. } | State::Nowhere => None,
        }
    }

    /// Whether packets arrive.
    pub fn is_working(&self) -> bool {
        matches!(self.state, State::Working { .. })
    }

    /// What WireGuard reported last.
    pub fn seen(&self) -> &Observation {
        &self.seen
    }

    /// The path in few words: `direct 192.0.2.7:51820` or `none`.
    pub fn describe(&self) -> String {
        match (self.state, self.seen.endpoint) {
            (State::Working { .. }, Some(endpoint)) => format!("direct {endpoint}"),
            _ => "none".to_owned(),
        }
    }

    /// Why this path, or why none and what would change that.
    pub fn why(&self, now: Instant) -> String {
        match self.state {
            State::Working { .. } => self.why_working(),
            State::Trying { index, since, tried } => self.why_trying(now, index, since, tried),
            State::Nowhere if self.unusable.is_empty() => {
                "the peer has announced no address; check that its daemon runs and has a network".to_owned()
            }
            State::Nowhere => {
                format!("no address of the peer can be reached from here: {}", self.list_unusable())
            }
        }
    }

    fn why_working(&self) -> String {
        let Some(endpoint) = self.seen.endpoint else { return "packets arrive".to_owned() };
        match self.candidates.iter().position(|candidate| *candidate == endpoint) {
            Some(at) if at < self.near => "same network".to_owned(),
            Some(_) => "announced by the peer".to_owned(),
            None => "the peer's packets come from there".to_owned(),
        }
    }

    fn why_trying(&self, now: Instant, index: usize, since: Instant, tried: u32) -> String {
        let before = match (self.lost, self.online) {
            (true, true) => "the peer has fallen silent; ",
            (true, false) => "the peer has fallen silent and is offline at the coordinator; ",
            (false, true) => "",
            (false, false) => "the peer is offline at the coordinator; ",
        };
        let candidate = self.candidates.get(index).map_or_else(String::new, ToString::to_string);
        let left = (since + self.trial(tried)).saturating_duration_since(now).as_secs() + 1;
        let next = match self.candidates.len() {
            1 => String::new(),
            all => format!(", {} of {all}, next in {left} s", index + 1),
        };
        let unanswered = tried > 1 || now.saturating_duration_since(since) > 2 * TRIAL;
        let hint = if unanswered && self.online {
            "; no answer yet: a firewall must let UDP through on one side"
        } else {
            ""
        };
        format!("{before}trying {candidate}{next}{hint}")
    }

    fn list_unusable(&self) -> String {
        let parts: Vec<String> =
            self.unusable.iter().map(|(address, why)| format!("{address} ({why})")).collect();
        parts.join(", ")
    }

    fn trial(&self, tried: u32) -> Duration {
        let rounds = tried / u32::try_from(self.candidates.len().max(1)).unwrap_or(u32::MAX);
        if rounds < EAGER_ROUNDS { TRIAL } else { PATIENT_TRIAL }
    }

    fn start(&mut self, now: Instant) {
        self.start_at(now, 0);
    }

    /// The one that failed comes last.
    fn start_after(&mut self, now: Instant, failed: Option<SocketAddr>) {
        let at = self.candidates.iter().position(|candidate| Some(*candidate) == failed);
        self.start_at(now, at.map_or(0, |at| at + 1));
    }

    fn start_at(&mut self, now: Instant, index: usize) {
        if self.candidates.is_empty() {
            self.state = State::Nowhere;
            return;
        }
        let index = index % self.candidates.len();
        self.state = State::Trying { index, since: now, tried: 0 };
        let next = self.candidates[index];
        if self.seen.endpoint != Some(next) {
            self.pending = Some(next);
        }
    }
}

impl Default for PeerPath {
    fn default() -> Self {
        Self::new()
    }
}

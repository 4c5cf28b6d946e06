//! Explanations: which path is used and why, what every path's state is, when what is tried next, and what would
//! make it better.

use std::fmt;
use std::time::{Duration, Instant};

use crate::io::{CarrierFailure, Filter, Steer};
use crate::machine::PathMachine;
use crate::machine::choose::Reason;
use crate::machine::rounds::Cause;
use crate::path::{Failure, Path, Phase};
use crate::route::{Class, PathId, Route};
use crate::signal::CandidateKind;

/// The whole explanation.
#[derive(Clone, Debug, PartialEq)]
pub struct Why {
    /// In one word.
    pub state: State,
    /// The path in use.
    pub primary: Option<PathId>,
    /// The path that gets a copy.
    pub also: Option<PathId>,
    /// Why the first.
    pub reason: Reason,
    /// For how long.
    pub for_how_long: Option<Duration>,
    /// Every path, the one in use first, then best first.
    pub paths: Vec<PathWhy>,
    /// Why a round of checks is running, if one is.
    pub running: Option<Cause>,
    /// When the next round begins and why; while one is running this is decided at its end.
    pub next: Option<(Duration, Cause)>,
    /// What would make it better, the most helpful first.
    pub advice: Vec<Advice>,
    /// The operator's wish.
    pub steer: Steer,
}

/// The machine in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// No traffic: nothing is tried, nothing is known.
    Asleep,
    /// Trying, and no path is proven.
    Searching,
    /// A path works.
    Connected(Class),
    /// The path in use is late with an answer.
    Doubt(Class),
}

/// One path.
#[derive(Clone, Debug, PartialEq)]
pub struct PathWhy {
    /// Which.
    pub id: PathId,
    /// Its way.
    pub route: Route,
    /// Of the remote candidate.
    pub kind: Option<CandidateKind>,
    /// Where it stands.
    pub state: PathState,
    /// What it is for.
    pub role: Role,
    /// Smoothed round trip.
    pub round_trip: Option<Duration>,
    /// Since it was last shown to work.
    pub last_proof: Option<Duration>,
    /// The last failure and how long ago it was.
    pub last_failure: Option<(Failure, Duration)>,
    /// Not used for this long, since it failed while it was used.
    pub held_down: Option<Duration>,
}

/// Where a path stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathState {
    /// Not tried now: not needed, or waiting for its turn.
    Waiting,
    /// The relay or connection is being opened.
    Opening,
    /// Checks are on their way; so many are unanswered.
    Checking(u32),
    /// STUN passes, whether WireGuard does is being found out.
    Reached,
    /// Works.
    Proven,
    /// Works, but so many checks went unanswered just now.
    Doubtful(u32),
    /// Does not work; the failure says why.
    Failed,
}

/// What a path is for, the weightiest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Carries the traffic.
    Primary,
    /// Carries a copy.
    Copy,
    /// Kept ready.
    Standby,
    /// Nothing.
    None,
}

/// What would make it better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Advice {
    /// We have no address at all.
    NoNetwork,
    /// Nothing was heard from the peer's machine yet.
    NothingHeard,
    /// The coordinator does not see the peer.
    PeerOffline,
    /// UDP does not leave our network.
    UdpBlockedHere,
    /// UDP does not leave the peer's network.
    UdpBlockedThere,
    /// Both NATs use a new port for every remote.
    BothHard,
    /// Our NAT does; guessing its ports has been tried so many times.
    HardHere(u32),
    /// The peer's NAT does.
    HardThere(u32),
    /// STUN passes and WireGuard does not.
    WireGuardBlocked,
    /// One side has only IPv4, the other only IPv6.
    NoCommonFamily,
    /// No check is answered: a firewall.
    Firewall,
    /// The two have no relay in common.
    NoRelay,
    /// The operator allows only some paths.
    Pinned,
    /// A better path is held down since it failed before.
    HeldDown(PathId),
}

impl PathMachine {
    /// Explains the state that the machine is in.
    pub fn why(&self, now: Instant) -> Why {
        let primary = self.chosen.primary.and_then(|id| self.path(id));
        let state = match primary {
            _ if !self.is_awake() => State::Asleep,
            Some(path) if path.is_proven() && path.is_doubtful() => State::Doubt(path.class()),
            Some(path) if path.is_proven() => State::Connected(path.class()),
            _ => State::Searching,
        };
        let mut paths: Vec<&Path> = self.paths.iter().collect();
        paths.sort_by_key(|path| {
            let role = self.role(path);
            (role, !path.is_proven(), path.class(), std::cmp::Reverse(path.priority))
        });
        Why {
            state,
            primary: self.chosen.primary,
            also: self.chosen.also,
            reason: self.chosen.reason,
            for_how_long: self.chosen.since.map(|since| now.saturating_duration_since(since)),
            paths: paths.into_iter().map(|path| self.why_path(path, now)).collect(),
            running: self.rounds.cause.filter(|_| self.rounds.running),
            next: self.rounds.next.map(|next| (next.at.saturating_duration_since(now), next.cause)),
            advice: self.advice(now),
            steer: self.steer,
        }
    }

    fn role(&self, path: &Path) -> Role {
        if self.chosen.primary == Some(path.id) {
            Role::Primary
        } else if self.chosen.also == Some(path.id) {
            Role::Copy
        } else if self.chosen.standby.contains(&path.id) {
            Role::Standby
        } else {
            Role::None
        }
    }

    fn why_path(&self, path: &Path, now: Instant) -> PathWhy {
        let ago = |then: Instant| now.saturating_duration_since(then);
        let state = match path.phase {
            Phase::Parked => PathState::Waiting,
            Phase::Opening { .. } => PathState::Opening,
            Phase::Checking { .. } if path.reached => PathState::Reached,
            Phase::Checking { .. } => PathState::Checking(path.unanswered),
            Phase::Proven { .. } if path.is_doubtful() => PathState::Doubtful(path.misses),
            Phase::Proven { .. } => PathState::Proven,
            Phase::Failed { .. } => PathState::Failed,
        };
        let primary = self.chosen.primary.and_then(|id| self.path(id));
        let better = path.is_proven() && primary.is_some_and(|primary| path.class() < primary.class());
        let held = path.penalty.until.max(self.chosen.climb.until.filter(|_| better));
        let held = held.filter(|until| now < *until);
        PathWhy {
            id: path.id,
            route: path.route,
            kind: path.kind,
            state,
            role: self.role(path),
            round_trip: path.round_trip.get(),
            last_proof: path.last_proof.map(ago),
            last_failure: path.failure.map(|(why, at)| (why, ago(at))),
            held_down: held.map(|until| until.saturating_duration_since(now)),
        }
    }

    fn advice(&self, now: Instant) -> Vec<Advice> {
        let mut advice = Vec::new();
        let class = self.chosen.primary.and_then(|id| self.path(id)).filter(|path| path.is_proven());
        let class = class.map(Path::class);
        if class != Some(Class::Direct) {
            self.advise_direct(now, &mut advice);
        }
        if class.is_none_or(Class::is_relayed) && !self.has_relays() {
            advice.push(Advice::NoRelay);
        }
        if matches!(self.steer, Steer::Pin(_)) {
            advice.push(Advice::Pinned);
        }
        advice
    }

    /// Why nothing is direct.
    fn advise_direct(&self, now: Instant, advice: &mut Vec<Advice>) {
        if self.here.candidates.is_empty() {
            advice.push(Advice::NoNetwork);
        }
        if self.online == Some(false) {
            advice.push(Advice::PeerOffline);
        }
        let Some(there) = &self.there else {
            advice.push(Advice::NothingHeard);
            return;
        };
        let direct = || self.paths.iter().filter(|path| path.class() == Class::Direct);
        let holds = |path: &&Path| path.penalty.holds(now) || self.chosen.climb.holds(now);
        let held = direct().filter(|path| path.is_proven()).find(holds);
        advice.extend(held.map(|path| Advice::HeldDown(path.id)));
        let failed = |failure| move |path: &&Path| path.failure.is_some_and(|(why, _)| why == failure);
        if direct().any(|path| failed(Failure::WireGuardBlocked)(&path)) {
            advice.push(Advice::WireGuardBlocked);
        }
        let udp = (self.here.nat.udp, there.nat.udp);
        if udp.0 == Some(false) {
            advice.push(Advice::UdpBlockedHere);
        }
        if udp.1 == Some(false) {
            advice.push(Advice::UdpBlockedThere);
        }
        let nothing_blocked = udp.0 != Some(false) && udp.1 != Some(false);
        match (self.here.nat.is_hard(), there.nat.is_hard()) {
            (true, true) => advice.push(Advice::BothHard),
            (true, false) => advice.push(Advice::HardHere(self.birthday.attempts)),
            (false, true) => advice.push(Advice::HardThere(self.birthday.attempts)),
            (false, false) if !nothing_blocked => {}
            (false, false) if direct().next().is_none() && !self.here.candidates.is_empty() => {
                advice.push(Advice::NoCommonFamily);
            }
            (false, false) => {
                if direct().next().is_some() && direct().all(|path| failed(Failure::NoAnswer)(&path)) {
                    advice.push(Advice::Firewall);
                }
            }
        }
    }
}

// Plain English

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAnswer => "no answer",
            Self::Silent => "fell silent",
            Self::WireGuardBlocked => "STUN passes, WireGuard is blocked",
            Self::DataSilent => "checks pass, data brings no reply",
            Self::OpenTimeout => "did not open in time",
            Self::Carrier(CarrierFailure::Unreachable) => "not reachable",
            Self::Carrier(CarrierFailure::Refused) => "refused",
            Self::Carrier(CarrierFailure::Lost) => "connection lost",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hope => "nothing is proven yet, this may work",
            Self::First => "the first that worked",
            Self::Better => "better than what was used before",
            Self::Faster => "clearly lower latency",
            Self::Failover => "what was used before failed",
            Self::Operator => "the operator wants it",
        })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Traffic => "traffic after a pause",
            Self::PeerAsked => "the peer asked for it",
            Self::Candidates => "new addresses",
            Self::Network => "our network changed",
            Self::Lost => "the path in use was lost",
            Self::Resumed => "the machine slept",
            Self::Operator => "the operator asked for it",
            Self::PeerBack => "the peer is back",
            Self::Nowhere => "no path works",
            Self::NotDirect => "the path in use is not direct",
            Self::Review => "there may be a better direct path",
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asleep => f.write_str("asleep: no traffic"),
            Self::Searching => f.write_str("searching"),
            Self::Connected(class) => write!(f, "{class}"),
            Self::Doubt(class) => write!(f, "{class}, in doubt"),
        }
    }
}

impl fmt::Display for PathState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting"),
            Self::Opening => f.write_str("opening"),
            Self::Checking(0) => f.write_str("about to be checked"),
            Self::Checking(sent) => write!(f, "checking, {sent} sent"),
            Self::Reached => f.write_str("STUN passes, checking WireGuard"),
            Self::Proven => f.write_str("works"),
            Self::Doubtful(misses) => write!(f, "{misses} checks missed"),
            Self::Failed => f.write_str("failed"),
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNetwork => f.write_str("this machine has no network address"),
            Self::NothingHeard => f.write_str("nothing was heard from the peer: its daemon has to run"),
            Self::PeerOffline => f.write_str("the coordinator does not see the peer"),
            Self::UdpBlockedHere => f.write_str("let UDP out of this network"),
            Self::UdpBlockedThere => f.write_str("let UDP out of the peer's network"),
            Self::BothHard => f.write_str(
                "both NATs use a new port for every destination: switch on UPnP, NAT-PMP or PCP, or forward \
                 the WireGuard port, at either",
            ),
            Self::HardHere(times) => write!(
                f,
                "the NAT here uses a new port for every destination (ports guessed {times} times): switch on UPnP, \
                 NAT-PMP or PCP, or forward the WireGuard port"
            ),
            Self::HardThere(times) => write!(
                f,
                "the peer's NAT uses a new port for every destination (ports guessed {times} times): switch on UPnP, \
                 NAT-PMP or PCP there, or forward the WireGuard port"
            ),
            Self::WireGuardBlocked => {
                f.write_str("something on the way drops WireGuard's packets but lets STUN pass")
            }
            Self::NoCommonFamily => f.write_str("one side has only IPv4, the other only IPv6: give one both"),
            Self::Firewall => {
                f.write_str("no address of the peer answers: a firewall has to let UDP through")
            }
            Self::NoRelay => f.write_str("the two have no relay in common"),
            Self::Pinned => f.write_str("the operator allows only some paths: remove the pin"),
            Self::HeldDown(id) => {
                write!(f, "path {id} is better but failed lately: it has to prove itself first")
            }
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = self.class.map(|class| class.to_string());
        let remote = self.remote.map(|remote| remote.to_string());
        let address = self.address.map(|address| address.to_string());
        let relay = self.relay.map(|relay| format!("relay {}", relay.0));
        let parts: Vec<String> = [class, remote, address, relay].into_iter().flatten().collect();
        if parts.is_empty() { f.write_str("any path") } else { f.write_str(&parts.join(", ")) }
    }
}

impl fmt::Display for PathWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::Primary => "in use",
            Role::Copy => "copy",
            Role::Standby => "standby",
            Role::None => "",
        };
        write!(f, "{:>4} {role:<8} {}", self.id.to_string(), self.route)?;
        if let Some(kind) = self.kind {
            write!(f, " ({kind})")?;
        }
        write!(f, ": {}", self.state)?;
        if let Some(round_trip) = self.round_trip {
            write!(f, ", {:.1} ms", round_trip.as_secs_f64() * 1e3)?;
        }
        if let Some((failure, ago)) = self.last_failure {
            write!(f, ", last failure {} s ago: {failure}", ago.as_secs())?;
        }
        if let Some(held) = self.held_down {
            write!(f, ", held down for {} s", held.as_secs() + 1)?;
        }
        Ok(())
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.state)?;
        if self.primary.is_some() && self.state != State::Asleep {
            write!(f, ": {}", self.reason)?;
        }
        match self.steer {
            Steer::Automatic => {}
            Steer::Prefer(filter) => write!(f, "; preferred: {filter}")?,
            Steer::Pin(filter) => write!(f, "; pinned: {filter}")?,
        }
        writeln!(f)?;
        for path in &self.paths {
            writeln!(f, "  {path}")?;
        }
        if let Some(cause) = self.running {
            writeln!(f, "  a round is running: {cause}")?;
        }
        if let Some((wait, cause)) = self.next {
            writeln!(f, "  next round in {} s: {cause}", wait.as_secs())?;
        }
        for advice in &self.advice {
            writeln!(f, "  better if: {advice}")?;
        }
        Ok(())
    }
}

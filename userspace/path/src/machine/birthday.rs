//! Guessing the ports of a hard NAT.
//!
//! One side's NAT uses the same port towards everybody but lets in only those to whom it has sent; the other
//! side's uses a new random port towards each. Ordinary checks cannot meet: the port has to be guessed. The hard
//! side opens many ports towards the easy side's address, the easy side probes random ports; by the birthday
//! paradox a few hundred against a thousand are enough. Two hard NATs would need some 170,000 packets each,
//! which we do not send.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use rand::RngExt;

use super::PathMachine;
use crate::io::{Output, Transaction};
use crate::path::Phase;
use crate::route::{Base, Class, Framing, Route, Socket, is_private};
use crate::signal::{CandidateKind, Mapping};
use crate::timing::{
    BIRTHDAY_DELAY, BIRTHDAY_EVERY, BIRTHDAY_LASTS, BIRTHDAY_PACE, BIRTHDAY_PORTS, BIRTHDAY_PROBES,
};

/// Ports below are not given to mappings.
const LOWEST_PORT: u16 = 1_024;
/// How often the hard side sends from each of its ports: the second time may meet a hole that a probe has made.
const PASSES: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// Many ports to one address.
    Hard,
    /// One port to many.
    Easy,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    side: Side,
    base: Base,
    target: SocketAddr,
    /// Begins all transaction identifiers, so that none has to be remembered.
    volley: [u8; 8],
    sent: usize,
    next: Instant,
    until: Instant,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Birthday {
    run: Option<Run>,
    pub(super) last: Option<Instant>,
    pub(crate) attempts: u32,
}

impl Birthday {
    pub(crate) fn is_running(&self) -> bool {
        self.run.is_some()
    }
}

impl PathMachine {
    /// Whether guessing can help, and who we are in it.
    fn birthday_side(&self) -> Option<Side> {
        let theirs = self.there.as_ref()?.nat;
        match (self.here.nat.mapping, theirs.mapping) {
            (Mapping::EndpointDependent, Mapping::EndpointIndependent) => Some(Side::Hard),
            (Mapping::EndpointIndependent, Mapping::EndpointDependent) => Some(Side::Easy),
            _ => None,
        }
    }

    /// Whether birthday probing is possible for this pair at all.
    pub(crate) fn can_guess(&self) -> bool {
        self.birthday_allowed && self.birthday_side().is_some()
    }

    /// Ordinary rounds have failed: calls the peer to it.
    pub(super) fn call_birthday(&mut self, now: Instant) {
        let early = self.birthday.last.is_some_and(|last| now < last + BIRTHDAY_EVERY);
        if early || !self.can_guess() || self.birthday.is_running() {
            return;
        }
        self.attempt.number = self.attempt.number.max(self.called_before).saturating_add(1);
        self.attempt.birthday = true;
        self.telling.due = true;
        self.begin_birthday(now);
    }

    /// Both sides begin together. The peer's call counts a little earlier than our own would, since clocks differ.
    pub(super) fn begin_birthday(&mut self, now: Instant) {
        let early = self.birthday.last.is_some_and(|last| now < last + BIRTHDAY_EVERY * 9 / 10);
        if early || !self.birthday_allowed || self.birthday.is_running() {
            return;
        }
        let (Some(side), Some(base), Some(target)) =
            (self.birthday_side(), self.birthday_base(), self.birthday_target())
        else {
            return;
        };
        self.birthday.last = Some(now);
        self.birthday.attempts = self.birthday.attempts.saturating_add(1);
        let volley = self.rng.random();
        let until = now + BIRTHDAY_LASTS;
        // The hard side goes on when its ports are there.
        let next = if side == Side::Easy { now + BIRTHDAY_DELAY } else { until };
        self.birthday.run = Some(Run { side, base, target, volley, sent: 0, next, until });
        if side == Side::Hard {
            self.outputs.push_back(Output::OpenAuxiliaryPorts { base, count: BIRTHDAY_PORTS });
        }
    }

    /// Hard NATs are a matter of IPv4.
    fn birthday_base(&self) -> Option<Base> {
        self.bases().into_iter().find(|base| base.socket == Socket::WireGuard && base.address.is_ipv4())
    }

    fn birthday_target(&self) -> Option<SocketAddr> {
        let public = |address: IpAddr| address.is_ipv4() && !is_private(address);
        let candidates = self.there.as_ref()?.candidates.iter();
        candidates
            .filter(|candidate| candidate.socket == Socket::WireGuard && public(candidate.address.ip()))
            .filter(|candidate| candidate.kind != CandidateKind::Guessed)
            .max_by_key(|candidate| (candidate.kind == CandidateKind::ServerReflexive, candidate.priority))
            .map(|candidate| candidate.address)
    }

    pub(super) fn auxiliary_ready(&mut self, now: Instant) {
        match &mut self.birthday.run {
            Some(run) if run.side == Side::Hard => run.next = now,
            _ => self.close_auxiliary(|_| false),
        }
    }

    pub(super) fn birthday_due(&self) -> Option<Instant> {
        self.birthday.run.map(|run| run.next.min(run.until))
    }

    pub(super) fn run_birthday(&mut self, now: Instant) {
        let Some(mut run) = self.birthday.run else { return };
        let direct = self.paths.iter().any(|path| path.class() == Class::Direct && path.is_proven());
        if direct || now >= run.until {
            self.birthday.run = None;
            self.close_spare_auxiliary();
            return;
        }
        if now < run.next {
            return;
        }
        run.next = now + BIRTHDAY_PACE;
        if let Some((base, remote)) = self.birthday_probe(&run) {
            let mut transaction = [0; 12];
            transaction[..8].copy_from_slice(&run.volley);
            transaction[8..10].copy_from_slice(&remote.port().to_be_bytes());
            transaction[10..].copy_from_slice(&base.address.port().to_be_bytes());
            let route = Route::Pair { base, remote };
            let check = self.check(route, Framing::Stun, Transaction(transaction), None);
            self.outputs.push_back(Output::SendCheck(check));
            run.sent += 1;
        } else {
            // Everything is sent; answers may still come.
            run.next = run.until;
        }
        self.birthday.run = Some(run);
    }

    fn birthday_probe(&mut self, run: &Run) -> Option<(Base, SocketAddr)> {
        match run.side {
            Side::Hard => {
                let ports = &self.here.auxiliary;
                if run.sent >= ports.len() * PASSES {
                    return None;
                }
                Some((ports[run.sent % ports.len()], run.target))
            }
            Side::Easy => {
                if run.sent >= usize::from(BIRTHDAY_PROBES) {
                    return None;
                }
                let port = self.rng.random_range(LOWEST_PORT..=u16::MAX);
                Some((run.base, SocketAddr::new(run.target.ip(), port)))
            }
        }
    }

    /// A guess was right.
    pub(super) fn birthday_answered(&mut self, now: Instant, transaction: Transaction, route: Route) {
        let (Some(run), Route::Pair { base, remote }) = (self.birthday.run, route) else { return };
        let ours = transaction.0[..8] == run.volley
            && transaction.0[8..10] == remote.port().to_be_bytes()
            && transaction.0[10..] == base.address.port().to_be_bytes()
            && remote.ip() == run.target.ip();
        if !ours {
            return;
        }
        let Some(id) = self.find(route).or_else(|| self.add_reflexive(route)) else { return };
        if let Some(path) = self.path_mut(id).filter(|path| !path.is_proven()) {
            let _ = path.start(now);
            path.reached = true;
            path.urgent = true;
        }
    }

    /// Keeps the auxiliary ports that a living path uses.
    pub(super) fn close_spare_auxiliary(&mut self) {
        if self.birthday.is_running() || self.here.auxiliary.is_empty() {
            return;
        }
        let needed: Vec<Base> = self
            .paths
            .iter()
            .filter(|path| !matches!(path.phase, Phase::Parked | Phase::Failed { .. }))
            .filter_map(|path| path.route.base())
            .collect();
        self.close_auxiliary(|base| needed.contains(base));
    }
}

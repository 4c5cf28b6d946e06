//! Connects the ways with the node's QUIC endpoint: which connection is whose.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Instant;

use ghostwire_path::{Base, CarrierFailure};
use ghostwire_quic::{Endpoint, Event, Failure, Identity, Inbox, Link, PublicKey, Stun, bind};

use crate::ways::Ways;
use crate::ways::quic::OwnQuic;

/// Above WireGuard's. Not 443, though a few networks let only that pass: it belongs to the machine's own web servers, which
/// could not start any more.
const USUAL: u16 = 51_821;

/// The UDP port of QUIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QuicPort {
    /// 51821 if it is free, else any.
    #[default]
    Auto,
    /// This one.
    Fixed(u16),
    /// No QUIC.
    Off,
}

impl FromStr for QuicPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" | "0" => Ok(Self::Off),
            port => port
                .parse()
                .map(Self::Fixed)
                .map_err(|_| format!("{port:?} is neither a port nor auto nor off")),
        }
    }
}

impl fmt::Display for QuicPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(port) => write!(f, "{port}"),
            Self::Off => f.write_str("off"),
        }
    }
}

/// What arrived.
#[derive(Debug)]
pub(super) enum Arrived {
    Event(Event),
    Stun(Stun),
}

/// The endpoint and its connections.
#[derive(Debug)]
pub(super) struct Carrier {
    key: PublicKey,
    endpoint: Endpoint,
    inbox: Inbox,
    /// The connection with each peer.
    links: BTreeMap<u64, Link>,
    /// Calls that have not become connections, by peer.
    calls: BTreeMap<u64, u64>,
    /// Peers to whom something was sent that may wait for company.
    waiting: BTreeSet<u64>,
}

impl Carrier {
    /// Binds the port. `None`: switched off. To be called in the runtime.
    pub(super) fn open(port: QuicPort, machine_key: &[u8; 32]) -> io::Result<Option<Self>> {
        let socket = match port {
            QuicPort::Off => return Ok(None),
            QuicPort::Auto => bind(&[USUAL, 0], 0)?,
            QuicPort::Fixed(port) => bind(&[port], 0)?,
        };
        let identity = Identity::derive(machine_key).map_err(io::Error::other)?;
        let (endpoint, inbox) = Endpoint::open(socket, &identity).map_err(io::Error::other)?;
        Ok(Some(Self {
            key: identity.public(),
            endpoint,
            inbox,
            links: BTreeMap::new(),
            calls: BTreeMap::new(),
            waiting: BTreeSet::new(),
        }))
    }

    pub(super) fn own(&self) -> OwnQuic {
        OwnQuic { key: self.key, port: self.endpoint.port() }
    }

    /// The next thing that arrives. Cancel safe.
    pub(super) async fn next(&mut self) -> Arrived {
        tokio::select! {
            Some(event) = self.inbox.events.recv() => Arrived::Event(event),
            Some(stun) = self.inbox.stun.recv() => Arrived::Stun(stun),
        }
    }

    /// What is already there.
    pub(super) fn try_next(&mut self) -> Option<Arrived> {
        let stun = self.inbox.stun.try_recv().ok().map(Arrived::Stun);
        stun.or_else(|| self.inbox.events.try_recv().ok().map(Arrived::Event))
    }

    pub(super) fn on_arrived(&mut self, now: Instant, ways: &mut Ways, arrived: Arrived) {
        match arrived {
            Arrived::Stun(Stun { local, remote, bytes }) => ways.quic_stun(now, local, remote, &bytes),
            Arrived::Event(Event::Up(link)) => self.on_up(now, ways, link),
            Arrived::Event(Event::Messages(number, messages)) => {
                if let Some(peer) = self.whose(number) {
                    for message in messages {
                        ways.quic_message(now, peer, message);
                    }
                }
            }
            Arrived::Event(Event::Moved(number, remote)) => {
                if let Some(peer) = self.whose(number) {
                    tracing::info!(peer, %remote, "a QUIC connection has moved");
                    ways.quic_moved(now, peer, remote);
                }
            }
            Arrived::Event(Event::Down(number, key, failure, why)) => {
                self.on_down(now, ways, number, failure, &why);
                tracing::debug!(number, ?key, ?failure, %why, "QUIC");
            }
        }
    }

    fn whose(&self, number: u64) -> Option<u64> {
        self.links.iter().find(|(_, link)| link.number() == number).map(|(peer, _)| *peer)
    }

    fn on_up(&mut self, now: Instant, ways: &mut Ways, link: Link) {
        // Dropped, it is closed.
        let Some(peer) = ways.quic_peer(link.peer()) else { return };
        if link.is_caller() && self.calls.get(&peer) != Some(&link.number()) {
            return;
        }
        // Both have called: the one with the higher key goes on.
        let called = self.calls.contains_key(&peer) || self.links.get(&peer).is_some_and(Link::is_caller);
        if !link.is_caller() && called && self.key > link.peer() {
            return;
        }
        self.calls.remove(&peer);
        let (is_caller, local, remote) = (link.is_caller(), link.local(), link.remote());
        tracing::info!(peer, %remote, is_caller, early = link.is_early(), "a QUIC connection is up");
        self.links.insert(peer, link);
        ways.quic_up(now, peer, is_caller, local, remote);
    }

    fn on_down(&mut self, now: Instant, ways: &mut Ways, number: u64, failure: Failure, why: &str) {
        let called = self.calls.iter().find(|(_, call)| **call == number).map(|(peer, _)| *peer);
        let Some(peer) = self.whose(number).or(called) else { return };
        tracing::info!(peer, ?failure, %why, "a QUIC connection is down");
        self.links.remove(&peer);
        self.calls.remove(&peer);
        let failure = match failure {
            Failure::Unreachable => CarrierFailure::Unreachable,
            Failure::Refused => CarrierFailure::Refused,
            Failure::Lost => CarrierFailure::Lost,
        };
        ways.quic_down(now, peer, failure);
    }

    pub(super) fn connect(&mut self, peer: u64, key: PublicKey, local: IpAddr, remote: SocketAddr) {
        let number = self.endpoint.connect(Some(local), remote, key);
        self.links.remove(&peer);
        self.calls.insert(peer, number);
    }

    pub(super) fn close(&mut self, peer: u64) {
        self.links.remove(&peer);
        self.calls.remove(&peer);
    }

    pub(super) fn move_to(&self, local: IpAddr, remote: SocketAddr) {
        if let Err(error) = self.endpoint.move_to(Some(local), remote) {
            tracing::warn!(%error, %remote, "a QUIC connection cannot be moved");
        }
    }

    pub(super) fn set_peers(&self, keys: HashSet<PublicKey>) {
        self.endpoint.set_peers(keys);
    }

    pub(super) fn send(&mut self, peer: u64, bytes: &[u8]) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.send(bytes);
            self.waiting.insert(peer);
        }
    }

    pub(super) fn send_stun(&self, base: Base, remote: SocketAddr, bytes: &[u8]) {
        let sent = self.endpoint.send_stun(base.uplink.0, base.address.ip(), remote, bytes);
        if let Err(error) = sent {
            // Lost like any other datagram; the checks notice.
            tracing::trace!(%error, %remote, "not sent");
        }
    }

    /// Nothing more is sent at once.
    pub(super) fn flush(&mut self) {
        for peer in std::mem::take(&mut self.waiting) {
            if let Some(link) = self.links.get_mut(&peer) {
                link.flush();
            }
        }
    }
}

/// The next thing that arrives, if there is QUIC at all.
pub(super) async fn next(carrier: &mut Option<Carrier>) -> Arrived {
    match carrier {
        Some(carrier) => carrier.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_they_are_shown() {
        for (text, port) in
            [("auto", QuicPort::Auto), ("off", QuicPort::Off), ("8443", QuicPort::Fixed(8_443))]
        {
            assert_eq!(text.parse(), Ok(port));
            assert_eq!(port.to_string(), text);
        }
        assert_eq!("0".parse(), Ok(QuicPort::Off));
        assert!("quic".parse::<QuicPort>().is_err() && "70000".parse::<QuicPort>().is_err());
    }
}

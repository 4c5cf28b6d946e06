//! QUIC as a carrier: which key a peer has there, the one connection with it, and which route that connection is.
//!
//! The path machine sees pairs of addresses and opens one of them. The connection may outlive the pair: a client's addresses
//! change and the connection moves (RFC 9000 section 9). Then it is the route of the new addresses at once, and the machine
//! proves it by a check. Closing a route that the connection is not any more changes nothing.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ghostwire_path::{Base, CarrierFailure, Class, Framing, Generation, Input, Route, Socket, UplinkId};
use ghostwire_quic::PublicKey;
use ghostwire_relay_protocol::stun;

use super::checks::undress;
use super::{Effect, Ways};
use crate::pb;

/// Data of a connection is reported to the machine at most so often.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// Bases of the QUIC socket: the best address of each family.
const MOST_BASES: usize = 2;
/// Where they stand among the bases, of which the machine takes eight.
const BASES_BEFORE: usize = 6;

/// This node on QUIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnQuic {
    /// Its key, which peers are told.
    pub key: PublicKey,
    /// Its UDP port.
    pub port: u16,
}

/// What is known of a peer on QUIC.
#[derive(Debug, Default)]
pub(super) struct PeerQuic {
    /// Its key, and the signal that told it.
    key: Option<PublicKey>,
    told_by: (Generation, u32),
    connection: Option<Connection>,
    /// When its data was last reported.
    reported: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    route: Route,
    is_caller: bool,
    is_up: bool,
}

impl Ways {
    /// This node has an endpoint for QUIC. Before [`Self::set_network`].
    pub fn set_quic(&mut self, own: Option<OwnQuic>) {
        self.own_quic = own;
    }

    /// Where QUIC can leave, in order of preference.
    pub(super) fn quic_bases(&self) -> Vec<Base> {
        let Some(own) = self.own_quic else { return Vec::new() };
        let mut bases: Vec<Base> = Vec::new();
        for uplink in &self.uplinks {
            for address in &uplink.addresses {
                let known = bases.iter().any(|base| base.address.is_ipv4() == address.is_ipv4());
                if !known && bases.len() < MOST_BASES {
                    let address = SocketAddr::new(*address, own.port);
                    bases.push(Base { uplink: UplinkId(uplink.index), address, socket: Socket::Quic });
                }
            }
        }
        bases
    }

    /// Both sockets' bases in order of preference.
    pub(super) fn all_bases(&self) -> Vec<Base> {
        let mut bases = self.bases();
        let rest = bases.split_off(bases.len().min(BASES_BEFORE));
        bases.extend(self.quic_bases());
        bases.extend(rest);
        bases
    }

    /// What we tell of ourselves in signals.
    pub(super) fn own_quic_key(&self) -> Vec<u8> {
        self.own_quic.map(|own| own.key.0.to_vec()).unwrap_or_default()
    }

    /// A signal tells the peer's key. An old one, which comes again after every reconnect, tells nothing new.
    pub(super) fn note_quic_key(&mut self, now: Instant, id: u64, wire: &pb::Signal) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let told_by = (Generation(wire.generation), wire.revision);
        if told_by < peer.quic.told_by {
            return;
        }
        peer.quic.told_by = told_by;
        let key = <[u8; 32]>::try_from(wire.quic_key.as_slice()).ok().map(PublicKey);
        if peer.quic.key == key {
            return;
        }
        let former = std::mem::replace(&mut peer.quic.key, key);
        self.tell_quic_peers();
        if former.is_none() {
            return;
        }
        // What is open is with somebody who had the former key.
        self.quic_gone(now, id, CarrierFailure::Refused);
        self.effects.push_back(Effect::CloseQuic { peer: id });
    }

    pub(super) fn tell_quic_peers(&mut self) {
        if self.own_quic.is_some() {
            let keys: HashSet<PublicKey> = self.peers.values().filter_map(|peer| peer.quic.key).collect();
            self.effects.push_back(Effect::QuicPeers(keys));
        }
    }

    /// The peer that has this key.
    pub fn quic_peer(&self, key: PublicKey) -> Option<u64> {
        self.peers.iter().find(|(_, peer)| peer.quic.key == Some(key)).map(|(id, _)| *id)
    }

    /// The machine wants a connection.
    pub(super) fn open_quic(&mut self, now: Instant, id: u64, route: Route) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Route::Pair { base, remote } = route else { return };
        if let Some(connection) = peer.quic.connection.as_mut().filter(|connection| connection.is_up) {
            // The peer has called, or it outlived another route.
            if connection.route.remote() == Some(remote) || !connection.is_caller {
                connection.route = route;
                self.input(now, id, Input::CarrierUp(route));
                return;
            }
        }
        let Some(key) = peer.quic.key else {
            // It has no QUIC, or has not told yet: nobody whom we could know.
            self.input(now, id, Input::CarrierDown(route, CarrierFailure::Refused));
            return;
        };
        peer.quic.connection = Some(Connection { route, is_caller: true, is_up: false });
        self.effects.push_back(Effect::OpenQuic { peer: id, key, local: base.address.ip(), remote });
    }

    /// The machine needs a route no more. Who has called hangs up: the caller may need it still.
    pub(super) fn close_quic(&mut self, id: u64, route: Route) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let ours = |connection: Connection| connection.is_caller && connection.route == route;
        if peer.quic.connection.is_some_and(ours) {
            peer.quic.connection = None;
            self.effects.push_back(Effect::CloseQuic { peer: id });
        }
    }

    /// There is a connection with a peer. `local`: our address, where it is known.
    pub fn quic_up(
        &mut self,
        now: Instant,
        id: u64,
        is_caller: bool,
        local: Option<IpAddr>,
        remote: SocketAddr,
    ) {
        let called = self.peers.get(&id).and_then(|peer| peer.quic.connection);
        let route = match called.filter(|connection| is_caller && connection.is_caller) {
            Some(connection) => Some(connection.route),
            None => self.quic_route(local, remote),
        };
        let (Some(route), Some(peer)) = (route, self.peers.get_mut(&id)) else {
            self.effects.push_back(Effect::CloseQuic { peer: id });
            return;
        };
        peer.quic.connection = Some(Connection { route, is_caller, is_up: true });
        if let Some(former) = called.filter(|former| former.route != route) {
            self.input(now, id, Input::CarrierDown(former.route, CarrierFailure::Lost));
        }
        self.input(now, id, Input::CarrierUp(route));
        self.settle(now);
    }

    fn quic_route(&self, local: Option<IpAddr>, remote: SocketAddr) -> Option<Route> {
        let bases = self.quic_bases();
        let fits = |base: &&Base| match local {
            Some(local) => base.address.ip() == local,
            None => base.address.is_ipv4() == remote.is_ipv4(),
        };
        let base = *bases.iter().find(fits)?;
        Some(Route::Pair { base, remote })
    }

    /// The connection with a peer is over, or did not come about.
    pub fn quic_down(&mut self, now: Instant, id: u64, why: CarrierFailure) {
        self.quic_gone(now, id, why);
        self.settle(now);
    }

    fn quic_gone(&mut self, now: Instant, id: u64, why: CarrierFailure) {
        let connection = self.peers.get_mut(&id).and_then(|peer| peer.quic.connection.take());
        if let Some(connection) = connection {
            self.input(now, id, Input::CarrierDown(connection.route, why));
        }
    }

    /// The other end of a connection has another address.
    pub fn quic_moved(&mut self, now: Instant, id: u64, remote: SocketAddr) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(connection) = peer.quic.connection.as_mut().filter(|connection| connection.is_up) else {
            return;
        };
        let Some(base) = connection.route.base() else { return };
        connection.route = Route::Pair { base, remote };
        let route = connection.route;
        self.input(now, id, Input::CarrierUp(route));
        self.settle(now);
    }

    /// Our addresses have changed: connections that we began leave from others. The routes that they are from now on.
    pub(super) fn move_quic(&mut self) -> Vec<(u64, Route)> {
        let bases = self.quic_bases();
        let mut moved = Vec::new();
        for (id, peer) in &mut self.peers {
            let Some(connection) = peer.quic.connection.as_mut() else { continue };
            let Route::Pair { base, remote } = connection.route else { continue };
            if bases.contains(&base) || !connection.is_caller || !connection.is_up {
                continue;
            }
            let same = bases.iter().find(|other| other.address.is_ipv4() == remote.is_ipv4());
            if let Some(base) = same.copied() {
                connection.route = Route::Pair { base, remote };
                self.effects.push_back(Effect::MoveQuic { local: base.address.ip(), remote });
                moved.push((*id, connection.route));
            }
        }
        moved
    }

    /// A STUN message at the QUIC port. `local`: our address that it was sent to.
    pub fn quic_stun(&mut self, now: Instant, local: Option<IpAddr>, remote: SocketAddr, bytes: &[u8]) {
        let Some(Route::Pair { base, remote }) = self.quic_route(local, remote) else { return };
        let Some((Framing::Stun, message)) = undress(bytes) else { return };
        let answers = message.class() != stun::Class::Request && self.survey.on_answer(now, remote, &message);
        if !answers {
            self.message(now, Route::Pair { base, remote }, None, Framing::Stun, &message);
        }
        self.settle(now);
    }

    /// A message of the connection with a peer.
    pub fn quic_message(&mut self, now: Instant, id: u64, bytes: Vec<u8>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(connection) = peer.quic.connection else { return };
        match undress(&bytes) {
            Some((framing, message)) => {
                self.message(now, connection.route, Some(id), framing, &message);
                self.settle(now);
            }
            None => self.effects.push_back(Effect::Deliver { peer: id, class: Class::Quic, bytes }),
        }
    }

    /// Whether the machine is to hear of a packet for the peer: of the first of many.
    pub(super) fn is_news(&mut self, now: Instant, id: u64) -> bool {
        let Some(peer) = self.peers.get_mut(&id) else { return false };
        let is_news = peer.quic.reported.is_none_or(|at| now >= at + REPORT_EVERY);
        if is_news {
            peer.quic.reported = Some(now);
        }
        is_news
    }
}

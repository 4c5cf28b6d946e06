//! What arrives.

use std::net::SocketAddr;
use std::time::Instant;

use ghostwire_path::{Base, Check, Framing, Input, RelayId, Route, Socket, UplinkId};
use ghostwire_proto::keys::NodeKey;
use ghostwire_relay_protocol::stun::{Class, Message};

use super::checks::{Arrived, is_answer, mapped_address, undress};
use super::relays::Stream;
use super::{Effect, Ways, signal};
use crate::pb;

impl Ways {
    /// A datagram that is not for WireGuard, from an uplink.
    pub fn datagram(
        &mut self,
        now: Instant,
        uplink: u32,
        local: SocketAddr,
        remote: SocketAddr,
        bytes: &[u8],
    ) {
        let base = Base { uplink: UplinkId(uplink), address: local, socket: Socket::WireGuard };
        if let Some(relay) = self.relays.at(remote.ip())
            && self.relays.datagram(now, relay, remote, bytes)
        {
            self.note_mapped(now, relay, remote, bytes);
            self.settle(now);
            return;
        }
        let Some((framing, message)) = undress(bytes) else { return };
        if framing == Framing::Stun
            && message.class() != Class::Request
            && self.survey.on_answer(now, remote, &message)
        {
            self.settle(now);
            return;
        }
        let route = match self.relays.peer_at(remote) {
            Some((relay, peer)) => (Route::RelayPort(relay), Some(peer)),
            None => (Route::Pair { base, remote }, None),
        };
        self.message(now, route.0, route.1, framing, &message);
        self.settle(now);
    }

    /// A relay's answer also tells how its port sees us.
    fn note_mapped(&mut self, now: Instant, relay: RelayId, remote: SocketAddr, bytes: &[u8]) {
        let mapped = Message::parse(bytes).ok().and_then(|message| mapped_address(&message));
        if let (Some(mapped), Some(base)) = (mapped, self.relays.base(relay)) {
            self.survey.note(now, base, remote, mapped);
        }
    }

    /// A packet of a relay's stream.
    pub fn stream_packet(&mut self, now: Instant, relay: RelayId, from: NodeKey, bytes: Vec<u8>) {
        let Some(peer) = self.keys.get(&from).copied() else { return };
        if let Some((framing, message)) = undress(&bytes) {
            self.message(now, Route::Derp(relay), Some(peer), framing, &message);
        } else {
            let class = ghostwire_path::Class::Derp;
            self.effects.push_back(Effect::Deliver { peer, class, bytes });
        }
        self.settle(now);
    }

    /// A check or an answer. `expected`: whose way it came by, where that is certain.
    pub(super) fn message(
        &mut self,
        now: Instant,
        route: Route,
        expected: Option<u64>,
        framing: Framing,
        message: &Message<'_>,
    ) {
        if let Some(arrived) = Arrived::read(*message) {
            self.check_arrived(now, route, expected, framing, &arrived);
            return;
        }
        let Some((id, _)) = self.asked.get(&message.transaction().0).copied() else { return };
        let theirs = self.peers.get(&id).and_then(|peer| peer.machine.peer_credentials());
        let authentic = theirs.is_some_and(|theirs| is_answer(message, theirs));
        if !authentic || expected.is_some_and(|peer| peer != id) {
            return;
        }
        self.asked.remove(&message.transaction().0);
        let transaction = ghostwire_path::Transaction(message.transaction().0);
        self.input(now, id, Input::CheckAnswered { transaction, route });
    }

    fn check_arrived(
        &mut self,
        now: Instant,
        route: Route,
        expected: Option<u64>,
        framing: Framing,
        arrived: &Arrived<'_>,
    ) {
        let Some(id) = self.fragments.get(arrived.receiver).copied() else { return };
        let Some(peer) = self.peers.get(&id) else { return };
        if expected.is_some_and(|peer| peer != id) || !arrived.is_authentic(peer.machine.credentials()) {
            return;
        }
        let check = Check {
            route,
            framing,
            transaction: arrived.transaction,
            priority: arrived.priority,
            nominate: arrived.nominate,
            attempt: arrived.attempt,
        };
        self.input(now, id, Input::CheckReceived(check));
    }

    /// A peer's signal, as the coordinator brought it.
    pub fn signal(&mut self, now: Instant, from: u64, wire: &pb::Signal) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        match signal::from_wire(wire) {
            Ok(signal) => {
                peer.trouble = None;
                // First the key: what the signal names may be called at once.
                self.note_quic_key(now, from, wire);
                self.input(now, from, Input::Signal(Box::new(signal)));
                self.note_heard(from, wire);
            }
            Err(error) => {
                let trouble = format!("the peer's message cannot be used: {error}");
                tracing::warn!(peer = from, %trouble);
                peer.trouble = Some(trouble);
            }
        }
        self.settle(now);
    }

    /// What the data plane has counted since the last report.
    pub fn traffic(&mut self, now: Instant, id: u64, sent: bool, received: bool) {
        if sent {
            self.input(now, id, Input::Sent);
        }
        if received {
            self.input(now, id, Input::Received);
        }
        if sent || received {
            self.settle(now);
        }
    }

    /// Tokens from the coordinator.
    pub fn tokens(&mut self, now: Instant, message: &pb::RelayTokens) {
        let unix_ms = i64::try_from(super::unix_ms()).unwrap_or(i64::MAX);
        self.relays.tokens(now, unix_ms, message);
        self.settle(now);
    }

    /// A relay hears somebody at our port whom it does not know.
    pub fn rebind(&mut self, now: Instant, relay: u32) {
        self.relays.rebind(now, RelayId(relay));
        self.settle(now);
    }

    /// The coordinator's stream is open.
    pub fn connected(&mut self, now: Instant) {
        self.relays.connected(now);
        self.settle(now);
    }

    /// What became of a stream that was to be opened.
    pub fn on_stream(
        &mut self,
        now: Instant,
        relay: RelayId,
        opened: Result<std::time::Duration, ghostwire_path::CarrierFailure>,
    ) {
        self.relays.on_stream(relay, opened);
        self.settle(now);
    }

    /// What the streams are.
    pub fn streams(&self) -> impl Iterator<Item = (RelayId, Stream)> + '_ {
        self.relays.all().map(|(relay, stream)| (relay.number, stream))
    }
}

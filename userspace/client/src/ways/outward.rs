//! What the machines want done, as effects.

use std::net::SocketAddr;
use std::time::Instant;

use ghostwire_path::{Check, Framing, InUse, Input, Output, RelayId, Route, Socket, Transaction};

use super::relays::{News, Task};
use super::{ASKED_FOR, Effect, HELD_FOR, Hop, MOST_HELD, Ways, checks, signal};
use crate::pb;

impl Ways {
    /// Gives a machine something and does what it says, until it says no more.
    pub(super) fn input(&mut self, now: Instant, id: u64, input: Input) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.machine.handle_input(now, input);
        while let Some(output) = self.peers.get_mut(&id).and_then(|peer| peer.machine.poll_output()) {
            self.output(now, id, output);
        }
        if self.peers.get(&id).is_some_and(|peer| peer.adopted_until.is_some() || peer.hope.is_some()) {
            self.tell_use(now, id);
        }
        self.pass_on_held(now, id);
    }

    fn output(&mut self, now: Instant, id: u64, output: Output) {
        match output {
            Output::SendCheck(check) => self.send_check(now, id, &check),
            Output::Answer { route, framing, transaction } => self.answer(id, route, framing, transaction),
            Output::Signal(signal) => {
                let wire = pb::Signal { quic_key: self.own_quic_key(), ..signal::to_wire(&signal) };
                if let Some(peer) = self.peers.get_mut(&id) {
                    self.memory.changed |= peer.signal.is_none() && !peer.is_known;
                    peer.signal = Some(wire.clone());
                }
                self.effects.push_back(Effect::Signal { to: id, signal: Box::new(wire) });
            }
            Output::Open(_, Route::RelayPort(relay)) => self.relays.bind(now, relay, id),
            Output::Open(_, Route::Derp(relay)) => self.relays.ride(relay, id),
            Output::Open(_, route @ Route::Pair { .. }) => self.open_quic(now, id, route),
            Output::Close(_, Route::RelayPort(relay)) => self.relays.unbind(now, relay, id),
            Output::Close(_, Route::Derp(relay)) => self.relays.alight(relay, id),
            Output::Close(_, route @ Route::Pair { .. }) => self.close_quic(id, route),
            // A connection tells by key whom a packet is from, as a stream does.
            Output::Admit(_, Route::Pair { base, .. }) | Output::Dismiss(_, Route::Pair { base, .. })
                if base.socket == Socket::Quic => {}
            Output::Admit(_, Route::Pair { remote, .. }) => self.admit(id, remote, false),
            Output::Admit(_, Route::RelayPort(relay)) => {
                if let Some((_, remote)) = self.relays.port(relay, id) {
                    self.admit_port(id, relay, remote);
                }
            }
            Output::Dismiss(_, Route::Pair { remote, .. }) => self.dismiss(id, remote),
            Output::Dismiss(_, Route::RelayPort(relay)) => {
                let port = self.peers.get_mut(&id).and_then(|peer| peer.relay_ports.remove(&relay));
                if let Some(remote) = port {
                    self.dismiss(id, remote);
                }
            }
            // A stream tells by key whom a packet is from. And further ports are opened for birthday probing only,
            // which is off.
            Output::Admit(_, Route::Derp(_))
            | Output::Dismiss(_, Route::Derp(_))
            | Output::OpenAuxiliaryPorts { .. }
            | Output::CloseAuxiliaryPorts(_) => {}
            Output::Use(in_use) => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.in_use = in_use;
                }
                self.tell_use(now, id);
            }
        }
    }

    fn admit(&mut self, id: u64, remote: SocketAddr, relayed: bool) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        *peer.admitted.entry(remote).or_default() += 1;
        self.effects.push_back(Effect::Admit { peer: id, remote, relayed });
    }

    fn admit_port(&mut self, id: u64, relay: RelayId, remote: SocketAddr) {
        let before = self.peers.get_mut(&id).and_then(|peer| peer.relay_ports.insert(relay, remote));
        if before != Some(remote) {
            self.admit(id, remote, true);
            if let Some(before) = before {
                self.dismiss(id, before);
            }
        }
    }

    /// Several bases may lead to one remote: it goes with the last.
    fn dismiss(&mut self, id: u64, remote: SocketAddr) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(count) = peer.admitted.get_mut(&remote) else { return };
        *count -= 1;
        if *count == 0 {
            peer.admitted.remove(&remote);
            self.effects.push_back(Effect::Dismiss { peer: id, remote });
        }
    }

    fn hop(&self, id: u64, route: Route) -> Option<Hop> {
        match route {
            Route::Pair { base, remote } if base.socket == Socket::Quic => Some(Hop::Quic { remote }),
            Route::Pair { base, remote } => Some(Hop::Wire { base, remote, relayed: false }),
            Route::RelayPort(relay) => {
                let (base, remote) = self.relays.port(relay, id)?;
                Some(Hop::Wire { base, remote, relayed: true })
            }
            Route::Derp(relay) => Some(Hop::Stream(relay)),
        }
    }

    fn hops(&self, id: u64, in_use: InUse) -> (Option<Hop>, Option<Hop>) {
        let hop = |path: Option<(_, Route)>| path.and_then(|(_, route)| self.hop(id, route));
        let (primary, also) = (hop(in_use.primary), hop(in_use.also));
        if primary.is_none() { (also, None) } else { (primary, also) }
    }

    /// Tells the edge if what the paths in use lead to has changed, and sends on what was kept.
    pub(super) fn tell_use(&mut self, now: Instant, id: u64) {
        let Some(peer) = self.peers.get(&id) else { return };
        let hops = self.hops(id, peer.in_use);
        let same = peer.told == Some(hops) || (peer.told.is_none() && hops.0.is_none());
        if same && peer.hope.is_none() {
            return;
        }
        // A path that carried traffic a moment ago is worth more than one that nobody has tried.
        let adopted = peer.adopted_until.is_some_and(|until| now < until || hops.0.is_none());
        if adopted && !peer.machine.is_proven() {
            return;
        }
        let proven = peer.machine.is_proven();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let has_way = peer.told.is_some_and(|(primary, _)| primary.is_some());
        let (primary, also) = hops;
        peer.hope = primary.filter(|_| !proven && !has_way);
        if peer.hope.is_none() {
            peer.told = Some(hops);
            peer.adopted_until = None;
            self.effects.push_back(Effect::Use { peer: id, primary, also });
        }
        self.pass_on_held(now, id);
    }

    /// What was kept goes by every way there is hope for, and again by the first that is proven: a relay's port or stream
    /// may lead nowhere until the peer is there too, and WireGuard takes no packet twice.
    fn pass_on_held(&mut self, now: Instant, id: u64) {
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| !peer.held.is_empty()) else { return };
        let told = peer.told.and_then(|(primary, _)| primary);
        let Some(hop) = told.or(peer.hope) else { return };
        if told.is_none() && peer.held_tried == Some(hop) {
            return;
        }
        peer.held_tried = told.is_none().then_some(hop);
        let held: Vec<Vec<u8>> =
            peer.held.iter().filter(|(at, _)| now < *at + HELD_FOR).map(|(_, bytes)| bytes.clone()).collect();
        if told.is_some() {
            peer.held.clear();
        }
        for bytes in held {
            self.carry(id, hop, bytes);
        }
    }

    /// A packet of WireGuard for a peer whose packets take a carrier, or no way yet.
    pub fn outgoing(&mut self, now: Instant, id: u64, bytes: Vec<u8>) {
        if self.peers.contains_key(&id) {
            if self.is_news(now, id) {
                self.input(now, id, Input::Sent);
                self.settle(now);
            }
            self.pass_on(now, id, bytes);
        }
    }

    /// By the stream that is used; what is on the wire has gone already, but for what was kept.
    fn pass_on(&mut self, now: Instant, id: u64, bytes: Vec<u8>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let (primary, also) = peer.told.unwrap_or_default();
        match (primary, also) {
            (None, _) => {
                while peer.held.len() >= MOST_HELD {
                    peer.held.pop_front();
                }
                peer.held.push_back((now, bytes.clone()));
                match peer.hope {
                    Some(hop) => self.carry(id, hop, bytes),
                    None => peer.held_tried = None,
                }
            }
            // The kernel sends by the wire, and shows us what is for a carrier: once, also where that is two.
            (Some(first), Some(second)) if first.is_carrier() && second.is_carrier() => {
                self.carry(id, first, bytes.clone());
                self.carry(id, second, bytes);
            }
            (_, Some(hop)) if hop.is_carrier() => self.carry(id, hop, bytes),
            (Some(hop), _) => self.carry(id, hop, bytes),
        }
    }

    fn carry(&mut self, id: u64, hop: Hop, bytes: Vec<u8>) {
        match hop {
            Hop::Wire { base, remote, .. } => self.send(base, remote, bytes),
            Hop::Quic { .. } => self.effects.push_back(Effect::Quic { peer: id, bytes }),
            Hop::Stream(relay) => {
                if let Some(to) = self.peers.get(&id).map(|peer| peer.key) {
                    self.effects.push_back(Effect::Stream { relay, to, bytes });
                }
            }
        }
    }

    pub(super) fn send(&mut self, base: ghostwire_path::Base, remote: SocketAddr, bytes: Vec<u8>) {
        self.effects.push_back(Effect::Send { base, remote, bytes });
    }

    fn send_check(&mut self, now: Instant, id: u64, check: &Check) {
        let Some(peer) = self.peers.get(&id) else { return };
        let Some(theirs) = peer.machine.peer_credentials() else { return };
        let own = &peer.machine.credentials().fragment;
        // Credentials that were checked always fit.
        let Ok(bytes) = checks::check(check, own, theirs) else { return };
        self.asked.insert(check.transaction.0, (id, now));
        self.asked_order.push_back((now, check.transaction.0));
        debug_assert!(ASKED_FOR > HELD_FOR);
        self.transmit(id, check.route, check.framing, bytes);
    }

    fn answer(&mut self, id: u64, route: Route, framing: Framing, transaction: Transaction) {
        let Some(peer) = self.peers.get(&id) else { return };
        let own = peer.machine.credentials();
        if let Ok(bytes) = checks::answer(framing, transaction, own, route.remote()) {
            self.transmit(id, route, framing, bytes);
        }
    }

    fn transmit(&mut self, id: u64, route: Route, framing: Framing, bytes: Vec<u8>) {
        match (route, self.hop(id, route)) {
            // Outside of the connection: whether UDP passes between the two sockets.
            (Route::Pair { base, remote }, Some(Hop::Quic { .. })) if framing == Framing::Stun => {
                self.send(base, remote, bytes);
            }
            (_, Some(hop)) => self.carry(id, hop, bytes),
            // Not bound any more: the check is lost, like any other.
            (_, None) => {}
        }
    }

    /// The latest signals, for a coordinator that may not have them.
    pub fn signals(&self) -> impl Iterator<Item = (u64, &crate::pb::Signal)> {
        let awake = self.peers.iter().filter(|(_, peer)| peer.machine.is_awake());
        awake.filter_map(|(id, peer)| Some((*id, peer.signal.as_ref()?)))
    }

    pub(super) fn do_relay_tasks(&mut self) {
        while let Some(task) = self.relays.poll_task() {
            let effect = match task {
                Task::Send(base, remote, bytes) => Effect::Send { base, remote, bytes },
                Task::AskTokens(request) => Effect::AskTokens(request),
                Task::OpenStream(description) => Effect::OpenStream(description),
                Task::CloseStream(relay) => Effect::CloseStream(relay),
            };
            self.effects.push_back(effect);
        }
    }

    pub(super) fn relay_news(&mut self, now: Instant, news: News) {
        match news {
            News::PortUp(relay, id) => {
                self.input(now, id, Input::CarrierUp(Route::RelayPort(relay)));
                // The port may be another one than before.
                let admitted = self.peers.get(&id).is_some_and(|peer| peer.relay_ports.contains_key(&relay));
                if let Some((_, remote)) = self.relays.port(relay, id).filter(|_| admitted) {
                    self.admit_port(id, relay, remote);
                }
                self.tell_use(now, id);
            }
            News::PortDown(relay, id, why) => {
                self.input(now, id, Input::CarrierDown(Route::RelayPort(relay), why));
                self.tell_use(now, id);
            }
            News::StreamUp(relay) => {
                for id in self.relays.riders(relay) {
                    self.input(now, id, Input::CarrierUp(Route::Derp(relay)));
                }
            }
            News::StreamDown(relay, why) => {
                let ids: Vec<u64> = self.peers.keys().copied().collect();
                for id in ids {
                    self.input(now, id, Input::CarrierDown(Route::Derp(relay), why));
                }
            }
        }
    }
}

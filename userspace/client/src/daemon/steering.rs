//! Steering: connects [`Ways`] with the kernel. The steering programs take the chosen paths, the controller's socket
//! shares WireGuard's UDP port, the carrier is the door for packets of streams.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ghostwire_dataplane::steer::{Arrival, Carrier, Class, Controller, Path, PeerId, Steer, Uplink};
use ghostwire_path::{RelayId, Socket};
use ghostwire_proto::keys::NodeKey;
use tokio::sync::mpsc;

use super::quic;
use crate::pb;
use crate::plane::PlaneError;
use crate::session::map::NetworkMap;
use crate::ways::derp::{self, StreamEvent};
use crate::ways::{self, Effect, Hop, Neighbour, Ways};

/// How often the counters are read while there is traffic. They are plain memory.
const POLL: Duration = Duration::from_millis(200);
/// How often otherwise: most first packets come to us by themselves.
const POLL_QUIET: Duration = Duration::from_secs(1);
/// How often it is looked whether the programs are still attached.
const INSPECT: Duration = Duration::from_secs(1);
/// What arrives together is taken together, but others have their turn after so many.
const BUDGET: usize = 64;
/// Signals are sent again this much later if the stream had no room.
const NO_ROOM: Duration = Duration::from_millis(50);
/// How often this host's own firewall is told whose packets to expect: it forgets after 30 s.
const ANNOUNCE: Duration = Duration::from_secs(12);
/// Packets of the carrier may be aggregates of several.
const CARRIER_BUFFER: usize = 65_536;
const CONTROLLER_BUFFER: usize = 2_048;

/// What arrived.
#[derive(Debug)]
pub(super) enum Arrived {
    Datagram(io::Result<Arrival>),
    Packet(io::Result<(PeerId, usize)>),
    Stream(RelayId, u64, StreamEvent),
    Quic(quic::Arrived),
}

/// See the module.
pub(super) struct Steering {
    pub(super) ways: Ways,
    steer: Steer,
    controller: Arc<Controller>,
    carrier: Arc<Carrier>,
    quic: Option<quic::Carrier>,
    datagram: Box<[u8]>,
    packet: Box<[u8]>,
    key: [u8; 32],
    peers: BTreeMap<u64, PeerId>,
    ids: HashMap<PeerId, u64>,
    /// Packets sent and received, by peer.
    counted: BTreeMap<u64, (u64, u64)>,
    /// When this host's firewall was told to expect a peer's packets.
    announced: HashMap<PeerId, Instant>,
    streams: BTreeMap<RelayId, (u64, derp::Stream)>,
    next_stream: u64,
    events: mpsc::Sender<(RelayId, u64, StreamEvent)>,
    arriving: mpsc::Receiver<(RelayId, u64, StreamEvent)>,
    /// What the coordinator has not been told.
    signals: BTreeMap<u64, pb::Signal>,
    requests: Vec<pb::RelayTokensRequest>,
    send_at: Option<Instant>,
    poll_at: Instant,
    inspect_at: Instant,
    housekeep_at: Option<Instant>,
    /// What was found and mended, for `gwctl status`.
    pub(super) mended: Option<String>,
    pub(super) trouble: Option<String>,
}

impl Steering {
    /// `key` is the node's WireGuard key: streams know us by it.
    pub(super) fn new(steer: Steer, own: NodeKey, key: [u8; 32], quic: Option<quic::Carrier>) -> Self {
        let now = Instant::now();
        let (events, arriving) = mpsc::channel(1_024);
        let mut steering = Self {
            ways: Ways::new(now, own, rand::random()),
            controller: steer.controller(),
            carrier: steer.carrier(),
            steer,
            quic,
            datagram: vec![0; CONTROLLER_BUFFER].into_boxed_slice(),
            packet: vec![0; CARRIER_BUFFER].into_boxed_slice(),
            key,
            peers: BTreeMap::new(),
            ids: HashMap::new(),
            counted: BTreeMap::new(),
            announced: HashMap::new(),
            streams: BTreeMap::new(),
            next_stream: 0,
            events,
            arriving,
            signals: BTreeMap::new(),
            requests: Vec::new(),
            send_at: None,
            poll_at: now,
            inspect_at: now + INSPECT,
            housekeep_at: None,
            mended: None,
            trouble: None,
        };
        steering.housekeep_at = steering.steer.housekeep(now);
        steering.ways.set_quic(steering.quic.as_ref().map(quic::Carrier::own));
        steering
    }

    /// The next thing that arrives. Cancel safe.
    pub(super) async fn next(&mut self) -> Arrived {
        tokio::select! {
            arrival = self.controller.recv(&mut self.datagram) => Arrived::Datagram(arrival),
            packet = self.carrier.recv(&mut self.packet) => Arrived::Packet(packet),
            Some((relay, number, event)) = self.arriving.recv() => Arrived::Stream(relay, number, event),
            arrived = quic::next(&mut self.quic) => Arrived::Quic(arrived),
        }
    }

    /// Takes it, and what waits behind it. An error: the carrier is gone, and with it the device.
    pub(super) fn on_arrived(&mut self, now: Instant, arrived: Arrived) -> Result<(), PlaneError> {
        match arrived {
            Arrived::Datagram(arrival) => self.on_datagrams(now, arrival),
            Arrived::Packet(packet) => self.on_packets(now, packet)?,
            Arrived::Stream(relay, number, event) => {
                self.on_stream(now, relay, number, event);
                for _ in 0..BUDGET {
                    let Ok((relay, number, event)) = self.arriving.try_recv() else { break };
                    self.on_stream(now, relay, number, event);
                }
            }
            Arrived::Quic(arrived) => self.on_quic(now, arrived),
        }
        self.act();
        Ok(())
    }

    fn on_quic(&mut self, now: Instant, first: quic::Arrived) {
        let Some(quic) = &mut self.quic else { return };
        quic.on_arrived(now, &mut self.ways, first);
        for _ in 0..BUDGET {
            let Some(arrived) = quic.try_next() else { return };
            quic.on_arrived(now, &mut self.ways, arrived);
        }
    }

    fn on_datagrams(&mut self, now: Instant, first: io::Result<Arrival>) {
        let mut next = first;
        for _ in 0..BUDGET {
            match next {
                Ok(arrival) => {
                    let bytes = self.datagram.get(..arrival.length).unwrap_or_default();
                    self.ways.datagram(now, arrival.uplink, arrival.local, arrival.remote, bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What a host on the way says of an earlier packet (ICMP): the checks notice by themselves.
                Err(error) => tracing::debug!(%error, "the controller's socket"),
            }
            next = self.controller.try_recv(&mut self.datagram);
        }
    }

    fn on_packets(&mut self, now: Instant, first: io::Result<(PeerId, usize)>) -> Result<(), PlaneError> {
        let mut next = first;
        for _ in 0..BUDGET {
            match next {
                Ok((peer, length)) => {
                    let bytes = self.packet.get(..length).unwrap_or_default();
                    if let Some(id) = self.ids.get(&peer) {
                        self.ways.outgoing(now, *id, bytes.to_vec());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(PlaneError(format!("the steering device is gone: {error}"))),
            }
            next = self.carrier.try_recv(&mut self.packet);
        }
        Ok(())
    }

    fn on_stream(&mut self, now: Instant, relay: RelayId, number: u64, event: StreamEvent) {
        if self.streams.get(&relay).is_none_or(|(current, _)| *current != number) {
            return;
        }
        match event {
            StreamEvent::Opened(took) => self.ways.on_stream(now, relay, Ok(took)),
            StreamEvent::Packet(from, bytes) => self.ways.stream_packet(now, relay, from, bytes),
            StreamEvent::Closed(failure, why) => {
                tracing::warn!(relay = relay.0, %why, "no stream to a relay");
                self.streams.remove(&relay);
                self.ways.on_stream(now, relay, Err(failure));
            }
        }
    }

    /// When to call [`Self::on_time`].
    pub(super) fn poll_timeout(&self) -> Instant {
        let others = [self.ways.poll_timeout(), self.send_at, self.housekeep_at];
        others.into_iter().flatten().fold(self.poll_at.min(self.inspect_at), Instant::min)
    }

    /// Time has passed.
    pub(super) fn on_time(&mut self, now: Instant) {
        if self.poll_at <= now {
            self.read_counters(now);
            let awake: Vec<PeerId> =
                self.ways.awake().filter_map(|id| self.peers.get(&id).copied()).collect();
            for peer in awake {
                self.announce(now, peer);
            }
            self.poll_at = now + if self.ways.is_active() { POLL } else { POLL_QUIET };
        }
        if self.ways.poll_timeout().is_some_and(|at| at <= now) {
            self.ways.on_time(now);
        }
        if self.housekeep_at.is_some_and(|at| at <= now) {
            self.housekeep_at = self.steer.housekeep(now);
        }
        if self.inspect_at <= now {
            self.inspect_at = now + INSPECT;
            self.inspect();
        }
        self.act();
    }

    fn read_counters(&mut self, now: Instant) {
        for (id, peer) in &self.peers {
            let traffic = self.steer.traffic(*peer);
            let total = (traffic.sent_total().packets, traffic.received_total().packets);
            // The first look after an adoption says nothing about now.
            let Some(before) = self.counted.insert(*id, total) else { continue };
            if before != total {
                self.ways.traffic(now, *id, total.0 != before.0, total.1 != before.1);
            }
        }
    }

    fn inspect(&mut self) {
        match self.steer.is_attached() {
            Ok(true) => {}
            Ok(false) => match self.steer.attach_again() {
                Ok(()) => {
                    self.mended = Some(
                        "somebody detached the steering programs; they were attached again, but for about a second \
                         peers were not reached"
                            .to_owned(),
                    );
                }
                Err(error) => {
                    let error = PlaneError::of(&error);
                    self.trouble = Some(format!("the steering programs cannot be attached again: {error}"));
                }
            },
            Err(error) => tracing::warn!(%error, "cannot look after the steering programs"),
        }
    }

    /// Exactly the peers of the map; the stable endpoint of each.
    pub(super) fn set_peers(&mut self, now: Instant, map: &NetworkMap) -> BTreeMap<u64, SocketAddr> {
        let named = map.peers.iter().filter_map(|(id, peer)| {
            let peer_id = peer.addresses.iter().find_map(|address| PeerId::of(*address))?;
            Some((*id, peer_id))
        });
        let peers: BTreeMap<u64, PeerId> = named.collect();
        let adopted = self.steer.peers();
        for (id, peer) in &peers {
            if self.peers.get(id) == Some(peer) {
                continue;
            }
            // What an earlier run has left goes on until there is something better.
            let left = self.peers.is_empty() && matches!(self.steer.path(*peer).0, Some(Path::Wire { .. }));
            if left {
                self.ways.adopt(now, *id);
            } else {
                self.show_packets(*peer);
            }
        }
        for peer in adopted {
            if !peers.values().any(|wanted| *wanted == peer)
                && let Err(error) = self.steer.forget_peer(peer)
            {
                tracing::warn!(%error, %peer, "cannot forget the path of a peer that is gone");
            }
        }
        self.announced.retain(|peer, _| peers.values().any(|wanted| wanted == peer));
        self.counted.retain(|id, _| self.peers.get(id) == peers.get(id));
        self.ids = peers.iter().map(|(id, peer)| (*peer, *id)).collect();
        self.peers = peers;
        let neighbours = map
            .peers
            .iter()
            .filter(|(id, _)| self.peers.contains_key(id))
            .map(|(id, peer)| (*id, Neighbour { key: peer.key, online: peer.message.online }));
        self.ways.set_peers(now, &neighbours.collect());
        self.signals.retain(|id, _| self.peers.contains_key(id));
        self.act();
        self.peers.iter().map(|(id, peer)| (*id, self.steer.stable_endpoint(*peer))).collect()
    }

    /// No way is known: the peer's packets come to us.
    fn show_packets(&mut self, peer: PeerId) {
        let shown = Path::Carrier { class: Class::Derp };
        if let Err(error) = self.steer.set_path(peer, Some(&shown), None) {
            tracing::warn!(%error, %peer, "cannot set a path");
        }
    }

    /// Our links and addresses. `all`: those that packets may come by; `preferred`: those that we name.
    pub(super) fn set_network(
        &mut self,
        now: Instant,
        all: &[Uplink],
        preferred: Vec<ways::Uplink>,
        port: u16,
        fixed: Vec<SocketAddr>,
        mapped: Option<SocketAddr>,
    ) {
        if let Err(error) = self.steer.set_wireguard_port(port) {
            self.trouble = Some(format!("cannot share WireGuard's UDP port {port}: {error}"));
        }
        match self.steer.set_uplinks(all) {
            Ok(report) => {
                let failed: Vec<String> = report
                    .failed
                    .iter()
                    .map(|(index, error)| format!("{index}: {}", PlaneError::of(error)))
                    .collect();
                self.trouble = (!failed.is_empty())
                    .then(|| format!("links that packets cannot be steered by: {}", failed.join("; ")));
            }
            Err(error) => {
                self.trouble = Some(format!("cannot steer by these links: {}", PlaneError::of(&error)));
            }
        }
        self.ways.set_network(now, preferred, port, fixed, mapped);
        self.act();
    }

    /// Does what the ways want.
    pub(super) fn act(&mut self) {
        while let Some(effect) = self.ways.poll_effect() {
            self.effect(effect);
        }
        if let Some(quic) = &mut self.quic {
            quic.flush();
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Send { base, remote, bytes } if base.socket == Socket::Quic => {
                if let Some(quic) = &self.quic {
                    quic.send_stun(base, remote, &bytes);
                }
            }
            Effect::Send { base, remote, bytes } => {
                let sent = self.controller.try_send(base.uplink.0, base.address.ip(), remote, &bytes);
                if let Err(error) = sent {
                    // Lost like any other datagram; the checks notice.
                    tracing::trace!(%error, %remote, "not sent");
                }
            }
            Effect::Stream { relay, to, bytes } => {
                if let Some((_, stream)) = self.streams.get(&relay) {
                    stream.send(to, bytes);
                }
            }
            Effect::Deliver { peer, class, bytes } => {
                let Some(peer) = self.peers.get(&peer).copied() else { return };
                self.announce(Instant::now(), peer);
                if let Err(error) = self.carrier.deliver(peer, steer_class(class), &bytes) {
                    tracing::trace!(%error, %peer, "not delivered");
                }
            }
            Effect::Use { peer, primary, also } => self.use_path(peer, primary, also),
            Effect::Admit { peer, remote, relayed } => self.admit(peer, remote, relayed),
            Effect::Dismiss { peer, remote } => {
                if let Some(peer) = self.peers.get(&peer) {
                    self.steer.dismiss(remote, *peer);
                    self.housekeep_at = self.steer.housekeep(Instant::now());
                }
            }
            Effect::Signal { to, signal } => {
                self.signals.insert(to, *signal);
                self.send_at.get_or_insert_with(Instant::now);
            }
            Effect::AskTokens(request) => {
                self.requests.push(request);
                self.send_at.get_or_insert_with(Instant::now);
            }
            Effect::OpenStream(description) => {
                self.next_stream += 1;
                let (relay, number) = (description.number, self.next_stream);
                let stream = derp::connect(*description, self.key, number, self.events.clone());
                self.streams.insert(relay, (number, stream));
            }
            Effect::CloseStream(relay) => drop(self.streams.remove(&relay)),
            Effect::Quic { .. }
            | Effect::OpenQuic { .. }
            | Effect::CloseQuic { .. }
            | Effect::MoveQuic { .. }
            | Effect::QuicPeers(_) => self.quic_effect(effect),
        }
    }

    fn quic_effect(&mut self, effect: Effect) {
        let Some(quic) = &mut self.quic else { return };
        match effect {
            Effect::Quic { peer, bytes } => quic.send(peer, &bytes),
            Effect::OpenQuic { peer, key, local, remote } => quic.connect(peer, key, local, remote),
            Effect::CloseQuic { peer } => quic.close(peer),
            Effect::MoveQuic { local, remote } => quic.move_to(local, remote),
            Effect::QuicPeers(keys) => quic.set_peers(keys),
            _ => {}
        }
    }

    fn use_path(&mut self, id: u64, primary: Option<Hop>, also: Option<Hop>) {
        let Some(peer) = self.peers.get(&id).copied() else { return };
        let Some(primary) = primary.map(path) else {
            self.show_packets(peer);
            return;
        };
        // What is for a carrier comes to us once; the ways know that there are two.
        let also = also.map(path).filter(|also| !(is_carrier(&primary) && is_carrier(also)));
        if let Err(error) = self.steer.set_path(peer, Some(&primary), also.as_ref()) {
            tracing::warn!(error = %PlaneError::of(&error), %peer, ?primary, "a path cannot be used");
        }
    }

    fn admit(&mut self, id: u64, remote: SocketAddr, relayed: bool) {
        let Some(peer) = self.peers.get(&id).copied() else { return };
        self.announce(Instant::now(), peer);
        let class = if relayed { Class::RelayPort } else { Class::Direct };
        match self.steer.admit(remote, peer, class) {
            Ok(None) => {}
            Ok(Some(other)) => {
                tracing::debug!(%remote, %peer, %other, "an address has moved to another peer");
            }
            Err(error) => {
                tracing::warn!(error = %PlaneError::of(&error), %peer, %remote, "cannot let packets in");
            }
        }
    }

    /// A firewall of this host may let in only answers: WireGuard's packets of the peer shall be such.
    fn announce(&mut self, now: Instant, peer: PeerId) {
        if self.announced.get(&peer).is_some_and(|last| now < *last + ANNOUNCE) {
            return;
        }
        self.announced.insert(peer, now);
        if let Err(error) = self.steer.announce(peer) {
            tracing::debug!(%error, %peer, "the host's firewall is not told of a peer");
        }
    }

    // What the coordinator is told

    /// The coordinator's stream is open: it may have forgotten what it was told.
    pub(super) fn connected(&mut self, now: Instant) {
        for (to, signal) in self.ways.signals() {
            self.signals.entry(to).or_insert_with(|| signal.clone());
        }
        self.requests.clear();
        self.ways.connected(now);
        self.send_at = Some(now);
        self.act();
    }

    /// Something to tell, as long as `room` says that there is room for it.
    pub(super) fn tell(&mut self, now: Instant, room: impl Fn() -> bool, send: impl Fn(pb::NodeMessage)) {
        if self.send_at.is_none_or(|at| at > now) {
            return;
        }
        self.send_at = None;
        let message = |message| pb::NodeMessage { message: Some(message) };
        for request in self.requests.drain(..) {
            send(message(pb::node_message::Message::RelayTokens(request)));
        }
        while let Some((to, signal)) = self.signals.pop_first() {
            if !room() {
                self.signals.insert(to, signal);
                self.send_at = Some(now + NO_ROOM);
                return;
            }
            let outgoing = pb::OutgoingSignal { to, signal: Some(signal) };
            send(message(pb::node_message::Message::Signal(outgoing)));
        }
    }
}

fn path(hop: Hop) -> Path {
    match hop {
        Hop::Wire { base, remote, relayed } => Path::Wire {
            class: if relayed { Class::RelayPort } else { Class::Direct },
            uplink: base.uplink.0,
            local: base.address,
            remote,
        },
        Hop::Quic { .. } => Path::Carrier { class: Class::Quic },
        Hop::Stream(_) => Path::Carrier { class: Class::Derp },
    }
}

fn is_carrier(path: &Path) -> bool {
    matches!(path, Path::Carrier { .. })
}

fn steer_class(class: ghostwire_path::Class) -> Class {
    match class {
        ghostwire_path::Class::Direct => Class::Direct,
        ghostwire_path::Class::Quic => Class::Quic,
        ghostwire_path::Class::RelayPort => Class::RelayPort,
        ghostwire_path::Class::Derp => Class::Derp,
    }
}

//! The daemon: everything that happens meets in one loop, which feeds the session and the paths and does what
//! they say. No step of the loop waits for the network, the disk or the kernel.

mod acl;
mod acquaintances;
mod inspection;
mod portmap;
mod quic;
mod requests;
mod routes;
mod status;
mod steering;
mod surroundings;
mod up;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ghostwire_dataplane::acl::{Event, Events};
use ghostwire_dataplane::netlink::{Change, Monitor, Netlink};
use ghostwire_dataplane::steer::Steer;
use ghostwire_proto::join_key::Address;
use ghostwire_proto::keys::{Fingerprint, NodeKey};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc};

pub use acl::directions;
pub use portmap::PortMapping;
pub use quic::QuicPort;
pub use requests::{AclDraft, Answer, PingTarget, Request, RequestError};
pub use routes::Steered;
pub use status::Draft;

use self::inspection::Inspections;
use self::steering::{Arrived, Steering};
use crate::coordinator::{Contact, Stream, StreamEvent, run_stream};
use crate::naming::Generations;
use crate::path::{Observation, PeerPath, Surroundings};
use crate::plane::kernel::{Inspection, Kernel, KernelOptions, Observed};
use crate::plane::reconcile::{Endpoints, reconcile};
use crate::plane::worker::Worker;
use crate::plane::{Device, Machinery as _, PlaneError, PresentPeer};
use crate::portmap::Place;
use crate::session::map::NetworkMap;
use crate::session::{Desired, Input, Output, Report, Session};
use crate::store::{Identity, Settings, Store, StoreError};
use crate::{local, pb};

/// How often WireGuard is asked while a peer is being looked for.
const WATCHFUL: Duration = Duration::from_secs(1);
/// How often otherwise.
const CALM: Duration = Duration::from_secs(10);
/// Changes of links come in bursts.
const SETTLE: Duration = Duration::from_millis(300);

/// What the daemon is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Keys, map, settings.
    pub state_dir: PathBuf,
    /// The data plane.
    pub kernel: KernelOptions,
    /// Whether paths are steered.
    pub steered: Steered,
    /// Whether routers are asked to forward a port.
    pub port_mapping: PortMapping,
    /// The UDP port of QUIC.
    pub quic: QuicPort,
    /// End after `gwctl down`: for a daemon that `gwctl up` has started.
    pub exit_on_down: bool,
}

/// What the daemon's own tasks report to the loop.
#[derive(Debug)]
enum Happening {
    Stream(u64, StreamEvent),
    Applied(Report, Option<Device>, Option<String>),
    TornDown(Result<(), PlaneError>),
    Saved(Result<(), StoreError>),
    Kept(Result<(), StoreError>),
    Observed(Vec<PresentPeer>),
    Inspected(Result<Inspection, PlaneError>),
    Enrolled(Box<up::Enrolled>),
    Events(Events),
    PortMapped(Place, Option<SocketAddr>),
    Steered(Box<Result<(Device, Steer), PlaneError>>, Desired),
}

/// See the module.
pub struct Daemon {
    config: Config,
    store: Arc<Store>,
    identity: Identity,
    settings: Settings,
    session: Session,
    worker: Worker,
    netlink: Netlink,
    contact: Option<Contact>,
    stream: Option<Stream>,
    stream_number: u64,
    steering: Option<Steering>,
    /// Why not.
    no_steering: Option<String>,
    port_mapping: Option<portmap::Asking>,
    netchecks: Vec<routes::Netcheck>,
    /// As the coordinator has listed them.
    relays: Vec<pb::Relay>,
    /// Signals of peers that steering does not know yet.
    early: BTreeMap<u64, pb::Signal>,
    /// When what peers have told us is to be written; number of the last write.
    keep_at: Option<Instant>,
    kept: u64,
    /// Where paths are not steered.
    paths: BTreeMap<u64, (NodeKey, PeerPath)>,
    around: Surroundings,
    device: Option<Device>,
    last_observed: Vec<PresentPeer>,
    inspections: Inspections,
    adopted: bool,
    generations: Generations,
    events: Option<Events>,
    events_asked: bool,
    watchers: broadcast::Sender<Arc<local::AclEvent>>,
    accept_watchers: usize,
    ups: Vec<up::Waiting>,
    downs: Vec<tokio::sync::oneshot::Sender<Result<(), RequestError>>>,
    enrolling: bool,
    /// What is wrong outside the session, by subject.
    troubles: BTreeMap<&'static str, String>,
    happenings: mpsc::Sender<Happening>,
    ending: bool,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon")
            .field("config", &self.config)
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// The receiving ends that [`Daemon::run`] needs.
#[derive(Debug)]
pub struct Inbox {
    happenings: mpsc::Receiver<Happening>,
    requests: mpsc::Receiver<Request>,
}

impl Daemon {
    /// Takes the state directory and reads what is there. Changes nothing in the kernel yet.
    pub fn open(config: Config, requests: mpsc::Receiver<Request>) -> anyhow::Result<(Self, Inbox)> {
        let store = Store::open(&config.state_dir)?;
        let identity = store.identity()?;
        let settings = store.settings()?;
        let mut troubles = BTreeMap::new();
        // The map is a copy of what the coordinator has: damage to it must not keep the node down.
        let map = match store.map() {
            Ok(stored) => stored.and_then(|snapshot| match NetworkMap::from_snapshot(&snapshot) {
                Ok(map) => Some(map),
                Err(error) => {
                    troubles.insert(
                        "map",
                        format!("the stored network map is not usable: {error}; waiting for a new one"),
                    );
                    None
                }
            }),
            Err(error) => {
                troubles.insert("map", error.to_string());
                None
            }
        };
        let kernel = Kernel::new(config.kernel.clone(), *identity.node_key.expose())?;
        let (happenings, inbox) = mpsc::channel(256);
        let mut daemon = Self {
            session: Session::new(
                map.filter(|_| identity.membership.is_some()),
                settings.shadow,
                rand::random(),
            ),
            worker: Worker::start(kernel).context("cannot start the data plane's thread")?,
            netlink: Netlink::open()?,
            store: Arc::new(store),
            contact: None,
            stream: None,
            stream_number: 0,
            steering: None,
            no_steering: None,
            port_mapping: None,
            netchecks: Vec::new(),
            relays: Vec::new(),
            early: BTreeMap::new(),
            keep_at: None,
            kept: 0,
            paths: BTreeMap::new(),
            around: Surroundings::default(),
            device: None,
            last_observed: Vec::new(),
            inspections: Inspections::new(Instant::now()),
            adopted: false,
            generations: Generations::default(),
            events: None,
            events_asked: false,
            watchers: broadcast::channel(1024).0,
            accept_watchers: 0,
            ups: Vec::new(),
            downs: Vec::new(),
            enrolling: false,
            happenings,
            ending: false,
            config,
            identity,
            settings,
            troubles,
        };
        daemon.refresh_contact()?;
        Ok((daemon, Inbox { happenings: inbox, requests }))
    }

    /// In a sentence, for the log and the ready line.
    pub fn summary(&self) -> String {
        match (&self.identity.membership, self.settings.up) {
            (None, _) => "not in a network yet; join one with `gwctl up JOIN_KEY`".to_owned(),
            (Some(_), false) => "down; connect with `gwctl up`".to_owned(),
            (Some(membership), true) => format!("connecting to {}", membership.coordinators.join(", ")),
        }
    }

    /// Runs until SIGTERM, SIGINT, or `gwctl down` for a daemon that ends with it. The data plane stays.
    pub async fn run(mut self, mut inbox: Inbox) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let mut monitor = Monitor::open()?;
        let mut links_settle: Option<Instant> = None;
        let mut observed_at = Instant::now();
        self.look_around();
        if self.settings.up && self.identity.membership.is_some() {
            self.adopt().await;
            self.input(Input::Up);
        }
        while !self.ending {
            // The pace may have changed since the last observation.
            let observe_at = observed_at + self.observation_interval();
            let timeout = self.next_timeout(links_settle, observe_at);
            tokio::select! {
                Some(request) = inbox.requests.recv() => self.on_request(request),
                Some(happening) = inbox.happenings.recv() => self.on_happening(happening),
                event = next_event(&mut self.events) => self.on_acl_event(event),
                arrived = next_arrival(&mut self.steering) => self.on_arrived(arrived),
                change = monitor.next() => match change {
                    Ok(change) => {
                        self.inspect_after(&change);
                        if !matches!(change, Change::FilterGone { .. }) {
                            links_settle.get_or_insert_with(|| Instant::now() + SETTLE);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot follow changes of network interfaces; opening anew");
                        tokio::time::sleep(SETTLE).await;
                        monitor = Monitor::open()?;
                        links_settle = Some(Instant::now());
                    }
                },
                () = tokio::time::sleep_until(timeout.into()) => {}
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
            let now = Instant::now();
            if links_settle.is_some_and(|at| at <= now) {
                links_settle = None;
                self.look_around();
            }
            if observe_at <= now {
                observed_at = now;
                self.ask_observation();
            }
            self.inspect_if_due(now);
            self.tick_paths(now);
            self.tick_steering(now);
            self.keep_acquaintances_if_due(now);
            if self.session.poll_timeout().is_some_and(|at| at <= now) {
                self.input(Input::Tick);
            }
            self.advance_ups();
        }
        self.keep_acquaintances_now();
        if !self.ending {
            tracing::info!("ending; the data plane stays as it is and is adopted by the next start");
        }
        Ok(())
    }

    fn next_timeout(&self, links_settle: Option<Instant>, observe_at: Instant) -> Instant {
        let paths = self.paths.values().filter_map(|(_, path)| path.poll_timeout());
        let ups = self.ups.iter().map(up::Waiting::deadline);
        let steering = self.steering.as_ref().map(Steering::poll_timeout);
        [steering, links_settle, self.keep_at, self.session.poll_timeout(), self.next_inspection()]
            .into_iter()
            .flatten()
            .chain(paths)
            .chain(ups)
            .fold(observe_at, Instant::min)
    }

    /// Before the first map is applied: peers that an earlier run left keep their endpoints.
    async fn adopt(&mut self) {
        let device = self.worker.run(Kernel::adopt_existing).await;
        if let Ok(Ok(peers)) = device {
            self.adopted = !peers.is_empty();
            self.on_observed(peers);
        }
    }

    /// Gives the session something, and does what it says.
    fn input(&mut self, input: Input) {
        let now = Instant::now();
        let before = self.session.state();
        self.session.handle(now, input);
        while let Some(output) = self.session.poll_output() {
            self.output(now, output);
        }
        let after = self.session.state();
        if before != after {
            tracing::info!(from = before.as_str(), to = after.as_str(), detail = %self.session.detail(), "state");
        }
    }

    fn output(&mut self, now: Instant, output: Output) {
        match output {
            Output::Connect => self.connect(),
            Output::Disconnect => self.stream = None,
            Output::Send(message) => {
                let sent = self.stream.as_ref().is_some_and(|stream| stream.send(*message));
                if !sent && self.stream.take().is_some() {
                    let number = self.stream_number;
                    let why = "the coordinator does not take what we send".to_owned();
                    self.later(Happening::Stream(number, StreamEvent::Closed { why }));
                }
            }
            Output::Apply(desired) => self.prepare(now, desired),
            Output::Signal(message) => {
                if let Some(signal) = message.signal {
                    self.on_signal(now, message.from, signal);
                }
            }
            Output::Relays(relays) => {
                self.relays = relays;
                if let Some(steering) = &mut self.steering {
                    steering.ways.set_relays(now, &self.relays);
                    steering.act();
                }
            }
            Output::RelayTokens(tokens) => {
                if let Some(steering) = &mut self.steering {
                    steering.ways.tokens(now, &tokens);
                    steering.act();
                }
            }
            Output::RelayRebind(relay) => {
                if let Some(steering) = &mut self.steering {
                    steering.ways.rebind(now, relay);
                    steering.act();
                }
            }
            Output::TearDown => self.tear_down(),
            Output::SaveMap(map) => {
                let store = self.store.clone();
                self.spawn_blocking(move || Happening::Saved(store.save_map(&map.to_snapshot())));
            }
            Output::ForgetNetwork => self.forget_network(),
        }
    }

    fn connect(&mut self) {
        let Some(contact) = self.contact.clone() else { return };
        self.stream_number += 1;
        let (events, mut arriving) = mpsc::channel::<(u64, StreamEvent)>(64);
        let happenings = self.happenings.clone();
        tokio::spawn(async move {
            while let Some((number, event)) = arriving.recv().await {
                if happenings.send(Happening::Stream(number, event)).await.is_err() {
                    return;
                }
            }
        });
        let about = self.about();
        let stream = run_stream(contact, self.session.resume(), about, self.stream_number, events);
        self.stream = Some(stream);
    }

    fn apply(&mut self, desired: Desired, endpoints: Endpoints) {
        if let Some(filter) = &desired.map.filter {
            self.generations.remember(filter.generation, &filter.rules);
        }
        let happenings = self.happenings.clone();
        let job = self.worker.run(move |kernel| {
            let report = reconcile(kernel, &desired, &endpoints);
            (report, kernel.device().cloned(), kernel.pins_warning())
        });
        tokio::spawn(async move {
            if let Ok((report, device, warning)) = job.await {
                let _ = happenings.send(Happening::Applied(report, device, warning)).await;
            }
        });
    }

    fn tear_down(&mut self) {
        self.paths.clear();
        self.give_port_back();
        self.keep_acquaintances_now();
        self.steering = None;
        self.no_steering = None;
        self.netchecks.clear();
        self.early.clear();
        self.events = None;
        self.events_asked = false;
        self.device = None;
        self.last_observed.clear();
        self.inspections = Inspections::new(Instant::now());
        let job = self.worker.run(Kernel::tear_down);
        let happenings = self.happenings.clone();
        tokio::spawn(async move {
            let result = job.await.and_then(|result| result);
            let _ = happenings.send(Happening::TornDown(result)).await;
        });
    }

    fn forget_network(&mut self) {
        self.identity.membership = None;
        self.settings.up = false;
        self.contact = None;
        self.generations.clear();
        let kept = self
            .store
            .forget_map()
            .and_then(|()| self.store.save_identity(&self.identity))
            .and_then(|()| self.store.save_settings(&self.settings));
        self.note("state", kept.err().map(|error| error.to_string()));
    }

    fn on_happening(&mut self, happening: Happening) {
        match happening {
            Happening::Stream(number, event) => {
                if number == self.stream_number {
                    self.on_stream(event);
                }
            }
            Happening::Applied(report, device, warning) => {
                for problem in &report.problems {
                    tracing::error!(%problem, "the data plane is not as the coordinator wants it");
                }
                let fits = report.complete;
                if device.is_some() && self.session.is_up() {
                    let changed = self.device != device;
                    self.device = device;
                    if changed {
                        self.steer_network(Instant::now());
                    }
                }
                self.input(Input::Applied(report));
                self.warn("pins", warning);
                if fits {
                    self.troubles.remove("map");
                }
                self.refresh_about();
                self.ask_events();
                self.ask_observation();
            }
            Happening::TornDown(result) => self.on_torn_down(result),
            Happening::Saved(Ok(())) => self.input(Input::Saved),
            Happening::Saved(Err(error)) => {
                tracing::error!(%error, "the network map is not on disk");
                self.input(Input::NotSaved { why: error.to_string() });
            }
            Happening::Kept(kept) => self.note("peers", kept.err().map(|error| error.to_string())),
            Happening::Observed(peers) => self.on_observed(peers),
            Happening::Inspected(inspection) => self.on_inspected(inspection),
            Happening::Enrolled(enrolled) => self.on_enrolled(*enrolled),
            Happening::Events(events) => self.events = Some(events),
            Happening::PortMapped(place, mapped) => self.on_port_mapped(place, mapped),
            Happening::Steered(opened, desired) => self.on_steered(*opened, desired),
        }
    }

    fn on_stream(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Opened { coordinator } => {
                self.input(Input::Opened { coordinator });
                if let Some(steering) = &mut self.steering {
                    steering.connected(Instant::now());
                }
            }
            StreamEvent::Received(message) => self.input(Input::Received(message)),
            StreamEvent::Closed { why } => {
                tracing::warn!(%why, "no coordinator");
                self.stream = None;
                self.input(Input::Closed { why });
            }
        }
    }

    fn on_observed(&mut self, peers: Vec<PresentPeer>) {
        let now = Instant::now();
        for (key, path) in self.paths.values_mut() {
            if let Some(peer) = peers.iter().find(|peer| peer.key == *key) {
                path.observe(now, observation(peer));
            }
        }
        self.last_observed = peers;
    }

    /// Paths of exactly the map's peers; endpoints for those that WireGuard does not know yet.
    fn update_paths(&mut self, now: Instant, map: &NetworkMap) -> BTreeMap<u64, SocketAddr> {
        self.paths.retain(|id, (key, _)| map.peers.get(id).is_some_and(|peer| peer.key == *key));
        let mut first = BTreeMap::new();
        for (id, peer) in &map.peers {
            let known = self.last_observed.iter().find(|present| present.key == peer.key);
            let (_, path) = self.paths.entry(*id).or_insert_with(|| {
                let mut path = PeerPath::new();
                if let Some(present) = known {
                    path.observe(now, observation(present));
                }
                (peer.key, path)
            });
            path.set_candidates(now, &peer.endpoints, peer.message.online, &self.around);
            let unknown = known.is_none_or(|present| present.endpoint.is_none());
            if let Some(endpoint) = unknown.then(|| path.poll_endpoint()).flatten() {
                first.insert(*id, endpoint);
            }
        }
        first
    }

    fn tick_paths(&mut self, now: Instant) {
        let mut changes = Vec::new();
        for (key, path) in self.paths.values_mut() {
            path.tick(now);
            if let Some(endpoint) = path.poll_endpoint() {
                changes.push((*key, endpoint));
            }
        }
        for (key, endpoint) in changes {
            tracing::debug!(peer = %key, %endpoint, "trying another endpoint");
            // A peer that is gone by then is no loss; a device that is gone is found by the next comparison.
            drop(self.worker.run(move |kernel| {
                if let Err(error) = kernel.set_endpoint(key, endpoint) {
                    tracing::warn!(%error, peer = %key, "cannot change an endpoint");
                }
            }));
        }
    }

    fn observation_interval(&self) -> Duration {
        let map = self.session.map();
        let looking = self.paths.iter().any(|(id, (_, path))| {
            let online = map.and_then(|map| map.peers.get(id)).is_some_and(|peer| peer.message.online);
            online && !path.is_working()
        });
        if looking { WATCHFUL } else { CALM }
    }

    fn ask_observation(&mut self) {
        if self.device.is_none() {
            return;
        }
        let job = self.worker.run(Kernel::peers);
        let happenings = self.happenings.clone();
        tokio::spawn(async move {
            if let Ok(Ok(peers)) = job.await {
                let _ = happenings.send(Happening::Observed(peers)).await;
            }
        });
    }

    fn set_endpoint(&self, key: NodeKey, endpoint: SocketAddr) {
        drop(self.worker.run(move |kernel| {
            if let Err(error) = kernel.set_endpoint(key, endpoint) {
                tracing::warn!(%error, peer = %key, "cannot change an endpoint");
            }
        }));
    }

    fn refresh_contact(&mut self) -> anyhow::Result<()> {
        self.contact = match &self.identity.membership {
            None => None,
            Some(membership) => {
                let addresses: Result<Vec<Address>, _> =
                    membership.coordinators.iter().map(|text| text.parse()).collect();
                let addresses = addresses.context("the stored address of the coordinator is not usable")?;
                Some(Contact::new(&self.identity, addresses, Fingerprint::new(membership.ca_fingerprint)))
            }
        };
        Ok(())
    }

    fn note(&mut self, subject: &'static str, trouble: Option<String>) {
        match trouble {
            Some(trouble) => {
                tracing::error!(%trouble, subject);
                self.troubles.insert(subject, trouble);
            }
            None => {
                self.troubles.remove(subject);
            }
        }
    }

    /// As [`Self::note`], for what works but could be better; said once.
    fn warn(&mut self, subject: &'static str, warning: Option<String>) {
        match warning {
            Some(warning) if self.troubles.get(subject) != Some(&warning) => {
                tracing::warn!(%warning, subject);
                self.troubles.insert(subject, warning);
            }
            Some(_) => {}
            None => drop(self.troubles.remove(subject)),
        }
    }

    fn later(&self, happening: Happening) {
        let happenings = self.happenings.clone();
        tokio::spawn(async move {
            let _ = happenings.send(happening).await;
        });
    }

    fn spawn_blocking(&self, job: impl FnOnce() -> Happening + Send + 'static) {
        let happenings = self.happenings.clone();
        tokio::task::spawn_blocking(move || {
            let _ = happenings.blocking_send(job());
        });
    }
}

fn observation(peer: &PresentPeer) -> Observation {
    Observation {
        endpoint: peer.endpoint,
        handshake_age: peer.handshake_age,
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
    }
}

async fn next_arrival(steering: &mut Option<Steering>) -> Arrived {
    match steering {
        Some(steering) => steering.next().await,
        None => std::future::pending().await,
    }
}

async fn next_event(events: &mut Option<Events>) -> std::io::Result<Event> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

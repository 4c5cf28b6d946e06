//! From a batch received to batches sent, and from the session table to sockets, limits and the XDP program.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use ed25519_dalek::VerifyingKey;
use ghostwire_relay_fastpath::{Datagram, Forward, Reason, Verdict, decide};
use ghostwire_relay_protocol::token::KeyNumber;
use socket2::Socket;
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};

use super::journal::JournalFile;
use super::socket::{self, BATCH, Inbox, Meta, Outgoing};
use crate::limits::{Exceeded, SessionLimits};
use crate::sessions::config::{Config, ConfigError, Secrets};
use crate::sessions::journal::{self, Record};
use crate::sessions::{Answer, Arrival, ControlCounters, Event, Now, Owner, Sessions};
use crate::table::{HeapTable, Memory};
use crate::xdp::routes::{self, Routes};
use crate::xdp::{self, Xdp, XdpError};

/// Ways are looked at again at least so often.
const ROUTES_EVERY: Duration = Duration::from_mins(1);

/// And at most so often.
const ROUTES_SETTLE: Duration = Duration::from_millis(200);

thread_local! {
    /// A batch's buffers are large; each thread has them once, and uses them only while it runs, never across an
    /// await.
    static INBOX: RefCell<Inbox> = RefCell::new(Inbox::new());
}

/// Hears what the relay's sockets report. The coordinator's connection implements it.
pub trait Observer: Send + Sync {
    /// Something that is not bound sends WireGuard datagrams to the port of `owner`: its peers should bind again.
    fn unknown_source(&self, owner: Owner, source: SocketAddr);
}

/// Why the relay ports cannot be served.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The XDP program cannot be used.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// What outlives a restart cannot be written.
    #[error("cannot write {path}: {source}")]
    Journal {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The main port is taken, or the address is not this machine's.
    #[error("cannot receive on UDP {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// What a relay with an XDP program has besides.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Folder of the program's pins in the BPF filesystem.
    pub dir: PathBuf,
    /// Where it is attached.
    pub interfaces: Vec<String>,
    /// How.
    pub mode: xdp::Mode,
    /// The file by which a restarted relay knows whose ports and pairs it finds in the kernel.
    pub journal: PathBuf,
}

/// The XDP program and what feeds it.
#[derive(Debug)]
struct Program {
    xdp: Xdp,
    /// Held for a moment only.
    fed: Mutex<Fed>,
}

#[derive(Debug)]
struct Fed {
    journal: JournalFile,
    routes: Routes,
}

/// What has been counted since the start.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Counters {
    pub forwarded_packets: AtomicU64,
    pub not_wireguard: AtomicU64,
    pub unknown_source: AtomicU64,
    pub hop_limit: AtomicU64,
    pub busy: AtomicU64,
    pub rate_limited: AtomicU64,
    pub handshakes_limited: AtomicU64,
    pub truncated: AtomicU64,
    pub not_sent: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// A port at one address.
struct Port {
    local: u8,
    number: u16,
    socket: AsyncFd<Socket>,
}

/// Ports by address and number, each with the task that receives on it.
type Ports = HashMap<(u8, u16), (Arc<Port>, AbortHandle)>;

/// The sockets, and what they share.
pub struct Plane {
    config: Config,
    table: Memory,
    sessions: Mutex<Sessions<Memory>>,
    limits: SessionLimits,
    ports: RwLock<Ports>,
    counters: Counters,
    started: Instant,
    observer: Arc<dyn Observer>,
    program: Option<Program>,
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Plane {
    /// Opens the main port on every address and serves it, on the current tokio runtime. With a `kernel`, an XDP
    /// program does what it can; what an earlier process has left in the kernel goes on.
    pub fn start(
        config: Config,
        secrets: Secrets,
        seed: &[u8; 32],
        observer: Arc<dyn Observer>,
        kernel: Option<Kernel>,
    ) -> Result<Arc<Self>, StartError> {
        let lines = Sessions::<Memory>::table_lines(&config)?;
        let (sessions, program) = match kernel {
            None => {
                let table = Memory::Heap(HeapTable::new(lines));
                (Sessions::new(config.clone(), secrets, table, seed)?, None)
            }
            Some(kernel) => {
                let optional = kernel.mode == xdp::Mode::Auto;
                match Program::start(&config, secrets.clone(), seed, lines, kernel) {
                    Ok((sessions, program)) => (sessions, Some(program)),
                    Err(StartError::Xdp(error)) if optional => {
                        let error = &error as &dyn std::error::Error;
                        warn!(error, "relaying in userspace, which is slower, since XDP cannot be used");
                        let table = Memory::Heap(HeapTable::new(lines));
                        (Sessions::new(config.clone(), secrets, table, seed)?, None)
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let plane = Arc::new(Self {
            limits: SessionLimits::new(config.limits.pairs),
            config,
            table: sessions.table().clone(),
            sessions: Mutex::new(sessions),
            ports: RwLock::default(),
            counters: Counters::default(),
            started: Instant::now(),
            observer,
            program,
        });
        plane.open(plane.config.main_port)?;
        // What has been resumed.
        plane.settle(&mut plane.sessions());
        tokio::spawn(Arc::clone(&plane).keep_time());
        if plane.program.is_some() {
            tokio::spawn(Arc::clone(&plane).watch_routes());
        }
        Ok(plane)
    }

    /// The XDP program, if there is one.
    pub fn xdp(&self) -> Option<&Xdp> {
        self.program.as_ref().map(|program| &program.xdp)
    }

    /// What the relay was told to be.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whose tokens are good from now on.
    pub fn set_coordinators(&self, coordinators: Vec<(KeyNumber, VerifyingKey)>) {
        self.sessions().set_coordinators(coordinators);
    }

    /// What has been counted on relay ports.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What has been counted of requests.
    pub fn control_counters(&self) -> ControlCounters {
        self.sessions().counters()
    }

    /// How many nodes have a port, and how many pairs carry traffic.
    pub fn load(&self) -> (usize, usize) {
        self.sessions().load()
    }

    /// Takes no new nodes from now on and tells those that are here to move.
    pub fn drain(&self) {
        self.sessions().drain();
    }

    /// Closes all sockets.
    pub fn stop(&self) {
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        for (_, (_, task)) in ports.drain() {
            task.abort();
        }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions<Memory>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Now { monotonic: self.started.elapsed(), unix: unix.as_secs() }
    }

    async fn keep_time(self: Arc<Self>) {
        loop {
            let next = self.sessions().poll_timeout();
            tokio::time::sleep_until((self.started + next).into()).await;
            let now = self.now();
            let mut sessions = self.sessions();
            sessions.handle_timeout(now);
            self.settle(&mut sessions);
        }
    }

    /// Opens a port on every address, or on none.
    fn open(self: &Arc<Self>, port: u16) -> Result<(), StartError> {
        let mut opened = Vec::new();
        for (local, address) in (0..).zip(&self.config.locals) {
            let address = SocketAddr::new(address.local, port);
            let socket = socket::open(address).map_err(|source| StartError::Bind { address, source })?;
            opened.push(Arc::new(Port { local, number: port, socket }));
        }
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        for port in opened {
            let task = tokio::spawn(Arc::clone(self).serve(Arc::clone(&port)));
            ports.insert((port.local, port.number), (port, task.abort_handle()));
        }
        Ok(())
    }

    fn close(&self, port: u16) {
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        for (local, _) in (0..).zip(&self.config.locals) {
            if let Some((_, task)) = ports.remove(&(local, port)) {
                task.abort();
            }
        }
    }

    async fn serve(self: Arc<Self>, port: Arc<Port>) {
        loop {
            let Ok(mut ready) = port.socket.readable().await else { return };
            match ready.try_io(|socket| self.pump(&port, socket.get_ref())) {
                Ok(Ok(())) | Err(_) => {}
                // What the network reports about an earlier datagram; the next call goes on.
                Ok(Err(error)) => debug!(port = port.number, %error, "receiving failed"),
            }
        }
    }

    /// Receives a batch and sends on what is to be sent on.
    fn pump(self: &Arc<Self>, port: &Port, socket: &Socket) -> io::Result<()> {
        INBOX.with_borrow_mut(|inbox| {
            inbox.receive(socket.as_fd())?;
            let now = self.now();
            let mut outgoing: Vec<(u8, u16, Outgoing)> = Vec::with_capacity(BATCH);
            for (index, meta, payload) in inbox.datagrams() {
                let Some(source) = meta.source else {
                    count(&self.counters.truncated, 1);
                    continue;
                };
                let arrival = Arrival { local: port.local, port: port.number, source };
                if let Some(forward) = self.judge(now, arrival, meta, payload, socket) {
                    let destination = forward.destination.into();
                    let datagram = Outgoing { index, destination, hops: forward.hops, tos: meta.tos };
                    outgoing.push((forward.local, forward.port, datagram));
                }
            }
            self.send(inbox, outgoing);
            Ok(())
        })
    }

    /// What is to be done with one datagram; answers requests on the way.
    fn judge(
        self: &Arc<Self>,
        now: Now,
        arrival: Arrival,
        meta: &Meta,
        payload: &[u8],
        socket: &Socket,
    ) -> Option<Forward> {
        let verdict = if arrival.port == self.config.main_port {
            Verdict::Control
        } else {
            decide(&self.table, &datagram(arrival, meta, payload))
        };
        let counters = &self.counters;
        match verdict {
            Verdict::Forward(forward) => {
                let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                match self.limits.admit(forward.session, now.monotonic, len, forward.handshake) {
                    Ok(()) => return Some(forward),
                    Err(Exceeded::Handshakes) => count(&counters.handshakes_limited, 1),
                    Err(Exceeded::Bytes | Exceeded::NoSession) => count(&counters.rate_limited, 1),
                }
            }
            Verdict::Control => {
                if let Some(answer) = self.answer(now, arrival, payload) {
                    // Lost answers are asked for again.
                    let _ = socket.send_to(answer.bytes(), &arrival.source.into());
                }
            }
            Verdict::Drop(Reason::NotWireGuard) => count(&counters.not_wireguard, 1),
            Verdict::Drop(Reason::HopLimit) => count(&counters.hop_limit, 1),
            Verdict::Drop(Reason::Busy) => count(&counters.busy, 1),
            Verdict::Drop(Reason::UnknownSource) => {
                count(&counters.unknown_source, 1);
                let mut sessions = self.sessions();
                sessions.handle_unknown_source(now, arrival);
                self.settle(&mut sessions);
            }
        }
        None
    }

    fn answer(self: &Arc<Self>, now: Now, arrival: Arrival, payload: &[u8]) -> Option<Answer> {
        let mut sessions = self.sessions();
        let answer = sessions.handle_control(now, arrival, payload);
        // A port that cannot be opened was not granted: the node asks again and gets another one.
        if self.settle(&mut sessions) { answer } else { None }
    }

    /// Does what the sessions want done. `false`: a port could not be opened.
    fn settle(self: &Arc<Self>, sessions: &mut Sessions<Memory>) -> bool {
        let mut settled = true;
        while let Some(event) = sessions.poll_event() {
            match event {
                Event::OpenPort(port) => {
                    if let Err(error) = self.open(port) {
                        warn!(%error, "a relay port cannot be used");
                        sessions.port_failed(port);
                        settled = false;
                    }
                }
                Event::ClosePort(port) => self.close(port),
                Event::Record(record) => settled &= self.record(sessions, &record),
                Event::PairConnected { session, ends } => self.find_way(sessions, session, ends),
                Event::SessionOpened { session, rate } => self.limits.set(session, rate),
                Event::SessionClosed { session } => self.limits.clear(session),
                Event::UnknownSource { owner, source } => self.observer.unknown_source(owner, source),
            }
        }
        settled
    }

    /// Writes down what a restarted relay has to know. `false`: it could not be, so it must not be granted.
    fn record(&self, sessions: &Sessions<Memory>, record: &Record) -> bool {
        let Some(program) = &self.program else { return true };
        let journal = &mut program.fed.lock().unwrap_or_else(PoisonError::into_inner).journal;
        let appended = journal.append(record).and_then(|long| {
            if long {
                *journal = JournalFile::start(journal.path(), sessions.journal())?;
            }
            Ok(())
        });
        if let Err(error) = &appended {
            warn!(%error, path = %journal.path().display(), "the journal cannot be written");
        }
        appended.is_ok()
    }

    /// Finds out whether what one end sends may go back to the neighbour that it came from.
    fn find_way(&self, sessions: &mut Sessions<Memory>, session: u32, ends: [IpAddr; 2]) {
        let Some(program) = &self.program else { return };
        let routes = &mut program.fed.lock().unwrap_or_else(PoisonError::into_inner).routes;
        let [low, high] = ends.map(|end| routes.way(end));
        sessions.set_same_way(session, low.is_some() && low == high);
    }

    fn find_ways(&self, some: &[(u32, [IpAddr; 2])]) {
        let mut sessions = self.sessions();
        for (session, ends) in some {
            self.find_way(&mut sessions, *session, *ends);
        }
    }

    /// Looks at all ways again when routes have changed, and now and then, since neighbours come and go unannounced.
    async fn watch_routes(self: Arc<Self>) {
        let changes = routes::changes().and_then(|socket| {
            // SAFETY: the socket owns its descriptor, and nobody replaces or closes it while `AsyncFd` owns the socket.
            Ok(unsafe { AsyncFd::register(socket) }?)
        });
        let mut changes =
            changes.inspect_err(|error| warn!(%error, "changes of routes are noticed late")).ok();
        loop {
            match &mut changes {
                Some(changes) => {
                    let _ = tokio::time::timeout(ROUTES_EVERY, changed(changes)).await;
                }
                None => tokio::time::sleep(ROUTES_EVERY).await,
            }
            // Changes come in crowds.
            tokio::time::sleep(ROUTES_SETTLE).await;
            let connected: Vec<_> = self.sessions().connected().collect();
            for some in connected.chunks(64) {
                self.find_ways(some);
                tokio::task::yield_now().await;
            }
        }
    }

    /// Sends a batch, socket by socket. A flow has one socket, so its order stays.
    fn send(&self, inbox: &Inbox, mut outgoing: Vec<(u8, u16, Outgoing)>) {
        outgoing.sort_by_key(|(local, port, _)| (*local, *port));
        for group in outgoing.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let Some((local, port, _)) = group.first() else { continue };
            let socket = {
                let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
                ports.get(&(*local, *port)).map(|(port, _)| Arc::clone(port))
            };
            let datagrams: Vec<Outgoing> = group.iter().map(|(_, _, datagram)| datagram.clone()).collect();
            let sent =
                socket.map_or(0, |port| socket::send(port.socket.get_ref().as_fd(), inbox, &datagrams));
            count(&self.counters.forwarded_packets, sent as u64);
            count(&self.counters.not_sent, (datagrams.len() - sent) as u64);
        }
    }
}

impl Program {
    fn start(
        config: &Config,
        secrets: Secrets,
        seed: &[u8; 32],
        lines: u32,
        kernel: Kernel,
    ) -> Result<(Sessions<Memory>, Self), StartError> {
        let xdp = Xdp::open(&xdp::Options {
            dir: kernel.dir,
            interfaces: kernel.interfaces,
            mode: kernel.mode,
            lines,
            settings: xdp::settings(&config.limits),
        })?;
        let table = Memory::Map(xdp.table().clone());
        let left = JournalFile::left(&kernel.journal);
        let resumed = Sessions::resume(config, &secrets, &table, seed, journal::read(&left))?;
        let sessions = match resumed {
            Some(sessions) => {
                let (nodes, pairs) = sessions.load();
                info!(nodes, pairs, "going on where another relay has stopped");
                sessions
            }
            None => Sessions::new(config.clone(), secrets, table, seed)?,
        };
        let journal_error = |source| StartError::Journal { path: kernel.journal.clone(), source };
        let journal = JournalFile::start(&kernel.journal, sessions.journal()).map_err(journal_error)?;
        let routes = Routes::open().map_err(journal_error)?;
        Ok((sessions, Self { xdp, fed: Mutex::new(Fed { journal, routes }) }))
    }
}

/// Waits for a change, and forgets what it says.
async fn changed(socket: &mut AsyncFd<Socket>) {
    let Ok(mut ready) = socket.readable_mut().await else { return };
    let mut buffer = [0; 8192];
    while let Ok(Ok(1..)) = ready.try_io(|socket| io::Read::read(socket.get_mut(), &mut buffer)) {}
}

fn datagram(arrival: Arrival, meta: &Meta, payload: &[u8]) -> Datagram {
    let mut head = [0; 8];
    for (byte, value) in head.iter_mut().zip(payload) {
        *byte = *value;
    }
    Datagram {
        local: arrival.local,
        port: arrival.port,
        source: arrival.source.into(),
        hops: meta.hops,
        len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
        head,
    }
}

//! Connections: the shell around quinn. Each has one task that opens it and reads; what happens comes out of the
//! [`Inbox`]. Every queue is bounded: what does not fit is lost, as on any full link.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use quinn::{
    AckFrequencyConfig, ClientConfig, Connection, ConnectionError, EndpointConfig, Incoming,
    MtuDiscoveryConfig, ServerConfig, TokioRuntime, TransportConfig, VarInt, ZeroRttAccepted,
};
use rustls::pki_types::CertificateDer;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::congestion::TunnelFactory;
use crate::identity::{Identity, PublicKey};
use crate::parts::{Joiner, Packer};
use crate::socket::{Port, Stun, narrow, widen};
use crate::tls::{self, Roster};

/// Until a connection is established; the path machine gives up then too.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection that is in use has a check every 3 s, a standby one every 10 s. Nothing for so long: it is over.
const IDLE: Duration = Duration::from_secs(30);
/// Strangers' handshakes at a time. Beyond that an address has to prove itself first (RFC 9000 section 8.1).
const MOST_HANDSHAKES: usize = 64;
/// Connections with one peer: during a change there may be two.
const MOST_WITH_PEER: usize = 3;
/// Datagrams that wait to be sent or read, in bytes of one connection; then the oldest are dropped.
const QUEUE: usize = 1 << 20;
/// Messages that are handed over together.
const MOST_TOGETHER: usize = 128;
/// Events and STUN messages that may wait.
const INBOX: usize = 256;
/// A datagram on Ethernet without IP's and UDP's headers. What is smaller is found out (RFC 8899).
const LARGEST_DATAGRAM: u16 = 1_472;
/// The other side acknowledges every so many datagrams. Its default, two, costs as much as what is acknowledged.
const ACK_EVERY: u32 = 16;

/// Why an endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The socket.
    #[error("cannot use the socket: {0}")]
    Socket(#[from] io::Error),
    /// The key, or what TLS makes of it.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why a connection did not come about, or is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody answered.
    Unreachable,
    /// Somebody answered who is not the peer, or the peer does not know us.
    Refused,
    /// It was established and ended.
    Lost,
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// A connection can be used.
    Up(Link),
    /// Messages of a connection with this number.
    Messages(u64, Vec<Vec<u8>>),
    /// The other end of a connection has another address now.
    Moved(u64, SocketAddr),
    /// A connection is over, or did not come about: its number, with whom, and why.
    Down(u64, Option<PublicKey>, Failure, String),
}

/// What comes out of an [`Endpoint`].
#[derive(Debug)]
pub struct Inbox {
    /// Of connections.
    pub events: mpsc::Receiver<Event>,
    /// From outside of connections.
    pub stun: mpsc::Receiver<Stun>,
}

/// Connections that live, by number.
type Lives = Mutex<BTreeMap<u64, (PublicKey, Connection)>>;

#[derive(Debug)]
struct Shared {
    roster: Arc<Roster>,
    lives: Lives,
    numbers: AtomicU64,
    handshakes: Semaphore,
    events: mpsc::Sender<Event>,
}

/// One node's QUIC: calls peers and is called, on one UDP port.
#[derive(Debug)]
pub struct Endpoint {
    runtime: Handle,
    quinn: quinn::Endpoint,
    port: Arc<Port>,
    shared: Arc<Shared>,
    local: SocketAddr,
}

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY));
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(LARGEST_DATAGRAM);
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(QUEUE))
        .datagram_send_buffer_size(QUEUE)
        .congestion_controller_factory(Arc::new(TunnelFactory))
        .ack_frequency_config(Some(acks))
        .mtu_discovery_config(Some(discovery))
        .max_idle_timeout(IDLE.try_into().ok());
    Arc::new(config)
}

impl Endpoint {
    /// Takes a socket of [`bind`](crate::bind). To be called in a runtime of tokio.
    pub fn open(socket: UdpSocket, identity: &Identity) -> Result<(Self, Inbox), OpenError> {
        let local = socket.local_addr()?;
        let roster = Arc::new(Roster::default());
        let mut server = ServerConfig::with_crypto(Arc::new(tls::server(identity, &roster)?));
        server.transport_config(transport()).migration(true).max_incoming(MOST_HANDSHAKES);
        let mut config = EndpointConfig::default();
        // STUN is told from QUIC by this bit.
        config.grease_quic_bit(false);
        let (stun_sender, stun) = mpsc::channel(INBOX);
        let port = Arc::new(Port::new(socket, stun_sender)?);
        let runtime = Arc::new(TokioRuntime);
        let mut quinn =
            quinn::Endpoint::new_with_abstract_socket(config, Some(server), port.clone(), runtime)?;
        let mut client = ClientConfig::new(Arc::new(tls::client(identity)?));
        client.transport_config(transport());
        quinn.set_default_client_config(client);
        let (sender, events) = mpsc::channel(INBOX);
        let shared = Arc::new(Shared {
            roster,
            lives: Lives::default(),
            numbers: AtomicU64::new(0),
            handshakes: Semaphore::new(MOST_HANDSHAKES),
            events: sender,
        });
        tokio::spawn(accept(quinn.clone(), shared.clone()));
        Ok((Self { runtime: Handle::current(), quinn, port, shared, local }, Inbox { events, stun }))
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.local.port()
    }

    /// Exactly these may connect; connections with others end.
    pub fn set_peers(&self, keys: HashSet<PublicKey>) {
        self.shared.roster.set(keys);
        let lives = self.shared.lives.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, connection) in lives.values() {
            if !self.shared.roster.has(*key) {
                connection.close(VarInt::from_u32(0), b"");
            }
        }
    }

    /// Calls a peer; the connection's number. What becomes of it is told by an event.
    pub fn connect(&self, local: Option<IpAddr>, remote: SocketAddr, key: PublicKey) -> u64 {
        let number = self.shared.next_number();
        self.port.leave_from(remote, local);
        let to = SocketAddr::new(widen(remote.ip(), self.port.is_v6()), remote.port());
        let (quinn, shared) = (self.quinn.clone(), self.shared.clone());
        self.runtime.spawn(async move {
            let outcome = call(&quinn, &shared, to, key, number).await;
            shared.finish(number, Some(key), outcome).await;
        });
        number
    }

    /// Our addresses have changed: connections that we began move (RFC 9000 section 9). `local`: where those to `remote` leave
    /// from now on.
    pub fn move_to(&self, local: Option<IpAddr>, remote: SocketAddr) -> io::Result<()> {
        self.port.leave_from(remote, local);
        self.nudge()
    }

    /// Our addresses may have changed: every connection shows itself to the other side.
    pub fn nudge(&self) -> io::Result<()> {
        // The socket is bound to no address, so it can stay: what moves is where the kernel sends from.
        self.quinn.rebind_abstract(self.port.clone())
    }

    /// Sends a STUN message outside of any connection, by a link (0: any) and from an address of ours.
    pub fn send_stun(&self, uplink: u32, local: IpAddr, remote: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        self.port.send_stun(uplink, local, remote, bytes)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.quinn.close(VarInt::from_u32(0), b"");
    }
}

/// A connection that can be used. Dropping it ends it.
#[derive(Debug)]
pub struct Link {
    number: u64,
    peer: PublicKey,
    is_caller: bool,
    is_early: bool,
    connection: Connection,
    packer: Packer,
    /// The longest datagram, as it was after the last flush.
    capacity: Option<usize>,
    /// Datagrams that are full. quinn's lock, which its sending task holds for long, is taken for many at once.
    full: Vec<Bytes>,
}

impl Link {
    fn new(
        number: u64,
        peer: PublicKey,
        connection: &Connection,
        (is_caller, is_early): (bool, bool),
    ) -> Self {
        Self {
            number,
            peer,
            is_caller,
            is_early,
            connection: connection.clone(),
            packer: Packer::new(),
            capacity: None,
            full: Vec::new(),
        }
    }

    /// Tells it from other connections of the endpoint.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Who is at the other end.
    pub fn peer(&self) -> PublicKey {
        self.peer
    }

    /// Whether we have called.
    pub fn is_caller(&self) -> bool {
        self.is_caller
    }

    /// Whether it was usable before the handshake was over.
    pub fn is_early(&self) -> bool {
        self.is_early
    }

    /// Our address, where that is known: at the end that was called.
    pub fn local(&self) -> Option<IpAddr> {
        self.connection.local_ip().map(|ip| ip.to_canonical())
    }

    /// The other end's address.
    pub fn remote(&self) -> SocketAddr {
        narrow(self.connection.remote_address())
    }

    /// The longest datagram that passes now, as far as is known; longer messages go in parts.
    pub fn largest(&self) -> Option<usize> {
        self.connection.max_datagram_size()
    }

    /// Sends a message, or keeps it until [`Self::flush`] for company. It may be lost.
    pub fn send(&mut self, message: &[u8]) {
        let capacity = self.capacity.or_else(|| self.connection.max_datagram_size());
        self.capacity = capacity;
        let Some(capacity) = capacity else { return };
        let full = &mut self.full;
        self.packer.push(message, capacity, |datagram| full.push(datagram));
        if self.full.len() >= MOST_TOGETHER {
            self.send_full();
        }
    }

    /// Nothing more comes at once.
    pub fn flush(&mut self) {
        let full = &mut self.full;
        self.packer.flush(|datagram| full.push(datagram));
        self.send_full();
    }

    fn send_full(&mut self) {
        for datagram in self.full.drain(..) {
            send(&self.connection, datagram);
        }
        self.capacity = None;
    }
}

fn send(connection: &Connection, datagram: Bytes) {
    // Too long since a moment ago, or closed: it is lost, and the checks notice.
    if let Err(error) = connection.send_datagram(datagram) {
        tracing::trace!(%error, "not sent");
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }
}

/// How a connection ended.
struct Ended {
    failure: Failure,
    why: String,
}

impl Ended {
    /// It was never established.
    fn before(error: &ConnectionError) -> Self {
        let failure = match error {
            ConnectionError::TimedOut | ConnectionError::LocallyClosed => Failure::Unreachable,
            _ => Failure::Refused,
        };
        Self { failure, why: error.to_string() }
    }

    fn refused(why: &str) -> Self {
        Self { failure: Failure::Refused, why: why.to_owned() }
    }

    fn silent() -> Self {
        Self { failure: Failure::Unreachable, why: "no answer".to_owned() }
    }
}

/// Whose key the other end has proven to have.
fn proven(connection: &Connection) -> Option<PublicKey> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    PublicKey::of_spki(chain.first()?)
}

impl Shared {
    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A connection can be used: the oldest ones with the same peer make room.
    async fn up(&self, link: Link) {
        {
            let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
            let with_peer = lives.values().filter(|(peer, _)| *peer == link.peer);
            let mut spare = with_peer.count().saturating_sub(MOST_WITH_PEER - 1);
            for (peer, connection) in lives.values() {
                if *peer == link.peer && spare > 0 {
                    spare -= 1;
                    connection.close(VarInt::from_u32(0), b"");
                }
            }
            lives.insert(link.number, (link.peer, link.connection.clone()));
        }
        // Nobody listens when the node ends.
        let _ = self.events.send(Event::Up(link)).await;
    }

    async fn finish(&self, number: u64, peer: Option<PublicKey>, ended: Ended) {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        let _ = self.events.send(Event::Down(number, peer, ended.failure, ended.why)).await;
    }
}

/// The caller's side of a connection, from its beginning to its end.
async fn call(
    quinn: &quinn::Endpoint,
    shared: &Shared,
    remote: SocketAddr,
    key: PublicKey,
    number: u64,
) -> Ended {
    let connecting = match quinn.connect(remote, &key.name()) {
        Ok(connecting) => connecting,
        Err(error) => return Ended { failure: Failure::Unreachable, why: error.to_string() },
    };
    let (connection, established) = match connecting.into_0rtt() {
        // Only the peer of the earlier session can read what is sent now.
        Ok((connection, established)) => {
            shared.up(Link::new(number, key, &connection, (true, true))).await;
            (connection, Some(established))
        }
        Err(connecting) => match timeout(HANDSHAKE, connecting).await {
            Ok(Ok(connection)) => (connection, None),
            Ok(Err(error)) => return Ended::before(&error),
            Err(_) => return Ended::silent(),
        },
    };
    let is_early = established.is_some();
    if let Some(established) = established {
        let Ok(accepted) = timeout(HANDSHAKE, established).await else {
            connection.close(VarInt::from_u32(0), b"");
            return Ended::silent();
        };
        tracing::debug!(accepted, peer = ?key, "early data");
        if let Some(error) = connection.close_reason() {
            return Ended::before(&error);
        }
    }
    // TLS has seen to it; this is the second lock on the door.
    if proven(&connection) != Some(key) {
        connection.close(VarInt::from_u32(1), b"");
        return Ended::refused("somebody else is there");
    }
    if !is_early {
        shared.up(Link::new(number, key, &connection, (true, false))).await;
    }
    read(&connection, shared, number).await
}

/// Takes calls.
async fn accept(quinn: quinn::Endpoint, shared: Arc<Shared>) {
    while let Some(incoming) = quinn.accept().await {
        if shared.handshakes.available_permits() == 0 {
            if incoming.may_retry() {
                // Whoever sent that has to show that it is there.
                let _ = incoming.retry();
            } else {
                incoming.ignore();
            }
            continue;
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            let number = shared.next_number();
            let (peer, ended) = be_called(&shared, incoming, number).await;
            shared.finish(number, peer, ended).await;
        });
    }
}

/// The other side of a connection, from its beginning to its end.
async fn be_called(shared: &Shared, incoming: Incoming, number: u64) -> (Option<PublicKey>, Ended) {
    // The semaphore is never closed.
    let Ok(permit) = shared.handshakes.acquire().await else { return (None, Ended::silent()) };
    let before = |error: ConnectionError| (None, Ended::before(&error));
    let mut connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => return before(error),
    };
    match timeout(HANDSHAKE, connecting.handshake_data()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return before(error),
        Err(_) => return (None, Ended::silent()),
    }
    // An incoming connection can always be used early.
    let Ok((connection, established)) = connecting.into_0rtt() else { return (None, Ended::silent()) };
    // A session of an earlier connection says who it is: only that peer has its secret.
    let early = proven(&connection).filter(|key| shared.roster.has(*key));
    let mut reading = Box::pin(read(&connection, shared, number));
    let established = establish(shared, &connection, established);
    let key = if let Some(key) = early {
        shared.up(Link::new(number, key, &connection, (false, true))).await;
        tokio::select! {
            ended = &mut reading => return (early, ended),
            key = established => key,
        }
    } else {
        established.await
    };
    drop(permit);
    match key {
        Ok(key) if early.is_none() => {
            shared.up(Link::new(number, key, &connection, (false, false))).await;
        }
        Ok(key) if early == Some(key) => {}
        Ok(_) => return (early, Ended::refused("the caller is two peers")),
        Err(ended) => return (early, ended),
    }
    (key.ok(), reading.await)
}

/// The end of the handshake with a caller: who it is.
async fn establish(
    shared: &Shared,
    connection: &Connection,
    established: ZeroRttAccepted,
) -> Result<PublicKey, Ended> {
    if timeout(HANDSHAKE, established).await.is_err() {
        connection.close(VarInt::from_u32(0), b"");
        return Err(Ended::silent());
    }
    if let Some(error) = connection.close_reason() {
        return Err(Ended::before(&error));
    }
    // The roster may have changed since the session's first connection.
    proven(connection).filter(|key| shared.roster.has(*key)).ok_or_else(|| {
        connection.close(VarInt::from_u32(1), b"");
        Ended::refused("the caller is no peer")
    })
}

/// Reads until a connection is over.
async fn read(connection: &Connection, shared: &Shared, number: u64) -> Ended {
    let mut joiner = Joiner::new();
    let mut remote = connection.remote_address();
    let error = loop {
        let mut next = connection.read_datagram().await;
        let mut messages = Vec::new();
        let ended = loop {
            match next {
                Ok(datagram) => {
                    if let Err(error) = joiner.feed(&datagram, |message| messages.push(message)) {
                        tracing::debug!(%error, number, "from a peer");
                    }
                }
                Err(error) => break Some(error),
            }
            if messages.len() >= MOST_TOGETHER {
                break None;
            }
            match connection.read_datagram().now_or_never() {
                Some(another) => next = another,
                None => break None,
            }
        };
        if connection.remote_address() != remote {
            remote = connection.remote_address();
            let _ = shared.events.send(Event::Moved(number, narrow(remote))).await;
        }
        if !messages.is_empty() {
            // Full: we wait, and quinn drops the oldest datagrams.
            let _ = shared.events.send(Event::Messages(number, messages)).await;
        }
        if let Some(error) = ended {
            break error;
        }
    };
    Ended { failure: Failure::Lost, why: error.to_string() }
}

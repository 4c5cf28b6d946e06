//! Listeners: TLS or plain, HTTP, then DERP.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ghostwire_relay_protocol::derp::handshake::SecretKey;
use ghostwire_relay_protocol::derp::{Frame, PublicKey};
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::connection::{Ended, Upgraded};
use super::http::{self, BadRequest, MAX_REQUEST_LEN, Wants};
use super::queue::{Lane, Queue};
use super::registry::{ConnectionId, Registry};
use super::{Admission, Limits};

/// A connection that carries nothing is tested by the kernel after so long.
const TCP_KEEPALIVE: Duration = Duration::from_secs(75);

/// How many requests one connection may make before it speaks DERP or ends.
const MAX_REQUESTS: usize = 100;

/// What all connections share.
pub(super) struct Shared {
    pub(super) secret: SecretKey,
    pub(super) limits: Limits,
    pub(super) admission: Arc<dyn Admission>,
    pub(super) registry: Mutex<Registry>,
    sources: Mutex<Sources>,
    draining: AtomicBool,
}

impl Shared {
    pub(super) fn connect(&self, key: PublicKey, queue: Arc<Queue>) -> ConnectionId {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).connect(key, queue)
    }
}

/// How many connections there are, in total and per address.
#[derive(Debug, Default)]
struct Sources {
    total: usize,
    each: HashMap<IpAddr, usize>,
}

/// A place among them, given back on drop.
struct Slot {
    shared: Arc<Shared>,
    ip: IpAddr,
}

impl Slot {
    fn take(shared: &Arc<Shared>, ip: IpAddr) -> Option<Self> {
        let ip = customer(ip);
        let mut sources = shared.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let from_there = sources.each.get(&ip).copied().unwrap_or(0);
        if sources.total >= shared.limits.connections || from_there >= shared.limits.connections_per_source {
            return None;
        }
        sources.total += 1;
        sources.each.insert(ip, from_there + 1);
        Some(Self { shared: Arc::clone(shared), ip })
    }
}

/// The address that connections count for: IPv6 ones by /64, which is what one customer has at least.
fn customer(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut sources = self.shared.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.total = sources.total.saturating_sub(1);
        if let Some(count) = sources.each.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                sources.each.remove(&self.ip);
            }
        }
    }
}

/// Why a connection ended before it spoke DERP.
#[derive(Debug, Error)]
enum Refused {
    #[error("it took too long")]
    Timeout,
    #[error(transparent)]
    Request(#[from] BadRequest),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Derp(#[from] Ended),
}

/// The stream relay.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("key", &self.key()).finish_non_exhaustive()
    }
}

impl Server {
    /// A server with this key.
    pub fn new(secret: SecretKey, limits: Limits, admission: Arc<dyn Admission>) -> Self {
        Self(Arc::new(Shared {
            secret,
            limits,
            admission,
            registry: Mutex::default(),
            sources: Mutex::default(),
            draining: AtomicBool::new(false),
        }))
    }

    /// The server's public key.
    pub fn key(&self) -> PublicKey {
        self.0.secret.public()
    }

    /// How many clients are connected.
    pub fn clients(&self) -> usize {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Its limits.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Whether it is about to stop.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    /// Tells all clients that the server restarts, and health checks that it is about to go.
    pub fn drain(&self, reconnect_in: Duration, try_for: Duration) {
        self.0.draining.store(true, Ordering::Relaxed);
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let mut frame = Vec::new();
        Frame::Restarting { reconnect_in_ms: millis(reconnect_in), try_for_ms: millis(try_for) }
            .write(&mut frame);
        for queue in self.0.registry.lock().unwrap_or_else(PoisonError::into_inner).queues() {
            queue.push(Lane::Notice, frame.clone());
        }
    }

    /// Ends all clients' connections once what waits for them is written.
    pub fn close(&self) {
        for queue in self.0.registry.lock().unwrap_or_else(PoisonError::into_inner).queues() {
            queue.close();
        }
    }

    /// Accepts connections for ever; with TLS, if given. Dropping the future stops accepting; connections go on.
    pub async fn listen(self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        loop {
            match listener.accept().await {
                Ok((stream, source)) => self.accept(stream, source, tls.clone()),
                Err(error) => {
                    // Out of descriptors, most likely: time lets some go.
                    warn!(%error, "cannot accept connections");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn accept(&self, stream: TcpStream, source: SocketAddr, tls: Option<TlsAcceptor>) {
        let Some(slot) = Slot::take(&self.0, source.ip()) else {
            debug!(%source, "too many connections");
            return;
        };
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            // Neither is worth a connection.
            let _ = stream.set_nodelay(true);
            let _ = SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE));
            let result = match tls {
                None => serve(stream, source, shared).await,
                Some(tls) => match timeout(shared.limits.handshake, tls.accept(stream)).await {
                    Ok(Ok(stream)) => serve(stream, source, shared).await,
                    Ok(Err(error)) => Err(error.into()),
                    Err(_) => Err(Refused::Timeout),
                },
            };
            if let Err(error) = result {
                debug!(%source, %error, "a connection ended");
            }
            drop(slot);
        });
    }
}

/// Answers requests until one wants to speak DERP, or the connection ends.
async fn serve<S>(mut stream: S, source: SocketAddr, shared: Arc<Shared>) -> Result<(), Refused>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut bytes = Vec::new();
    for _ in 0..MAX_REQUESTS {
        let request = loop {
            let healthy = !shared.draining.load(Ordering::Relaxed);
            if let Some(request) = http::parse(&bytes, healthy)? {
                break request;
            }
            let mut chunk = [0; 2048];
            let room = MAX_REQUEST_LEN.saturating_sub(bytes.len()).min(chunk.len());
            let read = stream.read(chunk.get_mut(..room).unwrap_or_default());
            let read = timeout(shared.limits.handshake, read).await.map_err(|_| Refused::Timeout)??;
            if read == 0 {
                return Ok(());
            }
            bytes.extend_from_slice(chunk.get(..read).unwrap_or_default());
        };
        bytes.drain(..request.len);
        match request.wants {
            Wants::Page(page) => {
                stream.write_all(&page.bytes()).await?;
                stream.flush().await?;
                if !page.keep_alive {
                    stream.shutdown().await?;
                    return Ok(());
                }
            }
            Wants::Derp { fast_start } => {
                if !fast_start {
                    stream.write_all(&http::switching_protocols(shared.secret.public())).await?;
                }
                return Ok(Upgraded { stream, rest: bytes, source }.serve(shared).await?);
            }
        }
    }
    Ok(())
}

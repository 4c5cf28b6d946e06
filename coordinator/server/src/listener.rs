//! TLS connections: gRPC and HTTP on one port, with a limit on everything that a stranger can make us hold.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::Service as _;
use tracing::{debug, warn};

use crate::limits::{ClientAddress, Connections, Slot};
use crate::shutdown::Stopping;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection on which nothing is asked for so long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const PING_INTERVAL: Duration = Duration::from_secs(20);
const MOST_STREAMS: u32 = 32;
const MOST_HEADER_BYTES: u32 = 16 << 10;
const SEND_BUFFER: usize = 256 << 10;
/// How long connections may take to end at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Accepts connections until `shutdown` turns true, then lets those that are open end.
pub async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    router: Router,
    connections: Arc<Connections>,
    mut shutdown: Stopping,
) {
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.requested() => break,
            Some(_) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((stream, from)) => {
                if let Some(slot) = connections.admit(from.ip()) {
                    let connection = Connection { from, router: router.clone(), _slot: slot };
                    tasks.spawn(connection.run(stream, tls.clone(), shutdown.clone()));
                } else {
                    debug!(%from, "too many connections");
                }
            }
            Err(error) => {
                // Out of file descriptors, most likely: wait for connections to end instead of spinning.
                warn!(%error, "cannot accept connections");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let drained = timeout(DRAIN_TIMEOUT, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        debug!(left = tasks.len(), "closing the remaining connections");
    }
}

struct Connection {
    from: SocketAddr,
    router: Router,
    _slot: Slot,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: TlsAcceptor, mut shutdown: Stopping) {
        let from = self.from;
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let stream = match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%from, %error, "TLS handshake failed"),
            Err(_) => return debug!(%from, "TLS handshake timed out"),
        };
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let activity = Arc::new(Activity::default());
        let service = {
            let activity = activity.clone();
            let router = self.router.clone();
            service_fn(move |request| answer(router.clone(), request, from, activity.clone()))
        };
        let builder = builder(is_h2);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let mut look = interval(IDLE_TIMEOUT / 4);
        let mut ending = false;
        loop {
            tokio::select! {
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        debug!(%from, error, "connection failed");
                    }
                    return;
                }
                () = shutdown.requested(), if !ending => {
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                _ = look.tick() => if activity.idle_for() > IDLE_TIMEOUT {
                    return debug!(%from, "idle connection closed");
                }
            }
        }
    }
}

fn builder(is_h2: bool) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(MOST_HEADER_BYTES)
        .max_send_buf_size(SEND_BUFFER);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MOST_HEADER_BYTES as usize);
    if is_h2 { builder.http2_only() } else { builder.http1_only() }
}

async fn answer(
    mut router: Router,
    mut request: http::Request<Incoming>,
    from: SocketAddr,
    activity: Arc<Activity>,
) -> Result<http::Response<Body>, Infallible> {
    let busy = Busy::new(activity);
    request.extensions_mut().insert(ClientAddress(from));
    let response = router.call(request).await?;
    Ok(response.map(|body| Body::new(BusyBody { body, _busy: busy })))
}

/// Whether anything is being asked on a connection, and since when not.
#[derive(Default)]
struct Activity {
    answering: AtomicUsize,
    last: Mutex<Option<Instant>>,
}

impl Activity {
    fn idle_for(&self) -> Duration {
        if self.answering.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.get_or_insert_with(Instant::now).elapsed()
    }
}

/// One request that is being answered.
struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: Arc<Activity>) -> Self {
        activity.answering.fetch_add(1, Ordering::Relaxed);
        Self(activity)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.0.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that keeps its connection busy until it ends.
struct BusyBody {
    body: Body,
    _busy: Busy,
}

impl HttpBody for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

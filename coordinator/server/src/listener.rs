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
use axum::response::IntoResponse as _;
use http::StatusCode;
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

use crate::http::is_grpc;
use crate::limits::{ClientAddress, Connections, Slot};
use crate::shutdown::Stopping;

/// How long a stranger may take, for what.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the head of an HTTP/1 request.
    pub head: Duration,
    /// From the head of a request to the head of its answer; the request's body comes in between.
    pub answer: Duration,
    /// A connection on which nothing is asked for so long is closed.
    pub idle: Duration,
    /// A connection on which answers wait for so long without anything being read is closed. Longer than what a
    /// node's stream allows itself, so that the stream says why.
    pub stuck: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            answer: Duration::from_secs(20),
            idle: Duration::from_secs(30),
            stuck: Duration::from_mins(1),
        }
    }
}

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
    times: Times,
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
                    let connection = Connection { from, router: router.clone(), times, _slot: slot };
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
    times: Times,
    _slot: Slot,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: TlsAcceptor, mut shutdown: Stopping) {
        let (from, times) = (self.from, self.times);
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let stream = match timeout(times.handshake, tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%from, %error, "TLS handshake failed"),
            Err(_) => return debug!(%from, "TLS handshake timed out"),
        };
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let activity = Arc::new(Activity::default());
        let service = {
            let activity = activity.clone();
            let router = self.router.clone();
            service_fn(move |request| answer(router.clone(), request, from, times, activity.clone()))
        };
        let builder = builder(is_h2, times);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let mut look = interval(times.idle / 4);
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
                _ = look.tick() => if activity.is_over(times) {
                    return debug!(%from, "idle connection closed");
                }
            }
        }
    }
}

fn builder(is_h2: bool, times: Times) -> auto::Builder<TokioExecutor> {
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
        .header_read_timeout(times.head)
        .max_buf_size(MOST_HEADER_BYTES as usize);
    if is_h2 { builder.http2_only() } else { builder.http1_only() }
}

async fn answer(
    mut router: Router,
    mut request: http::Request<Incoming>,
    from: SocketAddr,
    times: Times,
    activity: Arc<Activity>,
) -> Result<http::Response<Body>, Infallible> {
    let busy = Busy::new(activity);
    request.extensions_mut().insert(ClientAddress(from));
    let is_grpc = is_grpc(request.headers());
    let response = match timeout(times.answer, router.call(request)).await {
        Ok(response) => response?,
        Err(_) if is_grpc => tonic::Status::deadline_exceeded("the request did not come in time").into_http(),
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "the request did not come in time\n").into_response(),
    };
    busy.0.moved();
    Ok(response.map(|body| Body::new(BusyBody { body, busy })))
}

/// Whether anything is being asked on a connection, and since when nothing moves.
#[derive(Default)]
struct Activity {
    answering: AtomicUsize,
    last: Mutex<Option<Instant>>,
}

impl Activity {
    /// Something was asked, or some of an answer was taken.
    fn moved(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_over(&self, times: Times) -> bool {
        let patience = if self.answering.load(Ordering::Relaxed) > 0 { times.stuck } else { times.idle };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.get_or_insert_with(Instant::now).elapsed() > patience
    }
}

/// One request that is being answered.
struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: Arc<Activity>) -> Self {
        activity.answering.fetch_add(1, Ordering::Relaxed);
        activity.moved();
        Self(activity)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.moved();
        self.0.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that keeps its connection busy until it ends. HTTP asks it for more only when the client has room for
/// more: a client that reads nothing does not keep its connection.
struct BusyBody {
    body: Body,
    busy: Busy,
}

impl HttpBody for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            self.busy.0.moved();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

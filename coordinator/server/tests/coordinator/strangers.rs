//! Whoever can reach the port, and takes their time.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use ghostwire_proto::keys::Fingerprint;
use ghostwire_proto::{channel, tls, v1};
use ghostwire_server::limits::{ConnectionLimits, Connections};
use ghostwire_server::listener::{self, Times};
use ghostwire_server::shutdown::{self, Stopper};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::Code;

use crate::faults::raw;
use crate::harness::{Machine, PATIENCE, Server, node_client};

/// What opens an HTTP/2 connection: the preface and empty settings (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Longer than the server's default for anything.
const LONG: Duration = Duration::from_secs(150);

/// Says `first`, then `then` again and again, until the other side hangs up. What was said to it meanwhile.
async fn dribble<S: AsyncRead + AsyncWrite>(
    stream: S,
    first: &[u8],
    then: &[u8],
    pause: Duration,
) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let _ = write.write_all(first).await;
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    let over = async {
        loop {
            tokio::select! {
                count = read.read(&mut buffer) => match count {
                    Ok(0) | Err(_) => return,
                    Ok(count) => said.extend_from_slice(&buffer[..count]),
                },
                () = sleep(pause), if !then.is_empty() => if write.write_all(then).await.is_err() {
                    return;
                },
            }
        }
    };
    timeout(LONG, over).await.expect("the server hangs up");
    said
}

/// A listener with routes of all kinds and little patience.
struct Impatient {
    address: std::net::SocketAddr,
    ca: Fingerprint,
    flood_over: Arc<Notify>,
    _stop: Stopper,
}

const SHORT: Times = Times {
    handshake: Duration::from_millis(800),
    head: Duration::from_millis(800),
    answer: Duration::from_millis(800),
    idle: Duration::from_millis(1_200),
    stuck: Duration::from_millis(2_400),
};

impl Impatient {
    async fn start() -> Self {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let certificate = key.cert.der().clone();
        let ca = Fingerprint::of(&certificate);
        let mut config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate], private)
                .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let flood_over = Arc::new(Notify::new());
        let over = flood_over.clone();
        let router = Router::new()
            .route("/", get(|| async { "well\n" }))
            .route("/upload", post(|body: Bytes| async move { body.len().to_string() }))
            .route("/flood", get(|| async { flood(over) }));
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (stop, stopping) = shutdown::channel();
        let connections = Connections::new(ConnectionLimits::default());
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(listener::serve(socket, acceptor, router, connections, SHORT, stopping));
        Self { address, ca, flood_over, _stop: stop }
    }

    async fn connect(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut config = tls::client_config(self.ca).unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    async fn is_well(&self) -> bool {
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        dribble(self.connect(b"http/1.1").await, request, b"", LONG).await.ends_with(b"well\n")
    }
}

/// Data without end, which tells when nobody sends it any more.
fn flood(over: Arc<Notify>) -> Body {
    struct Guard(Arc<Notify>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let guard = Guard(over);
    let chunks = std::iter::repeat_with(move || {
        let _ = &guard;
        Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b'x'; 1 << 14]))
    });
    Body::from_stream(tokio_stream::iter(chunks))
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_too_long_is_cut_off_and_others_are_served() {
    let server = Arc::new(Impatient::start().await);
    let pause = Duration::from_millis(50);
    let mut strangers = JoinSet::new();
    for round in 0..8 {
        let server = server.clone();
        strangers.spawn(async move {
            match round {
                // Before TLS: silent, and a handshake byte by byte.
                0 => drop(dribble(TcpStream::connect(server.address).await.unwrap(), b"", b"", pause).await),
                1 => {
                    let hello = [22, 3, 1, 2, 0, 1];
                    drop(
                        dribble(TcpStream::connect(server.address).await.unwrap(), &hello, &[0], pause).await,
                    );
                }
                // After TLS: silent, with either protocol.
                2 => drop(dribble(server.connect(b"http/1.1").await, b"", b"", pause).await),
                3 => drop(dribble(server.connect(b"h2").await, b"", b"", pause).await),
                4 => drop(dribble(server.connect(b"h2").await, PREFACE, b"", pause).await),
                // A head that never ends, a body that never ends.
                5 => drop(
                    dribble(server.connect(b"http/1.1").await, b"GET / HTTP/1.1\r\n", b"A: b\r\n", pause)
                        .await,
                ),
                6 => {
                    let head = b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n";
                    let said = dribble(server.connect(b"http/1.1").await, head, b"x", pause).await;
                    assert!(said.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&said));
                }
                // Asks for more than it ever reads.
                _ => {
                    let mut stream = server.connect(b"http/1.1").await;
                    stream.write_all(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
                    timeout(LONG, server.flood_over.notified()).await.expect("the server hangs up");
                }
            }
        });
    }
    while !strangers.is_empty() {
        assert!(server.is_well().await, "others are served meanwhile");
        while let Some(stranger) = strangers.try_join_next() {
            stranger.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_server_hangs_up_on_silence_and_serves_others() {
    let server = Server::start();
    let join_key = server.admin().await.reusable("alice@example.com").await;
    let mut watcher = Machine::new("watcher").join(&join_key).await;
    let pause = Duration::from_millis(500);
    let mut strangers = JoinSet::new();
    strangers.spawn(dribble_and_forget(TcpStream::connect(server.address).await.unwrap(), b""));
    strangers.spawn(dribble_and_forget(raw(&server, join_key.ca, b"h2").await, b""));
    strangers.spawn(dribble_and_forget(raw(&server, join_key.ca, b"h2").await, PREFACE));
    strangers.spawn(dribble_and_forget(raw(&server, join_key.ca, b"http/1.1").await, b""));
    let silent_call = join_key.clone();
    strangers.spawn(async move {
        let mut client = node_client(&silent_call).await;
        // A stream without a Hello, and an enrolment whose body never comes.
        let refused = client.sync(tokio_stream::pending()).await.unwrap_err();
        assert_eq!(refused.code(), Code::DeadlineExceeded);
        let ca = silent_call.ca;
        let channel = channel::coordinator(&silent_call.addresses[0], ca).await.unwrap();
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/ghostwire.v1.NodeService/Enroll");
        let codec = tonic_prost::ProstCodec::<v1::EnrollRequest, v1::EnrollResponse>::default();
        let request = tonic::Request::new(tokio_stream::pending());
        let refused = timeout(LONG, grpc.client_streaming(request, path, codec)).await.unwrap().unwrap_err();
        assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
    });
    let mut enrolled = 0;
    while !strangers.is_empty() {
        Machine::new("served").enroll(&join_key).await.unwrap();
        enrolled += 1;
        watcher.until("a new node", |map| map.peers.len() == enrolled).await;
        sleep(pause).await;
        while let Some(stranger) = strangers.try_join_next() {
            stranger.unwrap();
        }
    }
}

async fn dribble_and_forget<S: AsyncRead + AsyncWrite>(stream: S, first: &'static [u8]) {
    dribble(stream, first, b"", PATIENCE).await;
}

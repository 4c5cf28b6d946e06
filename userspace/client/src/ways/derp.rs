//! The client of a relay's stream: DERP version 2 over TLS. A thin shell; which packets go there is decided elsewhere.
//!
//! The certificate proves nothing to us and is not looked at: the relay is known by its DERP key, which the
//! coordinator told, and what passes is WireGuard's ciphertext.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ghostwire_path::{CarrierFailure, RelayId};
use ghostwire_proto::keys::NodeKey;
use ghostwire_relay_protocol::derp::handshake::{ClientInfo, SecretKey, ServerInfo, open, seal};
use ghostwire_relay_protocol::derp::{Frame, HEADER_LEN, Header, MAX_FRAME_LEN, MAX_INFO_LEN, PublicKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::relays::Description;

/// Connecting, TLS and the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The server says something every minute.
const SILENCE: Duration = Duration::from_mins(2);
/// Packets that may wait for the stream; more are lost, as on any full link.
const QUEUE: usize = 256;
/// Written together.
const MOST_TOGETHER: usize = 64 << 10;
/// The longest answer to the upgrade.
const MAX_HEAD_LEN: usize = 4 << 10;

/// What happens on a stream.
#[derive(Debug)]
pub enum StreamEvent {
    /// It is open; that took so long.
    Opened(Duration),
    /// A packet from a node.
    Packet(NodeKey, Vec<u8>),
    /// It is over, or never began.
    Closed(CarrierFailure, String),
}

/// A stream that is open or being opened. Dropping it ends it.
#[derive(Debug)]
pub struct Stream {
    outgoing: mpsc::Sender<(NodeKey, Vec<u8>)>,
    task: tokio::task::JoinHandle<()>,
}

impl Stream {
    /// Sends a packet, unless too many wait already.
    pub fn send(&self, to: NodeKey, packet: Vec<u8>) {
        // Full: the packet is lost, like on a slow link.
        let _ = self.outgoing.try_send((to, packet));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens a stream with the node's WireGuard key; what happens comes out of `events` with the relay's number and the
/// stream's.
pub fn connect(
    relay: Description,
    key: [u8; 32],
    number: u64,
    events: mpsc::Sender<(RelayId, u64, StreamEvent)>,
) -> Stream {
    let (outgoing, queue) = mpsc::channel(QUEUE);
    let id = relay.number;
    let task = tokio::spawn(async move {
        let began = Instant::now();
        let opened = timeout(CONNECT_TIMEOUT, establish(&relay, &SecretKey::new(key))).await;
        let (failure, why) = match opened {
            Ok(Ok(stream)) => {
                let event = StreamEvent::Opened(began.elapsed());
                if events.send((id, number, event)).await.is_err() {
                    return;
                }
                (CarrierFailure::Lost, carry(stream, queue, id, number, &events).await)
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                (CarrierFailure::Refused, error)
            }
            Ok(Err(error)) => (CarrierFailure::Unreachable, error),
            Err(_) => (CarrierFailure::Unreachable, io::Error::from(io::ErrorKind::TimedOut)),
        };
        // Nobody listens when the daemon ends.
        let _ = events.send((id, number, StreamEvent::Closed(failure, why.to_string()))).await;
    });
    Stream { outgoing, task }
}

async fn establish(
    relay: &Description,
    key: &SecretKey,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut tcp = Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
    for address in &relay.addresses {
        tcp = TcpStream::connect(SocketAddr::new(*address, relay.derp_port)).await;
        if tcp.is_ok() {
            break;
        }
    }
    let tcp = tcp?;
    tcp.set_nodelay(true)?;
    let host = match (relay.derp_host.as_str(), relay.addresses.first()) {
        ("", Some(address)) => address.to_string(),
        (host, _) => host.to_owned(),
    };
    let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::new(tls_config().map_err(io::Error::other)?));
    let mut stream = connector.connect(name, tcp).await?;
    upgrade(&mut stream, &host).await?;
    shake_hands(&mut stream, key, PublicKey(relay.derp_key)).await?;
    Ok(stream)
}

async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, host: &str) -> io::Result<()> {
    let request =
        format!("GET /derp HTTP/1.1\r\nHost: {host}\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD_LEN {
            return Err(broken("the relay's answer is too long"));
        }
        head.push(stream.read_u8().await?);
    }
    if head.starts_with(b"HTTP/1.1 101 ") {
        return Ok(());
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    Err(broken(&format!("the relay answers {:?}", String::from_utf8_lossy(line))))
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    key: &SecretKey,
    server: PublicKey,
) -> io::Result<()> {
    let mut payload = Vec::new();
    match read_frame(stream, &mut payload, MAX_INFO_LEN).await? {
        Frame::ServerKey(known) if known == server => {}
        Frame::ServerKey(_) => {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is another relay"));
        }
        _ => return Err(broken("the relay does not begin with its key")),
    }
    let sealed = seal(&ClientInfo::new(), key, server, rand::random()).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    Frame::ClientInfo { key: key.public(), sealed: &sealed }.write(&mut bytes);
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    match read_frame(stream, &mut payload, MAX_INFO_LEN).await {
        Ok(Frame::ServerInfo { sealed }) => {
            open::<ServerInfo>(sealed, key, server).map(drop).map_err(io::Error::other)
        }
        Ok(_) => Err(broken("the relay does not answer our key")),
        // It hangs up on whom it does not know.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "it does not let this node in"))
        }
        Err(error) => Err(error),
    }
}

async fn read_frame<'a>(
    stream: &mut (impl AsyncRead + Unpin),
    payload: &'a mut Vec<u8>,
    limit: usize,
) -> io::Result<Frame<'a>> {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head).await?;
    let header = Header::parse(head);
    let length = usize::try_from(header.len).unwrap_or(usize::MAX);
    if length > limit {
        return Err(broken("a frame is too long"));
    }
    payload.resize(length, 0);
    stream.read_exact(payload).await?;
    Frame::parse(header.kind, payload).map_err(io::Error::other)
}

/// Carries packets both ways until the stream breaks; why it did.
async fn carry<S: AsyncRead + AsyncWrite>(
    stream: S,
    queue: mpsc::Receiver<(NodeKey, Vec<u8>)>,
    id: RelayId,
    number: u64,
    events: &mpsc::Sender<(RelayId, u64, StreamEvent)>,
) -> io::Error {
    let (read, write) = tokio::io::split(stream);
    let (pongs, wanted) = mpsc::channel(4);
    let written = write_packets(write, queue, wanted);
    let received = read_packets(tokio::io::BufReader::new(read), pongs, id, number, events);
    let result = tokio::select! {
        result = written => result,
        result = received => result,
    };
    result.err().unwrap_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
}

async fn write_packets(
    mut write: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<(NodeKey, Vec<u8>)>,
    mut pongs: mpsc::Receiver<[u8; 8]>,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        tokio::select! {
            biased;
            Some(ping) = pongs.recv() => Frame::Pong(ping).write(&mut bytes),
            next = queue.recv() => {
                let Some(next) = next else { return Ok(()) };
                append(&mut bytes, &next);
                while bytes.len() < MOST_TOGETHER && let Ok(next) = queue.try_recv() {
                    append(&mut bytes, &next);
                }
            }
        }
        write.write_all(&bytes).await?;
        write.flush().await?;
        bytes.clear();
    }
}

fn append(bytes: &mut Vec<u8>, (to, packet): &(NodeKey, Vec<u8>)) {
    Frame::Send { to: PublicKey(*to.as_bytes()), packet }.write(bytes);
}

async fn read_packets(
    mut read: impl AsyncRead + Unpin,
    pongs: mpsc::Sender<[u8; 8]>,
    id: RelayId,
    number: u64,
    events: &mpsc::Sender<(RelayId, u64, StreamEvent)>,
) -> io::Result<()> {
    let mut payload = Vec::new();
    loop {
        let frame = timeout(SILENCE, read_frame(&mut read, &mut payload, MAX_FRAME_LEN));
        match frame.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the relay is silent"))?? {
            Frame::Recv { from, packet } => {
                let event = StreamEvent::Packet(NodeKey::new(from.0), packet.to_vec());
                if events.send((id, number, event)).await.is_err() {
                    return Ok(());
                }
            }
            // Several unanswered pings are as good as one.
            Frame::Ping(data) => drop(pongs.try_send(data)),
            Frame::Restarting { .. } => return Err(broken("the relay restarts")),
            _ => {}
        }
    }
}

fn tls_config() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// See the module: who the relay is shows in its DERP handshake.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

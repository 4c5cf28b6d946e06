//! DERP through the real process, with a client that shares nothing with the server but the codec.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use ghostwire_relay_protocol::derp::handshake::{ClientInfo, SecretKey, ServerInfo, open, seal};
use ghostwire_relay_protocol::derp::{Frame, GoneReason, HEADER_LEN, Header, PublicKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::lab::{PATIENCE, Relay, in_namespace};

const UPGRADE: &str = "GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n";

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads a response's head.
fn head(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        bytes.extend_from_slice(&byte);
    }
    String::from_utf8(bytes).unwrap()
}

struct Client<S> {
    stream: S,
    secret: SecretKey,
    info: ServerInfo,
}

impl<S: Read + Write> Client<S> {
    /// Handshakes on a stream that has been upgraded. `Err`: the server ended it.
    fn new(mut stream: S, seed: u8, server: PublicKey) -> std::io::Result<Self> {
        let secret = SecretKey::new([seed; 32]);
        let mut payload = Vec::new();
        let key = match read_frame(&mut stream, &mut payload)? {
            Frame::ServerKey(key) => key,
            other => panic!("{other:?}"),
        };
        assert_eq!(key, server);
        let sealed = seal(&ClientInfo::new(), &secret, key, [seed; 24]).unwrap();
        write_frame(&mut stream, &Frame::ClientInfo { key: secret.public(), sealed: &sealed })?;
        let info = match read_frame(&mut stream, &mut payload)? {
            Frame::ServerInfo { sealed } => open(sealed, &secret, server).unwrap(),
            other => panic!("{other:?}"),
        };
        Ok(Self { stream, secret, info })
    }

    fn key(&self) -> PublicKey {
        self.secret.public()
    }

    fn send(&mut self, frame: &Frame<'_>) {
        write_frame(&mut self.stream, frame).unwrap();
    }

    fn expect(&mut self, frame: &Frame<'_>) {
        let mut payload = Vec::new();
        assert_eq!(&read_frame(&mut self.stream, &mut payload).unwrap(), frame);
    }
}

fn write_frame(stream: &mut impl Write, frame: &Frame<'_>) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    frame.write(&mut bytes);
    stream.write_all(&bytes)?;
    stream.flush()
}

fn read_frame<'a>(stream: &mut impl Read, payload: &'a mut Vec<u8>) -> std::io::Result<Frame<'a>> {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head)?;
    let header = Header::parse(head);
    payload.resize(header.len as usize, 0);
    stream.read_exact(payload)?;
    Ok(Frame::parse(header.kind, payload).unwrap())
}

fn server_key(relay: &Relay) -> PublicKey {
    PublicKey(relay.key("derp_key"))
}

fn client(relay: &Relay, seed: u8) -> Client<TcpStream> {
    let mut stream = connect(relay.plain);
    write!(stream, "{UPGRADE}\r\n").unwrap();
    let response = head(&mut stream);
    assert!(response.starts_with("HTTP/1.1 101 "), "{response}");
    assert!(response.contains(&format!("Derp-Public-Key: {}\r\n", server_key(relay))), "{response}");
    assert!(response.contains("Derp-Version: 2\r\n"), "{response}");
    Client::new(stream, seed, server_key(relay)).unwrap()
}

/// As Tailscale's Rust client asks: by POST, with the server's whole URL.
#[test]
fn a_client_may_upgrade_by_post_and_with_a_url() {
    in_namespace(|| {
        let relay = Relay::start(&["--derp-open"]);
        let mut stream = connect(relay.plain);
        write!(
            stream,
            "POST http://{0}/derp HTTP/1.1\r\nhost: {0}\r\nupgrade: DERP\r\nconnection: Upgrade\r\ncontent-length: 0\r\n\r\n",
            relay.plain
        )
        .unwrap();
        assert!(head(&mut stream).starts_with("HTTP/1.1 101 "));
        let mut a = Client::new(stream, 1, server_key(&relay)).unwrap();
        let mut b = client(&relay, 2);
        a.send(&Frame::Send { to: b.key(), packet: b"hello" });
        b.expect(&Frame::Recv { from: a.key(), packet: b"hello" });
    });
}

#[test]
fn packets_pass_between_clients_with_their_senders_key() {
    in_namespace(|| {
        let relay = Relay::start(&["--derp-open"]);
        let (mut a, mut b) = (client(&relay, 1), client(&relay, 2));
        assert_eq!(a.info.version, 2);
        assert!(a.info.bytes_per_second > 0);
        for len in [0_usize, 1, 1500, 65_536] {
            let packet = vec![len.to_le_bytes()[0]; len];
            a.send(&Frame::Send { to: b.key(), packet: &packet });
            b.expect(&Frame::Recv { from: a.key(), packet: &packet });
        }
        b.send(&Frame::Send { to: a.key(), packet: b"back" });
        a.expect(&Frame::Recv { from: b.key(), packet: b"back" });
        a.send(&Frame::NotePreferred(true));
        a.send(&Frame::Unknown(0x77));
        a.send(&Frame::Ping([9; 8]));
        a.expect(&Frame::Pong([9; 8]));
        // B has heard of A, so it learns that A is gone.
        let key = a.key();
        drop(a);
        b.expect(&Frame::PeerGone { key, reason: GoneReason::Disconnected });
    });
}

#[test]
fn only_path_discovery_is_told_that_a_peer_is_not_here() {
    in_namespace(|| {
        let relay = Relay::start(&["--derp-open"]);
        let mut a = client(&relay, 1);
        let nobody = PublicKey([9; 32]);
        let mut disco = vec![0x54, 0x53, 0xF0, 0x9F, 0x92, 0xAC];
        disco.resize(80, 0);
        a.send(&Frame::Send { to: nobody, packet: &[4; 100] });
        a.send(&Frame::Send { to: nobody, packet: &disco });
        a.send(&Frame::Ping([1; 8]));
        a.expect(&Frame::PeerGone { key: nobody, reason: GoneReason::NotHere });
        a.expect(&Frame::Pong([1; 8]));
    });
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    in_namespace(|| {
        let relay = Relay::start(&["--derp-open"]);
        let (mut a, deaf, mut c) = (client(&relay, 1), client(&relay, 2), client(&relay, 3));
        let packet = vec![4; 60_000];
        for _ in 0..300 {
            a.send(&Frame::Send { to: deaf.key(), packet: &packet });
        }
        a.send(&Frame::Send { to: c.key(), packet: b"through" });
        c.expect(&Frame::Recv { from: a.key(), packet: b"through" });
    });
}

#[test]
fn nobody_is_admitted_unless_listed() {
    in_namespace(|| {
        let listed = SecretKey::new([1; 32]).public();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("clients");
        let mut text = String::from("# who may\n\n");
        writeln!(text, "{listed} # the first").unwrap();
        std::fs::write(&file, text).unwrap();
        let relay = Relay::start(&["--derp-clients", file.to_str().unwrap()]);
        drop(client(&relay, 1));
        let mut stream = connect(relay.plain);
        write!(stream, "{UPGRADE}\r\n").unwrap();
        head(&mut stream);
        assert!(Client::new(stream, 2, server_key(&relay)).is_err(), "not listed");
        drop(relay);

        let relay = Relay::start(&[]);
        let mut stream = connect(relay.plain);
        write!(stream, "{UPGRADE}\r\n").unwrap();
        head(&mut stream);
        assert!(Client::new(stream, 1, server_key(&relay)).is_err(), "no list");
    });
}

#[test]
fn a_key_that_the_client_does_not_hold_is_refused() {
    in_namespace(|| {
        let relay = Relay::start(&["--derp-open"]);
        let mut stream = connect(relay.plain);
        write!(stream, "{UPGRADE}\r\n").unwrap();
        head(&mut stream);
        let mut payload = Vec::new();
        read_frame(&mut stream, &mut payload).unwrap();
        let (own, claimed) = (SecretKey::new([1; 32]), SecretKey::new([2; 32]).public());
        let sealed = seal(&ClientInfo::new(), &own, server_key(&relay), [0; 24]).unwrap();
        write_frame(&mut stream, &Frame::ClientInfo { key: claimed, sealed: &sealed }).unwrap();
        assert!(read_frame(&mut stream, &mut payload).is_err());
    });
}

#[test]
fn frames_that_need_a_mesh_key_end_the_connection() {
    in_namespace(|| {
        let relay = Relay::start(&["--derp-open"]);
        let key = PublicKey([9; 32]);
        for frame in
            [Frame::Watch, Frame::ClosePeer(key), Frame::Forward { from: key, to: key, packet: b"x" }]
        {
            let mut client = client(&relay, 1);
            client.send(&frame);
            assert!(read_frame(&mut client.stream, &mut Vec::new()).is_err(), "{frame:?}");
        }
        // As does a frame that claims to be longer than any.
        let mut client = client(&relay, 1);
        client.stream.write_all(&[4, 0xFF, 0xFF, 0xFF, 0xFF]).unwrap();
        assert!(read_frame(&mut client.stream, &mut Vec::new()).is_err());
    });
}

#[test]
fn pages_are_served_on_one_connection() {
    in_namespace(|| {
        let relay = Relay::start(&[]);
        let mut stream = connect(relay.plain);
        for (path, status) in [
            ("/", "200"),
            ("/bootstrap-dns", "404"),
            ("/derp/probe", "200"),
            ("/derp/latency-check", "200"),
            ("/generate_204", "204"),
            ("/nothing", "404"),
            ("/healthz", "200"),
        ] {
            write!(stream, "HEAD {path} HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
            let response = head(&mut stream);
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {response}");
        }
        write!(stream, "GET /derp HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
        assert!(head(&mut stream).starts_with("HTTP/1.1 426 "));
    });
}

/// Believes any certificate: the test looks at the chain itself.
#[derive(Debug)]
struct AnyCertificate(CryptoProvider);

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

#[test]
fn over_tls_the_chain_announces_the_key_and_a_client_may_start_fast() {
    in_namespace(|| {
        let relay = Relay::start(&["--derp-open"]);
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(ring::default_provider())))
            .with_no_client_auth();
        let name = ServerName::try_from("relay.test").unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(connection, connect(relay.tls));
        // Without waiting for a response: none comes.
        write!(stream, "{UPGRADE}Derp-Fast-Start: 1\r\n\r\n").unwrap();
        let mut a = Client::new(stream, 1, server_key(&relay)).unwrap();
        let chain = a.stream.conn.peer_certificates().unwrap();
        let announced = format!("derpkey{}", server_key(&relay));
        let last = chain.last().unwrap().as_ref();
        assert!(last.windows(announced.len()).any(|window| window == announced.as_bytes()));
        let mut b = client(&relay, 2);
        a.send(&Frame::Send { to: b.key(), packet: b"over TLS" });
        b.expect(&Frame::Recv { from: a.key(), packet: b"over TLS" });
        b.send(&Frame::Send { to: a.key(), packet: b"and back" });
        a.expect(&Frame::Recv { from: b.key(), packet: b"and back" });
    });
}

#[test]
fn a_relay_that_is_told_to_stop_tells_its_clients_and_waits_for_them() {
    in_namespace(|| {
        let mut relay = Relay::start(&["--derp-open", "--drain-seconds", "600"]);
        let mut a = client(&relay, 1);
        relay.terminate();
        a.expect(&Frame::Restarting { reconnect_in_ms: 0, try_for_ms: 60_000 });
        let mut stream = connect(relay.plain);
        write!(stream, "GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        assert!(head(&mut stream).starts_with("HTTP/1.1 503 "));
        a.send(&Frame::Ping([3; 8]));
        a.expect(&Frame::Pong([3; 8]));
        drop(a);
        assert_eq!(relay.wait(), Some(0));
    });
}

#[test]
fn a_second_relay_in_the_same_directory_says_what_is_wrong() {
    in_namespace(|| {
        let relay = Relay::start(&[]);
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_ghostwire-relay"))
            .args(["run", "--address", "203.0.113.1", "--port", "3479", "--tls-listen", "off", "--state-dir"])
            .arg(relay.state_file(""))
            .output()
            .unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(message.contains("another ghostwire-relay uses the state directory"), "{message}");
    });
}

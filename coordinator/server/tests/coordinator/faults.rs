//! Bad input and bad luck.

use std::sync::Arc;
use std::time::Duration;

use ghostwire_proto::join_key::JoinKey;
use ghostwire_proto::keys::Fingerprint;
use ghostwire_proto::v1::{self, node_message};
use ghostwire_proto::{proof, tls};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::Code;

use crate::harness::{Files, Machine, PATIENCE, Server, node_client, nonce};

pub(crate) async fn raw(server: &Server, ca: Fingerprint, alpn: &[u8]) -> TlsStream<TcpStream> {
    let mut config = tls::client_config(ca).unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

pub(crate) async fn get(server: &Server, ca: Fingerprint, path: &str) -> String {
    let mut stream = raw(server, ca, b"http/1.1").await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The server may close without TLS's own goodbye.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn http_and_grpc_share_the_port() {
    let server = Server::start();
    let join_key = server.admin().await.reusable("alice@example.com").await;
    Machine::new("web").enroll(&join_key).await.unwrap();
    let health = get(&server, join_key.ca, "/healthz").await;
    assert!(health.starts_with("HTTP/1.1 200") && health.ends_with("ok\n"), "{health}");
    assert!(get(&server, join_key.ca, "/").await.contains("GhostWire coordination server"));
    assert!(get(&server, join_key.ca, "/nothing").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let mut watcher = Machine::new("watcher").join(&join_key).await;
    for round in 0..20u8 {
        let noise: Vec<u8> = (0..2_000).map(|_| rand::random()).collect();
        let mut tcp = TcpStream::connect(server.address).await.unwrap();
        let _ = tcp.write_all(&noise).await;
        for (alpn, prefix) in [
            (&b"h2"[..], &b""[..]),
            (b"h2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            (b"http/1.1", b""),
            (b"http/1.1", b"GET / HTTP/1.1\r\n"),
        ] {
            let mut stream = raw(&server, join_key.ca, alpn).await;
            let _ = stream.write_all(prefix).await;
            let _ = stream.write_all(&noise[usize::from(round)..]).await;
            let _ = stream.shutdown().await;
        }
    }
    // Garbage inside well-formed gRPC.
    let channel = ghostwire_proto::channel::coordinator(&join_key.addresses[0], join_key.ca).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let noise = v1::AddressRange { first: vec![0xff; 300], last: vec![0x7f; 300] };
    let path = http::uri::PathAndQuery::from_static("/ghostwire.v1.NodeService/Enroll");
    let codec = tonic_prost::ProstCodec::<v1::AddressRange, v1::EnrollResponse>::default();
    let refused = grpc.unary(tonic::Request::new(noise), path, codec).await.unwrap_err();
    assert!(
        matches!(refused.code(), Code::Internal | Code::InvalidArgument | Code::Unauthenticated),
        "{refused}"
    );

    Machine::new("web").enroll(&join_key).await.unwrap();
    watcher.until("the new node", |map| map.peers.len() == 1).await;
}

#[tokio::test]
async fn oversized_messages_are_refused_and_disturb_nobody() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let mut watcher = Machine::new("watcher").join(&join_key).await;
    let mut client = node_client(&join_key).await;
    let machine = Machine::new(&"x".repeat(1 << 20));
    let mut request = machine.request(&join_key);
    request.proof =
        Some(proof::sign(&machine.key, &nonce(&mut client).await.unwrap(), &join_key.ca, &request));
    let refused = client.enroll(request).await.unwrap_err();
    assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused}");

    let mut loud = Machine::new("loud").join(&join_key).await;
    watcher.until("loud comes", |map| map.peers.iter().any(|peer| peer.online)).await;
    let problems = vec!["x".repeat(1 << 20)];
    loud.send(node_message::Message::Status(v1::ReportedStatus { enforced_generation: 1, problems }));
    while let Ok(Some(_)) = loud.next().await {}
    watcher.until("loud goes", |map| map.peers.iter().all(|peer| !peer.online)).await;

    // Too many endpoints: a message of a good size with too much in it.
    let mut loud = Machine::new("many").join(&join_key).await;
    let endpoint = v1::Endpoint { address: vec![192, 0, 2, 1], port: 1, kind: 1 };
    let endpoints = (1..=33).map(|port| v1::Endpoint { port, ..endpoint.clone() }).collect();
    loud.send(node_message::Message::Update(v1::NodeUpdate { endpoints, ..Default::default() }));
    let refused = loop {
        match loud.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("no reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn who_keeps_guessing_has_to_wait() {
    let server = Server::start();
    let join_key = server.admin().await.reusable("alice@example.com").await;
    let wrong = JoinKey {
        auth_key: ghostwire_proto::auth_key::AuthKey::new("nosuchkey", [7; 32]).unwrap(),
        ..join_key.clone()
    };
    let mut client = node_client(&wrong).await;
    let mut code = Code::Unauthenticated;
    for _ in 0..100 {
        code = Machine::new("a").enroll_over(&mut client, &wrong).await.unwrap_err().code();
        if code != Code::Unauthenticated {
            break;
        }
    }
    assert_eq!(code, Code::ResourceExhausted);
}

#[tokio::test]
async fn an_expired_certificate_is_refused_at_the_start() {
    let files = Files::new();
    let (certificate, key) = (files.folder.path().join("cert.pem"), files.folder.path().join("key.pem"));
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["mesh.example.com".to_owned()]).unwrap();
    let write = |params: &rcgen::CertificateParams| {
        std::fs::write(&certificate, params.self_signed(&pair).unwrap().pem()).unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
    };
    let command = |advertise: &str| {
        let mut command = files.command("127.0.0.1:0");
        command
            .arg("--tls-cert")
            .arg(&certificate)
            .arg("--tls-key")
            .arg(&key)
            .args(["--advertise", advertise]);
        command
    };
    params.not_before = time::OffsetDateTime::now_utc() - Duration::from_hours(48);
    params.not_after = time::OffsetDateTime::now_utc() - Duration::from_hours(24);
    write(&params);
    let output = command("mesh.example.com:8080").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("expired"), "{error}");

    params.not_after = time::OffsetDateTime::now_utc() + Duration::from_hours(24);
    write(&params);
    let output = command("other.example.com:8080").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("other.example.com"), "{error}");
    let server = Server::spawn(&files, &mut command("mesh.example.com:8080"));
    let join_key = server.admin().await.reusable("alice@example.com").await;
    let presented =
        <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_file(
            &certificate,
        );
    assert_eq!(join_key.ca, Fingerprint::of(&presented.unwrap()));
    assert_eq!(join_key.addresses[0].to_string(), "mesh.example.com:8080");
}

#[tokio::test]
async fn a_certificate_that_expires_while_the_server_runs_is_refused_by_nodes() {
    let (authority, key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let root = params.self_signed(&authority).unwrap().der().clone();
    let mut leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    leaf.not_after = time::OffsetDateTime::now_utc() - Duration::from_hours(1);
    let leaf = leaf.signed_by(&key, &rcgen::Issuer::new(params, authority)).unwrap().der().clone();
    let ca = Fingerprint::of(&root);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf, root], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        // The node hangs up in the middle of it.
        let _ = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
    });
    let error = ghostwire_proto::channel::coordinator(&address.into(), ca).await.unwrap_err().to_string();
    assert!(error.contains("certificate expired"), "{error}");
}

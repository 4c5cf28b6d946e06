//! TLS 1.3 with raw public keys (RFC 7250) on both sides: each end knows whom it speaks to, or there is no connection.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::ring::default_provider;
use rustls::crypto::verify_tls13_signature_with_raw_key;
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, ServerSessionMemoryCache};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};

use crate::identity::{Identity, PublicKey};

/// What is spoken inside: the framing of [`crate::parts`], version 1.
const PROTOCOL: &[u8] = b"ghostwire/1";
/// Sessions that are kept for early data, by either side.
const SESSIONS: usize = 1_024;

/// The keys of those who may connect.
#[derive(Debug, Default)]
pub struct Roster(RwLock<HashSet<PublicKey>>);

impl Roster {
    /// Exactly these from now on.
    pub fn set(&self, keys: HashSet<PublicKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Whether it is one of them.
    pub fn has(&self, key: PublicKey) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&key)
    }
}

fn stranger() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

fn verify_signature(
    message: &[u8],
    key: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let key = SubjectPublicKeyInfoDer::from(key.as_ref());
    let provider = default_provider();
    verify_tls13_signature_with_raw_key(message, &key, signed, &provider.signature_verification_algorithms)
}

fn no_tls12() -> Error {
    Error::General("QUIC has no TLS 1.2".to_owned())
}

/// The client's view: the server has the key that its name stands for.
#[derive(Debug)]
struct ExpectedServer;

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let expected = PublicKey::of_name(server_name).ok_or_else(stranger)?;
        if PublicKey::of_spki(end_entity) == Some(expected) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(stranger())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The server's view: the client has the key of a peer.
#[derive(Debug)]
struct KnownClients(Arc<Roster>);

impl ClientCertVerifier for KnownClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match PublicKey::of_spki(end_entity) {
            Some(key) if self.0.has(key) => Ok(ClientCertVerified::assertion()),
            _ => Err(stranger()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// For calling peers. A session of an earlier connection is only used for the peer that it is from.
pub(crate) fn client(identity: &Identity) -> Result<QuicClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ExpectedServer))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity.certified())));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.enable_sni = false;
    config.enable_early_data = true;
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    QuicClientConfig::try_from(config).map_err(|error| Error::General(error.to_string()))
}

/// For being called. Sessions are kept in memory and taken out when they are used: a ticket is good for one
/// connection (RFC 8446 section 8.1).
pub(crate) fn server(identity: &Identity, roster: &Arc<Roster>) -> Result<QuicServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(KnownClients(roster.clone())))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity.certified())));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    // QUIC knows only none or all (RFC 9001 section 4.6.1).
    config.max_early_data_size = u32::MAX;
    QuicServerConfig::try_from(config).map_err(|error| Error::General(error.to_string()))
}

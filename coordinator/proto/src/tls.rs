//! TLS that trusts exactly one CA, known by its fingerprint.
//!
//! The coordinator presents its leaf and the CA certificate. The client looks for the certificate with the
//! fingerprint that its join key holds and lets webpki verify the chain against it: signatures, validity, usage
//! and name. No public CA has a say, and no domain is needed.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::keys::Fingerprint;

/// A name that every leaf of a coordinator's own CA carries, so that a coordinator can be reached by any address
/// (behind NAT, by a new address). `.internal` is reserved for private use: no public CA issues for it.
pub const COORDINATOR_NAME: &str = "coordinator.ghostwire.internal";

/// Verifies servers against the one certificate with a known fingerprint.
#[derive(Debug)]
pub struct PinnedCa {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl PinnedCa {
    /// Trusts the certificate with this fingerprint only.
    pub fn new(fingerprint: Fingerprint) -> Self {
        Self { fingerprint, provider: Arc::new(ring::default_provider()) }
    }

    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.provider.signature_verification_algorithms
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = std::iter::once(end_entity)
            .chain(intermediates)
            .find(|certificate| Fingerprint::of(certificate) == self.fingerprint)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let by = |name: &ServerName<'_>| {
            webpki.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
        };
        by(server_name).or_else(|error| {
            match (is_about_the_name(&error), ServerName::try_from(COORDINATOR_NAME)) {
                (true, Ok(name)) => by(&name).map_err(|_| error),
                _ => Err(error),
            }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, self.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, self.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

fn is_about_the_name(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        )
    )
}

/// Client configuration for gRPC with the coordinator whose CA has this fingerprint.
pub fn client_config(fingerprint: Fingerprint) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCa::new(fingerprint)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
    use time::OffsetDateTime;

    use super::*;

    struct Ca {
        certificate: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn ca() -> Ca {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Ca { certificate, issuer: Issuer::new(params, key) }
    }

    fn leaf(ca: &Ca, names: &[&str], not_after: OffsetDateTime) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = not_after;
        params.signed_by(&KeyPair::generate().unwrap(), &ca.issuer).unwrap().der().clone()
    }

    fn verify(pin: &Ca, chain: &[CertificateDer<'_>], name: &str) -> Result<ServerCertVerified, Error> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        PinnedCa::new(Fingerprint::of(&pin.certificate)).verify_server_cert(
            &chain[0],
            &chain[1..],
            &name,
            &[],
            UnixTime::now(),
        )
    }

    fn far() -> OffsetDateTime {
        OffsetDateTime::now_utc() + Duration::from_hours(24)
    }

    #[test]
    fn the_pinned_ca_is_trusted_by_the_dialled_name_and_by_the_fixed_one() {
        let ca = ca();
        let named = leaf(&ca, &["mesh.example.com"], far());
        assert!(verify(&ca, &[named.clone(), ca.certificate.clone()], "mesh.example.com").is_ok());
        assert!(verify(&ca, &[named, ca.certificate.clone()], "other.example.com").is_err());
        let fixed = leaf(&ca, &[COORDINATOR_NAME], far());
        assert!(verify(&ca, &[fixed, ca.certificate.clone()], "192.0.2.1").is_ok());
    }

    #[test]
    fn another_ca_a_missing_ca_and_an_expired_leaf_are_refused() {
        let (ca, other) = (ca(), self::ca());
        let impostor = leaf(&other, &["mesh.example.com"], far());
        assert!(verify(&ca, &[impostor.clone(), other.certificate.clone()], "mesh.example.com").is_err());
        // The right CA certificate is public: presenting it does not help an impostor.
        assert!(verify(&ca, &[impostor, ca.certificate.clone()], "mesh.example.com").is_err());
        let alone = leaf(&ca, &["mesh.example.com"], far());
        assert!(verify(&ca, &[alone], "mesh.example.com").is_err());
        let expired = leaf(&ca, &["mesh.example.com"], OffsetDateTime::now_utc() - Duration::from_mins(1));
        let error = verify(&ca, &[expired, ca.certificate.clone()], "mesh.example.com").unwrap_err();
        assert!(format!("{error}").contains("expired"), "{error}");
    }
}

//! The server's own CA and its short-lived leaf, or the operator's certificate.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use ghostwire_proto::join_key::Address;
use ghostwire_proto::keys::Fingerprint;
use ghostwire_proto::tls::PinnedCa;
use rustls::ServerConfig;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

mod ca;

use ca::Ca;

/// How often the leaf is replaced.
pub const RENEWAL: Duration = Duration::from_hours(12);

/// The certificate that the server presents now.
#[derive(Debug)]
pub struct Identity {
    current: Arc<Current>,
    fingerprint: Fingerprint,
    own: Option<(Ca, Vec<String>)>,
}

/// Shared with rustls, which asks at every handshake.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Identity {
    /// Loads the CA in `directory`, or makes one, and issues a leaf for the advertised addresses.
    pub fn own(directory: &Path, advertised: &[Address]) -> anyhow::Result<Self> {
        let ca = Ca::load_or_create(directory)?;
        let names: Vec<String> = advertised.iter().map(|address| address.host().to_owned()).collect();
        let leaf = ca.issue(&names)?;
        Ok(Self { current: current(leaf), fingerprint: ca.fingerprint(), own: Some((ca, names)) })
    }

    /// The operator's certificate. Join keys pin the last certificate of the file.
    pub fn from_files(certificates: &Path, key: &Path, advertised: &[Address]) -> anyhow::Result<Self> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificates)
            .and_then(Iterator::collect)
            .with_context(|| format!("cannot read certificates from {}", certificates.display()))?;
        let key = PrivateKeyDer::from_pem_file(key)
            .with_context(|| format!("cannot read a private key from {}", key.display()))?;
        let (Some(leaf), Some(last)) = (chain.first(), chain.last()) else {
            bail!("{} holds no certificate", certificates.display());
        };
        let fingerprint = Fingerprint::of(last);
        // What clients will do: a certificate that they would refuse is refused here, with the reason.
        for address in advertised {
            let name = ServerName::try_from(address.host().to_owned())?;
            PinnedCa::new(fingerprint)
                .verify_server_cert(leaf, &chain[1..], &name, &[], UnixTime::now())
                .with_context(|| {
                    format!(
                        "clients would refuse the certificate in {} for {address}; give a valid one, or \
                         `--advertise` the names that it is for",
                        certificates.display()
                    )
                })?;
        }
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())
            .context("the certificate and the private key do not belong together")?;
        Ok(Self { current: current(certified), fingerprint, own: None })
    }

    /// What join keys pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Replaces the leaf of the server's own CA.
    pub fn renew(&self) -> anyhow::Result<()> {
        if let Some((ca, names)) = &self.own {
            self.current.0.store(Arc::new(ca.issue(names)?));
        }
        Ok(())
    }

    /// For the listener.
    pub fn server_config(&self) -> anyhow::Result<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn current(key: CertifiedKey) -> Arc<Current> {
    Arc::new(Current(ArcSwap::from_pointee(key)))
}

//! The relay's certificate: the operator's, or one that it makes for itself.
//!
//! A client that pins keys, as ours does, needs no certificate authority: it compares the DERP key, which the
//! handshake proves. For clients that start fast, the chain ends with a certificate that carries that key.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use ghostwire_relay_protocol::derp::{PublicKey, VERSION};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519, SerialNumber};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::state_dir::{StateDir, write_secret};

const CERTIFICATE: &str = "tls.pem";
const KEY: &str = "tls.key";

/// A certificate chain and its key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// The operator's, from PEM files.
    pub fn from_files(certificates: &Path, key: &Path) -> anyhow::Result<Self> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificates)
            .and_then(Iterator::collect)
            .with_context(|| format!("cannot read certificates from {}", certificates.display()))?;
        if chain.is_empty() {
            bail!("{} holds no certificate", certificates.display());
        }
        let key = PrivateKeyDer::from_pem_file(key)
            .with_context(|| format!("cannot read a private key from {}", key.display()))?;
        Ok(Self { chain, key })
    }

    /// The relay's own, made for `names` when there is none yet.
    pub fn own(directory: &StateDir, names: &[String]) -> anyhow::Result<Self> {
        let (certificate, key) = (directory.file(CERTIFICATE), directory.file(KEY));
        // The certificate is written last: without it, the key is of nothing yet.
        if !certificate.exists() {
            let pair = KeyPair::generate().context("cannot make a key for TLS")?;
            let mut params =
                CertificateParams::new(names.to_vec()).context("the names of the TLS certificate")?;
            params.distinguished_name = named("GhostWire relay");
            let made = params.self_signed(&pair).context("cannot make a certificate")?;
            write_secret(&key, pair.serialize_pem().as_bytes())?;
            write_secret(&certificate, made.pem().as_bytes())?;
        }
        Self::from_files(&certificate, &key)
    }

    /// Accepts connections as a DERP server with this key.
    pub fn acceptor(mut self, derp: PublicKey) -> anyhow::Result<TlsAcceptor> {
        self.chain.push(announcement(derp).context("cannot announce the DERP key")?);
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(self.chain, self.key)
            .context("the certificate and the private key do not belong together")?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// The certificate by which a client learns the DERP key, and that fast start is possible, one round trip earlier:
/// name `derpkey` and the key, serial number the version.
fn announcement(derp: PublicKey) -> Result<CertificateDer<'static>, rcgen::Error> {
    let pair = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("derpkey{derp}"));
    params.serial_number = Some(SerialNumber::from(u64::from(VERSION)));
    Ok(params.self_signed(&pair)?.der().clone())
}

//! The CA that a coordinator makes for itself. Clients know it by the fingerprint in their join key.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use ghostwire_proto::keys::Fingerprint;
use ghostwire_proto::tls::COORDINATOR_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;

use crate::state_dir;

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";
const CA_LIFETIME: Duration = Duration::from_hours(24 * 365 * 20);
const LEAF_LIFETIME: Duration = Duration::from_hours(24 * 7);
/// Clocks of clients may be behind.
const BACKDATE: Duration = Duration::from_hours(24);

/// A CA and its key.
pub(super) struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

impl Ca {
    /// Loads the CA, or makes it. The certificate is written last: without it, the key is of no CA yet.
    pub(super) fn load_or_create(directory: &Path) -> anyhow::Result<Self> {
        let (certificate_path, key_path) = (directory.join(CERTIFICATE), directory.join(KEY));
        if !certificate_path.exists() {
            let key = KeyPair::generate()?;
            let certificate = params()?.self_signed(&key)?;
            state_dir::write_secret(&key_path, key.serialize_pem().as_bytes())?;
            state_dir::write_secret(&certificate_path, certificate.pem().as_bytes())?;
        }
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the CA from {}", path.display()))
        };
        let (certificate_pem, key_pem) = (read(&certificate_path)?, read(&key_path)?);
        let broken = || format!("the CA in {} is damaged; restore it from a backup", directory.display());
        let key = KeyPair::from_pem(&key_pem).with_context(broken)?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).with_context(broken)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).with_context(broken)?;
        Ok(Self { certificate, issuer })
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// A leaf for these names and addresses, the fixed name and this machine; with the CA behind it.
    pub(super) fn issue(&self, names: &[String]) -> anyhow::Result<CertifiedKey> {
        let fixed = [COORDINATOR_NAME, "localhost", "127.0.0.1", "::1"];
        let names: BTreeSet<String> = names.iter().cloned().chain(fixed.map(str::to_owned)).collect();
        let mut params = CertificateParams::new(names.into_iter().collect::<Vec<_>>())?;
        params.distinguished_name = subject("GhostWire coordinator");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let now = OffsetDateTime::now_utc();
        params.not_before = now - BACKDATE;
        params.not_after = now + LEAF_LIFETIME;
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(CertifiedKey::from_der(chain, key, &ring::default_provider())?)
    }
}

fn params() -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = subject("GhostWire coordinator CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + CA_LIFETIME;
    Ok(params)
}

fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

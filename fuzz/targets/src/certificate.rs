//! What a server presents as its certificates, against a pin.

use ghostwire_proto::keys::Fingerprint;
use ghostwire_proto::tls::PinnedCa;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

/// Certificates, each behind its length (two bytes, big-endian); the last one is pinned. True if the chain holds.
pub fn run(data: &[u8]) -> bool {
    let mut rest = data;
    let mut chain: Vec<CertificateDer<'_>> = Vec::new();
    while let Some((length, behind)) = rest.split_at_checked(2) {
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let (certificate, behind) = behind.split_at(length.min(behind.len()));
        chain.push(CertificateDer::from(certificate));
        rest = behind;
    }
    let Some((leaf, intermediates)) = chain.split_first() else { return false };
    let pinned = intermediates.last().unwrap_or(leaf);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_hours(500_000));
    let Ok(name) = ServerName::try_from("192.0.2.1") else { return false };
    let verify = |pin| PinnedCa::new(pin).verify_server_cert(leaf, intermediates, &name, &[], now);
    let holds = verify(Fingerprint::of(pinned)).is_ok();
    assert!(verify(Fingerprint::new([7; 32])).is_err(), "a chain without the pinned certificate holds");
    holds
}

//! Who a node is on QUIC: an Ed25519 key of its own, made from the machine key.

use std::fmt;
use std::sync::Arc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::CertifiedKey;
use sha2::Sha256;
use zeroize::Zeroizing;

/// Separates this key from everything else that the machine key is used for.
const LABEL: &[u8] = b"ghostwire quic identity v1";
/// Ed25519 private keys in PKCS #8 (RFC 8410 section 7) but for the 32 bytes.
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// Ed25519 public keys as SubjectPublicKeyInfo (RFC 8410 section 4) but for the 32 bytes.
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
/// What a name of a key ends with. Names are never sent: they are how TLS finds the key and the last session.
const SUFFIX: &str = "gw";

/// A node's Ed25519 key on QUIC, as peers know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first: [u8; 4] = [self.0[0], self.0[1], self.0[2], self.0[3]];
        write!(f, "{}..", hex::encode(first))
    }
}

impl PublicKey {
    /// From a raw public key of TLS (RFC 7250). `None`: it is no Ed25519 key.
    pub fn of_spki(spki: &[u8]) -> Option<Self> {
        spki.strip_prefix(&SPKI)?.try_into().ok().map(Self)
    }

    /// What TLS calls the node of this key: two labels, since one may have 63 characters at most.
    pub(crate) fn name(self) -> String {
        let (first, last) = self.0.split_at(16);
        format!("{}.{}.{SUFFIX}", hex::encode(first), hex::encode(last))
    }

    /// The key that a name stands for.
    pub(crate) fn of_name(name: &ServerName<'_>) -> Option<Self> {
        let ServerName::DnsName(name) = name else { return None };
        let mut labels = name.as_ref().split('.');
        let (first, last, suffix) = (labels.next()?, labels.next()?, labels.next()?);
        if suffix != SUFFIX || labels.next().is_some() || first.len() != 32 {
            return None;
        }
        hex::decode(format!("{first}{last}")).ok()?.try_into().ok().map(Self)
    }
}

/// A node's own key.
#[derive(Clone)]
pub struct Identity {
    public: PublicKey,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("public", &self.public).finish_non_exhaustive()
    }
}

impl Identity {
    /// The identity that belongs to a machine key (32 secret bytes): always the same one.
    pub fn derive(machine_key: &[u8; 32]) -> Result<Self, rustls::Error> {
        let mut mac = <Hmac<Sha256>>::new_from_slice(machine_key)
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        mac.update(LABEL);
        let seed = Zeroizing::new(<[u8; 32]>::from(mac.finalize().into_bytes()));
        let mut document = Zeroizing::new(Vec::with_capacity(PKCS8.len() + seed.len()));
        document.extend_from_slice(&PKCS8);
        document.extend_from_slice(&*seed);
        let document = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(document.as_slice())).clone_key();
        let key = default_provider().key_provider.load_private_key(document)?;
        let spki = key.public_key().map(|spki| spki.to_vec()).unwrap_or_default();
        let public = PublicKey::of_spki(&spki)
            .ok_or_else(|| rustls::Error::General("the key is not Ed25519".to_owned()))?;
        let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key));
        Ok(Self { public, certified })
    }

    /// What peers have to know.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_machine_key_always_makes_one_identity() {
        let [a, again, b] = [[1; 32], [1; 32], [2; 32]].map(|key| Identity::derive(&key).unwrap().public());
        assert_eq!(a, again);
        assert_ne!(a, b);
    }

    proptest! {
        #[test]
        fn names_and_keys_stand_for_each_other(bytes: [u8; 32]) {
            let name = ServerName::try_from(PublicKey(bytes).name()).unwrap();
            prop_assert_eq!(PublicKey::of_name(&name), Some(PublicKey(bytes)));
        }

        #[test]
        fn reading_is_total(bytes in prop::collection::vec(any::<u8>(), 0..60), name in "[a-f0-9.gw]{1,80}") {
            let _ = PublicKey::of_spki(&bytes);
            if let Ok(name) = ServerName::try_from(name) {
                let _ = PublicKey::of_name(&name);
            }
        }
    }
}

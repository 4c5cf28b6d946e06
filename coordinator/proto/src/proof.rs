//! Proof of possession of the machine key.
//!
//! Ed25519 over `"ghostwire-proof-v1" || purpose || 0x00 || nonce || SHA-256(CA certificate) || contents`, where
//! contents is the SHA-256 of the message's other fields, each with its number and length in front. The nonce
//! comes from the coordinator and works once; the certificate binds the proof to that coordinator, so it is
//! useless to another one that it is shown to. Fields that a later version adds do not disturb an older reader.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::keys::{Fingerprint, KeyError, MachineKey};
use crate::v1::{EnrollRequest, Hello, NodeUpdate, Proof};

const CONTEXT: &[u8] = b"ghostwire-proof-v1";
/// Length of a nonce.
pub const NONCE_LEN: usize = 32;

/// Why a proof does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProofError {
    /// No proof in the message.
    #[error("the message carries no proof of the machine key")]
    Missing,
    /// Not a key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// 32 bytes that are no Ed25519 public key.
    #[error("the machine key is not an Ed25519 public key")]
    NotAPublicKey,
    /// A nonce of another length.
    #[error("the nonce has {0} bytes, not {NONCE_LEN}")]
    Nonce(usize),
    /// The signature is not this key's over this message.
    #[error("the signature does not match the machine key and the message")]
    Signature,
}

/// What a proof shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proven {
    /// The machine that holds the private key.
    pub machine_key: MachineKey,
    /// The nonce that was signed. The caller checks that it handed it out, and never takes it again.
    pub nonce: [u8; NONCE_LEN],
}

/// A message that carries a proof.
pub trait Provable {
    /// Separates one kind of message from another.
    const PURPOSE: &'static str;

    /// The proof in the message.
    fn proof(&self) -> Option<&Proof>;

    /// SHA-256 over everything in the message that the proof covers.
    fn contents(&self) -> [u8; 32];
}

impl Provable for EnrollRequest {
    const PURPOSE: &'static str = "enroll";

    fn proof(&self) -> Option<&Proof> {
        self.proof.as_ref()
    }

    fn contents(&self) -> [u8; 32] {
        let mut contents = Contents::default();
        contents.put(2, &self.node_key);
        contents.put(3, self.auth_key.as_bytes());
        contents.put(4, self.hostname.as_bytes());
        for tag in &self.requested_tags {
            contents.put(5, tag.as_bytes());
        }
        contents.put(6, self.os.as_bytes());
        contents.put(7, self.version.as_bytes());
        contents.finish()
    }
}

impl Provable for Hello {
    const PURPOSE: &'static str = "sync";

    fn proof(&self) -> Option<&Proof> {
        self.proof.as_ref()
    }

    fn contents(&self) -> [u8; 32] {
        let mut contents = Contents::default();
        contents.put(2, &self.node_key);
        contents.put(3, self.version.as_bytes());
        contents.put(4, self.epoch.as_bytes());
        contents.put(5, &self.revision.to_be_bytes());
        if let Some(update) = &self.update {
            contents.put(6, &update_contents(update));
        }
        contents.finish()
    }
}

fn update_contents(update: &NodeUpdate) -> [u8; 32] {
    let mut contents = Contents::default();
    for endpoint in &update.endpoints {
        contents.put(1, &endpoint.address);
        contents.put(2, &endpoint.port.to_be_bytes());
        contents.put(3, &endpoint.kind.to_be_bytes());
    }
    for route in &update.advertised_routes {
        contents.put(4, &route.address);
        contents.put(5, &route.length.to_be_bytes());
    }
    contents.put(6, update.hostname.as_bytes());
    contents.finish()
}

/// Hashes fields so that no two lists of fields look alike.
#[derive(Default)]
struct Contents(Sha256);

impl Contents {
    fn put(&mut self, number: u8, field: &[u8]) {
        self.0.update([number]);
        self.0.update((field.len() as u64).to_be_bytes());
        self.0.update(field);
    }

    fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

fn transcript<M: Provable>(message: &M, nonce: &[u8; NONCE_LEN], ca: &Fingerprint) -> Vec<u8> {
    [CONTEXT, M::PURPOSE.as_bytes(), &[0], nonce, ca.as_bytes(), &message.contents()].concat()
}

/// Signs `message`, whose own `proof` field is not covered, for the coordinator with this CA.
pub fn sign<M: Provable>(key: &SigningKey, nonce: &[u8; NONCE_LEN], ca: &Fingerprint, message: &M) -> Proof {
    Proof {
        machine_key: key.verifying_key().to_bytes().to_vec(),
        nonce: nonce.to_vec(),
        signature: key.sign(&transcript(message, nonce, ca)).to_bytes().to_vec(),
    }
}

/// Checks the proof in `message`. The caller still has to check that the nonce is its own and unused.
pub fn verify<M: Provable>(message: &M, ca: &Fingerprint) -> Result<Proven, ProofError> {
    let proof = message.proof().ok_or(ProofError::Missing)?;
    let machine_key = MachineKey::try_from(proof.machine_key.as_slice())?;
    let nonce = proof.nonce.as_slice().try_into().map_err(|_| ProofError::Nonce(proof.nonce.len()))?;
    let signature = Signature::from_slice(&proof.signature).map_err(|_| ProofError::Signature)?;
    let key = VerifyingKey::from_bytes(machine_key.as_bytes()).map_err(|_| ProofError::NotAPublicKey)?;
    // Strict: refuses keys of small order, with which one signature would fit many messages.
    key.verify_strict(&transcript(message, &nonce, ca), &signature).map_err(|_| ProofError::Signature)?;
    Ok(Proven { machine_key, nonce })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Endpoint, Prefix};

    const CA: Fingerprint = Fingerprint::new([3; 32]);
    const NONCE: [u8; 32] = [4; 32];

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[1; 32])
    }

    fn enroll() -> EnrollRequest {
        let mut request = EnrollRequest {
            node_key: vec![2; 32],
            auth_key: "id.secret".to_owned(),
            hostname: "web".to_owned(),
            requested_tags: vec!["tag:a".to_owned(), "tag:b".to_owned()],
            ..Default::default()
        };
        request.proof = Some(sign(&key(), &NONCE, &CA, &request));
        request
    }

    #[test]
    fn a_proof_holds_for_its_message_only() {
        let proven = verify(&enroll(), &CA).unwrap();
        assert_eq!(proven.machine_key.as_bytes(), key().verifying_key().as_bytes());
        assert_eq!(proven.nonce, NONCE);

        let changes: [fn(&mut EnrollRequest); 8] = [
            |m| m.node_key[0] ^= 1,
            |m| m.auth_key.push('x'),
            |m| m.hostname = "db".to_owned(),
            |m| m.requested_tags = vec!["tag:atag:b".to_owned()],
            |m| m.os = "linux".to_owned(),
            |m| m.proof.as_mut().unwrap().nonce[0] ^= 1,
            |m| m.proof.as_mut().unwrap().signature[0] ^= 1,
            |m| {
                m.proof.as_mut().unwrap().machine_key =
                    SigningKey::from_bytes(&[8; 32]).verifying_key().to_bytes().to_vec();
            },
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut message = enroll();
            change(&mut message);
            assert_eq!(verify(&message, &CA), Err(ProofError::Signature), "change {index}");
        }
        assert_eq!(verify(&enroll(), &Fingerprint::new([5; 32])), Err(ProofError::Signature));
    }

    #[test]
    fn a_proof_for_enrolment_is_none_for_the_stream() {
        let empty = EnrollRequest::default();
        let hello = Hello { proof: Some(sign(&key(), &NONCE, &CA, &empty)), ..Default::default() };
        assert_eq!(verify(&hello, &CA), Err(ProofError::Signature));
    }

    #[test]
    fn what_a_hello_says_is_covered() {
        let mut hello = Hello {
            epoch: "e".to_owned(),
            update: Some(NodeUpdate {
                endpoints: vec![Endpoint { address: vec![1, 2, 3, 4], port: 5, kind: 1 }],
                advertised_routes: vec![Prefix { address: vec![10, 0, 0, 0], length: 8 }],
                hostname: "web".to_owned(),
            }),
            ..Default::default()
        };
        hello.proof = Some(sign(&key(), &NONCE, &CA, &hello));
        assert!(verify(&hello, &CA).is_ok());
        let mut other = hello.clone();
        other.update.as_mut().unwrap().endpoints[0].port = 6;
        assert_eq!(verify(&other, &CA), Err(ProofError::Signature));
        let mut other = hello;
        other.revision = 1;
        assert_eq!(verify(&other, &CA), Err(ProofError::Signature));
    }

    #[test]
    fn malformed_proofs_are_refused() {
        let mut message = enroll();
        message.proof = None;
        assert_eq!(verify(&message, &CA), Err(ProofError::Missing));
        let mut message = enroll();
        message.proof.as_mut().unwrap().nonce.pop();
        assert_eq!(verify(&message, &CA), Err(ProofError::Nonce(31)));
        let mut message = enroll();
        message.proof.as_mut().unwrap().signature.pop();
        assert_eq!(verify(&message, &CA), Err(ProofError::Signature));
        let mut message = enroll();
        message.proof.as_mut().unwrap().machine_key = vec![0; 32];
        assert!(matches!(verify(&message, &CA), Err(ProofError::Key(KeyError::Zero { .. }))));
        // The point of order one: `0100..00`. Every signature with R of the same kind would fit it.
        let mut message = enroll();
        let mut small = vec![0; 32];
        small[0] = 1;
        message.proof.as_mut().unwrap().machine_key = small;
        assert_eq!(verify(&message, &CA), Err(ProofError::Signature));
    }
}

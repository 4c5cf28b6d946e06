//! Tokens. A relay verifies them with the coordinator's public key and asks nobody.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context as _;
use ed25519_dalek::SigningKey;
use ghostwire_proto::keys::Fingerprint;
use ghostwire_proto::v1;
use ghostwire_relay_protocol::token::{Grant, KeyNumber, NetworkId, NodeId as TokenNode, RelayId, Token};
use zeroize::Zeroizing;

use crate::id_set::IdSet;
use crate::model::{NodeId, UnixMs};
use crate::state_dir::write_secret;

const FILE: &str = "relay-tokens.key";

/// Which key it is. Another number comes with another key.
const NUMBER: KeyNumber = KeyNumber(1);

/// How long tokens are good. A node that is removed can use relays for so long.
pub const LIFETIME_SECS: u64 = 6 * 3600;

/// Tokens begin so much earlier than they are made, for relays whose clocks are behind.
const EARLIER_SECS: u64 = 60;

/// Most relays, and most tokens, of one request.
const MAX_RELAYS: usize = 64;
const MAX_TOKENS: usize = 1024;

/// Signs tokens for one network.
pub struct Signer {
    key: SigningKey,
    network: NetworkId,
}

impl Signer {
    /// The key in the state directory, made if there is none. `ca` names the network.
    pub fn load(state: &Path, ca: &Fingerprint) -> anyhow::Result<Self> {
        let path = state.join(FILE);
        let mut bytes = Zeroizing::new([0; 32]);
        match std::fs::read_to_string(&path).map(Zeroizing::new) {
            Ok(text) => hex::decode_to_slice(text.trim(), bytes.as_mut_slice()).with_context(|| {
                format!(
                    "{} is damaged; restore it from a backup, or remove it to get a new one",
                    path.display()
                )
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                rand::fill(bytes.as_mut_slice());
                write_secret(&path, Zeroizing::new(hex::encode(bytes.as_slice())).as_bytes())?;
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
        let network = ca.as_bytes().first_chunk().copied().map_or(0, u64::from_be_bytes);
        Ok(Self { key: SigningKey::from_bytes(&bytes), network: NetworkId(network) })
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self { key: SigningKey::from_bytes(&[7; 32]), network: NetworkId(1) }
    }

    /// What relays verify with.
    pub fn verifier(&self) -> (KeyNumber, ed25519_dalek::VerifyingKey) {
        (NUMBER, self.key.verifying_key())
    }

    /// The same as a message.
    pub fn message(&self) -> v1::RelaySigner {
        v1::RelaySigner { number: NUMBER.0.into(), key: self.key.verifying_key().as_bytes().to_vec() }
    }
}

/// Answers a request. What it asks of relays that there are not, or for peers that the node does not see, is left out.
pub fn tokens(
    signer: &Signer,
    node: NodeId,
    visible: &IdSet,
    request: &v1::RelayTokensRequest,
    now: UnixMs,
    relay: impl Fn(u32) -> Option<RelayId>,
) -> v1::RelayTokens {
    let Ok(session_key) = <[u8; 32]>::try_from(request.session_key.as_slice()) else {
        return v1::RelayTokens::default();
    };
    let now = u64::try_from(now / 1000).unwrap_or_default();
    let (issued, expires) = (now.saturating_sub(EARLIER_SECS), now.saturating_add(LIFETIME_SECS));
    let wanted = request.wanted.iter().take(MAX_RELAYS).flat_map(|wanted| {
        let peers = wanted.peers.iter().map(|peer| (wanted.relay, *peer));
        [(wanted.relay, 0)].into_iter().chain(peers.filter(|(_, peer)| *peer != 0))
    });
    let sign = |(number, peer): (u32, u64)| {
        if peer != 0 && !visible.contains(NodeId(peer)) {
            return None;
        }
        let token = Token {
            key: NUMBER,
            network: signer.network,
            node: TokenNode(node.0),
            grant: if peer == 0 { Grant::Allocate } else { Grant::Bind { peer: TokenNode(peer) } },
            relay: relay(number)?,
            rate_kbit: None,
            issued,
            expires,
            session_key,
        };
        Some(v1::RelayToken {
            relay: number,
            peer,
            token: token.sign(&signer.key).to_vec(),
            expires_unix_ms: i64::try_from(expires.saturating_mul(1000)).unwrap_or(i64::MAX),
        })
    };
    v1::RelayTokens {
        session_key: session_key.to_vec(),
        tokens: wanted.take(MAX_TOKENS).filter_map(sign).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gets_tokens_for_peers_that_it_sees_and_no_others() {
        let signer = Signer::for_tests();
        let visible: IdSet = [NodeId(2), NodeId(3)].into_iter().collect();
        let request = v1::RelayTokensRequest {
            session_key: vec![9; 32],
            wanted: vec![
                v1::RelayTokensWanted { relay: 5, peers: vec![2, 4, 0] },
                v1::RelayTokensWanted { relay: 6, peers: vec![3] },
            ],
        };
        let relay = |number| (number == 5).then_some(RelayId([5; 16]));
        let now = 1_800_000_000_000;
        let answer = tokens(&signer, NodeId(1), &visible, &request, now, relay);
        let got: Vec<(u32, u64)> = answer.tokens.iter().map(|token| (token.relay, token.peer)).collect();
        assert_eq!(got, [(5, 0), (5, 2)]);
        let (number, key) = signer.verifier();
        for token in &answer.tokens {
            let bytes = token.token.as_slice().try_into().unwrap();
            let keys = |wanted| (wanted == number).then_some(key);
            let verified = Token::verify(bytes, RelayId([5; 16]), 1_800_000_001, keys).unwrap();
            assert_eq!((verified.node, verified.session_key), (TokenNode(1), [9; 32]));
            assert_eq!(verified.expires, 1_800_000_000 + LIFETIME_SECS);
        }
        let short = v1::RelayTokensRequest { session_key: vec![9; 31], ..request };
        assert_eq!(tokens(&signer, NodeId(1), &visible, &short, now, relay), v1::RelayTokens::default());
    }

    #[test]
    fn the_key_is_made_once_and_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let ca = Fingerprint::new([3; 32]);
        let first = Signer::load(directory.path(), &ca).unwrap().verifier();
        assert_eq!(Signer::load(directory.path(), &ca).unwrap().verifier(), first);
        let mode = std::fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(directory.path().join(FILE), "short").unwrap();
        assert!(Signer::load(directory.path(), &ca).is_err());
    }
}

//! Tokens and control messages: what is written is read, and nothing forged is believed.
#![expect(clippy::unwrap_used, reason = "a test that fails shall say where")]

use ed25519_dalek::SigningKey;
use ghostwire_relay_protocol::control::{
    self, Action, Bad, IntegrityKey, Lease, MAX_RESPONSE_LEN, MIN_REQUEST_LEN, Request, Response,
    ResponseError, code, write_challenge, write_error, write_request, write_success,
};
use ghostwire_relay_protocol::stun::{Class, Integrity, Kind, Message, TransactionId, Writer};
use ghostwire_relay_protocol::token::{
    Grant, KeyNumber, NetworkId, NodeId, RelayId, TOKEN_LEN, Token, TokenError,
};
use proptest::prelude::*;
use x25519_dalek::{PublicKey, StaticSecret};

const RELAY: RelayId = RelayId([9; 16]);
const NOW: u64 = 1_800_000_000;
const TRANSACTION: TransactionId = TransactionId([5; 12]);

fn coordinator() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

fn session() -> StaticSecret {
    StaticSecret::from([2; 32])
}

fn relay_secret() -> StaticSecret {
    StaticSecret::from([3; 32])
}

fn token() -> Token {
    Token {
        key: KeyNumber(7),
        network: NetworkId(1),
        node: NodeId(2),
        grant: Grant::Bind { peer: NodeId(3) },
        relay: RELAY,
        rate_kbit: Some(50_000),
        issued: NOW - 10,
        expires: NOW + 3600,
        session_key: PublicKey::from(&session()).to_bytes(),
    }
}

fn verify(bytes: &[u8; TOKEN_LEN], now: u64) -> Result<Token, TokenError> {
    Token::verify(bytes, RELAY, now, |key| (key == KeyNumber(7)).then(|| coordinator().verifying_key()))
}

fn node_key() -> IntegrityKey {
    IntegrityKey::for_node(&session(), RELAY, &PublicKey::from(&relay_secret()).to_bytes()).unwrap()
}

fn relay_key() -> IntegrityKey {
    IntegrityKey::for_relay(&relay_secret(), RELAY, &token().session_key).unwrap()
}

#[test]
fn a_token_is_believed_only_as_signed_for_this_relay_and_time() {
    let bytes = token().sign(&coordinator());
    assert_eq!(verify(&bytes, NOW), Ok(token()));
    assert_eq!(verify(&bytes, NOW + 3600), Err(TokenError::Expired));
    assert_eq!(verify(&bytes, NOW - 1000), Err(TokenError::Implausible));
    let foreign = token().sign(&SigningKey::from_bytes(&[8; 32]));
    assert_eq!(verify(&foreign, NOW), Err(TokenError::Signature));
    let other = Token { relay: RelayId([8; 16]), ..token() }.sign(&coordinator());
    assert_eq!(verify(&other, NOW), Err(TokenError::OtherRelay));
    let retired = Token { key: KeyNumber(8), ..token() }.sign(&coordinator());
    assert_eq!(verify(&retired, NOW), Err(TokenError::UnknownKey));
    let eternal = Token { expires: u64::MAX, ..token() }.sign(&coordinator());
    assert_eq!(verify(&eternal, NOW), Err(TokenError::Implausible));
}

#[test]
fn no_bit_of_a_token_can_be_changed() {
    let sound = token().sign(&coordinator());
    for bit in 0..TOKEN_LEN * 8 {
        let mut bytes = sound;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(verify(&bytes, NOW).is_err(), "bit {bit}");
    }
}

#[test]
fn both_sides_derive_the_same_key_and_others_another() {
    assert_eq!(node_key().as_bytes(), relay_key().as_bytes());
    let thief = StaticSecret::from([4; 32]);
    let stolen = IntegrityKey::for_node(&thief, RELAY, &PublicKey::from(&relay_secret()).to_bytes()).unwrap();
    assert_ne!(stolen.as_bytes(), relay_key().as_bytes());
    assert!(IntegrityKey::for_relay(&relay_secret(), RELAY, &[0; 32]).is_none(), "a point of small order");
}

#[test]
fn requests_are_read_as_written_and_always_as_long() {
    let bytes = token().sign(&coordinator());
    for challenge in [None, Some([6; control::CHALLENGE_LEN])] {
        for action in [Action::Allocate, Action::Bind, Action::Refresh, Action::Release] {
            let mut buffer = [0; MIN_REQUEST_LEN];
            let written =
                write_request(&mut buffer, action, TRANSACTION, &bytes, challenge.as_ref(), 42, &node_key())
                    .unwrap();
            assert_eq!(written.len(), MIN_REQUEST_LEN);
            let request = Request::parse(Message::parse(written).unwrap()).unwrap();
            assert_eq!((request.action, request.sequence), (action, 42));
            assert_eq!((request.token, request.challenge), (&bytes, challenge.as_ref()));
            assert_eq!(request.message.integrity(relay_key().as_bytes()), Integrity::Valid);
        }
    }
}

#[test]
fn short_or_foreign_messages_get_no_answer() {
    let mut buffer = [0; 512];
    let mut writer = Writer::new(&mut buffer, Class::Request, control::BIND, TRANSACTION).unwrap();
    writer.attribute(control::TOKEN, &[0; TOKEN_LEN]).unwrap().fingerprint().unwrap();
    assert_eq!(Request::parse(Message::parse(writer.finish()).unwrap()).unwrap_err(), Bad::Silent);

    let long = |kind: Kind, value: &[u8], fingerprint: bool| {
        let mut buffer = [0; 1024];
        let mut writer = Writer::new(&mut buffer, Class::Request, control::BIND, TRANSACTION).unwrap();
        writer.attribute(control::PADDING, &[0; 320]).unwrap().attribute(kind, value).unwrap();
        if fingerprint {
            writer.fingerprint().unwrap();
        }
        Request::parse(Message::parse(writer.finish()).unwrap()).unwrap_err()
    };
    assert_eq!(long(control::TOKEN, &[0; TOKEN_LEN], false), Bad::Silent, "no fingerprint");
    assert_eq!(long(control::TOKEN, &[0; TOKEN_LEN], true), Bad::Request, "no sequence");
    assert_eq!(long(control::TOKEN, &[0; 3], true), Bad::Request, "no token");
    assert_eq!(long(Kind(0x7FFF), &[], true), Bad::Unknown);
}

#[test]
fn responses_are_read_as_written_and_shorter_than_any_request() {
    let lease = Lease {
        mapped: "[2001:db8::1]:1".parse().unwrap(),
        relayed: "[2001:db8::2]:65535".parse().unwrap(),
        seconds: 600,
        peer_bound: true,
        draining: false,
    };
    let mut buffer = [0; MAX_RESPONSE_LEN];
    let written = write_success(&mut buffer, control::BIND, TRANSACTION, &lease, &relay_key()).unwrap();
    assert!(written.len() < MIN_REQUEST_LEN);
    let message = Message::parse(written).unwrap();
    let read = Response::parse(&message, control::BIND, TRANSACTION, &node_key());
    assert_eq!(read, Ok(Response::Granted(lease)));
    assert_eq!(
        Response::parse(&message, control::BIND, TransactionId([0; 12]), &node_key()),
        Err(ResponseError::Other)
    );

    let mut buffer = [0; MAX_RESPONSE_LEN];
    let written =
        write_challenge(&mut buffer, control::BIND, TRANSACTION, code::UNAUTHENTICATED, &[7; 20]).unwrap();
    let read = Response::parse(&Message::parse(written).unwrap(), control::BIND, TRANSACTION, &node_key());
    assert_eq!(read, Ok(Response::Challenge([7; 20])));

    for key in [None, Some(&relay_key())] {
        let mut buffer = [0; MAX_RESPONSE_LEN];
        let unknown = (0..40).map(Kind);
        let written =
            write_error(&mut buffer, control::BIND, TRANSACTION, code::UNKNOWN_ATTRIBUTE, unknown, key)
                .unwrap();
        let read =
            Response::parse(&Message::parse(written).unwrap(), control::BIND, TRANSACTION, &node_key());
        assert_eq!(read, Ok(Response::Refused { code: 420, signed: key.is_some() }));
    }
}

#[test]
fn a_success_that_the_relay_did_not_sign_is_not_believed() {
    let lease = Lease {
        mapped: "192.0.2.1:1".parse().unwrap(),
        relayed: "192.0.2.2:2".parse().unwrap(),
        seconds: 1,
        peer_bound: true,
        draining: false,
    };
    let other = IntegrityKey::for_relay(&StaticSecret::from([4; 32]), RELAY, &token().session_key).unwrap();
    let mut buffer = [0; MAX_RESPONSE_LEN];
    let written = write_success(&mut buffer, control::ALLOCATE, TRANSACTION, &lease, &other).unwrap();
    let read =
        Response::parse(&Message::parse(written).unwrap(), control::ALLOCATE, TRANSACTION, &node_key());
    assert_eq!(read, Err(ResponseError::Integrity));
}

proptest! {
    #[test]
    fn requests_and_responses_of_any_bytes_are_total(
        method in 0x801_u16..0x805,
        values in proptest::collection::vec((0_usize..8, proptest::collection::vec(any::<u8>(), 0..170)), 0..5),
    ) {
        let kinds = [control::TOKEN, control::CHALLENGE, control::SEQUENCE, control::LEASE, control::STATE,
            Kind::ERROR_CODE, Kind::XOR_MAPPED_ADDRESS, control::PADDING];
        for class in [Class::Request, Class::Success, Class::Error] {
            let mut buffer = [0; 2048];
            let method = ghostwire_relay_protocol::stun::Method::new(method).unwrap();
            let mut writer = Writer::new(&mut buffer, class, method, TRANSACTION).unwrap();
            for (kind, value) in &values {
                writer.attribute(kinds[*kind], value).unwrap();
            }
            writer.integrity(relay_key().as_bytes()).unwrap().fingerprint().unwrap();
            let message = Message::parse(writer.finish()).unwrap();
            let _ = Request::parse(message);
            let _ = Response::parse(&message, method, TRANSACTION, &node_key());
        }
    }

    #[test]
    fn verifying_any_bytes_is_total(bytes in proptest::collection::vec(any::<u8>(), TOKEN_LEN)) {
        prop_assert!(verify(bytes.as_slice().try_into().unwrap(), NOW).is_err());
    }
}

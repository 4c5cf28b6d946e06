//! The STUN codec against the published vectors, and against anything at all.
#![expect(clippy::unwrap_used, reason = "a test that fails shall say where")]

use std::net::SocketAddr;

use ghostwire_relay_protocol::stun::{
    Class, Fingerprint, Full, Integrity, Kind, Message, Method, ParseError, TransactionId, Writer,
};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

/// RFC 5769 section 2.1.
const REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74\
    002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5\
    b2d3f249c1b571a280280004e57a3bcf";
/// RFC 5769 section 2.2.
const RESPONSE_V4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
    002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
/// RFC 5769 section 2.3.
const RESPONSE_V6: &str = "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
    002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed41\
    80280004c8fb0b4c";

const TRANSACTION: TransactionId =
    TransactionId([0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae]);

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

#[test]
fn the_sample_request_is_read() {
    let bytes = bytes(REQUEST);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Request, Method::BINDING));
    assert_eq!(message.transaction(), TRANSACTION);
    assert_eq!(message.fingerprint(), Fingerprint::Valid);
    assert_eq!(message.attribute(Kind::SOFTWARE).unwrap().value, b"STUN test client");
    assert_eq!(message.attribute(Kind::USERNAME).unwrap().value, b"evtj:h6vY");
    assert_eq!(message.integrity(b"any key"), Integrity::Absent);
    let unknown: Vec<_> =
        message.unknown_required(|kind| [Kind::USERNAME, Kind::MESSAGE_INTEGRITY].contains(&kind)).collect();
    assert_eq!(unknown, [Kind(0x0024)]);
}

#[test]
fn the_sample_responses_are_read_in_both_families() {
    for (text, mapped) in
        [(RESPONSE_V4, "192.0.2.1:32853"), (RESPONSE_V6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853")]
    {
        let bytes = bytes(text);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.fingerprint(), Fingerprint::Valid);
        let address = message.attribute(Kind::XOR_MAPPED_ADDRESS).unwrap();
        assert_eq!(address.xor_address(TRANSACTION), Some(mapped.parse().unwrap()));
    }
}

#[test]
fn the_addresses_of_the_samples_are_written_as_published() {
    let sample = bytes(RESPONSE_V6);
    let mut buffer = [0; 128];
    let mut writer = Writer::new(&mut buffer, Class::Success, Method::BINDING, TRANSACTION).unwrap();
    writer
        .xor_address(
            Kind::XOR_MAPPED_ADDRESS,
            "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse::<SocketAddr>().unwrap(),
        )
        .unwrap();
    assert_eq!(writer.finish()[20..], sample[36..60]);
}

/// RFC 8489 appendix B.1 as its verified erratum corrects it (with PASSWORD-ALGORITHM).
#[test]
fn sha256_integrity_is_that_of_the_published_sample() {
    let transaction = TransactionId([0x78, 0xad, 0x34, 0x33, 0xc6, 0xad, 0x72, 0xc0, 0x29, 0xda, 0x41, 0x2e]);
    let userhash =
        bytes("4a3cf38fef6992bda952c678 0417da0f24819415569e60b205c46e41407f1704".replace(' ', "").as_str());
    let key = Sha256::digest("マトリックス:example.org:TheMatrIX".as_bytes());
    let mut buffer = [0; 256];
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::BINDING, transaction).unwrap();
    writer.attribute(Kind(0x001E), &userhash).unwrap();
    writer.attribute(Kind::NONCE, b"obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA").unwrap();
    writer.attribute(Kind::REALM, b"example.org").unwrap();
    writer.attribute(Kind(0x001D), &[0, 2, 0, 0]).unwrap();
    writer.integrity(&key).unwrap();
    let written = writer.finish().to_vec();
    assert_eq!(written[2..4], 0x0090_u16.to_be_bytes());
    assert_eq!(
        hex::encode(&written[written.len() - 32..]),
        "b5c7bf005b6c52a21c51c5e892f81924136296cb927c43149309278cc6518e65"
    );
    assert_eq!(Message::parse(&written).unwrap().integrity(&key), Integrity::Valid);
    assert_eq!(Message::parse(&written).unwrap().integrity(b"another"), Integrity::Invalid);
}

#[test]
fn one_changed_bit_breaks_fingerprint_and_integrity() {
    let mut buffer = [0; 128];
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::BINDING, TRANSACTION).unwrap();
    writer.attribute(Kind::SOFTWARE, b"x").unwrap().integrity(b"key").unwrap().fingerprint().unwrap();
    let sound = writer.finish().to_vec();
    let message = Message::parse(&sound).unwrap();
    assert_eq!((message.fingerprint(), message.integrity(b"key")), (Fingerprint::Valid, Integrity::Valid));
    for bit in 0..sound.len() * 8 {
        let mut changed = sound.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        if let Ok(message) = Message::parse(&changed) {
            assert_ne!(message.fingerprint(), Fingerprint::Valid, "bit {bit}");
            // FINGERPRINT itself, the last eight bytes, comes after what the integrity covers.
            if bit / 8 < sound.len() - 8 {
                assert_ne!(message.integrity(b"key"), Integrity::Valid, "bit {bit}");
            }
        }
    }
}

#[test]
fn what_follows_the_integrity_does_not_count() {
    let mut buffer = [0; 128];
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::BINDING, TRANSACTION).unwrap();
    writer.integrity(b"key").unwrap().attribute(Kind::SOFTWARE, b"injected").unwrap().fingerprint().unwrap();
    let bytes = writer.finish().to_vec();
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.integrity(b"key"), Integrity::Valid);
    assert_eq!(message.attribute(Kind::SOFTWARE), None);
    assert_eq!(message.fingerprint(), Fingerprint::Valid);
}

#[test]
fn malformed_messages_are_told_apart() {
    let sound = bytes(RESPONSE_V4);
    assert_eq!(Message::parse(&sound[..19]).unwrap_err(), ParseError::NotStun);
    assert_eq!(Message::parse(&sound[..40]).unwrap_err(), ParseError::Length);
    let mut cookie = sound.clone();
    cookie[4] ^= 1;
    assert_eq!(Message::parse(&cookie).unwrap_err(), ParseError::NotStun);
    let mut attribute = sound.clone();
    attribute[22] = 0xFF;
    assert_eq!(Message::parse(&attribute).unwrap_err(), ParseError::Attribute);
    let mut after = sound.clone();
    after.extend_from_slice(&[0x80, 0x22, 0, 0]);
    after[3] += 4;
    assert_eq!(Message::parse(&after).unwrap_err(), ParseError::AfterFingerprint);
    let mut many = sound[..20].to_vec();
    many.extend([0x80, 0x22, 0, 0].repeat(33));
    many[3] = 33 * 4;
    assert_eq!(Message::parse(&many).unwrap_err(), ParseError::TooMany);
}

#[test]
fn a_full_buffer_is_an_error_and_the_message_stays_whole() {
    let mut buffer = [0; 30];
    let mut writer = Writer::new(&mut buffer, Class::Success, Method::BINDING, TRANSACTION).unwrap();
    writer.attribute(Kind::SOFTWARE, b"ab").unwrap();
    assert_eq!(writer.attribute(Kind::SOFTWARE, b"c").unwrap_err(), Full);
    assert_eq!(writer.integrity(b"key").unwrap_err(), Full);
    assert_eq!(Message::parse(writer.finish()).unwrap().len(), 28);
    assert!(Writer::new(&mut [0; 19], Class::Success, Method::BINDING, TRANSACTION).is_err());
}

proptest! {
    #[test]
    fn reading_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Message::parse(&bytes);
    }

    /// Damaged samples get further into the parser than noise does.
    #[test]
    fn reading_damaged_messages_is_total(
        which in 0_usize..3,
        damage in proptest::collection::vec((0_usize..120, any::<u8>()), 0..6),
        key in any::<[u8; 4]>(),
    ) {
        let mut bytes = bytes([REQUEST, RESPONSE_V4, RESPONSE_V6][which]);
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if let Ok(message) = Message::parse(&bytes) {
            let _ = (message.fingerprint(), message.integrity(&key));
            for attribute in message.attributes() {
                let _ = (attribute.xor_address(message.transaction()), attribute.error_code(), attribute.u64());
            }
        }
    }

    #[test]
    fn what_is_written_is_read(
        number in 0_u16..0x1000,
        transaction in any::<[u8; 12]>(),
        attributes in proptest::collection::vec(
            (0x8100_u16..0xFFFF, proptest::collection::vec(any::<u8>(), 0..9)), 0..8),
        ip in any::<std::net::IpAddr>(),
        port in any::<u16>(),
    ) {
        let mut buffer = [0; 512];
        let (transaction, method) = (TransactionId(transaction), Method::new(number).unwrap());
        let mut writer = Writer::new(&mut buffer, Class::Indication, method, transaction).unwrap();
        for (kind, value) in &attributes {
            writer.attribute(Kind(*kind), value).unwrap();
        }
        let address = SocketAddr::new(ip, port);
        writer.xor_address(Kind::XOR_MAPPED_ADDRESS, address).unwrap();
        writer.error_code(438).unwrap().fingerprint().unwrap();
        let message = Message::parse(writer.finish()).unwrap();
        prop_assert_eq!(message.method(), method);
        let read: Vec<_> = message
            .attributes()
            .take(attributes.len())
            .map(|attribute| (attribute.kind.0, attribute.value.to_vec()))
            .collect();
        prop_assert_eq!(read, attributes);
        let mapped = message.attribute(Kind::XOR_MAPPED_ADDRESS).unwrap();
        prop_assert_eq!(mapped.xor_address(transaction), Some(address));
        prop_assert_eq!(message.attribute(Kind::ERROR_CODE).unwrap().error_code(), Some(438));
        prop_assert_eq!(message.fingerprint(), Fingerprint::Valid);
    }
}

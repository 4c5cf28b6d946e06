//! DERP frames and handshake boxes.
#![expect(clippy::unwrap_used, reason = "a test that fails shall say where")]

use ghostwire_relay_protocol::derp::handshake::{
    ClientInfo, HandshakeError, SecretKey, ServerInfo, open, seal,
};
use ghostwire_relay_protocol::derp::{
    Frame, GoneReason, HEADER_LEN, Header, Presence, PublicKey, looks_like_disco,
};
use proptest::prelude::*;

fn round_trip(frame: &Frame<'_>) {
    let mut bytes = Vec::new();
    frame.write(&mut bytes);
    let (head, payload) = bytes.split_first_chunk::<HEADER_LEN>().unwrap();
    let header = Header::parse(*head);
    assert_eq!(header.len as usize, payload.len());
    assert_eq!(Frame::parse(header.kind, payload).as_ref(), Ok(frame));
}

#[test]
fn every_frame_is_read_as_written() {
    let (a, b) = (PublicKey([1; 32]), PublicKey([2; 32]));
    let v4 = Presence { key: a, address: Some("192.0.2.1:41641".parse().unwrap()), flags: 1 };
    let v6 = Presence { key: a, address: Some("[2001:db8::1]:443".parse().unwrap()), flags: 4 };
    for frame in [
        Frame::ServerKey(a),
        Frame::ClientInfo { key: a, sealed: b"sealed" },
        Frame::ServerInfo { sealed: b"sealed" },
        Frame::Send { to: a, packet: b"packet" },
        Frame::Recv { from: a, packet: b"" },
        Frame::Forward { from: a, to: b, packet: b"packet" },
        Frame::KeepAlive,
        Frame::NotePreferred(true),
        Frame::PeerGone { key: a, reason: GoneReason::NotHere },
        Frame::PeerPresent(v4),
        Frame::PeerPresent(v6),
        Frame::PeerPresent(Presence { key: b, address: None, flags: 0 }),
        Frame::Watch,
        Frame::ClosePeer(b),
        Frame::Ping([3; 8]),
        Frame::Pong([4; 8]),
        Frame::Health("too many connections"),
        Frame::Restarting { reconnect_in_ms: 1500, try_for_ms: 60_000 },
        Frame::Unknown(0x7F),
    ] {
        round_trip(&frame);
    }
}

#[test]
fn the_bytes_are_those_of_the_protocol() {
    let mut bytes = Vec::new();
    Frame::ServerKey(PublicKey([0xAB; 32])).write(&mut bytes);
    assert_eq!(bytes[..13], [1, 0, 0, 0, 40, 0x44, 0x45, 0x52, 0x50, 0xF0, 0x9F, 0x94, 0x91]);
    bytes.clear();
    Frame::PeerGone { key: PublicKey([7; 32]), reason: GoneReason::NotHere }.write(&mut bytes);
    assert_eq!((bytes.len(), bytes[0], bytes[4], bytes[37]), (38, 8, 33, 1));
    bytes.clear();
    Frame::Restarting { reconnect_in_ms: 1, try_for_ms: 2 }.write(&mut bytes);
    assert_eq!(bytes, [0x15, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 2]);
}

#[test]
fn the_length_of_pings_and_packets_is_bounded() {
    assert_eq!(Frame::parse(0x12, &[9; 1000]), Ok(Frame::Ping([9; 8])));
    assert!(Frame::parse(0x12, &[9; 1001]).is_err());
    assert!(Frame::parse(0x12, &[9; 7]).is_err());
    assert!(Frame::parse(0x04, &vec![0; 32 + (64 << 10)]).is_ok());
    assert!(Frame::parse(0x04, &vec![0; 33 + (64 << 10)]).is_err());
    assert!(Frame::parse(0x01, &[0; 40]).is_err(), "without the magic");
}

#[test]
fn a_box_opens_only_for_its_two_keys() {
    let (client, server, third) = (SecretKey::new([1; 32]), SecretKey::new([2; 32]), SecretKey::new([3; 32]));
    let sealed = seal(&ClientInfo::new(), &client, server.public(), [7; 24]).unwrap();
    assert_eq!(open(&sealed, &server, client.public()), Ok(ClientInfo::new()));
    assert_eq!(open::<ClientInfo>(&sealed, &server, third.public()), Err(HandshakeError::Sealed));
    assert_eq!(open::<ClientInfo>(&sealed, &third, client.public()), Err(HandshakeError::Sealed));
    assert_eq!(open::<ClientInfo>(&sealed[..20], &server, client.public()), Err(HandshakeError::Length));
    let mut damaged = sealed.clone();
    damaged[30] ^= 1;
    assert_eq!(open::<ClientInfo>(&damaged, &server, client.public()), Err(HandshakeError::Sealed));
}

/// The JSON is what other implementations send: their names, more fields than ours, fields missing.
#[test]
fn the_json_is_that_of_other_implementations() {
    let (client, server) = (SecretKey::new([1; 32]), SecretKey::new([2; 32]));
    let theirs = serde_json::json!({ "version": 2, "CanAckPings": true, "IsProber": false, "AppName": "x" });
    let sealed = seal(&theirs, &client, server.public(), [7; 24]).unwrap();
    assert_eq!(open(&sealed, &server, client.public()), Ok(ClientInfo::new()));
    let info = ServerInfo { version: 2, bytes_per_second: 0, burst_bytes: 0 };
    assert_eq!(serde_json::to_value(&info).unwrap(), serde_json::json!({ "version": 2 }));
    let limited =
        serde_json::json!({ "version": 2, "TokenBucketBytesPerSecond": 5, "TokenBucketBytesBurst": 6 });
    let read: ServerInfo = serde_json::from_value(limited).unwrap();
    assert_eq!((read.bytes_per_second, read.burst_bytes), (5, 6));
}

#[test]
fn path_discovery_is_recognised() {
    let mut packet = vec![0x54, 0x53, 0xF0, 0x9F, 0x92, 0xAC];
    packet.resize(62, 0);
    assert!(looks_like_disco(&packet));
    assert!(!looks_like_disco(&packet[..61]));
    assert!(!looks_like_disco(&[1; 148]));
}

proptest! {
    #[test]
    fn reading_frames_is_total(kind in any::<u8>(), payload in proptest::collection::vec(any::<u8>(), 0..120)) {
        if let Ok(frame) = Frame::parse(kind, &payload) {
            let mut bytes = Vec::new();
            frame.write(&mut bytes);
            prop_assert!(bytes.len() <= payload.len() + HEADER_LEN + 20);
        }
        let _ = open::<ClientInfo>(&payload, &SecretKey::new([1; 32]), PublicKey([2; 32]));
    }
}

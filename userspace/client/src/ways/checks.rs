//! Connectivity checks and their answers as bytes: STUN messages (RFC 8489) with the attributes of ICE (RFC 8445
//! section 16.1), plain or dressed as WireGuard's transport messages.
//!
//! MESSAGE-INTEGRITY-SHA256 is keyed with the password of whoever receives the check; the answer is signed with the
//! same key (RFC 8445 section 7). A check names its receiver and its sender in USERNAME, so that one port serves
//! all peers.

use std::net::SocketAddr;

use ghostwire_path::{Check, Credentials, Framing, Transaction};
use ghostwire_relay_protocol::control::PADDING;
use ghostwire_relay_protocol::stun::{
    Class, Fingerprint, Full, Integrity, Kind, MAGIC_COOKIE, Message, Method, TransactionId, Writer,
};

/// PRIORITY (RFC 8445 section 16.1).
const PRIORITY: Kind = Kind(0x0024);
/// USE-CANDIDATE (RFC 8445 section 16.1).
const USE_CANDIDATE: Kind = Kind(0x0025);
/// ATTEMPT, ours: the sender's latest call for checks, 32 bits. A receiver that does not know it reads over it.
const ATTEMPT: Kind = Kind(0xFE02);

/// The longest check or answer, dress included. USERNAME has at most 65 bytes.
const MAX_LEN: usize = 272;
/// MESSAGE-INTEGRITY-SHA256 and FINGERPRINT.
const TRAILER_LEN: usize = 36 + 8;

/// WireGuard's transport message, type 4: reserved bytes, receiver index, counter. The counter is one that WireGuard
/// never sends (REJECT_AFTER_MESSAGES is 2^64 - 2^13 - 1), so that no session can be mistaken for a check.
pub const DRESS: [u8; 16] = {
    let cookie = MAGIC_COOKIE.to_be_bytes();
    let mut dress = [0xff; 16];
    (dress[0], dress[1], dress[2], dress[3]) = (4, 0, 0, 0);
    (dress[4], dress[5], dress[6], dress[7]) = (cookie[0], cookie[1], cookie[2], cookie[3]);
    dress
};

/// WireGuard pads what it encrypts to this many bytes.
const WIREGUARD_PADDING: usize = 16;

/// The STUN message in a datagram, and how it is dressed. `None`: something else.
pub fn undress(datagram: &[u8]) -> Option<(Framing, Message<'_>)> {
    let (framing, bytes) = match datagram.strip_prefix(&DRESS) {
        Some(bytes) => (Framing::Carried, bytes),
        None => (Framing::Stun, datagram),
    };
    let message = Message::parse(bytes).ok()?;
    Some((framing, message))
}

/// A check as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    message: Message<'a>,
    /// Fragment of the receiver's credentials.
    pub receiver: &'a str,
    /// To be repeated by the answer.
    pub transaction: Transaction,
    /// The sender's candidate's priority.
    pub priority: u32,
    /// USE-CANDIDATE.
    pub nominate: bool,
    /// The sender's latest call.
    pub attempt: u32,
}

impl<'a> Arrived<'a> {
    /// Reads a binding request of a peer. `None`: it is none, or damaged.
    pub fn read(message: Message<'a>) -> Option<Self> {
        let known = |kind| [Kind::USERNAME, PRIORITY, USE_CANDIDATE].contains(&kind);
        if message.class() != Class::Request
            || message.method() != Method::BINDING
            || message.fingerprint() != Fingerprint::Valid
            || message.unknown_required(known).next().is_some()
        {
            return None;
        }
        let username = std::str::from_utf8(message.attribute(Kind::USERNAME)?.value).ok()?;
        let (receiver, _) = username.split_once(':')?;
        Some(Self {
            message,
            receiver,
            transaction: Transaction(message.transaction().0),
            priority: message.attribute(PRIORITY).and_then(|value| value.u32()).unwrap_or_default(),
            nominate: message.attribute(USE_CANDIDATE).is_some(),
            attempt: message.attribute(ATTEMPT).and_then(|value| value.u32()).unwrap_or_default(),
        })
    }

    /// Whether the sender knows the receiver's password.
    pub fn is_authentic(&self, own: &Credentials) -> bool {
        self.message.integrity(own.password.as_bytes()) == Integrity::Valid
    }
}

/// Whether a message answers a check that was signed with the peer's password. The transaction is the caller's
/// concern.
pub fn is_answer(message: &Message<'_>, peers: &Credentials) -> bool {
    message.class() == Class::Success
        && message.method() == Method::BINDING
        && message.fingerprint() == Fingerprint::Valid
        && message.integrity(peers.password.as_bytes()) == Integrity::Valid
}

/// A check as it is sent. `own` is our fragment, `peers` the receiver's credentials.
pub fn check(check: &Check, own: &str, peers: &Credentials) -> Result<Vec<u8>, Full> {
    compose(check.framing, Class::Request, check.transaction, &peers.password, |writer| {
        writer.attribute(Kind::USERNAME, format!("{}:{own}", peers.fragment).as_bytes())?;
        writer.attribute(PRIORITY, &check.priority.to_be_bytes())?;
        writer.attribute(ATTEMPT, &check.attempt.to_be_bytes())?;
        if check.nominate {
            writer.attribute(USE_CANDIDATE, &[])?;
        }
        Ok(())
    })
}

/// An answer as it is sent. `seen` is where the check came from; relays hide it. Never longer than the check.
pub fn answer(
    framing: Framing,
    transaction: Transaction,
    own: &Credentials,
    seen: Option<SocketAddr>,
) -> Result<Vec<u8>, Full> {
    compose(framing, Class::Success, transaction, &own.password, |writer| {
        seen.map_or(Ok(()), |seen| writer.xor_address(Kind::XOR_MAPPED_ADDRESS, seen).map(drop))
    })
}

/// A plain binding request, as STUN servers answer it.
pub fn question(transaction: Transaction) -> Result<Vec<u8>, Full> {
    let mut buffer = [0; MAX_LEN];
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::BINDING, TransactionId(transaction.0))?;
    writer.fingerprint()?;
    Ok(writer.finish().to_vec())
}

/// Our address as a STUN server or a relay saw it, in a success response of any method.
pub fn mapped_address(message: &Message<'_>) -> Option<SocketAddr> {
    if message.class() != Class::Success {
        return None;
    }
    message.attribute(Kind::XOR_MAPPED_ADDRESS)?.xor_address(message.transaction())
}

fn compose(
    framing: Framing,
    class: Class,
    transaction: Transaction,
    password: &str,
    fill: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>,
) -> Result<Vec<u8>, Full> {
    let mut buffer = [0; MAX_LEN];
    let dress = match framing {
        Framing::Stun => 0,
        Framing::Carried => DRESS.len(),
    };
    let (dressed, bare) = buffer.split_at_mut_checked(dress).ok_or(Full)?;
    dressed.copy_from_slice(DRESS.get(..dress).unwrap_or_default());
    let mut writer = Writer::new(bare, class, Method::BINDING, TransactionId(transaction.0))?;
    fill(&mut writer)?;
    if framing == Framing::Carried {
        // As long as a WireGuard message could be.
        let rest = (writer.len() + TRAILER_LEN) % WIREGUARD_PADDING;
        if rest != 0 {
            let zeros = [0; WIREGUARD_PADDING];
            let padding = (WIREGUARD_PADDING - rest).checked_sub(4).unwrap_or(WIREGUARD_PADDING - 4);
            writer.attribute(PADDING, zeros.get(..padding).unwrap_or_default())?;
        }
    }
    writer.integrity(password.as_bytes())?.fingerprint()?;
    let length = dress + writer.finish().len();
    Ok(buffer.get(..length).unwrap_or_default().to_vec())
}

#[cfg(test)]
mod tests {
    use ghostwire_path::{Base, RelayId, Route, Socket, UplinkId};
    use proptest::prelude::*;

    use super::*;

    fn credentials(text: &str) -> Credentials {
        Credentials { fragment: text.repeat(4), password: text.repeat(24) }
    }

    fn sample(framing: Framing, nominate: bool) -> Check {
        Check {
            route: Route::RelayPort(RelayId(1)),
            framing,
            transaction: Transaction([7; 12]),
            priority: 1_862_270_975,
            nominate,
            attempt: 3,
        }
    }

    #[test]
    fn a_check_and_its_answer_come_through_in_both_dresses() {
        let (ours, theirs) = (credentials("a"), credentials("b"));
        for framing in [Framing::Stun, Framing::Carried] {
            for nominate in [false, true] {
                let sent = sample(framing, nominate);
                let bytes = check(&sent, &ours.fragment, &theirs).unwrap();
                let (dress, message) = undress(&bytes).unwrap();
                assert_eq!(dress, framing);
                let arrived = Arrived::read(message).unwrap();
                assert_eq!(arrived.receiver, theirs.fragment);
                assert_eq!(
                    (arrived.transaction, arrived.priority, arrived.nominate, arrived.attempt),
                    (sent.transaction, sent.priority, sent.nominate, sent.attempt)
                );
                assert!(arrived.is_authentic(&theirs));
                assert!(!arrived.is_authentic(&ours));
                assert!(!is_answer(&message, &theirs), "a check is no answer");
                for seen in [None, Some("[2001:db8::9]:51820".parse().unwrap())] {
                    let answer = answer(framing, sent.transaction, &theirs, seen).unwrap();
                    assert!(answer.len() <= bytes.len(), "an answer must not amplify");
                    let (dress, message) = undress(&answer).unwrap();
                    assert_eq!(dress, framing);
                    assert!(is_answer(&message, &theirs) && !is_answer(&message, &ours));
                    assert_eq!(message.transaction().0, sent.transaction.0);
                    assert!(Arrived::read(message).is_none(), "an answer is no check");
                    assert_eq!(mapped_address(&message), seen);
                }
            }
        }
    }

    #[test]
    fn dressed_checks_look_like_wireguard_to_a_relay() {
        let bytes = check(&sample(Framing::Carried, true), "abcd", &credentials("b")).unwrap();
        assert_eq!(bytes[..4], [4, 0, 0, 0]);
        assert_eq!(bytes[8..16], [0xff; 8]);
        assert_eq!(bytes.len() % WIREGUARD_PADDING, 0);
        assert!(bytes.len() >= 32);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (ours, theirs) = (credentials("a"), credentials("b"));
        let base = Base {
            uplink: UplinkId(2),
            address: "192.0.2.1:51820".parse().unwrap(),
            socket: Socket::WireGuard,
        };
        let route = Route::Pair { base, remote: "198.51.100.2:4000".parse().unwrap() };
        let good = check(&Check { route, ..sample(Framing::Stun, true) }, &ours.fragment, &theirs).unwrap();
        for at in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            let taken = undress(&bad).and_then(|(_, message)| Arrived::read(message));
            assert!(taken.is_none(), "bit {at}");
        }
    }

    #[test]
    fn the_longest_credentials_fit() {
        let long = Credentials { fragment: "x".repeat(32), password: "y".repeat(64) };
        assert!(check(&sample(Framing::Carried, true), &long.fragment, &long).is_ok());
    }

    proptest! {
        #[test]
        fn reading_is_total(bytes in prop::collection::vec(any::<u8>(), 0..300), dressed in any::<bool>()) {
            let mut datagram = if dressed { DRESS.to_vec() } else { Vec::new() };
            datagram.extend_from_slice(&bytes);
            if let Some((_, message)) = undress(&datagram) {
                let _ = Arrived::read(message);
                let _ = is_answer(&message, &credentials("a"));
                let _ = mapped_address(&message);
            }
        }
    }
}

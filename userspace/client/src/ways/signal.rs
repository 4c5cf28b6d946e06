//! Signals between the path machine's types and the wire. Reading is total: what does not fit is an error, what is
//! too much is left out.

use std::net::SocketAddr;
use std::time::Duration;

use ghostwire_path::timing::{MAX_CANDIDATES, MAX_OFFERS};
use ghostwire_path::{
    Attempt, Candidate, CandidateKind, Credentials, Generation, Mapping, NatReport, Reach, RelayId,
    RelayOffer, Signal, Socket,
};
use ghostwire_proto::address::{ip_from_wire, ip_to_wire};

use crate::pb;

/// What the fields of a signal mean.
pub const PROTOCOL: u32 = 1;

/// The longest latency that is told; more is as good as nothing.
const SLOWEST: Duration = Duration::from_mins(1);

/// Why a signal is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignalError {
    /// A version that says what we would misunderstand.
    #[error("its protocol is version {0}, and this program speaks {PROTOCOL}: upgrade the older of the two")]
    Protocol(u32),
    /// No credentials, or not such as RFC 8839 allows.
    #[error("its credentials are not usable")]
    Credentials,
}

/// To the wire.
pub fn to_wire(signal: &Signal) -> pb::Signal {
    pb::Signal {
        protocol: PROTOCOL,
        generation: signal.generation.0,
        revision: signal.revision,
        credentials: Some(pb::Credentials {
            fragment: signal.credentials.fragment.clone(),
            password: signal.credentials.password.clone(),
        }),
        candidates: signal.candidates.iter().filter_map(candidate_to_wire).collect(),
        relays: signal.relays.iter().map(offer_to_wire).collect(),
        nat: Some(nat_to_wire(signal.nat)),
        attempt: Some(pb::Attempt { number: signal.attempt.number, birthday: signal.attempt.birthday }),
        heard: signal.heard.map(|generation| generation.0),
        // The edge knows it.
        quic_key: Vec::new(),
    }
}

/// From the wire. Candidates and relays of kinds that we do not know are left out: a newer peer may have more.
pub fn from_wire(signal: &pb::Signal) -> Result<Signal, SignalError> {
    if signal.protocol != PROTOCOL {
        return Err(SignalError::Protocol(signal.protocol));
    }
    let credentials = signal.credentials.as_ref().ok_or(SignalError::Credentials)?;
    let attempt = signal.attempt.unwrap_or_default();
    Ok(Signal {
        generation: Generation(signal.generation),
        revision: signal.revision,
        credentials: credentials_from_wire(credentials)?,
        candidates: signal.candidates.iter().filter_map(candidate_from_wire).take(MAX_CANDIDATES).collect(),
        relays: signal.relays.iter().take(MAX_OFFERS).map(offer_from_wire).collect(),
        nat: nat_from_wire(signal.nat.unwrap_or_default()),
        attempt: Attempt { number: attempt.number, birthday: attempt.birthday },
        heard: signal.heard.map(Generation),
    })
}

/// RFC 8839 section 5.4: letters, digits, plus and slash.
pub(super) fn credentials_from_wire(wire: &pb::Credentials) -> Result<Credentials, SignalError> {
    let allowed = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte));
    let fits = (4..=32).contains(&wire.fragment.len()) && (22..=64).contains(&wire.password.len());
    if !fits || !allowed(&wire.fragment) || !allowed(&wire.password) {
        return Err(SignalError::Credentials);
    }
    Ok(Credentials { fragment: wire.fragment.clone(), password: wire.password.clone() })
}

fn candidate_to_wire(candidate: &Candidate) -> Option<pb::Candidate> {
    let socket = match candidate.socket {
        Socket::WireGuard => pb::CandidateSocket::Wireguard,
        Socket::Quic => pb::CandidateSocket::Quic,
    };
    let kind = match candidate.kind {
        CandidateKind::Host => pb::CandidateKind::Host,
        CandidateKind::ServerReflexive => pb::CandidateKind::ServerReflexive,
        CandidateKind::PortMapped => pb::CandidateKind::PortMapped,
        CandidateKind::Guessed => pb::CandidateKind::Guessed,
        // Never signalled: only the peer itself has seen it.
        CandidateKind::PeerReflexive => return None,
    };
    Some(pb::Candidate {
        socket: socket.into(),
        kind: kind.into(),
        address: ip_to_wire(candidate.address.ip()),
        port: candidate.address.port().into(),
        priority: candidate.priority,
    })
}

fn candidate_from_wire(wire: &pb::Candidate) -> Option<Candidate> {
    let socket = match wire.socket() {
        pb::CandidateSocket::Wireguard => Socket::WireGuard,
        pb::CandidateSocket::Quic => Socket::Quic,
        pb::CandidateSocket::Unspecified => return None,
    };
    let kind = match wire.kind() {
        pb::CandidateKind::Host => CandidateKind::Host,
        pb::CandidateKind::ServerReflexive => CandidateKind::ServerReflexive,
        pb::CandidateKind::PortMapped => CandidateKind::PortMapped,
        pb::CandidateKind::Guessed => CandidateKind::Guessed,
        pb::CandidateKind::Unspecified => return None,
    };
    let ip = ip_from_wire(&wire.address).ok()?.to_canonical();
    let port = u16::try_from(wire.port).ok().filter(|port| *port != 0)?;
    Some(Candidate { socket, kind, address: SocketAddr::new(ip, port), priority: wire.priority })
}

fn offer_to_wire(offer: &RelayOffer) -> pb::RelayOffer {
    pb::RelayOffer {
        relay: offer.relay.0,
        udp: Some(reach_to_wire(offer.udp)),
        tls: Some(reach_to_wire(offer.tls)),
    }
}

fn offer_from_wire(wire: &pb::RelayOffer) -> RelayOffer {
    RelayOffer {
        relay: RelayId(wire.relay),
        udp: reach_from_wire(wire.udp.unwrap_or_default()),
        tls: reach_from_wire(wire.tls.unwrap_or_default()),
    }
}

fn reach_to_wire(reach: Reach) -> pb::Reach {
    let (state, latency) = match reach {
        Reach::Unknown => (pb::reach::State::Unspecified, Duration::ZERO),
        Reach::Answers(latency) => (pb::reach::State::Answers, latency.min(SLOWEST)),
        Reach::Blocked => (pb::reach::State::Blocked, Duration::ZERO),
    };
    let latency_us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
    pb::Reach { state: state.into(), latency_us }
}

fn reach_from_wire(wire: pb::Reach) -> Reach {
    match wire.state() {
        pb::reach::State::Unspecified => Reach::Unknown,
        pb::reach::State::Answers => {
            Reach::Answers(Duration::from_micros(wire.latency_us.into()).min(SLOWEST))
        }
        pb::reach::State::Blocked => Reach::Blocked,
    }
}

fn nat_to_wire(nat: NatReport) -> pb::NatReport {
    let mapping = match nat.mapping {
        Mapping::Unknown => pb::nat_report::Mapping::Unspecified,
        Mapping::EndpointIndependent => pb::nat_report::Mapping::EndpointIndependent,
        Mapping::EndpointDependent => pb::nat_report::Mapping::EndpointDependent,
    };
    pb::NatReport { mapping: mapping.into(), udp: nat.udp }
}

fn nat_from_wire(wire: pb::NatReport) -> NatReport {
    let mapping = match wire.mapping() {
        pb::nat_report::Mapping::Unspecified => Mapping::Unknown,
        pb::nat_report::Mapping::EndpointIndependent => Mapping::EndpointIndependent,
        pb::nat_report::Mapping::EndpointDependent => Mapping::EndpointDependent,
    };
    NatReport { mapping, udp: wire.udp }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn sample() -> Signal {
        let candidate = |kind, socket, address: &str| Candidate {
            socket,
            kind,
            address: address.parse().unwrap(),
            priority: 2_130_706_431,
        };
        Signal {
            generation: Generation(1_800_000_000_000),
            revision: 9,
            credentials: Credentials { fragment: "ab+/".to_owned(), password: "x".repeat(32) },
            candidates: vec![
                candidate(CandidateKind::Host, Socket::WireGuard, "192.168.1.2:51820"),
                candidate(CandidateKind::ServerReflexive, Socket::WireGuard, "[2001:db8::1]:1024"),
                candidate(CandidateKind::PortMapped, Socket::Quic, "203.0.113.7:443"),
                candidate(CandidateKind::Guessed, Socket::WireGuard, "203.0.113.7:51820"),
            ],
            relays: vec![
                RelayOffer {
                    relay: RelayId(1),
                    udp: Reach::Answers(Duration::from_micros(1_234)),
                    tls: Reach::Unknown,
                },
                RelayOffer { relay: RelayId(2), udp: Reach::Blocked, tls: Reach::Answers(SLOWEST) },
            ],
            nat: NatReport { mapping: Mapping::EndpointDependent, udp: Some(false) },
            attempt: Attempt { number: 4, birthday: true },
            heard: Some(Generation(0)),
        }
    }

    #[test]
    fn a_signal_comes_through_whole() {
        let wire = to_wire(&sample()).encode_to_vec();
        assert_eq!(from_wire(&pb::Signal::decode(wire.as_slice()).unwrap()), Ok(sample()));
        let quiet = Signal { heard: None, nat: NatReport::default(), ..sample() };
        assert_eq!(from_wire(&to_wire(&quiet)), Ok(quiet));
    }

    #[test]
    fn the_largest_signal_fits_what_the_coordinator_passes_on() {
        let mut large = sample();
        large.candidates = vec![large.candidates[1]; MAX_CANDIDATES];
        large.relays = vec![large.relays[1]; MAX_OFFERS];
        large.credentials = Credentials { fragment: "x".repeat(32), password: "y".repeat(64) };
        assert!(to_wire(&large).encoded_len() <= ghostwire_proto::MAX_SIGNAL_BYTES);
    }

    #[test]
    fn what_is_not_understood_is_refused_or_left_out() {
        let mut wire = to_wire(&sample());
        wire.protocol = 2;
        assert_eq!(from_wire(&wire), Err(SignalError::Protocol(2)));
        let mut wire = to_wire(&sample());
        for bad in ["", "short", "white space in the password of a peer", &"x".repeat(65)] {
            wire.credentials.as_mut().unwrap().password = bad.to_owned();
            assert_eq!(from_wire(&wire), Err(SignalError::Credentials), "{bad:?}");
        }
        let mut wire = to_wire(&sample());
        wire.candidates[0].kind = 77;
        wire.candidates[1].address = vec![1, 2, 3];
        wire.candidates[2].port = 65_536;
        wire.candidates[3].socket = 0;
        assert_eq!(from_wire(&wire).unwrap().candidates, []);
        wire.candidates = vec![to_wire(&sample()).candidates[0].clone(); 100];
        assert_eq!(from_wire(&wire).unwrap().candidates.len(), MAX_CANDIDATES);
    }

    proptest! {
        #[test]
        fn reading_is_total(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut message = to_wire(&sample()).encode_to_vec();
            message.extend_from_slice(&bytes);
            if let Ok(wire) = pb::Signal::decode(message.as_slice()) {
                let _ = from_wire(&wire);
            }
        }
    }
}

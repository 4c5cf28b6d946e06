//! Requests, from bytes to bytes.

use std::iter;

use ghostwire_relay_fastpath::table::Lines;
use ghostwire_relay_protocol::control::{
    Action, Bad, IntegrityKey, Lease, MAX_RESPONSE_LEN, Request, code, write_challenge, write_error,
    write_success,
};
use ghostwire_relay_protocol::stun::{Class, Fingerprint, Full, Integrity, Kind, Message, Method, Writer};
use ghostwire_relay_protocol::token::{Grant, Token};

use super::{Arrival, Now, Order, Owner, Sessions};

/// A response. It goes back to where the request came from, from where it came to.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    bytes: [u8; MAX_RESPONSE_LEN],
    len: usize,
}

impl Answer {
    fn write<'a>(
        write: impl FnOnce(&'a mut [u8]) -> Result<&'a [u8], Full>,
        buffer: &'a mut [u8],
    ) -> Option<Self> {
        let written = write(buffer).ok()?;
        let mut bytes = [0; MAX_RESPONSE_LEN];
        bytes.get_mut(..written.len())?.copy_from_slice(written);
        Some(Self { bytes, len: written.len() })
    }

    /// The bytes to send.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// A request that is to be believed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Authentic {
    pub(super) owner: Owner,
    pub(super) token: Token,
    pub(super) order: Order,
    pub(super) arrival: Arrival,
}

impl<T: Lines> Sessions<T> {
    /// Handles a datagram that came to the main port, or one that looks like STUN and came to a relay port.
    /// `None`: no answer, as bad requests deserve no attention.
    pub fn handle_control(&mut self, now: Now, arrival: Arrival, datagram: &[u8]) -> Option<Answer> {
        let Ok(message) = Message::parse(datagram) else {
            self.counters.malformed += 1;
            return None;
        };
        if message.class() != Class::Request {
            return None;
        }
        if !self.sources.admit(arrival.source.ip(), now.monotonic, 1) {
            self.counters.source_limited += 1;
            return None;
        }
        if message.method() == Method::BINDING {
            return if arrival.port == self.config.main_port {
                self.mapped_address(arrival, &message)
            } else {
                None
            };
        }
        let answer = self.request(now, arrival, message)?;
        // Whatever the request was, it is not worth more than it cost.
        (answer.len <= datagram.len()).then_some(answer)
    }

    /// STUN's own method: tells the sender its address. As short as can be: the request may be 20 bytes.
    fn mapped_address(&mut self, arrival: Arrival, message: &Message<'_>) -> Option<Answer> {
        let is_known =
            |kind| [Kind::USERNAME, Kind::MESSAGE_INTEGRITY, Kind::REALM, Kind::NONCE].contains(&kind);
        let fingerprint = message.fingerprint();
        if fingerprint == Fingerprint::Invalid {
            self.counters.malformed += 1;
            return None;
        }
        let unknown = message.unknown_required(is_known).next().is_some();
        self.counters.stun_answered += 1;
        let mut buffer = [0; MAX_RESPONSE_LEN];
        Answer::write(
            |buffer| {
                let class = if unknown { Class::Error } else { Class::Success };
                let mut writer = Writer::new(buffer, class, Method::BINDING, message.transaction())?;
                if unknown {
                    writer.error_code(code::UNKNOWN_ATTRIBUTE)?;
                    writer.unknown_attributes(message.unknown_required(is_known))?;
                } else {
                    writer.xor_address(Kind::XOR_MAPPED_ADDRESS, arrival.source)?;
                }
                if fingerprint == Fingerprint::Valid {
                    writer.fingerprint()?;
                }
                Ok(writer.finish())
            },
            &mut buffer,
        )
    }

    /// A message that should be a request of ours: form, challenge, credentials, effect, in the order of cost.
    fn request(&mut self, now: Now, arrival: Arrival, message: Message<'_>) -> Option<Answer> {
        let request = match Request::parse(message) {
            Ok(request) => request,
            Err(Bad::Silent) => {
                self.counters.malformed += 1;
                return None;
            }
            Err(Bad::Request) => return self.refuse(&message, code::BAD_REQUEST, None),
            Err(Bad::Unknown) => return self.refuse(&message, code::UNKNOWN_ATTRIBUTE, None),
        };
        let challenged = match request.challenge {
            None => Some(code::UNAUTHENTICATED),
            Some(challenge) => {
                let accepted = self.challenge.accepts(now.monotonic, &arrival, challenge);
                (!accepted).then_some(code::STALE_CHALLENGE)
            }
        };
        if let Some(code) = challenged {
            return self.challenge(now, arrival, &message, code);
        }
        if !self.crypto.admit(self.config.limits.crypto, now.monotonic, 1) {
            self.counters.crypto_limited += 1;
            return None;
        }
        let Some((authentic, key)) = self.authenticate(now, arrival, &request) else {
            self.sources.charge(arrival.source.ip(), self.config.limits.penalty);
            return self.refuse(&message, code::WRONG_CREDENTIALS, None);
        };
        match self.act(now, request.action, &authentic) {
            Ok(lease) => {
                self.counters.granted += 1;
                let mut buffer = [0; MAX_RESPONSE_LEN];
                let (method, transaction) = (message.method(), message.transaction());
                Answer::write(|buffer| write_success(buffer, method, transaction, &lease, &key), &mut buffer)
            }
            Err(code) => self.refuse(&message, code, Some(&key)),
        }
    }

    /// Verifies token and integrity.
    fn authenticate(
        &mut self,
        now: Now,
        arrival: Arrival,
        request: &Request<'_>,
    ) -> Option<(Authentic, IntegrityKey)> {
        let coordinators = &self.secrets.coordinators;
        let key_of = |number| coordinators.iter().find(|(known, _)| *known == number).map(|(_, key)| *key);
        let Ok(token) = Token::verify(request.token, self.secrets.relay, now.unix, key_of) else {
            self.counters.token_refused += 1;
            return None;
        };
        let key = IntegrityKey::for_relay(&self.secrets.key, self.secrets.relay, &token.session_key);
        let key = key.filter(|key| request.message.integrity(key.as_bytes()) == Integrity::Valid);
        let Some(key) = key else {
            self.counters.integrity_refused += 1;
            return None;
        };
        let authentic = Authentic {
            owner: Owner { network: token.network, node: token.node },
            order: Order { issued: token.issued, sequence: request.sequence },
            token,
            arrival,
        };
        Some((authentic, key))
    }

    /// Carries an authentic request out; gives an error code if it cannot be.
    fn act(&mut self, now: Now, action: Action, request: &Authentic) -> Result<Lease, u16> {
        let on_main = request.arrival.port == self.config.main_port;
        match (request.token.grant, action, on_main) {
            (Grant::Allocate, Action::Allocate, true) => self.allocate(now, request),
            (Grant::Allocate, Action::Refresh, true) => self.refresh_allocation(now, request),
            (Grant::Allocate, Action::Release, true) => self.release(request),
            (Grant::Bind { peer }, Action::Lookup, true) => self.look_up(request, peer),
            (Grant::Bind { peer }, Action::Bind, false) => self.bind(now, request, peer),
            (Grant::Bind { peer }, Action::Refresh, false) => self.refresh_leg(now, request, peer),
            (Grant::Bind { peer }, Action::Release, false) => self.release_leg(now, request, peer),
            _ => Err(code::BAD_REQUEST),
        }
    }

    fn challenge(&mut self, now: Now, arrival: Arrival, message: &Message<'_>, code: u16) -> Option<Answer> {
        if code == code::UNAUTHENTICATED {
            self.counters.challenged += 1;
        } else {
            self.counters.stale_challenges += 1;
        }
        let challenge = self.challenge.issue(now.monotonic, &arrival);
        let (method, transaction) = (message.method(), message.transaction());
        let mut buffer = [0; MAX_RESPONSE_LEN];
        Answer::write(|buffer| write_challenge(buffer, method, transaction, code, &challenge), &mut buffer)
    }

    fn refuse(&mut self, message: &Message<'_>, code: u16, key: Option<&IntegrityKey>) -> Option<Answer> {
        self.counters.refused += 1;
        let (method, transaction) = (message.method(), message.transaction());
        let mut buffer = [0; MAX_RESPONSE_LEN];
        if code == code::UNKNOWN_ATTRIBUTE {
            let unknown = Request::unknown(message);
            return Answer::write(
                |buffer| write_error(buffer, method, transaction, code, unknown, key),
                &mut buffer,
            );
        }
        Answer::write(
            |buffer| write_error(buffer, method, transaction, code, iter::empty(), key),
            &mut buffer,
        )
    }
}

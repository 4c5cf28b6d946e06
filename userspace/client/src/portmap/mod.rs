//! Asks the router to forward a port to WireGuard's: PCP (RFC 6887), or NAT-PMP (RFC 6886) where the router speaks no
//! PCP. Where that works, a node behind any NAT is reached like one in public.
//!
//! [`Mapper`] knows no clock and no socket; [`run`] is the shell around it.

pub mod protocol;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};

use self::protocol::{LIFETIME, Response};

/// Pause after the first question; it doubles (RFC 6886 section 3.1).
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Questions in each protocol.
const TRIES: u32 = 4;
/// A mapping is asked for again after this at the latest: a router that was restarted has forgotten it.
const RENEW: Duration = Duration::from_mins(5);
/// A router that has answered nothing, or has refused, is asked again after this.
const ASK_AGAIN: Duration = Duration::from_mins(10);
/// The shortest time between two askings, whatever life a router grants.
const LEAST: Duration = Duration::from_secs(30);

/// Where a port is to be forwarded to, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The router.
    pub gateway: Ipv4Addr,
    /// Our address towards it.
    pub local: Ipv4Addr,
    /// WireGuard's.
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Pcp,
    NatPmp,
}

/// See the module.
#[derive(Debug)]
pub struct Mapper {
    place: Place,
    nonce: [u8; 12],
    protocol: Protocol,
    tries: u32,
    next: Instant,
    /// NAT-PMP: the router's address outside.
    outside: Option<Ipv4Addr>,
    mapped: Option<(SocketAddrV4, Instant)>,
}

impl Mapper {
    /// Begins to ask.
    pub fn new(now: Instant, place: Place, nonce: [u8; 12]) -> Self {
        Self { place, nonce, protocol: Protocol::Pcp, tries: 0, next: now, outside: None, mapped: None }
    }

    /// Our address outside, while the router forwards it.
    pub fn mapped(&self) -> Option<SocketAddrV4> {
        self.mapped.map(|(address, _)| address)
    }

    /// When to call [`Self::on_time`].
    pub fn poll_timeout(&self) -> Instant {
        self.mapped.map_or(self.next, |(_, ends)| self.next.min(ends))
    }

    /// What to ask the router now.
    pub fn on_time(&mut self, now: Instant) -> Vec<Vec<u8>> {
        if self.mapped.is_some_and(|(_, ends)| ends <= now) {
            self.mapped = None;
        }
        if now < self.next {
            return Vec::new();
        }
        if self.tries >= TRIES {
            (self.protocol, self.tries) = match self.protocol {
                Protocol::Pcp => (Protocol::NatPmp, 0),
                Protocol::NatPmp => (Protocol::Pcp, 0),
            };
            if self.protocol == Protocol::Pcp {
                self.next = now + ASK_AGAIN;
                return Vec::new();
            }
        }
        self.next = now + FIRST_PAUSE * 2_u32.pow(self.tries);
        self.tries += 1;
        self.questions(LIFETIME)
    }

    fn questions(&self, lifetime: Duration) -> Vec<Vec<u8>> {
        let Place { local, port, .. } = self.place;
        let outside = self.mapped.map_or(port, |(address, _)| address.port());
        match self.protocol {
            Protocol::Pcp => vec![protocol::pcp_map(local, self.nonce, port, outside, lifetime)],
            Protocol::NatPmp => {
                vec![protocol::nat_pmp_address(), protocol::nat_pmp_map(port, outside, lifetime)]
            }
        }
    }

    /// What to tell the router when the port is needed no more.
    pub fn give_back(&self) -> Vec<Vec<u8>> {
        if self.mapped.is_some() { self.questions(Duration::ZERO) } else { Vec::new() }
    }

    /// The router has said something.
    pub fn on_answer(&mut self, now: Instant, bytes: &[u8]) {
        match protocol::read(bytes, self.nonce, self.place.port) {
            Some(Response::Mapped { address, port, lifetime }) => self.granted(now, address, port, lifetime),
            Some(Response::Address(address)) => self.outside = Some(address),
            Some(Response::Port { port, lifetime }) => {
                // Without the address asked again: both questions go out together.
                if let Some(address) = self.outside {
                    self.granted(now, address, port, lifetime);
                }
            }
            Some(Response::Version) if self.protocol == Protocol::Pcp => {
                (self.protocol, self.tries, self.next) = (Protocol::NatPmp, 0, now);
            }
            Some(Response::Version | Response::Refused(_)) => {
                (self.tries, self.next) = (0, now + ASK_AGAIN);
            }
            None => {}
        }
    }

    fn granted(&mut self, now: Instant, address: Ipv4Addr, port: u16, lifetime: Duration) {
        if port == 0 || lifetime.is_zero() || address.is_unspecified() || address.is_loopback() {
            return;
        }
        self.mapped = Some((SocketAddrV4::new(address, port), now + lifetime));
        (self.tries, self.next) = (0, now + (lifetime / 2).clamp(LEAST, RENEW));
    }
}

/// Keeps a port forwarded; tells our address outside whenever it changes. Ends with `stop`: if that is said, the port is
/// given back, if it is dropped, the mapping stays as it is. `nonce` is secret and the same for each start.
pub async fn run(
    place: Place,
    nonce: [u8; 12],
    news: mpsc::Sender<Option<SocketAddr>>,
    stop: oneshot::Receiver<()>,
) {
    let mut mapper = Mapper::new(Instant::now(), place, nonce);
    if let Err(error) = drive(&mut mapper, place, &news, stop).await {
        tracing::debug!(%error, gateway = %place.gateway, "the router cannot be asked to forward a port");
    }
}

async fn drive(
    mapper: &mut Mapper,
    place: Place,
    news: &mpsc::Sender<Option<SocketAddr>>,
    mut stop: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let socket = UdpSocket::bind((place.local, 0)).await?;
    socket.connect((place.gateway, protocol::SERVER_PORT)).await?;
    let mut told = None;
    let mut buffer = [0; 1_100];
    loop {
        tokio::select! {
            said = &mut stop => {
                if said.is_ok() {
                    for end in mapper.give_back() {
                        socket.send(&end).await?;
                    }
                }
                return Ok(());
            }
            received = socket.recv(&mut buffer) => match received {
                Ok(length) => mapper.on_answer(Instant::now(), buffer.get(..length).unwrap_or_default()),
                // Nobody listens there (ICMP): asked again like one that is silent.
                Err(error) => tracing::trace!(%error, "the router's port"),
            },
            () = tokio::time::sleep_until(mapper.poll_timeout().into()) => {
                for question in mapper.on_time(Instant::now()) {
                    if let Err(error) = socket.send(&question).await {
                        tracing::trace!(%error, "a question to the router is not sent");
                    }
                }
            }
        }
        let mapped = mapper.mapped().map(SocketAddr::from);
        if mapped != told {
            told = mapped;
            if news.send(mapped).await.is_err() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { gateway: Ipv4Addr::new(10, 0, 0, 1), local: Ipv4Addr::new(10, 0, 0, 2), port: 51820 }
    }

    fn asked(mapper: &mut Mapper) -> Vec<Vec<u8>> {
        let at = mapper.poll_timeout();
        mapper.on_time(at)
    }

    #[test]
    fn silent_router_is_asked_in_both_protocols_and_then_left_alone() {
        let start = Instant::now();
        let mut mapper = Mapper::new(start, place(), [1; 12]);
        let mut versions = Vec::new();
        while mapper.poll_timeout() < start + Duration::from_mins(1) {
            versions.extend(asked(&mut mapper).iter().map(|question| question[0]));
        }
        assert_eq!(versions, [2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(mapper.mapped(), None);
        let again = mapper.poll_timeout();
        assert!(again > start + ASK_AGAIN, "{:?}", again - start);
        assert_eq!(asked(&mut mapper)[0][0], 2);
    }

    #[test]
    fn router_of_the_older_protocol_grants_renews_and_forgets() {
        let start = Instant::now();
        let mut mapper = Mapper::new(start, place(), [1; 12]);
        let _ = asked(&mut mapper);
        mapper.on_answer(start, &[0, 0x81, 0, 1, 0, 0, 0, 0]);
        assert_eq!(asked(&mut mapper).len(), 2);
        let mut map = vec![0, 0x81, 0, 0, 0, 0, 0, 1, 0xca, 0x6c, 0x0f, 0xa0, 0, 0, 0, 120];
        mapper.on_answer(start, &map);
        assert_eq!(mapper.mapped(), None, "the address is not known yet");
        mapper.on_answer(start, &[0, 0x80, 0, 0, 0, 0, 0, 1, 203, 0, 113, 9]);
        mapper.on_answer(start, &map);
        assert_eq!(mapper.mapped(), Some(SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 9), 4_000)));
        assert_eq!(mapper.poll_timeout(), start + Duration::from_mins(1));
        // A life of nothing is none.
        map[15] = 0;
        mapper.on_answer(start, &map);
        assert!(mapper.mapped().is_some());
        while mapper.poll_timeout() < start + Duration::from_mins(2) {
            let _ = asked(&mut mapper);
        }
        let _ = mapper.on_time(start + Duration::from_secs(121));
        assert_eq!(mapper.mapped(), None, "it was not renewed");
    }

    #[test]
    fn what_is_needed_no_more_is_given_back() {
        let start = Instant::now();
        let mut mapper = Mapper::new(start, place(), [1; 12]);
        assert_eq!(mapper.give_back(), Vec::<Vec<u8>>::new());
        mapper.granted(start, Ipv4Addr::new(203, 0, 113, 9), 4_000, LIFETIME);
        let end = mapper.give_back();
        assert_eq!(end[0][4..8], [0; 4], "a life of zero");
        assert_eq!(end[0][42..44], 4_000_u16.to_be_bytes());
    }
}

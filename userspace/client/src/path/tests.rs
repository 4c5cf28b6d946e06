//! A simulated WireGuard behind the path machine.

use proptest::prelude::*;

use super::*;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn around() -> Surroundings {
    Surroundings { networks: vec!["192.168.1.5/24".parse().unwrap(), "2001:db8::5/64".parse().unwrap()] }
}

const NEAR: &str = "192.168.1.9:51820";
const FAR: &str = "203.0.113.9:51820";
const FAR6: &str = "[2001:db8:9::9]:51820";

/// WireGuard with the keepalive of a peer that answers at some endpoints only.
struct Tunnel {
    now: Instant,
    endpoint: Option<SocketAddr>,
    handshake: Option<Instant>,
    rx_bytes: u64,
    answers: Vec<SocketAddr>,
}

impl Tunnel {
    fn new(answers: &[&str]) -> Self {
        let answers = answers.iter().map(|text| at(text)).collect();
        Self { now: Instant::now(), endpoint: None, handshake: None, rx_bytes: 0, answers }
    }

    /// One second passes.
    fn second(&mut self, path: &mut PeerPath) {
        self.now += Duration::from_secs(1);
        if self.endpoint.is_some_and(|endpoint| self.answers.contains(&endpoint)) {
            let old = self.handshake.is_none_or(|then| self.now - then >= Duration::from_mins(2));
            if old {
                self.handshake = Some(self.now);
            }
            self.rx_bytes += 32;
        }
        path.observe(self.now, self.observation());
        path.tick(self.now);
        if let Some(endpoint) = path.poll_endpoint() {
            self.endpoint = Some(endpoint);
        }
    }

    fn observation(&self) -> Observation {
        Observation {
            endpoint: self.endpoint,
            handshake_age: self.handshake.map(|then| self.now - then),
            rx_bytes: self.rx_bytes,
            tx_bytes: 0,
        }
    }
}

#[test]
fn the_same_network_comes_first_and_says_so() {
    let mut tunnel = Tunnel::new(&[NEAR, FAR]);
    let mut path = PeerPath::new();
    path.set_candidates(tunnel.now, &[at(FAR6), at(FAR), at(NEAR)], true, &around());
    assert_eq!(path.poll_endpoint(), Some(at(NEAR)));
    tunnel.endpoint = Some(at(NEAR));
    tunnel.second(&mut path);
    assert!(path.is_working());
    assert_eq!(path.describe(), format!("direct {NEAR}"));
    assert_eq!(path.why(tunnel.now), "same network");
}

#[test]
fn a_silent_candidate_makes_room_for_the_next() {
    let mut tunnel = Tunnel::new(&[FAR6]);
    let mut path = PeerPath::new();
    path.set_candidates(tunnel.now, &[at(FAR), at(NEAR), at(FAR6)], true, &around());
    let seconds = (1..100).find(|_| {
        tunnel.second(&mut path);
        path.is_working()
    });
    assert!(seconds.unwrap() <= 14, "{seconds:?}");
    assert_eq!(path.why(tunnel.now), "announced by the peer");
}

#[test]
fn a_working_path_is_kept_until_it_falls_silent() {
    let mut tunnel = Tunnel::new(&[FAR]);
    let mut path = PeerPath::new();
    path.set_candidates(tunnel.now, &[at(FAR)], true, &around());
    for _ in 0..10 {
        tunnel.second(&mut path);
    }
    assert!(path.is_working());
    // A better candidate is no reason to leave, and being offline at the coordinator is none either.
    path.set_candidates(tunnel.now, &[at(NEAR), at(FAR)], false, &around());
    assert_eq!(path.poll_endpoint(), None);
    tunnel.answers = vec![at(NEAR)];
    let seconds = (1..200).find(|_| {
        tunnel.second(&mut path);
        path.is_working() && tunnel.endpoint == Some(at(NEAR))
    });
    assert!(seconds.is_some_and(|seconds| seconds <= 62), "{seconds:?}");
}

#[test]
fn an_adopted_session_keeps_its_endpoint() {
    let now = Instant::now();
    let mut path = PeerPath::new();
    let roamed = at("198.51.100.77:4242");
    path.observe(
        now,
        Observation {
            endpoint: Some(roamed),
            handshake_age: Some(Duration::from_secs(100)),
            rx_bytes: 5_000,
            tx_bytes: 1,
        },
    );
    path.set_candidates(now, &[at(NEAR), at(FAR)], true, &around());
    assert_eq!(path.poll_endpoint(), None);
    assert_eq!(path.describe(), "direct 198.51.100.77:4242");
    assert_eq!(path.why(now), "the peer's packets come from there");
}

#[test]
fn an_endpoint_that_wireguard_has_lost_is_told_again() {
    let now = Instant::now();
    let mut path = PeerPath::new();
    path.observe(now, Observation { endpoint: Some(at(FAR)), ..Observation::default() });
    path.set_candidates(now, &[at(FAR)], true, &around());
    assert_eq!(path.poll_endpoint(), None);
    path.observe(now, Observation::default());
    assert_eq!(path.poll_endpoint(), Some(at(FAR)));
}

#[test]
fn says_why_there_is_no_path() {
    let now = Instant::now();
    let mut path = PeerPath::new();
    assert!(path.why(now).contains("announced no address"));
    path.set_candidates(now, &[at("192.168.1.5:51820")], true, &around());
    assert!(path.why(now).contains("an address of this machine too"), "{}", path.why(now));
    path.set_candidates(now, &[at(FAR)], false, &around());
    assert_eq!(path.describe(), "none");
    assert!(path.why(now).contains("offline at the coordinator; trying 203.0.113.9"), "{}", path.why(now));
    let later = now + Duration::from_secs(20);
    path.set_candidates(later, &[at(FAR)], true, &around());
    assert!(path.why(later + 3 * TRIAL).contains("firewall"), "{}", path.why(later + 3 * TRIAL));
}

proptest! {
    #[test]
    fn finds_whatever_answers_and_stays_there(
        order in Just(vec![NEAR, FAR, FAR6, "203.0.113.10:1", "192.168.1.77:9"]).prop_shuffle(),
        answering in 0_usize..5,
        silent_first in 0_u32..200,
    ) {
        let mut tunnel = Tunnel::new(&[]);
        let mut path = PeerPath::new();
        let announced: Vec<SocketAddr> = order.iter().map(|text| at(text)).collect();
        path.set_candidates(tunnel.now, &announced, true, &around());
        for _ in 0..silent_first {
            tunnel.second(&mut path);
            prop_assert!(!path.is_working());
        }
        tunnel.answers = vec![announced[answering]];
        let found = (0..200).any(|_| {
            tunnel.second(&mut path);
            path.is_working()
        });
        prop_assert!(found);
        for _ in 0..300 {
            tunnel.second(&mut path);
            prop_assert!(path.is_working());
            prop_assert_eq!(tunnel.endpoint, Some(announced[answering]));
        }
    }
}

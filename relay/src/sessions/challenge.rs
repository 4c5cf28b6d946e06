//! Challenges: what a node echoes to show that it receives at its address. Stateless.

use std::net::IpAddr;
use std::time::Duration;

use ghostwire_relay_protocol::control::CHALLENGE_LEN;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::Arrival;

/// How long a challenge is good for. A round trip and some repetitions.
pub(super) const LIFETIME: Duration = Duration::from_secs(30);

const TIME_LEN: usize = 4;

/// The secret behind challenges; new with each start.
pub(super) struct ChallengeKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for ChallengeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChallengeKey")
    }
}

impl ChallengeKey {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self(Zeroizing::new(key))
    }

    /// A challenge for this address, at this port, now.
    pub(super) fn issue(&self, now: Duration, arrival: &Arrival) -> [u8; CHALLENGE_LEN] {
        // Wraps after 136 years.
        let time = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        self.at(time, arrival)
    }

    /// Whether a challenge was issued to this address for this port, and lately.
    pub(super) fn accepts(&self, now: Duration, arrival: &Arrival, challenge: &[u8; CHALLENGE_LEN]) -> bool {
        let [a, b, c, d, ..] = *challenge;
        let time = u32::from_be_bytes([a, b, c, d]);
        let age = now.as_secs().checked_sub(u64::from(time));
        let genuine = bool::from(self.at(time, arrival).ct_eq(challenge));
        genuine && age.is_some_and(|age| age <= LIFETIME.as_secs())
    }

    fn at(&self, time: u32, arrival: &Arrival) -> [u8; CHALLENGE_LEN] {
        let mut challenge = [0; CHALLENGE_LEN];
        let (time_field, mac_field) = challenge.split_at_mut(TIME_LEN);
        time_field.copy_from_slice(&time.to_be_bytes());
        // A key of any length does for HMAC.
        if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.as_slice()) {
            mac.update(b"ghostwire relay challenge v1\0");
            mac.update(&time.to_be_bytes());
            mac.update(&[arrival.local]);
            mac.update(&arrival.port.to_be_bytes());
            mac.update(&arrival.source.port().to_be_bytes());
            match arrival.source.ip() {
                IpAddr::V4(ip) => mac.update(&ip.to_ipv6_mapped().octets()),
                IpAddr::V6(ip) => mac.update(&ip.octets()),
            }
            let tag = mac.finalize().into_bytes();
            for (byte, tag) in mac_field.iter_mut().zip(tag) {
                *byte = tag;
            }
        }
        challenge
    }
}

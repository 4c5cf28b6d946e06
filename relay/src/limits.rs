//! Token buckets, and who has one.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How much a bucket lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units per second.
    pub per_second: u64,
    /// Units at once.
    pub burst: u64,
}

/// A token bucket. Full at first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// What has been taken and not yet been refilled, in billionths of a unit.
    debt: u64,
    /// When that was true.
    at: Duration,
}

const NANOS: u64 = 1_000_000_000;

impl Bucket {
    /// Takes `cost` units, if they are there. `now` is a time since any start; it may stand still but not go back.
    pub fn admit(&mut self, rate: Rate, now: Duration, cost: u64) -> bool {
        let passed = u64::try_from(now.saturating_sub(self.at).as_nanos()).unwrap_or(u64::MAX);
        // Nanoseconds times units per second are billionths of units.
        let debt = self.debt.saturating_sub(passed.saturating_mul(rate.per_second));
        self.at = self.at.max(now);
        let wanted = debt.saturating_add(cost.saturating_mul(NANOS));
        let admitted = wanted <= rate.burst.saturating_mul(NANOS);
        self.debt = if admitted { wanted } else { debt };
        admitted
    }

    /// Takes units that need not be there, up to twice the burst: a penalty.
    pub fn charge(&mut self, rate: Rate, cost: u64) {
        let most = rate.burst.saturating_mul(2 * NANOS);
        self.debt = self.debt.saturating_add(cost.saturating_mul(NANOS)).min(most);
    }
}

/// Buckets per source address, in memory that does not grow: addresses that fall together share one. IPv6 sources
/// count by /64, which is what one customer has at least.
#[derive(Debug)]
pub struct Sources {
    buckets: Box<[Bucket]>,
    seed: u64,
    rate: Rate,
}

const SOURCE_BUCKETS: usize = 1 << 14;

impl Sources {
    /// Buckets of this rate. `seed` is random and secret, so that nobody can choose addresses that share the
    /// bucket of a victim.
    pub fn new(seed: u64, rate: Rate) -> Self {
        Self { buckets: vec![Bucket::default(); SOURCE_BUCKETS].into_boxed_slice(), seed, rate }
    }

    /// Takes `cost` units from the source's bucket.
    pub fn admit(&mut self, source: IpAddr, now: Duration, cost: u64) -> bool {
        let rate = self.rate;
        self.bucket(source).is_some_and(|bucket| bucket.admit(rate, now, cost))
    }

    /// Punishes a source.
    pub fn charge(&mut self, source: IpAddr, cost: u64) {
        let rate = self.rate;
        if let Some(bucket) = self.bucket(source) {
            bucket.charge(rate, cost);
        }
    }

    fn bucket(&mut self, source: IpAddr) -> Option<&mut Bucket> {
        let mut hasher = DefaultHasher::new();
        self.seed.hash(&mut hasher);
        match source.to_canonical() {
            IpAddr::V4(ip) => ip.octets().hash(&mut hasher),
            IpAddr::V6(ip) => ip.segments()[..4].hash(&mut hasher),
        }
        let index = hasher.finish() % SOURCE_BUCKETS as u64;
        self.buckets.get_mut(usize::try_from(index).ok()?)
    }
}

/// What one session may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRate {
    /// Bytes of payload, both directions together.
    pub bytes: Rate,
    /// WireGuard handshake messages, both directions together.
    pub handshakes: Rate,
}

/// Buckets per session, for many threads. XDP programs have a map of the same in its place.
#[derive(Debug)]
pub struct SessionLimits(Box<[Mutex<Option<SessionBuckets>>]>);

#[derive(Debug)]
struct SessionBuckets {
    rate: SessionRate,
    bytes: Bucket,
    handshakes: Bucket,
}

/// Which limit said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    /// The session's bytes.
    Bytes,
    /// The session's handshakes.
    Handshakes,
    /// There is no such session: it ended a moment ago.
    NoSession,
}

impl SessionLimits {
    /// Room for sessions with numbers below `sessions`.
    pub fn new(sessions: u32) -> Self {
        Self((0..sessions).map(|_| Mutex::new(None)).collect())
    }

    /// Starts a session, or changes its rate.
    pub fn set(&self, session: u32, rate: SessionRate) {
        if let Some(slot) = self.0.get(session as usize) {
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            match slot.as_mut() {
                Some(buckets) => buckets.rate = rate,
                None => {
                    *slot = Some(SessionBuckets {
                        rate,
                        bytes: Bucket::default(),
                        handshakes: Bucket::default(),
                    });
                }
            }
        }
    }

    /// Ends a session.
    pub fn clear(&self, session: u32) {
        if let Some(slot) = self.0.get(session as usize) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Whether a datagram of `len` bytes may pass.
    pub fn admit(&self, session: u32, now: Duration, len: u32, handshake: bool) -> Result<(), Exceeded> {
        let slot = self.0.get(session as usize).ok_or(Exceeded::NoSession)?;
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let buckets = slot.as_mut().ok_or(Exceeded::NoSession)?;
        if handshake && !buckets.handshakes.admit(buckets.rate.handshakes, now, 1) {
            return Err(Exceeded::Handshakes);
        }
        if buckets.bytes.admit(buckets.rate.bytes, now, u64::from(len)) {
            Ok(())
        } else {
            Err(Exceeded::Bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 5 };

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::default();
        let admitted = |bucket: &mut Bucket, millis| {
            (0..100).filter(|_| bucket.admit(RATE, Duration::from_millis(millis), 1)).count()
        };
        assert_eq!(admitted(&mut bucket, 0), 5);
        assert_eq!(admitted(&mut bucket, 99), 0);
        assert_eq!(admitted(&mut bucket, 100), 1);
        assert_eq!(admitted(&mut bucket, 1_000_000), 5, "it does not save up more than the burst");
        assert!(!bucket.admit(RATE, Duration::ZERO, 1), "a clock that goes back fills nothing");
    }

    #[test]
    fn a_penalty_is_paid_off_in_time() {
        let mut bucket = Bucket::default();
        bucket.charge(RATE, 1_000_000);
        assert!(!bucket.admit(RATE, Duration::from_millis(500), 1));
        assert!(bucket.admit(RATE, Duration::from_millis(1100), 1), "at most twice the burst");
    }

    #[test]
    fn sources_have_buckets_of_their_own() {
        let mut sources = Sources::new(7, RATE);
        let flood: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!((0..100).filter(|_| sources.admit(flood, Duration::ZERO, 1)).count(), 5);
        assert!(sources.admit("192.0.2.2".parse().unwrap(), Duration::ZERO, 1));
        let same_prefix = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
        assert_eq!((0..100).filter(|n| sources.admit(same_prefix(*n), Duration::ZERO, 1)).count(), 5);
    }

    #[test]
    fn handshakes_have_a_limit_of_their_own() {
        let limits = SessionLimits::new(2);
        let rate = SessionRate { bytes: Rate { per_second: 1000, burst: 1000 }, handshakes: RATE };
        assert_eq!(limits.admit(1, Duration::ZERO, 10, false), Err(Exceeded::NoSession));
        limits.set(1, rate);
        let admit = |handshake| limits.admit(1, Duration::ZERO, 10, handshake);
        assert_eq!((0..10).filter(|_| admit(true) == Ok(())).count(), 5);
        assert_eq!(admit(true), Err(Exceeded::Handshakes));
        assert_eq!((0..200).filter(|_| admit(false) == Ok(())).count(), 95);
        assert_eq!(admit(false), Err(Exceeded::Bytes));
        limits.clear(1);
        assert_eq!(admit(false), Err(Exceeded::NoSession));
    }
}

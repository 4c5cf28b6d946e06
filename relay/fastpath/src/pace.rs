//! How fast a session may send: a token bucket whose state is one number, for programs that share it without a lock.
//!
//! The number is the time at which the session will have paid for what it has sent (the generic cell rate
//! algorithm). Two processors that write it at once lose one of two payments, which lets a little more through and
//! never less.

/// What a byte costs, in 64ths of a nanosecond, below 2^24; 0: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Pace(pub u32);

/// The unit of time here: 64 of them are a nanosecond.
const UNITS_LOG2: u32 = 6;

/// Sessions may save up what a tenth of a second brings.
const BURST: u64 = 100_000_000 << UNITS_LOG2;

/// And at least this many bytes: two bursts of a sender that segments in its network card.
const MIN_BURST_BYTES: u64 = 128 << 10;

impl Pace {
    /// No limit.
    pub const UNLIMITED: Self = Self(0);

    /// The slowest: 3.8 kB/s.
    const SLOWEST: u64 = (1 << 24) - 1;

    /// A pace of so many bytes per second.
    #[expect(clippy::cast_possible_truncation, reason = "at most SLOWEST")]
    pub const fn per_second(bytes: u64) -> Self {
        let units = match (1_000_000_000_u64 << UNITS_LOG2).checked_div(bytes) {
            None => Self::SLOWEST,
            // Faster than can be counted.
            Some(0) => return Self::UNLIMITED,
            Some(units) if units > Self::SLOWEST => Self::SLOWEST,
            Some(units) => units,
        };
        Self(units as u32)
    }

    /// Whether a datagram of `len` bytes may pass at `now`, in nanoseconds since any start: then the session's new
    /// number. A session's first number is 0.
    #[inline(always)]
    pub const fn admit(self, number: u64, now: u64, len: u32) -> Option<u64> {
        let least = MIN_BURST_BYTES * self.0 as u64;
        let burst = if least > BURST { least } else { BURST };
        admit(number, now << UNITS_LOG2, self.0 as u64 * len as u64, burst)
    }
}

/// A pace of events instead of bytes, such as handshakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventPace {
    /// Nanoseconds that each event costs.
    pub cost: u64,
    /// What may be saved up, in nanoseconds.
    pub burst: u64,
}

impl EventPace {
    /// Whether one more may pass; see [`Pace::admit`].
    #[inline(always)]
    pub const fn admit(self, number: u64, now: u64) -> Option<u64> {
        admit(number, now, self.cost, self.burst)
    }
}

#[inline(always)]
const fn admit(number: u64, now: u64, cost: u64, burst: u64) -> Option<u64> {
    let paid_at = if number > now { number } else { now };
    let next = paid_at.wrapping_add(cost);
    if next.wrapping_sub(now) > burst { None } else { Some(next) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_sends_its_burst_and_then_its_rate() {
        let pace = Pace::per_second(125_000_000);
        let mut number = 0;
        let mut send = |now: u64| {
            let mut sent = 0_u64;
            while let Some(next) = pace.admit(number, now, 1000) {
                number = next;
                sent += 1000;
            }
            sent
        };
        let near = |sent: u64, expected: u64| sent.abs_diff(expected) * 100 <= expected;
        let start = 5_000_000_000;
        assert!(near(send(start), 12_500_000));
        assert_eq!(send(start), 0);
        assert!(near(send(start + 10_000_000), 1_250_000));
        assert!(near(send(start + 60_000_000_000), 12_500_000), "it does not save up more");
    }

    #[test]
    fn paces_are_what_was_asked_for() {
        assert_eq!(Pace::per_second(125_000_000), Pace(512));
        assert_eq!(Pace::per_second(0), Pace::per_second(1), "nothing is slower than the slowest");
        assert_eq!(Pace::per_second(u64::MAX), Pace::UNLIMITED);
        let slow = Pace::per_second(10_000);
        assert!(slow.admit(0, 1, 128 << 10).is_some(), "a burst of a sender passes whatever the rate");
        assert!(slow.admit(0, 1, (128 << 10) + 1).is_none());
        assert!(Pace::UNLIMITED.admit(0, 1, u32::MAX).is_some());
    }

    #[test]
    fn events_have_a_pace_too() {
        let pace = EventPace { cost: 50_000_000, burst: 2_000_000_000 };
        let (mut number, mut passed) = (0, 0);
        while let Some(next) = pace.admit(number, 1_000_000_000) {
            (number, passed) = (next, passed + 1);
        }
        assert_eq!(passed, 40);
        assert!(pace.admit(number, 1_050_000_000).is_some());
    }
}

//! How long to wait before the next attempt.

use std::time::Duration;

/// Exponential backoff with full jitter, so that the nodes of a coordinator that restarts do not come back
/// all at once. The randomness is a seed: the same seed waits the same times.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
    seed: u64,
}

impl Backoff {
    /// Waits between half of `first` and `first` after the first failure, twice that after the second, never
    /// longer than `longest`.
    pub fn new(first: Duration, longest: Duration, seed: u64) -> Self {
        Self { first, longest, failures: 0, seed }
    }

    /// Time to wait after one more failure.
    pub fn after_failure(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1).min(31);
        let whole = doubled.min(self.longest);
        whole / 2 + whole.mul_f64(self.fraction() / 2.0)
    }

    /// It worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Between 0 and 1: SplitMix64, since quality matters little here.
    fn fraction(&mut self) -> f64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let top = u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or_default();
        f64::from(top) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_limit_with_jitter_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), 7);
        let mut ceiling = Duration::from_secs(1);
        for _ in 0..100 {
            let wait = backoff.after_failure();
            assert!(wait >= ceiling / 2 && wait <= ceiling, "{wait:?} of {ceiling:?}");
            ceiling = (ceiling * 2).min(Duration::from_secs(30));
        }
        backoff.reset();
        assert!(backoff.after_failure() <= Duration::from_secs(1));
        let mut other = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), 8);
        assert_ne!(
            Backoff::new(Duration::from_secs(1), Duration::from_secs(30), 7).after_failure(),
            other.after_failure()
        );
    }
}

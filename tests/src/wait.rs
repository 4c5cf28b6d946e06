//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How much slower than a plain machine this one is allowed to be: `GHOSTWIRE_TEST_TIME_FACTOR` (an emulated
/// processor is 20 to 30 times slower at computing), 1 by default.
pub fn time_factor() -> u32 {
    std::env::var("GHOSTWIRE_TEST_TIME_FACTOR").ok().and_then(|v| v.parse().ok()).unwrap_or(1).max(1)
}

/// `seconds`, scaled by [`time_factor`].
pub fn patience(seconds: u64) -> Duration {
    Duration::from_secs(seconds) * time_factor()
}

/// Polls `condition` until it yields a value; fails with `what` and the last reason after `limit`.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= deadline => {
                bail!("waited {limit:?} for {what}: {reason:#}");
            }
            Err(_) => std::thread::park_timeout(Duration::from_millis(20)),
        }
    }
}

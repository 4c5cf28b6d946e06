//! Whether the programs are still on the device. Somebody with root may take them off, or the device away; the netlink
//! monitor tells of some of it at once, and the rest is looked for.

use std::time::{Duration, Instant};

use ghostwire_dataplane::netlink::Change;

use super::{Daemon, Happening};
use crate::plane::PlaneError;
use crate::plane::kernel::{Inspection, Kernel};
use crate::session::Input;

/// How often is looked. The kernel tells nobody when a link of a program is detached, and until it is attached again
/// the device is open.
const INTERVAL: Duration = Duration::from_secs(1);

/// For how long `gwctl status` tells of what was mended.
const TOLD: Duration = Duration::from_hours(1);

/// When is looked next, and what was found.
#[derive(Debug)]
pub(super) struct Inspections {
    next: Instant,
    under_way: bool,
    found: Option<Found>,
}

/// Something that was not as we had left it.
#[derive(Debug)]
struct Found {
    what: String,
    times: u32,
    last: Instant,
}

impl Inspections {
    /// Nothing was found yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now + INTERVAL, under_way: false, found: None }
    }

    pub(super) fn note(&mut self, now: Instant, what: String) {
        let times = self.found.as_ref().filter(|found| found.what == what).map_or(0, |found| found.times);
        self.found = Some(Found { what, times: times + 1, last: now });
    }

    /// What `gwctl status` says about it.
    pub(super) fn told(&self, now: Instant) -> Option<String> {
        let found = self.found.as_ref()?;
        let ago = now.saturating_duration_since(found.last);
        if ago > TOLD {
            return None;
        }
        let ago = match ago.as_secs() {
            seconds @ 0..=99 => format!("{seconds} s ago"),
            seconds => format!("{} min ago", seconds / 60),
        };
        let Found { what, times, .. } = found;
        Some(if *times == 1 {
            format!("{what} ({ago})")
        } else {
            format!("{what} ({times} times, last {ago})")
        })
    }
}

impl Daemon {
    /// When to look next; never while there is no device.
    pub(super) fn next_inspection(&self) -> Option<Instant> {
        (self.device.is_some() && !self.inspections.under_way).then_some(self.inspections.next)
    }

    /// Looks at once after a change that may concern the device.
    pub(super) fn inspect_after(&mut self, change: &Change) {
        let concerns = match change {
            Change::LinkGone(link) => link.name == self.config.kernel.interface.as_str(),
            Change::FilterGone { .. } | Change::Lost => true,
            _ => false,
        };
        if concerns {
            self.inspections.next = Instant::now();
        }
    }

    pub(super) fn inspect_if_due(&mut self, now: Instant) {
        if self.next_inspection().is_none_or(|at| at > now) {
            return;
        }
        self.inspections.under_way = true;
        self.inspections.next = now + INTERVAL;
        let job = self.worker.run(Kernel::inspect);
        let happenings = self.happen_later();
        tokio::spawn(async move {
            let _ = happenings.send(Happening::Inspected(job.await)).await;
        });
    }

    pub(super) fn on_inspected(&mut self, inspection: Result<Inspection, PlaneError>) {
        self.inspections.under_way = false;
        let (what, comparison) = match inspection {
            Ok(Inspection::Sound) => return,
            Ok(Inspection::Mended(what)) => (what, false),
            Ok(Inspection::Broken(what)) => (what, true),
            Err(error) => (error.0, false),
        };
        tracing::warn!("{what}");
        self.inspections.note(Instant::now(), what);
        if comparison {
            // A new device knows no endpoints.
            self.last_observed.clear();
            self.input(Input::Disturbed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_counted_told_and_forgotten() {
        let start = Instant::now();
        let mut inspections = Inspections::new(start);
        assert_eq!(inspections.told(start), None);
        inspections.note(start, "taken off".to_owned());
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(inspections.told(later(5)).as_deref(), Some("taken off (5 s ago)"));
        inspections.note(later(10), "taken off".to_owned());
        assert_eq!(inspections.told(later(130)).as_deref(), Some("taken off (2 times, last 2 min ago)"));
        inspections.note(later(200), "deleted".to_owned());
        assert_eq!(inspections.told(later(200)).as_deref(), Some("deleted (0 s ago)"));
        assert_eq!(inspections.told(later(200) + TOLD), Some("deleted (60 min ago)".to_owned()));
        assert_eq!(inspections.told(later(201) + TOLD), None);
    }
}

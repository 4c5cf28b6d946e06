//! Congestion control: the one of what is carried.
//!
//! Nearly everything inside is TCP or QUIC with a control loop of its own. A second loop beneath it reacts to the same
//! losses a second time, and its queue hides the path's delay from the first: throughput falls apart. WireGuard's
//! plain datagrams have no such loop either, and this carrier stands in for them. So losses change nothing here; what
//! ends sending is a path that is dead for several probe timeouts (persistent congestion, RFC 9002 section 7.6): then the
//! window is a few datagrams, and grows by as many with every acknowledgement.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};

/// Bytes that may be in flight: 1 Gbit/s over 120 ms. Beyond that the oldest of what waits is dropped.
pub const MOST_IN_FLIGHT: u64 = 16 << 20;
/// After a path was dead, in datagrams.
const LEAST: u64 = 10;

/// Makes a [`Tunnel`] for each connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct TunnelFactory;

impl ControllerFactory for TunnelFactory {
    fn build(self: Arc<Self>, _now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Tunnel { window: MOST_IN_FLIGHT, mtu: current_mtu.into() })
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    window: u64,
    mtu: u64,
}

impl Controller for Tunnel {
    fn on_end_acks(&mut self, _now: Instant, _in_flight: u64, _limited: bool, _largest: Option<u64>) {
        self.window = (self.window + LEAST * self.mtu).min(MOST_IN_FLIGHT);
    }

    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, is_persistent: bool, _lost: u64) {
        if is_persistent {
            self.window = LEAST * self.mtu;
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        MOST_IN_FLIGHT
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_dead_path_makes_it_slow() {
        let now = Instant::now();
        let mut tunnel = Tunnel { window: MOST_IN_FLIGHT, mtu: 1_200 };
        tunnel.on_congestion_event(now, now, false, 100_000);
        assert_eq!(tunnel.window(), MOST_IN_FLIGHT);
        tunnel.on_congestion_event(now, now, true, 100_000);
        assert_eq!(tunnel.window(), LEAST * 1_200);
        tunnel.on_end_acks(now, 0, false, Some(1));
        assert_eq!(tunnel.window(), 2 * LEAST * 1_200);
    }
}

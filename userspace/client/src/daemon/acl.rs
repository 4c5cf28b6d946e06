//! Events of the policy programs: named, counted, handed to whoever watches.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ghostwire_dataplane::acl::Event;
use ghostwire_ebpf_abi::event::Direction;

use super::{Daemon, Happening};
use crate::local;
use crate::naming::{action_word, direction_word, reason_word};

/// One of this many accepted packets is reported while somebody wants to see them.
const ACCEPT_SAMPLE: u32 = 16;

impl Daemon {
    /// Starts reading events, once there are programs.
    pub(super) fn ask_events(&mut self) {
        if self.events.is_some() || self.events_asked {
            return;
        }
        self.events_asked = true;
        let job = self.worker.run(|kernel| kernel.events());
        let happenings = self.happenings.clone();
        tokio::spawn(async move {
            match job.await {
                Ok(Some(Ok(events))) => {
                    let _ = happenings.send(Happening::Events(events)).await;
                }
                Ok(Some(Err(error))) => tracing::warn!(%error, "cannot read the policy's events"),
                Ok(None) | Err(_) => {}
            }
        });
    }

    pub(super) fn on_acl_event(&mut self, event: std::io::Result<Event>) {
        match event {
            Ok(event) => {
                if self.watchers.receiver_count() > 0 {
                    // Whoever stopped watching in between does not mind.
                    let _ = self.watchers.send(Arc::new(self.named(&event)));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read the policy's events any more");
                self.events = None;
                self.events_asked = false;
            }
        }
    }

    /// Accepted packets are sampled only while somebody watches them.
    pub(super) fn watch_accepted(&mut self, more: bool) {
        self.accept_watchers =
            if more { self.accept_watchers + 1 } else { self.accept_watchers.saturating_sub(1) };
        let every = if self.accept_watchers > 0 { ACCEPT_SAMPLE } else { 0 };
        drop(self.worker.run(move |kernel| {
            if let Err(error) = kernel.sample_accepted(every) {
                tracing::warn!(%error, "cannot change what the policy programs report");
            }
        }));
    }

    fn named(&self, event: &Event) -> local::AclEvent {
        let name = |address: IpAddr| self.name_of(address);
        let text = |address: IpAddr| if event.family == 0 { String::new() } else { address.to_string() };
        local::AclEvent {
            time_unix_ms: unix_ms(),
            action: action_word(event.action).to_owned(),
            direction: direction_word(event.direction).to_owned(),
            reason: reason_word(event.reason).to_owned(),
            src: text(event.src),
            dst: text(event.dst),
            src_port: event.src_port.into(),
            dst_port: event.dst_port.into(),
            protocol: event.protocol.into(),
            length: event.length,
            generation: event.generation,
            src_name: self.known_name(event.src),
            dst_name: self.known_name(event.dst),
            explanation: self.generations.explain(event, name),
            suppressed: event.suppressed,
        }
    }

    fn known_name(&self, address: IpAddr) -> String {
        let Some(map) = self.session.map() else { return String::new() };
        if map.own.addresses.contains(&address) {
            return map.own.message.name.clone();
        }
        let peer = map.peers.values().find(|peer| peer.addresses.contains(&address));
        peer.map(|peer| peer.message.name.clone()).unwrap_or_default()
    }

    /// The name of a node, or the address itself.
    pub(super) fn name_of(&self, address: IpAddr) -> String {
        let name = self.known_name(address);
        if name.is_empty() { address.to_string() } else { name }
    }
}

/// Events are read as they come, so now is when they happened.
fn unix_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// In the order in which they are listed.
pub fn directions() -> [Direction; 2] {
    [Direction::Ingress, Direction::Egress]
}

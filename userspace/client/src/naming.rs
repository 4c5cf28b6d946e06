//! Which rule it was: packets that the kernel reports, named to lines of the policy.
//!
//! An event carries the generation that judged it. The filters of the last few generations are kept, so that an
//! event from just before an edit is named by the policy that it met.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use ghostwire_dataplane::acl::Event;
use ghostwire_ebpf_abi::event::{Action, Direction, Reason};
use ghostwire_policy::filter::{Flow, NodeFilter, RuleOrigin, Verdict};

/// How many generations are remembered.
const REMEMBERED: usize = 8;

/// Filters by generation, newest last.
#[derive(Clone, Debug, Default)]
pub struct Generations {
    filters: VecDeque<(u32, Arc<NodeFilter>)>,
}

impl Generations {
    /// Takes note of a filter.
    pub fn remember(&mut self, generation: u32, filter: &Arc<NodeFilter>) {
        if self.filters.iter().any(|(known, _)| *known == generation) {
            return;
        }
        self.filters.push_back((generation, filter.clone()));
        if self.filters.len() > REMEMBERED {
            self.filters.pop_front();
        }
    }

    /// Forgets all: another network counts from elsewhere.
    pub fn clear(&mut self) {
        self.filters.clear();
    }

    fn get(&self, generation: u32) -> Option<&NodeFilter> {
        self.filters.iter().find(|(known, _)| *known == generation).map(|(_, filter)| &**filter)
    }

    /// Why this packet passed or was dropped, in a sentence.
    pub fn explain(&self, event: &Event, name: impl Fn(IpAddr) -> String) -> String {
        let flow = Flow {
            src: event.src,
            dst: event.dst,
            protocol: event.protocol,
            dst_port: service(event, event.dst_port),
        };
        let reverse = Flow {
            src: event.dst,
            dst: event.src,
            protocol: event.protocol,
            dst_port: service(event, event.src_port),
        };
        let filter = self.get(event.generation);
        let rule = |verdict: Option<Verdict>| match verdict {
            Some(Verdict::Allowed { origin }) => Some(rule_name(origin)),
            _ => None,
        };
        let ingress = event.direction == Direction::Ingress;
        let opened_there =
            filter.map(|filter| filter.inbound_verdict(if ingress { &flow } else { &reverse }));
        let opened_here =
            filter.map(|filter| filter.outbound_verdict(if ingress { &reverse } else { &flow }));
        match event.reason {
            Reason::Policy => {
                let by = rule(if ingress { opened_there } else { opened_here });
                by.map_or_else(|| "allowed by the policy".to_owned(), |rule| format!("allowed by {rule}"))
            }
            Reason::Reply => {
                let by = rule(opened_there);
                by.map_or_else(
                    || "answer to an allowed flow".to_owned(),
                    |rule| format!("answer to a flow that {rule} allows"),
                )
            }
            Reason::Connection => {
                let by = rule(opened_here);
                by.map_or_else(
                    || "part of a connection that this node opened".to_owned(),
                    |rule| format!("part of a connection that this node opened under {rule}"),
                )
            }
            Reason::Denied | Reason::Shadow => denied(event, &name),
            other => reason_text(other).to_owned(),
        }
    }
}

fn service(event: &Event, port: u16) -> u16 {
    // For ICMP the event holds type and code where others have ports.
    if matches!(event.protocol, 1 | 58) { 0 } else { port }
}

fn denied(event: &Event, name: &impl Fn(IpAddr) -> String) -> String {
    let (src, dst) = (name(event.src), name(event.dst));
    let syn_only = event.tcp_flags & 0x12 == 0x02;
    if event.protocol == 6 && !syn_only {
        return format!(
            "no rule allows {src} to {dst} on {}, nor is it part of a connection that was opened with permission",
            port_text(event)
        );
    }
    format!("no rule allows {src} to {dst} on {}", port_text(event))
}

fn port_text(event: &Event) -> String {
    match event.protocol {
        1 => "icmp".to_owned(),
        58 => "icmpv6".to_owned(),
        6 => format!("{}/tcp", event.dst_port),
        17 => format!("{}/udp", event.dst_port),
        132 => format!("{}/sctp", event.dst_port),
        other => format!("protocol {other}"),
    }
}

/// `acls[2] (line 14)`
pub fn rule_name(origin: RuleOrigin) -> String {
    use ghostwire_policy::filter::Section;
    match origin.section {
        Section::Acls => format!("acls[{}] (line {})", origin.index, origin.line),
        Section::Grants => format!("grants[{}] (line {})", origin.index, origin.line),
        Section::Default => "the default: a policy without acls and grants allows everything".to_owned(),
    }
}

/// What a reason means.
pub fn reason_text(reason: Reason) -> &'static str {
    match reason {
        Reason::Policy => "a rule allows it",
        Reason::Connection => "part of a connection that this node opened",
        Reason::Reply => "answer to a flow that a rule allows",
        Reason::IcmpError => "ICMP error about a permitted flow",
        Reason::Fragment => "fragment of an admitted datagram",
        Reason::NoImage => "no policy is in force yet",
        Reason::Denied => "no rule allows it",
        Reason::UnknownRemote => "the other address belongs to no peer that the policy lets this node see",
        Reason::NotLocal => "the address on this side is neither this node's nor in a subnet that it routes",
        Reason::Malformed => "broken packet",
        Reason::OrphanFragment => "fragment of a datagram that was not admitted",
        Reason::UnrelatedIcmpError => "ICMP error about a flow that is not permitted",
        Reason::InvalidState => "does not fit the state of its TCP connection",
        Reason::Unsupported => "multicast, link-local or not IP, which the mesh does not carry",
        Reason::StateRateLimited => "its source opens connections too fast",
        Reason::Shadow => "no rule allows it; shadow mode let it pass",
        _ => "for a reason that this version of the daemon does not know",
    }
}

/// All reasons, in the order of their counters.
pub const REASONS: [(Reason, &str, bool); Reason::COUNT as usize] = [
    (Reason::Policy, "policy", true),
    (Reason::Connection, "connection", true),
    (Reason::Reply, "reply", true),
    (Reason::IcmpError, "icmp-error", true),
    (Reason::Fragment, "fragment", true),
    (Reason::NoImage, "no-policy", false),
    (Reason::Denied, "denied", false),
    (Reason::UnknownRemote, "unknown-remote", false),
    (Reason::NotLocal, "not-local", false),
    (Reason::Malformed, "malformed", false),
    (Reason::OrphanFragment, "orphan-fragment", false),
    (Reason::UnrelatedIcmpError, "unrelated-icmp-error", false),
    (Reason::InvalidState, "invalid-state", false),
    (Reason::Unsupported, "unsupported", false),
    (Reason::StateRateLimited, "state-rate-limited", false),
    (Reason::Shadow, "shadow", true),
];

/// The word for a reason.
pub fn reason_word(reason: Reason) -> &'static str {
    REASONS.iter().find(|(known, ..)| *known == reason).map_or("unknown", |(_, word, _)| word)
}

/// The word for an action.
pub fn action_word(action: Action) -> &'static str {
    match action {
        Action::Pass => "pass",
        Action::Drop => "drop",
        Action::WouldDrop => "would-drop",
    }
}

/// The word for a direction.
pub fn direction_word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

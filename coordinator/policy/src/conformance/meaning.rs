//! Whether two lists of rules admit the same tuples.
//!
//! Sources and destinations are cut into intervals at every boundary that a rule of either list has; within a
//! cell of that grid all tuples fare alike, so each cell is compared by the protocols and ports that its rules add
//! up to.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use crate::filter::{FilterRule, PortRange};
use crate::service::{self, normalise_ports, protocol_name};

/// Protocols and ports that some rules admit together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Admitted {
    /// Per protocol with ports: the ports.
    ports: Vec<(u8, Vec<PortRange>)>,
    /// Protocols without ports.
    whole: Vec<u8>,
}

/// The first tuple that only one of the two lists admits, described; `None`: they mean the same.
pub(super) fn difference(ours: &[FilterRule], expected: &[FilterRule]) -> Option<String> {
    let v4 = |addr: &u32| IpAddr::V4((*addr).into());
    let v6 = |addr: &u128| IpAddr::V6((*addr).into());
    let all = || ours.iter().chain(expected);
    let src: BTreeSet<u32> = all().flat_map(|rule| points(&rule.src.v4)).collect();
    let dst: BTreeSet<u32> = all().flat_map(|rule| points(&rule.dst.v4)).collect();
    if let Some(difference) =
        grid(ours, expected, src.iter().map(v4), &dst.iter().map(v4).collect::<Vec<_>>())
    {
        return Some(difference);
    }
    let src: BTreeSet<u128> = all().flat_map(|rule| points(&rule.src.v6)).collect();
    let dst: BTreeSet<u128> = all().flat_map(|rule| points(&rule.dst.v6)).collect();
    grid(ours, expected, src.iter().map(v6), &dst.iter().map(v6).collect::<Vec<_>>())
}

/// One point of each interval that the ranges cut: their starts, and the points after their ends.
fn points<T: crate::addr_set::Bits>(ranges: &[(T, T)]) -> impl Iterator<Item = T> {
    ranges.iter().flat_map(|&(first, last)| std::iter::once(first).chain(last.next()))
}

fn grid(
    ours: &[FilterRule],
    expected: &[FilterRule],
    sources: impl Iterator<Item = IpAddr>,
    destinations: &[IpAddr],
) -> Option<String> {
    for src in sources {
        let from = |rules: &[FilterRule]| -> Vec<FilterRule> {
            rules.iter().filter(|rule| rule.src.contains(src)).cloned().collect()
        };
        let (ours, expected) = (from(ours), from(expected));
        for &dst in destinations {
            let (got, wanted) = (admitted(&ours, dst), admitted(&expected, dst));
            if got != wanted {
                return Some(format!(
                    "{src} -> {dst}: expected {}, got {}",
                    wanted.describe(),
                    got.describe()
                ));
            }
        }
    }
    None
}

fn admitted(rules: &[FilterRule], dst: IpAddr) -> Admitted {
    let rules: Vec<&FilterRule> = rules.iter().filter(|rule| rule.dst.contains(dst)).collect();
    let mut admitted = Admitted::default();
    for protocol in 0..=u8::MAX {
        if service::has_ports(protocol) {
            let with = rules.iter().filter(|rule| rule.protocols.contains(protocol));
            let mut ports: Vec<PortRange> = with.flat_map(|rule| rule.ports.iter().copied()).collect();
            normalise_ports(&mut ports);
            if !ports.is_empty() {
                admitted.ports.push((protocol, ports));
            }
        } else if rules.iter().any(|rule| rule.admits_service(protocol, 0)) {
            admitted.whole.push(protocol);
        }
    }
    admitted
}

impl Admitted {
    fn describe(&self) -> String {
        let mut text = String::new();
        for (protocol, ports) in &self.ports {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            let _ = write!(text, "{}:{} ", protocol_name(*protocol), ports.join(","));
        }
        for &protocol in &self.whole {
            let _ = write!(text, "{} ", protocol_name(protocol));
        }
        if text.is_empty() { "nothing".to_owned() } else { text.trim_end().to_owned() }
    }
}

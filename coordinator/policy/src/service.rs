//! Protocols and ports: what a rule admits between its addresses.

use std::fmt;
use std::sync::Arc;

use crate::alias::WordError;
use crate::error::did_you_mean;
use crate::filter::{PortRange, ProtocolSet};

/// IANA number of ICMP.
pub const ICMP: u8 = 1;
/// IANA number of TCP.
pub const TCP: u8 = 6;
/// IANA number of UDP.
pub const UDP: u8 = 17;
/// IANA number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// IANA number of SCTP.
pub const SCTP: u8 = 132;

/// Names that a policy may use.
const NAMES: [(&str, u8); 15] = [
    ("icmp", ICMP),
    ("igmp", 2),
    ("ipv4", 4),
    ("ip-in-ip", 4),
    ("tcp", TCP),
    ("egp", 8),
    ("igp", 9),
    ("udp", UDP),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", ICMPV6),
    ("icmpv6", ICMPV6),
    ("sctp", SCTP),
    ("fc", 133),
];

/// Whether the protocol has ports that a rule can name.
pub fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | SCTP)
}

/// Name or number of a protocol.
pub fn protocol_name(protocol: u8) -> String {
    NAMES
        .iter()
        .find(|&&(_, number)| number == protocol)
        .map_or_else(|| protocol.to_string(), |&(name, _)| name.to_owned())
}

/// Reads a protocol's name or number.
pub fn parse_protocol(text: &str) -> Result<u8, WordError> {
    let lower = text.trim().to_lowercase();
    if let Some(&(_, number)) = NAMES.iter().find(|&&(name, _)| name == lower) {
        return Ok(number);
    }
    if lower == "*" {
        let hint = "leave \"proto\" out for TCP, UDP and ICMP";
        return Err(WordError::hint(
            "proto name \"*\" not known; use protocol number 0-255 or protocol name",
            hint,
        ));
    }
    if !lower.is_empty() && lower.bytes().all(|byte| byte.is_ascii_digit()) {
        if lower.starts_with('0') {
            return Err(WordError::new(format!("leading 0 not permitted in protocol number \"{lower}\"")));
        }
        return lower
            .parse::<u8>()
            .map_err(|_| WordError::new(format!("protocol number out of range (1-255): {lower}")));
    }
    let hint = did_you_mean(&lower, NAMES.iter().map(|&(name, _)| name))
        .unwrap_or_else(|| "a protocol is a name such as tcp, udp, icmp, or an IANA number".to_owned());
    Err(WordError::hint(format!("unknown protocol \"{text}\""), hint))
}

/// Reads `*`, `22`, `80,443`, `1000-2000` and mixtures.
pub fn parse_ports(text: &str) -> Result<Vec<PortRange>, WordError> {
    if text.trim() == "*" {
        return Ok(vec![PortRange::ALL]);
    }
    let mut ranges = text.split(',').map(parse_range).collect::<Result<Vec<_>, _>>()?;
    normalise_ports(&mut ranges);
    Ok(ranges)
}

fn parse_range(text: &str) -> Result<PortRange, WordError> {
    let part = text.trim();
    let fail = |what: &str| {
        let hint =
            "ports are *, a number, a list such as 80,443 or a range such as 1000-2000; names are not known";
        Err(WordError::hint(format!("port range \"{part}\": {what}"), hint))
    };
    let number = |text: &str| -> Option<u32> {
        let digits = !text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    let (first, last) = match part.split_once('-') {
        Some((first, last)) => (first, Some(last)),
        None => (part, None),
    };
    let Some(first) = number(first) else { return fail("invalid first integer") };
    let last = match last.map(number) {
        None => first,
        Some(Some(last)) => last,
        Some(None) => return fail("invalid last integer"),
    };
    let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last)) else {
        return fail("port number out of range");
    };
    if first > last {
        return fail("first port is greater than last port");
    }
    if first == 0 && last == 0 {
        return fail("first port must be >0, or use '*' for wildcard");
    }
    Ok(PortRange { first, last })
}

/// Sorts and joins ranges.
pub(crate) fn normalise_ports(ranges: &mut Vec<PortRange>) {
    ranges.sort_unstable();
    let mut joined: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for &range in ranges.iter() {
        match joined.last_mut() {
            Some(previous) if u32::from(range.first) <= u32::from(previous.last) + 1 => {
                previous.last = previous.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    *ranges = joined;
}

/// Protocols with ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// Which protocols.
    pub protocols: ProtocolSet,
    /// Which destination ports, sorted and disjoint.
    pub ports: Arc<[PortRange]>,
}

impl Service {
    /// Of a rule's `proto` (none: TCP, UDP, ICMP, ICMPv6) and ports.
    pub fn new(protocol: Option<u8>, mut ports: Vec<PortRange>) -> Result<Self, WordError> {
        normalise_ports(&mut ports);
        let protocols = protocol.map_or(ProtocolSet::DEFAULT, |protocol| ProtocolSet::of([protocol]));
        if let Some(protocol) = protocol
            && !has_ports(protocol)
            && ports != [PortRange::ALL]
        {
            return Err(WordError::hint(
                format!(
                    "protocol does not support specific ports: \"{}\", only \"*\" is allowed",
                    protocol_name(protocol)
                ),
                "only tcp, udp and sctp have ports",
            ));
        }
        Ok(Self { protocols, ports: ports.into() })
    }

    /// Reads an entry of a grant's `ip`: `*`, `80`, `80-443`, `tcp:22`, `icmp:*`.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        let text = text.trim();
        match text.split_once(':') {
            None => Self::new(None, parse_ports(text)?),
            Some((_, ports)) if ports.contains(':') => Err(WordError::new(format!(
                "\"{text}\": expected only one colon in Internet protocol and port type"
            ))),
            Some((protocol, ports)) => Self::new(Some(parse_protocol(protocol)?), parse_ports(ports)?),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.protocols != ProtocolSet::DEFAULT {
            let names: Vec<String> = self.protocols.iter().map(protocol_name).collect();
            write!(f, "{}:", names.join("/"))?;
        }
        let ports: Vec<String> = self.ports.iter().map(ToString::to_string).collect();
        f.write_str(&ports.join(","))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (0, u16::MAX) => f.write_str("*"),
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Result<String, String> {
        parse_ports(text)
            .map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            .map_err(|error| error.message)
    }

    #[test]
    fn ports_are_read_and_joined() {
        assert_eq!(ports("*").unwrap(), "*");
        assert_eq!(ports("443, 80,81,82").unwrap(), "80-82,443");
        assert_eq!(ports("1-65535").unwrap(), "1-65535");
        assert_eq!(ports("0-65535").unwrap(), "*");
        assert_eq!(ports("ssh").unwrap_err(), "port range \"ssh\": invalid first integer");
        assert!(ports("-1").unwrap_err().contains("invalid first integer"));
        for bad in ["", "0", "65536", "2-1", "1-", "1-x", "22,", "99999999999", "+1", "1-2-3"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn services_follow_the_protocol() {
        assert_eq!(Service::parse("tcp:22").unwrap().protocols, ProtocolSet::of([TCP]));
        assert_eq!(Service::parse("47").unwrap().protocols, ProtocolSet::DEFAULT);
        assert_eq!(Service::parse("47:*").unwrap().protocols, ProtocolSet::of([47]));
        assert!(Service::parse("icmp:80").is_err());
        assert!(
            Service::parse("icmp")
                .unwrap_err()
                .message
                .contains("port range \"icmp\": invalid first integer")
        );
        for bad in ["*:80", "06:80", "256:1", "tpc:22", "tcp:22:23"] {
            assert!(Service::parse(bad).is_err(), "{bad}");
        }
    }
}

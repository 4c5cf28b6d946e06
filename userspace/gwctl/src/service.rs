//! Destinations as people write them: `db-1:5432`, `db-1:53/udp`, `[fd00::1]:443`, `db-1/icmp`.

/// What is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Node, tag, user or address.
    pub host: String,
    /// IANA protocol number.
    pub protocol: u8,
    /// Port, 0 for protocols without ports.
    pub port: u16,
}

/// Reads a destination.
pub fn parse(text: &str) -> Result<Target, String> {
    let (rest, protocol) = match text.rsplit_once('/') {
        Some((rest, name)) => (rest, Some(protocol_number(name)?)),
        None => (text, None),
    };
    if let Some(protocol) = protocol.filter(|protocol| !matches!(protocol, 6 | 17 | 132)) {
        let host = unbracketed(rest.strip_suffix(":*").unwrap_or(rest));
        return named(host, protocol, 0);
    }
    let (host, port) = rest.rsplit_once(':').ok_or("the port is missing")?;
    if host.contains(':') && !host.starts_with('[') && !host.contains("tag:") {
        return Err("write an IPv6 address in brackets, such as [fd00::1]:443".to_owned());
    }
    let port = match port.parse::<u16>() {
        Ok(port) if port > 0 => port,
        _ => return Err(format!("{port:?} is not a port from 1 to 65535")),
    };
    named(unbracketed(host), protocol.unwrap_or(6), port)
}

fn named(host: &str, protocol: u8, port: u16) -> Result<Target, String> {
    if host.is_empty() {
        return Err("it does not say to whom".to_owned());
    }
    Ok(Target { host: host.to_owned(), protocol, port })
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn protocol_number(name: &str) -> Result<u8, String> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "sctp" => Ok(132),
        "icmp" => Ok(1),
        "icmpv6" | "ipv6-icmp" => Ok(58),
        "gre" => Ok(47),
        "esp" => Ok(50),
        "ah" => Ok(51),
        other => match other.parse::<u8>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!(
                "{name:?} is not a protocol: tcp, udp, sctp, icmp, icmpv6, or a number up to 255"
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_as_they_are_written() {
        let cases = [
            ("db-1:5432", Ok(("db-1", 6, 5432))),
            ("db-1:53/udp", Ok(("db-1", 17, 53))),
            ("tag:server:443", Ok(("tag:server", 6, 443))),
            ("[fd00::1]:443/TCP", Ok(("fd00::1", 6, 443))),
            ("100.64.0.7/icmp", Ok(("100.64.0.7", 1, 0))),
            ("fd00::1/icmpv6", Ok(("fd00::1", 58, 0))),
            ("db/47", Ok(("db", 47, 0))),
            ("alice@example.com:22", Ok(("alice@example.com", 6, 22))),
            ("db-1", Err("port is missing")),
            ("db-1:0", Err("not a port")),
            ("db-1:http", Err("not a port")),
            ("fd00::1:443", Err("brackets")),
            ("db:1/xyz", Err("not a protocol")),
            (":22", Err("to whom")),
        ];
        for (text, expected) in cases {
            match (parse(text), expected) {
                (Ok(target), Ok((host, protocol, port))) => {
                    assert_eq!(
                        (target.host.as_str(), target.protocol, target.port),
                        (host, protocol, port),
                        "{text}"
                    );
                }
                (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
                (got, wanted) => panic!("{text}: {got:?} instead of {wanted:?}"),
            }
        }
    }
}

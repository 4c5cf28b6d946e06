//! PCP (RFC 6887) and NAT-PMP (RFC 6886) messages: what is asked of a router, and what it answers. Reading is total.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Where routers listen, in both protocols.
pub const SERVER_PORT: u16 = 5351;
/// The life that is asked for: RFC 6886 section 3.3 recommends it.
pub const LIFETIME: Duration = Duration::from_hours(2);

const PCP_VERSION: u8 = 2;
const PCP_MAP: u8 = 1;
const PCP_LEN: usize = 60;
const NAT_PMP_VERSION: u8 = 0;
const NAT_PMP_ADDRESS: u8 = 0;
const NAT_PMP_MAP_UDP: u8 = 1;
/// Set in the opcode of an answer.
const ANSWER: u8 = 0x80;
const UDP: u8 = 17;

/// What a router answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// It forwards this port of this address to us for so long.
    Mapped {
        /// Outside.
        address: Ipv4Addr,
        /// Outside.
        port: u16,
        /// From now on.
        lifetime: Duration,
    },
    /// NAT-PMP: its address outside.
    Address(Ipv4Addr),
    /// NAT-PMP: it forwards this port for so long.
    Port {
        /// Outside.
        port: u16,
        /// From now on.
        lifetime: Duration,
    },
    /// It speaks another version: NAT-PMP where PCP was asked.
    Version,
    /// It does not want to, with its result code.
    Refused(u16),
}

/// PCP: forward UDP to our port, the same one outside if possible. A `lifetime` of zero ends that.
pub fn pcp_map(local: Ipv4Addr, nonce: [u8; 12], port: u16, outside: u16, lifetime: Duration) -> Vec<u8> {
    let mut bytes = vec![PCP_VERSION, PCP_MAP, 0, 0];
    bytes.extend(seconds(lifetime).to_be_bytes());
    bytes.extend(local.to_ipv6_mapped().octets());
    bytes.extend(nonce);
    bytes.extend([UDP, 0, 0, 0]);
    bytes.extend(port.to_be_bytes());
    bytes.extend(outside.to_be_bytes());
    bytes.extend(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
    bytes
}

/// NAT-PMP: what is your address outside?
pub fn nat_pmp_address() -> Vec<u8> {
    vec![NAT_PMP_VERSION, NAT_PMP_ADDRESS]
}

/// NAT-PMP: forward UDP to our port. A `lifetime` of zero ends that.
pub fn nat_pmp_map(port: u16, outside: u16, lifetime: Duration) -> Vec<u8> {
    let mut bytes = vec![NAT_PMP_VERSION, NAT_PMP_MAP_UDP, 0, 0];
    bytes.extend(port.to_be_bytes());
    bytes.extend(outside.to_be_bytes());
    bytes.extend(seconds(lifetime).to_be_bytes());
    bytes
}

fn seconds(lifetime: Duration) -> u32 {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX)
}

/// Reads an answer to one of these. `None`: it is none.
pub fn read(bytes: &[u8], nonce: [u8; 12], port: u16) -> Option<Response> {
    match (*bytes.first()?, *bytes.get(1)?) {
        (PCP_VERSION, opcode) if opcode == PCP_MAP | ANSWER => read_pcp(bytes, nonce, port),
        (NAT_PMP_VERSION, opcode) if opcode & ANSWER != 0 => read_nat_pmp(bytes, opcode & !ANSWER, port),
        _ => None,
    }
}

fn read_pcp(bytes: &[u8], nonce: [u8; 12], port: u16) -> Option<Response> {
    let result = *bytes.get(3)?;
    // Refusals may be shorter than what was asked (RFC 6887 section 8.3).
    if result == 1 {
        return Some(Response::Version);
    }
    if bytes.len() < PCP_LEN || bytes.get(24..36)? != nonce || word16(bytes, 40)? != port {
        return None;
    }
    if result != 0 {
        return Some(Response::Refused(result.into()));
    }
    let outside: [u8; 16] = bytes.get(44..60)?.try_into().ok()?;
    let address = Ipv6Addr::from(outside).to_ipv4_mapped()?;
    let lifetime = Duration::from_secs(word32(bytes, 4)?.into());
    Some(Response::Mapped { address, port: word16(bytes, 42)?, lifetime })
}

fn read_nat_pmp(bytes: &[u8], opcode: u8, port: u16) -> Option<Response> {
    match (word16(bytes, 2)?, opcode) {
        // Unsupported version; the opcode may be PCP's.
        (1, _) => Some(Response::Version),
        (0, NAT_PMP_ADDRESS) => Some(Response::Address(Ipv4Addr::from(word32(bytes, 8)?))),
        (0, NAT_PMP_MAP_UDP) if word16(bytes, 8)? == port => Some(Response::Port {
            port: word16(bytes, 10)?,
            lifetime: Duration::from_secs(word32(bytes, 12)?.into()),
        }),
        (0, _) => None,
        (result, _) => Some(Response::Refused(result)),
    }
}

fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: [u8; 12] = [7; 12];
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

    #[test]
    fn pcp_answers_are_read() {
        let mut bytes = pcp_map(Ipv4Addr::new(10, 0, 0, 2), NONCE, 51820, 51820, LIFETIME);
        assert_eq!(bytes.len(), PCP_LEN);
        assert_eq!(read(&bytes, NONCE, 51820), None, "a question is no answer");
        bytes[1] |= ANSWER;
        bytes[42..44].copy_from_slice(&4_000_u16.to_be_bytes());
        bytes[44..60].copy_from_slice(&OUTSIDE.to_ipv6_mapped().octets());
        let mapped = Response::Mapped { address: OUTSIDE, port: 4_000, lifetime: LIFETIME };
        assert_eq!(read(&bytes, NONCE, 51820), Some(mapped));
        assert_eq!(read(&bytes, [8; 12], 51820), None, "somebody else's");
        assert_eq!(read(&bytes, NONCE, 51821), None);
        bytes[3] = 2;
        assert_eq!(read(&bytes, NONCE, 51820), Some(Response::Refused(2)));
    }

    #[test]
    fn nat_pmp_answers_are_read() {
        let address = [&[0, 0x80, 0, 0, 0, 0, 0, 1][..], &OUTSIDE.octets()].concat();
        assert_eq!(read(&address, NONCE, 51820), Some(Response::Address(OUTSIDE)));
        let mut map = vec![0, 0x81, 0, 0, 0, 0, 0, 1];
        map.extend(51820_u16.to_be_bytes());
        map.extend(4_000_u16.to_be_bytes());
        map.extend(60_u32.to_be_bytes());
        let port = Response::Port { port: 4_000, lifetime: Duration::from_mins(1) };
        assert_eq!(read(&map, NONCE, 51820), Some(port));
        assert_eq!(read(&map, NONCE, 51821), None);
        assert_eq!(read(&[0, 0x81, 0, 1, 0, 0, 0, 0], NONCE, 51820), Some(Response::Version));
        assert_eq!(read(&[0, 0x81, 0, 4, 0, 0, 0, 0], NONCE, 51820), Some(Response::Refused(4)));
    }

    proptest! {
        #[test]
        fn reading_is_total(bytes in prop::collection::vec(any::<u8>(), 0..70), version in 0..3_u8, opcode: u8) {
            let mut bytes = bytes;
            if let [first, second, ..] = bytes.as_mut_slice() {
                (*first, *second) = (version, opcode);
            }
            let _ = read(&bytes, NONCE, 51820);
        }
    }
}

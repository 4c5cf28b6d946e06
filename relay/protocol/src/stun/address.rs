//! Addresses hidden from middleboxes that rewrite what looks like an address (RFC 8489 section 14.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{MAGIC_COOKIE, TransactionId};

const IPV4: u8 = 1;
const IPV6: u8 = 2;

/// The longest encoded address in bytes.
pub(super) const MAX_LEN: usize = 20;

/// The cookie followed by the transaction: what addresses are XORed with.
fn mask(transaction: TransactionId) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    mask[4..].copy_from_slice(&transaction.0);
    mask
}

fn xor<const N: usize>(mut bytes: [u8; N], mask: &[u8; 16]) -> [u8; N] {
    for (byte, mask) in bytes.iter_mut().zip(mask) {
        *byte ^= mask;
    }
    bytes
}

/// Encodes an address; gives the bytes and how many of them count.
pub(super) fn encode(address: SocketAddr, transaction: TransactionId) -> ([u8; MAX_LEN], usize) {
    let mask = mask(transaction);
    let mut out = [0; MAX_LEN];
    out[2..4].copy_from_slice(&xor(address.port().to_be_bytes(), &mask));
    match address.ip() {
        IpAddr::V4(ip) => {
            out[1] = IPV4;
            out[4..8].copy_from_slice(&xor(ip.octets(), &mask));
            (out, 8)
        }
        IpAddr::V6(ip) => {
            out[1] = IPV6;
            out[4..20].copy_from_slice(&xor(ip.octets(), &mask));
            (out, 20)
        }
    }
}

/// Decodes an address. `None`: another family, or a length that does not belong to it.
pub(super) fn decode(value: &[u8], transaction: TransactionId) -> Option<SocketAddr> {
    let mask = mask(transaction);
    let (head, rest) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes(xor([head[2], head[3]], &mask));
    let ip = match head[1] {
        IPV4 => IpAddr::V4(Ipv4Addr::from(xor::<4>(rest.try_into().ok()?, &mask))),
        IPV6 => IpAddr::V6(Ipv6Addr::from(xor::<16>(rest.try_into().ok()?, &mask))),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

//! Replies to our echo requests: any peer may answer with anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ghostwire_client::probe::is_reply;

/// A packet as a raw socket delivers it. True if it is the reply to the request 7 of 0x1234.
pub fn run(data: &[u8]) -> bool {
    let v4 = is_reply(IpAddr::V4(Ipv4Addr::new(100, 64, 0, 9)), data, 0x1234, 7);
    let v6 = is_reply(IpAddr::V6(Ipv6Addr::LOCALHOST), data, 0x1234, 7);
    // The shortest reply is an echo header, behind an IPv4 header or bare.
    assert!(!v4 || data.len() >= 8 && data.get(usize::from(data[0] & 0xf) * 4) == Some(&0));
    assert!(!v6 || data.len() >= 8 && data[0] == 129);
    v4 || v6
}

//! A node's filter on the wire: bytes to a filter that needs no second look, and to the image that enforces it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ghostwire_policy::filter::NodeFilter;
use ghostwire_proto::{filter, v1};
use prost::Message as _;

/// A [`v1::Filter`]. True if it is one.
pub fn run(data: &[u8]) -> bool {
    let Ok(message) = v1::Filter::decode(data) else { return false };
    let Ok((generation, read)) = filter::from_wire(&message) else { return false };
    check(&read);
    let again = filter::to_wire(&read, generation);
    let same = filter::from_wire(&again).is_ok_and(|(number, again)| number == generation && again == read);
    assert!(same, "a filter that was read is written as another one");
    let own = [IpAddr::V4(Ipv4Addr::new(100, 64, 0, 2)), IpAddr::V6(Ipv6Addr::from(0xfd_u128 << 120 | 2))];
    crate::image::judge(&read, &crate::judge::context(&own));
    true
}

/// Everything that the rest of the program takes for granted.
pub(crate) fn check(filter: &NodeFilter) {
    for rule in filter.inbound.iter().chain(&filter.outbound) {
        for set in [&rule.src, &rule.dst] {
            assert!(set.v4.iter().all(|(first, last)| first <= last));
            assert!(set.v6.iter().all(|(first, last)| first <= last));
            assert!(set.v4.windows(2).all(|pair| pair[0].1 < pair[1].0 && pair[1].0 - pair[0].1 > 1));
            assert!(set.v6.windows(2).all(|pair| pair[0].1 < pair[1].0 && pair[1].0 - pair[0].1 > 1));
        }
        assert!(rule.ports.iter().all(|range| range.first <= range.last));
    }
}

//! Links, addresses, routes and their changes on the running kernel, in namespaces of the tests' own.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail like the test")]

mod netns;

use ghostwire_dataplane::netlink::{Change, Error, Monitor, Netlink, Rank, Route, tunnel_mtu};
use ipnet::IpNet;
use netns::{Netns, eventually};

/// Recognises a change.
type Expected = Box<dyn Fn(&Change) -> bool>;

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

/// A namespace with `eth0`, and the far end's namespace.
fn with_uplink() -> (Netns, Netns) {
    let (here, there) = (Netns::new(), Netns::new());
    here.connect(&there, "eth0", "192.0.2.1/24", "192.0.2.2/24");
    (here, there)
}

#[test]
fn links_are_found_marked_resized_and_deleted() {
    let (here, _there) = with_uplink();
    here.ip("link add gw0 type bridge");
    here.run(|| {
        let netlink = Netlink::open().unwrap();
        let name = "gw0".parse().unwrap();
        let link = netlink.existing_link(&name).unwrap();
        assert_eq!(link.kind.as_deref(), Some("bridge"));
        assert!(!link.up && !link.is_ours() && !link.loopback);
        netlink.mark_ours(&link).unwrap();
        netlink.set_mtu(&link, 1380).unwrap();
        netlink.set_mtu(&link, 1380).unwrap();
        netlink.set_up(&link).unwrap();
        let link = netlink.existing_link(&name).unwrap();
        assert!(link.is_ours() && link.up);
        assert_eq!(link.mtu, 1380);
        netlink.set_down(&link).unwrap();
        assert!(!netlink.existing_link(&name).unwrap().up);
        netlink.delete_link(&link).unwrap();
        netlink.delete_link(&link).unwrap();
        assert_eq!(netlink.link(&name).unwrap(), None);
        assert!(matches!(netlink.existing_link(&name), Err(Error::NoSuchLink(_))));
        assert_eq!(netlink.links().unwrap().len(), 2, "lo and eth0");
    });
}

#[test]
fn an_interface_can_be_kept_from_making_link_local_addresses() {
    let (here, _there) = with_uplink();
    for (name, silent) in [("tun1", true), ("tun2", false)] {
        // A device that is up only with somebody behind it: a bridge has its carrier from its port.
        here.ip(&format!("link add {name} type bridge"));
        here.ip(&format!("link add {name}a type veth peer name {name}b"));
        here.ip(&format!("link set {name}a master {name} up"));
        here.ip(&format!("link set {name}b up"));
        here.run(|| {
            let netlink = Netlink::open().unwrap();
            let link = netlink.existing_link(&name.parse().unwrap()).unwrap();
            if silent {
                netlink.make_no_link_local(&link).unwrap();
            }
            netlink.set_up(&link).unwrap();
        });
    }
    let has_one = |name: &str| here.ip(&format!("-6 address show dev {name}")).contains("fe80::");
    eventually("the other one has made its address", || has_one("tun2"));
    assert!(!has_one("tun1"), "{}", here.ip("-6 address show dev tun1"));
}

#[test]
fn without_ipv6_there_is_no_link_local_address_to_keep_from() {
    let (here, _there) = with_uplink();
    here.command("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1");
    // IPv6 leaves an interface whose packets are too small for it.
    here.ip("link set eth0 mtu 1200");
    here.run(|| {
        let netlink = Netlink::open().unwrap();
        netlink.make_no_link_local(&netlink.existing_link(&"eth0".parse().unwrap()).unwrap()).unwrap();
    });
}

#[test]
fn a_refusal_says_what_failed_on_what_and_why() {
    let (here, _there) = with_uplink();
    let error = here.run(|| {
        let netlink = Netlink::open().unwrap();
        let link = netlink.existing_link(&"eth0".parse().unwrap()).unwrap();
        netlink.set_mtu(&link, 3).unwrap_err()
    });
    let text = error.to_string();
    assert!(text.contains("set the MTU of interface eth0 to 3"), "{text}");
    assert_eq!(error.errno(), Some(libc::EINVAL));
}

#[test]
fn addresses_become_exactly_the_wanted_ones() {
    let (here, _there) = with_uplink();
    here.run(|| {
        let netlink = Netlink::open().unwrap();
        let link = netlink.existing_link(&"eth0".parse().unwrap()).unwrap();
        let wanted = nets(&["100.64.0.2/32", "fd00:1234:5678::2/128"]);
        assert!(netlink.set_addresses(&link, &wanted).unwrap());
        assert!(!netlink.set_addresses(&link, &wanted).unwrap(), "nothing left to change");
        netlink.add_address(&link, wanted[0]).unwrap();
        let present: Vec<_> = netlink
            .addresses()
            .unwrap()
            .into_iter()
            .filter(|address| address.index == link.index && !address.link_local())
            .collect();
        let mut listed: Vec<IpNet> = present.iter().map(|address| address.net).collect();
        listed.sort();
        assert_eq!(listed, wanted);
        assert!(present.iter().all(ghostwire_dataplane::netlink::Address::usable), "no waiting for DAD");
        netlink.remove_address(&link, wanted[0]).unwrap();
        netlink.remove_address(&link, wanted[0]).unwrap();
    });
    let listed = here.ip("-o address show dev eth0");
    assert!(listed.contains("fd00:1234:5678::2/128") && !listed.contains("192.0.2.1"), "{listed}");
}

#[test]
fn only_our_routes_are_ever_changed() {
    let (here, _there) = with_uplink();
    here.ip("route add 10.1.0.0/16 via 192.0.2.2");
    here.run(|| {
        let netlink = Netlink::open().unwrap();
        let link = netlink.existing_link(&"eth0".parse().unwrap()).unwrap();
        let foreign_before: Vec<Route> =
            netlink.routes().unwrap().into_iter().filter(|route| !route.is_ours()).collect();
        let source = "192.0.2.1".parse().unwrap();
        let wanted: Vec<Route> = nets(&["100.64.0.0/10", "fd00:1234:5678::/48"])
            .into_iter()
            .map(|net| Route::through(&link, net))
            .collect();
        assert!(netlink.set_routes(&link, &wanted).unwrap());
        assert!(!netlink.set_routes(&link, &wanted).unwrap(), "nothing left to change");

        // A route of ours is corrected in place, one that is no longer wanted goes.
        let corrected = vec![wanted[0].clone().from_source(source)];
        assert!(netlink.set_routes(&link, &corrected).unwrap());
        assert_eq!(netlink.own_routes().unwrap(), corrected);

        // A foreign route in the way is reported and stays; the others are set all the same.
        let conflicting = Route::through(&link, "10.1.0.0/16".parse().unwrap());
        let all = [conflicting.clone(), wanted[0].clone()];
        let error = netlink.set_routes(&link, &all).unwrap_err();
        assert!(matches!(error, Error::ForeignRoute { protocol: 3, .. }), "{error}");
        assert_eq!(netlink.own_routes().unwrap(), [wanted[0].clone()]);
        // With a metric of its own it fits beside it.
        netlink.replace_route(&conflicting.clone().with_metric(71)).unwrap();
        // Removing by the same destination takes ours, never theirs.
        netlink.remove_route(&conflicting.clone().with_metric(71)).unwrap();
        netlink.remove_route(&conflicting).unwrap();
        netlink.set_routes(&link, &[]).unwrap();
        assert_eq!(netlink.own_routes().unwrap(), []);
        let foreign_after: Vec<Route> = netlink.routes().unwrap();
        assert_eq!(foreign_after, foreign_before);
    });
}

#[test]
fn local_endpoints_leave_out_what_cannot_be_reached() {
    let (here, there) = with_uplink();
    here.connect(&there, "lan0", "2001:db8::1/64", "2001:db8::2/64");
    here.ip("route add default via 192.0.2.2");
    here.ip("link add docker0 type bridge");
    here.ip("address add 172.17.0.1/16 dev docker0");
    here.ip("link set docker0 up");
    here.ip("link set eth0 mtu 1400");
    here.ip("tuntap add mode tun name other-vpn");
    here.ip("address add 10.8.0.2/24 dev other-vpn");
    here.ip("link set other-vpn up");
    let endpoints = here.run(|| Netlink::open().unwrap().local_endpoints().unwrap());
    let listed: Vec<(String, Rank)> =
        endpoints.iter().map(|endpoint| (endpoint.address.to_string(), endpoint.rank)).collect();
    let expected =
        [("192.0.2.1", Rank::Uplink), ("2001:db8::1", Rank::Attached), ("172.17.0.1", Rank::Internal)];
    assert_eq!(listed, expected.map(|(address, rank)| (address.to_owned(), rank)));
    assert_eq!(tunnel_mtu(&endpoints), 1320);
}

#[test]
fn changes_are_reported_as_they_happen() {
    let (here, _there) = with_uplink();
    here.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut monitor = Monitor::open().unwrap();
            let netlink = Netlink::open().unwrap();
            let link = netlink.existing_link(&"eth0".parse().unwrap()).unwrap();
            let net: IpNet = "10.5.0.1/24".parse().unwrap();
            netlink.add_address(&link, net).unwrap();
            netlink.replace_route(&Route::through(&link, "10.6.0.0/24".parse().unwrap())).unwrap();
            netlink.set_mtu(&link, 1300).unwrap();
            netlink.remove_address(&link, net).unwrap();
            here.command("tc qdisc add dev eth0 clsact");
            here.command("tc qdisc del dev eth0 clsact");
            let mut wanted: Vec<(&str, Expected)> = vec![
                ("address", Box::new(move |c| matches!(c, Change::Address(a) if a.net == net))),
                ("route", Box::new(|c| matches!(c, Change::Route(r) if r.is_ours()))),
                ("link", Box::new(|c| matches!(c, Change::Link(l) if l.mtu == 1300))),
                (
                    "filters gone",
                    Box::new(
                        move |c| matches!(c, Change::FilterGone { interface } if *interface == link.index),
                    ),
                ),
                ("address gone", Box::new(move |c| matches!(c, Change::AddressGone(a) if a.net == net))),
            ];
            while !wanted.is_empty() {
                let next = tokio::time::timeout(std::time::Duration::from_secs(30), monitor.next());
                let Ok(change) = next.await else {
                    panic!("not reported: {:?}", wanted.iter().map(|(name, _)| *name).collect::<Vec<_>>())
                };
                let change = change.unwrap();
                wanted.retain(|(_, fits)| !fits(&change));
            }
        });
    });
}

#[test]
fn a_flood_of_changes_is_reported_as_lost_not_as_an_error() {
    let (here, _there) = with_uplink();
    here.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut monitor = Monitor::open().unwrap();
            let netlink = Netlink::open().unwrap();
            let link = netlink.existing_link(&"eth0".parse().unwrap()).unwrap();
            for round in 0..2000_u32 {
                netlink.set_mtu(&link, 1300 + round % 2).unwrap();
            }
            let mut lost = false;
            while !lost {
                lost = monitor.next().await.unwrap() == Change::Lost;
            }
            // It goes on afterwards.
            netlink.set_mtu(&link, 1333).unwrap();
            loop {
                if matches!(monitor.next().await.unwrap(), Change::Link(link) if link.mtu == 1333) {
                    break;
                }
            }
        });
    });
    eventually("the namespace answers", || here.ip("link show eth0").contains("mtu 1333"));
}

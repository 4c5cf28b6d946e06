//! Making, adopting, removing.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use ghostwire_dataplane::acl::{Attach, BpfError, Origin};
use ghostwire_dataplane::steer::{Class, Family, Options, Path, Reason, Steer, SteerError};
use ghostwire_dataplane::wireguard::Choice;

use crate::lab::{NEIGHBOURS4, NEIGHBOURS6, Node, Pair, ROUTED4, counted, engines, name, remote};
use crate::netns::Netns;
use crate::numbered::{assert_complete, stream};

/// The name of the test below, which a copy of this program runs by itself as "the daemon".
const DAEMON: &str = "lifecycle::daemon_for_the_tests_that_kill_it";
const DAEMON_DIR: &str = "GHOSTWIRE_TEST_STEER_DIR";
const DAEMON_ATTACH: &str = "GHOSTWIRE_TEST_STEER_CLSACT";

/// Not a test of its own: run with [`DAEMON_DIR`] set, it is node 1 of a [`Pair`] until it is killed.
#[test]
fn daemon_for_the_tests_that_kill_it() {
    let Some(dir) = std::env::var_os(DAEMON_DIR) else { return };
    let mut options = Options::new(51_821);
    if std::env::var_os(DAEMON_ATTACH).is_some() {
        options.attach = Attach::Clsact;
    }
    let mut steer = Steer::open(&name(), dir.as_ref(), &options).unwrap();
    let index = nix::net::if_::if_nametoindex("eth0").unwrap();
    let addresses = vec![NEIGHBOURS4[0].parse().unwrap(), NEIGHBOURS6[0].parse().unwrap()];
    let uplink = ghostwire_dataplane::steer::Uplink { index, addresses };
    assert!(steer.set_uplinks(&[uplink]).unwrap().failed.is_empty());
    let (first, second) = paths(index);
    steer.set_path(ghostwire_dataplane::steer::PeerId(2), Some(&first), Some(&second)).unwrap();
    for network in [NEIGHBOURS4, NEIGHBOURS6] {
        let remote = remote(network[1], 51_822).parse().unwrap();
        steer.admit(remote, ghostwire_dataplane::steer::PeerId(2), Class::Direct).unwrap();
    }
    println!("steering");
    loop {
        std::thread::park();
    }
}

/// What the daemon sets.
fn paths(uplink: u32) -> (Path, Path) {
    let [first, second] =
        [(NEIGHBOURS4, Class::Direct), (NEIGHBOURS6, Class::RelayPort)].map(|(network, class)| Path::Wire {
            class,
            uplink,
            local: remote(network[0], 51_821).parse().unwrap(),
            remote: remote(network[1], 51_822).parse().unwrap(),
        });
    (first, second)
}

#[test]
fn kill_9_of_the_daemon_loses_nothing_and_the_next_one_adopts_everything() {
    for choice in engines() {
        for clsact in [false, true] {
            kill_and_adopt(choice, clsact);
        }
    }
}

fn kill_and_adopt(choice: Choice, clsact: bool) {
    let mut pair = Pair::new(choice);
    if clsact {
        pair.a.options.attach = Attach::Clsact;
    }
    let mut at_b = pair.b.steer();
    pair.b.set_uplinks(&mut at_b);
    for network in [NEIGHBOURS4, NEIGHBOURS6] {
        at_b.admit(remote(network[0], pair.a.port()).parse().unwrap(), pair.a.id(), Class::Direct).unwrap();
    }
    pair.b.set_path(&mut at_b, pair.a.id(), &pair.path_from_b(NEIGHBOURS4), None);

    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", DAEMON, "--nocapture"]).env(DAEMON_DIR, pair.a.bpf_dir()).stdout(Stdio::piped());
    if clsact {
        command.env(DAEMON_ATTACH, "1");
    }
    let mut daemon = pair.a.netns.run(|| command.spawn().unwrap());
    let output = BufReader::new(daemon.stdout.take().unwrap());
    assert!(output.lines().map_while(Result::ok).any(|line| line.contains("steering")), "the daemon failed");

    let (wg_a, _wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
    pair.meet();
    let total = 2000;
    let mut adopted = None;
    let arrived = stream(&pair.a, &pair.b, total, |progress| {
        assert!(progress.wait_for(500));
        daemon.kill().unwrap();
        assert_eq!(daemon.wait().unwrap().signal(), Some(9));
        assert!(progress.wait_for(1000), "without a daemon");
        let mut steer = pair.a.steer();
        assert_eq!(*steer.origin(), Origin::Adopted);
        pair.a.set_uplinks(&mut steer);
        adopted = Some(steer);
        assert!(progress.wait_for(1500), "with the next one");
    });
    // Both paths carry everything: the second copy is WireGuard's to drop, and may come first.
    assert_complete(arrived, total);
    let mut adopted = adopted.unwrap();
    let index = pair.a.netns.run(|| nix::net::if_::if_nametoindex("eth0").unwrap());
    let (first, second) = paths(index);
    assert_eq!(adopted.path(pair.b.id()), (Some(first), Some(second)));
    assert_eq!(adopted.peers(), [pair.b.id()]);
    let mut admitted: Vec<_> = adopted.admissions().into_iter().map(|(remote, ..)| remote).collect();
    admitted.sort_unstable();
    assert_eq!(
        admitted,
        [NEIGHBOURS4, NEIGHBOURS6].map(|net| remote(net[1], pair.b.port()).parse().unwrap())
    );
    let traffic = adopted.traffic(pair.b.id());
    assert!(traffic.sent[Class::Direct as usize].packets >= total, "counters are adopted: {traffic:?}");
    assert!(traffic.sent[Class::RelayPort as usize].packets >= total);
    // What was adopted can be changed.
    adopted.admit(remote(ROUTED4[1], pair.b.port()).parse().unwrap(), pair.b.id(), Class::Direct).unwrap();
    at_b.admit(remote(ROUTED4[0], pair.a.port()).parse().unwrap(), pair.a.id(), Class::Direct).unwrap();
    pair.use_network(&mut adopted, &mut at_b, ROUTED4);
    pair.a.ping(&pair.b);
    assert_eq!(wg_a.endpoints(), [Some(adopted.stable_endpoint(pair.b.id()))]);
    assert_eq!(counted(&adopted, Reason::NoPath), 0);
    // An uplink that the next daemon does not want is left.
    pair.a.netns.run(|| adopted.set_uplinks(&[])).unwrap();
    assert_eq!(programs(&pair.a.netns, "eth0"), 0);
}

/// Programs on an interface, tcx or clsact.
fn programs(netns: &Netns, interface: &str) -> usize {
    let tcx = netns.run(|| {
        [aya::programs::TcAttachType::Ingress, aya::programs::TcAttachType::Egress]
            .into_iter()
            .filter_map(|side| aya::programs::SchedClassifier::query_tcx(interface, side).ok())
            .map(|(_, programs)| programs.len())
            .sum::<usize>()
    });
    let filters = ["ingress", "egress"].into_iter().map(|side| {
        let listing = netns.output(&format!("tc filter show dev {interface} {side}")).stdout;
        String::from_utf8_lossy(&listing).matches("direct-action").count()
    });
    tcx + filters.sum::<usize>()
}

#[test]
fn removing_leaves_nothing() {
    for attach in [Attach::Auto, Attach::Clsact] {
        let mut pair = Pair::new(Choice::Userspace);
        pair.a.options.attach = attach;
        let (at_a, _at_b) = pair.steer();
        assert_eq!((programs(&pair.a.netns, "eth0"), programs(&pair.a.netns, "gw0-steer")), (2, 1));
        drop(at_a);
        assert_eq!(programs(&pair.a.netns, "eth0"), 2, "nothing goes with the daemon");
        pair.a.netns.run(|| Steer::remove(&name(), pair.a.bpf_dir())).unwrap();
        assert_eq!(programs(&pair.a.netns, "eth0"), 0);
        let left = format!("{}{}", pair.a.netns.ip("rule list"), pair.a.netns.ip("-6 rule list"));
        assert!(!left.contains("198.18.") && !left.contains("fd67:"), "{left}");
        let links = pair.a.netns.ip("link list");
        assert!(!links.contains("gw0-steer"), "{links}");
        assert!(!pair.a.netns.command("tc qdisc show dev eth0").contains("clsact"));
        assert!(!pair.a.bpf_dir().exists());
        // Once more is no error.
        pair.a.netns.run(|| Steer::remove(&name(), pair.a.bpf_dir())).unwrap();
    }
}

#[test]
fn a_program_that_somebody_detached_is_missed_and_attached_again() {
    let mut pair = Pair::new(Choice::Userspace);
    pair.a.options.attach = Attach::Clsact;
    let (mut at_a, _at_b) = pair.steer();
    for interface in ["eth0", "gw0-steer"] {
        assert!(pair.a.netns.run(|| at_a.is_attached()).unwrap());
        pair.a.netns.command(&format!("tc qdisc delete dev {interface} clsact"));
        assert!(!pair.a.netns.run(|| at_a.is_attached()).unwrap());
        pair.a.netns.run(|| at_a.attach_again()).unwrap();
    }
    assert!(pair.a.netns.run(|| at_a.is_attached()).unwrap());
}

#[test]
fn pins_of_another_namespace_are_not_taken() {
    let (node, other) = (Node::new(Choice::Userspace, 1), Netns::new());
    let first = node.steer();
    if first.attachment() == ghostwire_dataplane::acl::Attachment::Clsact {
        // Filters have no pins to mistake.
        return;
    }
    let refused = other.run(|| Steer::open(&name(), node.bpf_dir(), &node.options)).unwrap_err();
    assert!(matches!(refused, SteerError::Bpf(BpfError::PinInUse { .. })), "{refused}");
    assert!(node.netns.run(|| first.is_attached()).unwrap());
}

#[test]
fn a_host_without_ipv6_and_one_with_an_interface_in_the_way() {
    let node = Node::new(Choice::Userspace, 1);
    for which in ["all", "default"] {
        node.netns.sysctl(&format!("net/ipv6/conf/{which}/disable_ipv6"), "1");
    }
    let steer = node.steer();
    assert_eq!(steer.stable_endpoint(node.id()), node.id().stable_endpoint(Family::V4));
    drop(steer);
    let other = Node::new(Choice::Userspace, 2);
    other.netns.ip("tuntap add gw0-steer mode tun");
    let refused = other.netns.run(|| Steer::open(&name(), other.bpf_dir(), &other.options)).unwrap_err();
    assert!(matches!(refused, SteerError::NameTaken(_)), "{refused}");
    other.netns.ip("link delete gw0-steer");
}

//! Loading, adopting, replacing and removing.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use ghostwire_dataplane::acl::{Acl, Attach, Attachment, Options, Origin};
use ghostwire_ebpf_abi::event::{Direction, Reason};

use crate::lab::{DROP, Lab, for_test_run, judge, udp};
use crate::netns::eventually;
use crate::policies;

const PEER: [u8; 4] = [100, 64, 0, 3];
const OWN: [u8; 4] = [100, 64, 0, 2];

/// A policy that a random generator makes is as good as any: what counts is that it is still there.
fn some_image(generation: u32) -> ghostwire_dataplane::acl::Image {
    use rand::SeedableRng;
    policies::image(&policies::random(&mut rand::rngs::StdRng::seed_from_u64(7), generation))
}

#[test]
fn without_a_policy_everything_is_dropped() {
    let lab = Lab::new();
    let acl = lab.open();
    assert_eq!(*acl.origin(), Origin::Created);
    assert_eq!(acl.generation().unwrap(), None);
    for direction in [Direction::Ingress, Direction::Egress] {
        assert_eq!(judge(&acl, direction, &udp(PEER, OWN, 1, 53)), (DROP, Reason::NoImage));
    }
}

#[test]
fn a_restarted_daemon_adopts_policy_and_counters() {
    for attach in [Attach::Auto, Attach::Clsact] {
        let lab = Lab::new();
        let options = Options { attach, ..for_test_run() };
        let mut first = lab.open_with(&options);
        first.install(&some_image(5)).unwrap();
        judge(&first, Direction::Ingress, &[0x45]);
        drop(first);
        assert_eq!(attached(&lab), 2, "nothing is detached when the daemon goes");
        let second = lab.open_with(&options);
        assert_eq!(*second.origin(), Origin::Adopted);
        assert_eq!(second.generation().unwrap(), Some(5));
        assert_eq!(second.counters().unwrap().get(Direction::Ingress, Reason::Malformed).packets, 1);
        assert_eq!(attached(&lab), 2, "replaced, not added");
    }
}

/// Programs on the namespace's loopback, tcx or clsact.
fn attached(lab: &Lab) -> usize {
    let tcx = lab.netns.run(|| {
        [aya::programs::TcAttachType::Ingress, aya::programs::TcAttachType::Egress]
            .into_iter()
            .filter_map(|side| aya::programs::SchedClassifier::query_tcx("lo", side).ok())
            .map(|(_, programs)| programs.len())
            .sum::<usize>()
    });
    let filters = ["ingress", "egress"].into_iter().map(|side| {
        let listing = lab.netns.output(&format!("tc filter show dev lo {side}")).stdout;
        String::from_utf8_lossy(&listing).matches("direct-action").count()
    });
    tcx + filters.sum::<usize>()
}

#[test]
fn maps_of_another_shape_are_replaced_and_nothing_passes() {
    let lab = Lab::new();
    let mut first = lab.open();
    first.install(&some_image(5)).unwrap();
    drop(first);
    let second = lab.open_with(&Options { connections4: 1234, ..for_test_run() });
    assert!(
        matches!(second.origin(), Origin::Replaced(why) if why.contains("CONN4")),
        "{:?}",
        second.origin()
    );
    assert_eq!(judge(&second, Direction::Ingress, &udp(PEER, OWN, 1, 53)), (DROP, Reason::NoImage));
    assert_eq!(attached(&lab), 2);
}

#[test]
fn detaching_leaves_nothing() {
    for attach in [Attach::Auto, Attach::Clsact] {
        let lab = Lab::new();
        let acl = lab.open_with(&Options { attach, ..for_test_run() });
        if attach == Attach::Clsact {
            assert_eq!(acl.attachment(), Attachment::Clsact);
        }
        assert_eq!(attached(&lab), 2);
        lab.netns.run(|| acl.detach()).unwrap();
        assert_eq!(attached(&lab), 0);
        assert!(!lab.dir().exists(), "{} is left", lab.dir().display());
        let qdiscs = lab.netns.command("tc qdisc show dev lo");
        assert!(!qdiscs.contains("clsact"), "{qdiscs}");
    }
}

#[test]
fn a_clsact_qdisc_of_others_is_left_alone() {
    let lab = Lab::new();
    lab.netns.command("tc qdisc add dev lo clsact");
    let acl = lab.open_with(&Options { attach: Attach::Clsact, ..for_test_run() });
    lab.netns.run(|| acl.detach()).unwrap();
    assert!(lab.netns.command("tc qdisc show dev lo").contains("clsact"));
}

/// The name of the test below, which a copy of this program runs by itself as "the daemon".
const DAEMON: &str = "lifecycle::daemon_for_the_test_that_kills_it";
const DAEMON_DIR: &str = "GHOSTWIRE_TEST_DAEMON_DIR";

/// Not a test of its own: run with [`DAEMON_DIR`] set, it installs a policy and waits to be killed.
#[test]
fn daemon_for_the_test_that_kills_it() {
    let Some(dir) = std::env::var_os(DAEMON_DIR) else { return };
    let mut acl = Acl::open_or_create("lo", dir.as_ref(), &Options::default()).unwrap();
    acl.install(&some_image(9)).unwrap();
    std::fs::create_dir(std::path::Path::new(&dir).join("ready")).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn kill_9_of_the_daemon_leaves_the_policy_in_force() {
    let lab = Lab::new();
    let program = std::env::current_exe().unwrap();
    let mut daemon = lab.netns.run(|| {
        Command::new(program)
            .args(["--exact", DAEMON, "--nocapture"])
            .env(DAEMON_DIR, lab.dir())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    });
    let ready = lab.dir().join("ready");
    eventually("the daemon has installed its policy", || ready.exists());
    daemon.kill().unwrap();
    assert_eq!(daemon.wait().unwrap().signal(), Some(9));
    std::fs::remove_dir(ready).unwrap();
    assert_eq!(attached(&lab), 2);
    // Real packets on the device: loopback frames have an Ethernet header, so to programs made for layer 3 devices
    // they are neither IPv4 nor IPv6, and are dropped.
    assert!(!lab.netns.output("ping -c 1 -W 1 127.0.0.1").status.success(), "the device is open");
    let adopted = lab.open_with(&Options::default());
    assert_eq!(*adopted.origin(), Origin::Adopted);
    assert_eq!(adopted.generation().unwrap(), Some(9));
    let unsupported = adopted.counters().unwrap().get(Direction::Egress, Reason::Unsupported).packets;
    assert!(unsupported > 0, "the packets were counted");
    lab.netns.run(|| adopted.detach()).unwrap();
    assert!(lab.netns.output("ping -c 1 -W 5 127.0.0.1").status.success(), "the device stays closed");
}

#[test]
fn a_recreated_interface_gets_new_links() {
    let lab = Lab::new();
    lab.netns.ip("link add gw9 type veth peer name gw9-peer");
    let open = || lab.netns.run(|| Acl::open_or_create("gw9", lab.dir(), &for_test_run()).unwrap());
    let mut first = open();
    first.install(&some_image(3)).unwrap();
    lab.netns.ip("link delete gw9");
    lab.netns.ip("link add gw9 type veth peer name gw9-peer");
    let second = open();
    assert_eq!(second.generation().unwrap(), Some(3));
    let programs = lab
        .netns
        .run(|| aya::programs::SchedClassifier::query_tcx("gw9", aya::programs::TcAttachType::Ingress));
    if second.attachment() == Attachment::Tcx {
        assert_eq!(programs.unwrap().1.len(), 1);
    }
    lab.netns.run(|| second.detach()).unwrap();
}

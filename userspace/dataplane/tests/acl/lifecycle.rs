//! Loading, adopting, replacing and removing.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Stdio};

use aya::programs::links::PinnedLink;
use ghostwire_dataplane::acl::{Acl, AclError, Attach, Attachment, BpfError, Options, Origin, Pins};
use ghostwire_ebpf_abi::event::{Direction, Reason};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::lab::{DROP, Lab, for_test_run, judge, udp};
use crate::netns::{Netns, eventually};
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
const DAEMON: &str = "lifecycle::daemon_for_the_tests_that_kill_it";
const DAEMON_DIR: &str = "GHOSTWIRE_TEST_DAEMON_DIR";

/// Not a test of its own: run with [`DAEMON_DIR`] set, it installs a policy and waits to be killed.
#[test]
fn daemon_for_the_tests_that_kill_it() {
    let Some(dir) = std::env::var_os(DAEMON_DIR) else { return };
    let mut acl = Acl::open_or_create("lo", dir.as_ref(), &Options::default()).unwrap();
    acl.install(&some_image(9)).unwrap();
    println!("attached: {:?} {:?}", acl.attachment(), acl.pins());
    loop {
        std::thread::park();
    }
}

/// Where a daemon's mounts are.
#[derive(Clone, Copy, PartialEq)]
enum Mounts {
    /// In the mount namespace of everybody.
    Host,
    /// In a namespace of its own with copies of the host's mounts, as `PrivateMounts=` makes it.
    Copied,
    /// The same with a BPF filesystem of its own, as under `ip netns exec`.
    Own,
}

/// Runs the daemon in the lab until its policy is installed, kills it, and returns how it was attached.
fn run_and_kill_a_daemon(lab: &Lab, mounts: Mounts) -> String {
    let separate = move || {
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        if mounts != Mounts::Host {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        }
        if mounts == Mounts::Own {
            mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), None::<&str>)?;
        }
        Ok(())
    };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", DAEMON, "--nocapture"]).env(DAEMON_DIR, lab.dir()).stdout(Stdio::piped());
    // SAFETY: between fork and exec there are only system calls, whose arguments are on the stack.
    unsafe { command.pre_exec(separate) };
    let mut daemon = lab.netns.run(|| command.spawn().unwrap());
    let output = BufReader::new(daemon.stdout.take().unwrap());
    let attached = output.lines().map_while(Result::ok).find(|line| line.contains("attached: "));
    daemon.kill().unwrap();
    assert_eq!(daemon.wait().unwrap().signal(), Some(9));
    attached.unwrap_or_else(|| panic!("the daemon failed"))
}

#[test]
fn kill_9_of_the_daemon_leaves_the_policy_in_force() {
    let lab = Lab::new();
    run_and_kill_a_daemon(&lab, Mounts::Host);
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
fn kill_9_in_a_mount_namespace_of_its_own_leaves_the_policy_in_force() {
    let lab = Lab::new();
    let attached_how = run_and_kill_a_daemon(&lab, Mounts::Own);
    // Its pins, and the maps for the next daemon, are gone; a link would be gone with them.
    assert!(!lab.dir().exists());
    assert!(!lab.netns.output("ping -c 1 -W 1 127.0.0.1").status.success(), "the device is open");
    assert_eq!(attached(&lab), 2);
    assert!(attached_how.contains("Clsact") && attached_how.contains("ip netns exec"), "{attached_how}");
    // A daemon that runs where it should takes over, and nothing of the old policy is left.
    let next = lab.open_with(&Options::default());
    assert_eq!(*next.origin(), Origin::Created);
    assert_eq!(*next.pins(), Pins::Lasting);
    assert_eq!(attached(&lab), 2, "the old filters are still there");
    assert!(lab.netns.run(|| next.is_attached()).unwrap());
    lab.netns.run(|| next.detach()).unwrap();
    assert!(lab.netns.output("ping -c 1 -W 5 127.0.0.1").status.success(), "the device stays closed");
}

#[test]
fn copies_of_the_hosts_mounts_are_as_good_as_the_hosts() {
    let lab = Lab::new();
    let attached_how = run_and_kill_a_daemon(&lab, Mounts::Copied);
    assert!(attached_how.contains("Lasting"), "{attached_how}");
    assert_eq!(attached(&lab), 2);
    let adopted = lab.open_with(&Options::default());
    assert_eq!(*adopted.origin(), Origin::Adopted);
    assert_eq!(adopted.generation().unwrap(), Some(9));
}

#[test]
fn what_is_pinned_for_another_namespace_is_neither_taken_nor_removed() {
    let lab = Lab::new();
    let mut first = lab.open();
    first.install(&some_image(5)).unwrap();
    if first.attachment() == Attachment::Clsact {
        // Filters have no pins to mistake.
        return;
    }
    // The interface has the same name and even the same index.
    let other = Netns::new();
    let refused = other.run(|| Acl::open_or_create("lo", lab.dir(), &for_test_run())).unwrap_err();
    assert!(matches!(refused, AclError::Bpf(BpfError::PinInUse { holder: 1, .. })), "{refused}");
    other.run(|| Acl::remove("lo", lab.dir())).unwrap();
    assert!(lab.netns.run(|| first.is_attached()).unwrap());
    drop(first);
    assert_eq!(attached(&lab), 2);
    assert_eq!(lab.open().generation().unwrap(), Some(5));
}

/// Detaches one program as somebody who does not know what he does would.
fn detach_by_hand(lab: &Lab, attachment: Attachment) {
    match attachment {
        Attachment::Tcx => {
            let link = PinnedLink::from_pin(lab.dir().join("lo/egress")).unwrap();
            drop(link.unpin().unwrap());
        }
        Attachment::Clsact => drop(lab.netns.command("tc filter del dev lo egress")),
    }
}

#[test]
fn a_program_that_is_detached_by_hand_is_missed_and_attached_again() {
    for attach in [Attach::Auto, Attach::Clsact] {
        let lab = Lab::new();
        let options = Options { attach, ..for_test_run() };
        let mut acl = lab.open_with(&options);
        acl.install(&some_image(5)).unwrap();
        let is_attached = |acl: &Acl| lab.netns.run(|| acl.is_attached()).unwrap();
        assert!(is_attached(&acl));
        assert!(!Netns::new().run(|| acl.is_attached()).unwrap(), "another namespace has another lo");
        for _ in 0..2 {
            detach_by_hand(&lab, acl.attachment());
            eventually("the program is gone", || !is_attached(&acl));
            assert_eq!(attached(&lab), 1);
            lab.netns.run(|| acl.attach_again()).unwrap();
            assert!(is_attached(&acl));
            assert_eq!(attached(&lab), 2);
        }
        // By another daemon as well.
        detach_by_hand(&lab, acl.attachment());
        drop(acl);
        let again = lab.open_with(&options);
        assert!(is_attached(&again));
        assert_eq!(*again.origin(), Origin::Adopted);
        assert_eq!((again.generation().unwrap(), attached(&lab)), (Some(5), 2));
    }
}

#[test]
fn pins_and_qdisc_that_are_removed_by_hand_are_made_again() {
    for attach in [Attach::Auto, Attach::Clsact] {
        let lab = Lab::new();
        let mut acl = lab.open_with(&Options { attach, ..for_test_run() });
        acl.install(&some_image(5)).unwrap();
        std::fs::remove_dir_all(lab.dir()).unwrap();
        if acl.attachment() == Attachment::Clsact {
            lab.netns.command("tc qdisc del dev lo clsact");
        }
        eventually("the programs are gone", || attached(&lab) == 0);
        lab.netns.run(|| acl.attach_again()).unwrap();
        assert_eq!(attached(&lab), 2);
        assert_eq!(acl.generation().unwrap(), Some(5), "the maps are held by who uses them");
    }
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

#[test]
fn the_verifier_budget_is_kept() {
    let lab = Lab::new();
    let acl = lab.open();
    let programs = [("acl_ingress", Direction::Ingress), ("acl_egress", Direction::Egress)]
        .map(|(name, direction)| (name, acl.program(direction).unwrap().info().unwrap()));
    crate::budget::check(&programs, ghostwire_dataplane::acl::OBJECT);
}

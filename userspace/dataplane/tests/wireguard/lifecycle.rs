//! Devices made, adopted, replaced and removed.

use std::{
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
};

use ghostwire_dataplane::{
    netlink::LinkName,
    wireguard::{Backend, Choice, DeviceConfig, Error, Opened, Options, PeerConfig, PrivateKey, adopt},
};

use crate::lab::{Node, Session, engines, lone_device, name, only_peer, options, pair};
use crate::netns::eventually;

#[test]
fn killing_the_daemon_loses_no_packet() {
    let (a, b) = (Node::new(Choice::Userspace, 51820), Node::new(Choice::Userspace, 51821));
    a.netns.connect(&b.netns, "eth0", "192.0.2.1/24", "192.0.2.2/24");
    let mut daemon = a.netns.run(|| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "daemon_process", "--nocapture", "--test-threads=1", "--", "daemon-of"])
            .arg(a.dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    });
    eventually("the daemon is ready", || a.dir.path().join("daemon-is-ready").exists());

    let _at_b = b.start(2, &[a.as_peer(1)]);
    let (at_a, opened) = a.open();
    assert_eq!(opened, Opened::Adopted);
    at_a.apply(&a.config(), &[b.as_peer(2)]).unwrap();
    a.netns.ip("address add 100.64.0.1/10 dev gw0");
    a.netns.ip("link set gw0 up");
    a.ping("100.64.0.2");

    let mut pings = b.netns.run(|| {
        Command::new("ping")
            .args(["-n", "-c", "100", "-i", "0.02", "-W", "20", "100.64.0.1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let before = only_peer(&at_a).rx_bytes;
    eventually("pings flow", || only_peer(&at_a).rx_bytes > before + 500);
    let session = Session::of(&at_a);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let mut report = String::new();
    pings.stdout.take().unwrap().read_to_string(&mut report).unwrap();
    pings.wait().unwrap();
    assert!(report.contains("100 packets transmitted, 100 received"), "{report}");
    assert!(session.lives_on(&a.open().0));
}

#[test]
fn adopting_and_applying_again_resets_no_session() {
    for choice in engines() {
        let (a, at_a, b, _at_b) = pair(choice);
        a.ping("100.64.0.2");
        let (session, before) = (Session::of(&at_a), only_peer(&at_a));
        drop(at_a);
        for choice in [choice, Choice::Auto] {
            let options = options(a.dir.path(), choice);
            let (device, opened) = a.open_as(&options).unwrap();
            assert_eq!(opened, Opened::Adopted);
            let change = device.apply(&a.config(), &[b.as_peer(2)]).unwrap();
            assert!(change.is_empty(), "{change:?}");
            a.ping("100.64.0.2");
            let after = only_peer(&device);
            assert!(session.lives_on(&device), "{after:?}");
            assert!(after.rx_bytes > before.rx_bytes);
        }
    }
}

#[test]
fn a_new_device_makes_no_link_local_address() {
    for choice in engines() {
        let node = Node::new(choice, 51820);
        let device = node.start(1, &[]);
        let details = node.netns.ip("-d link show gw0");
        assert!(details.contains("addrgenmode none"), "{}: {details}", device.backend());
        assert!(!node.netns.ip("-6 address show dev gw0").contains("fe80::"));
    }
}

#[test]
fn a_foreign_interface_of_the_same_name_is_refused_and_left_alone() {
    for choice in engines() {
        let node = Node::new(choice, 51820);
        node.netns.ip("link add gw0 type bridge");
        let options = options(node.dir.path(), choice);
        let error = node.open_as(&options).err().unwrap();
        assert!(matches!(error, Error::NameTaken { .. }), "{error}");
        assert!(error.to_string().contains("ip link delete gw0"), "{error}");
        assert!(node.netns.ip("-d link show gw0").contains("bridge"));
    }
}

#[test]
fn a_device_of_ours_with_another_engine_is_replaced() {
    let engines = engines();
    if let [kernel, userspace] = engines[..] {
        let node = Node::new(userspace, 51820);
        let (device, _) = node.open();
        assert_eq!(device.backend(), Backend::Userspace);
        for (choice, backend) in [(kernel, Backend::Kernel), (userspace, Backend::Userspace)] {
            let options = options(node.dir.path(), choice);
            let (device, opened) = node.open_as(&options).unwrap();
            assert_eq!((device.backend(), opened), (backend, Opened::Created));
        }
    } else {
        let node = Node::new(Choice::Kernel, 51820);
        let options = options(node.dir.path(), Choice::Kernel);
        let error = node.open_as(&options).err().unwrap();
        assert!(matches!(error, Error::NoKernelSupport), "{error}");
    }
}

#[test]
fn other_devices_are_left_alone() {
    for choice in engines() {
        let (a, at_a, _b, _at_b) = pair(choice);
        let second: LinkName = "gw1".parse().unwrap();
        let options = Options { name: second.clone(), ..options(a.dir.path(), choice) };
        let (other, opened) = a.open_as(&options).unwrap();
        assert_eq!(opened, Opened::Created);
        let config = DeviceConfig { listen_port: 51900, ..a.config() };
        other.apply(&config, &[PeerConfig::new(PrivateKey::generate().public_key())]).unwrap();
        assert_eq!(other.status().unwrap().peers.len(), 1);
        assert_eq!(at_a.status().unwrap().listen_port, 51820);
        other.delete().unwrap();
        a.ping("100.64.0.2");
    }
}

#[test]
fn deleting_the_device_ends_its_process_and_leaves_nothing() {
    let (node, device, userspace) = lone_device();
    let pid = userspace.pid().unwrap();
    device.delete().unwrap();
    eventually("the process is gone", || !Path::new(&format!("/proc/{pid}")).exists());
    assert!(!userspace.socket().exists());
    assert!(!node.netns.ip("-o link").contains("gw0"));
    assert!(adopt(&name(), node.dir.path()).unwrap().is_none());
    userspace.stop().unwrap();
    // And it can be made again.
    assert_eq!(node.open().1, Opened::Created);
}

#[test]
fn the_process_ends_when_its_interface_is_deleted_and_is_replaced() {
    let (node, device, userspace) = lone_device();
    device.apply(&node.config(), &[]).unwrap();
    let pid = userspace.pid().unwrap();
    node.netns.ip("link delete gw0");
    eventually("the process is gone", || !Path::new(&format!("/proc/{pid}")).exists());
    assert!(matches!(device.status(), Err(Error::Gone(_))));
    assert!(matches!(device.link(), Err(Error::Gone(_))));
    assert_eq!(node.open().1, Opened::Created);
}

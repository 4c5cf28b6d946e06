//! The process of a userspace device, and its configuration protocol.

use std::{
    io::{Read as _, Write as _},
    num::NonZeroU16,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    process::Command,
};

use ghostwire_dataplane::wireguard::{DeviceStatus, Error, PeerUpdate, PrivateKey, SUBCOMMAND, Update};

use crate::lab::{lone_device, only_peer};
use crate::netns::Netns;

fn set(peers: Vec<PeerUpdate>) -> Update {
    Update { peers, ..Update::default() }
}

#[test]
fn userspace_devices_do_what_the_configuration_protocol_says() {
    let (node, device, _) = lone_device();
    let keys: Vec<_> = (0..3).map(|_| PrivateKey::generate().public_key()).collect();
    assert_eq!(device.status().unwrap(), DeviceStatus::default());

    // Without a key there can be neither port nor peers.
    for change in [set(vec![PeerUpdate::new(keys[0])]), Update { listen_port: Some(1), ..Update::default() }]
    {
        let error = device.change(&change).unwrap_err();
        assert!(
            matches!(&error, Error::Refused { source, .. } if source.raw_os_error() == Some(libc::ENOKEY))
        );
    }
    device.apply(&node.config(), &[]).unwrap();

    let listed = || {
        let mut listed: Vec<_> =
            device.status().unwrap().peers.into_iter().map(|peer| peer.public_key).collect();
        listed.sort();
        listed
    };
    let sorted = |mut keys: Vec<_>| {
        keys.sort();
        keys
    };
    // update_only adds nothing; a plain change does; remove removes; replace_peers leaves the named.
    device.change(&set(vec![PeerUpdate { update_only: true, ..PeerUpdate::new(keys[0]) }])).unwrap();
    assert_eq!(listed(), []);
    device.change(&set(keys.iter().copied().map(PeerUpdate::new).collect())).unwrap();
    assert_eq!(listed(), sorted(keys.clone()));
    device.change(&set(vec![PeerUpdate::removal(keys[0]), PeerUpdate::removal(keys[0])])).unwrap_err();
    device.change(&set(vec![PeerUpdate::removal(keys[0])])).unwrap();
    assert_eq!(listed(), sorted(keys[1..].to_vec()));
    let rest = Update { replace_peers: true, ..set(vec![PeerUpdate::new(keys[2])]) };
    device.change(&rest).unwrap();
    assert_eq!(listed(), [keys[2]]);

    // allowed_ip adds, replace_allowed_ips replaces, 0 switches keepalive off.
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
    let one =
        PeerUpdate { allowed_ips: nets(&["10.0.0.0/8"]), keepalive: Some(9), ..PeerUpdate::new(keys[2]) };
    device.change(&set(vec![one.clone()])).unwrap();
    device.change(&set(vec![PeerUpdate { allowed_ips: nets(&["fd00::/8"]), ..one.clone() }])).unwrap();
    assert_eq!(only_peer(&device).allowed_ips.len(), 2);
    assert_eq!(only_peer(&device).keepalive, NonZeroU16::new(9));
    let replaced = PeerUpdate {
        allowed_ips: nets(&["10.1.0.0/16"]),
        replace_allowed_ips: true,
        keepalive: Some(0),
        ..one
    };
    device.change(&set(vec![replaced])).unwrap();
    assert_eq!(only_peer(&device).allowed_ips, nets(&["10.1.0.0/16"]));
    assert_eq!(only_peer(&device).keepalive, None);
    let none = Update { replace_peers: true, ..Update::default() };
    device.change(&none).unwrap();
    assert_eq!(listed(), []);
}

#[test]
fn the_configuration_socket_is_private_and_survives_nonsense() {
    let (_node, device, userspace) = lone_device();
    let mode = std::fs::metadata(userspace.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let long = vec![b'x'; 100_000];
    let nonsense: [&[u8]; 5] =
        [b"\xff\xfe\n\n", b"get=1\nwhat=1\n\n", b"set=1\nprivate_key=short\n\n", b"hello\n\n", &long];
    for bytes in nonsense {
        let mut stream = UnixStream::connect(userspace.socket()).unwrap();
        // The process may hang up before it has read everything.
        drop(stream.write_all(bytes));
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer));
        assert!(answer.is_empty() || answer == format!("errno={}\n\n", libc::EINVAL), "{answer}");
        device.status().unwrap();
    }
    // Two questions in one breath are two answers.
    let mut stream = UnixStream::connect(userspace.socket()).unwrap();
    stream.write_all(b"get=1\n\nget=1\n\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers, "listen_port=0\nerrno=0\n\n".repeat(2));
}

#[test]
fn the_userspace_process_has_no_more_rights_than_it_needs() {
    let (_node, _device, userspace) = lone_device();
    let pid = userspace.pid().unwrap();
    // The test harness, unlike the daemon's program, calls the helper on a thread that is not the
    // first: what is true of that one is seen in the threads that it started.
    let mut threads = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..].trim().to_owned()
        };
        if !field("Name:").starts_with("tokio") {
            continue;
        }
        threads += 1;
        let effective = u64::from_str_radix(&field("CapEff:"), 16).unwrap();
        let allowed = (1 << 12) | (1 << 10);
        assert_eq!(effective & !allowed, 0, "{effective:x}");
        assert_eq!(field("NoNewPrivs:"), "1");
    }
    assert!(threads > 0);
    let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).unwrap();
    assert_eq!(session.as_raw(), pid, "a session of its own");
}

#[test]
fn a_second_process_for_the_same_device_is_refused() {
    let (node, _device, _) = lone_device();
    let other = Netns::new();
    let started = other.run(|| {
        let program = std::env::current_exe().unwrap();
        Command::new(program)
            .args(["--exact", "helper_process", "--nocapture", "--", SUBCOMMAND, "gw0", "--uapi-dir"])
            .arg(node.dir.path())
            .output()
            .unwrap()
    });
    assert_eq!(started.status.code(), Some(1));
    let text = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(text.contains("another process already runs"), "{text}");
}

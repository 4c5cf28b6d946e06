//! Relaying in the kernel: the real process with XDP in the driver's mode, between namespaces.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ghostwire_relay_protocol::control::Action;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::udp::{MAIN, Node, data, meet, uninterrupted};
use crate::world::{World, apart};

/// Datagrams both ways, until all that are sent come through the kernel's program.
fn exchange(a: &Node, b: &Node, (port_a, port_b): (u16, u16), count: u8) {
    for number in 0..count {
        a.send(port_b, &data(number, 200));
        assert_eq!(b.receive(), (data(number, 200), b.relay_at(port_a)));
        b.send(port_a, &data(number, 1300));
        assert_eq!(a.receive(), (data(number, 1300), a.relay_at(port_b)));
    }
}

#[test]
fn datagrams_are_relayed_in_the_kernel_within_and_between_the_families() {
    apart(|| {
        let world = World::routed();
        let relay = world.start(TempDir::new().unwrap(), &["--xdp", "native"]);
        assert!(relay.ready.contains("by XDP on r0 (native)"), "{}", relay.ready);
        let mut sockets = 0;
        for (at_a, at_b, result) in [
            ("198.51.100.1:0", "198.51.101.1:0", "returned"),
            ("[2001:db8:a::1]:0", "[2001:db8:b::1]:0", "returned"),
            ("198.51.100.1:0", "[2001:db8:b::1]:0", "crossed"),
        ] {
            let (mut a, mut b) = world.nodes(&relay, at_a, at_b);
            let ports = meet(&mut a, &mut b);
            let before = world.xdp(result);
            exchange(&a, &b, ports, 50);
            assert_eq!(world.xdp(result) - before, 100, "{at_a} {at_b}");
            a.ask(Action::Release, None, MAIN).unwrap();
            b.ask(Action::Release, None, MAIN).unwrap();
            sockets = world.metric("socket_packets_total{result=\"forwarded\"}");
        }
        assert_eq!(sockets, 0, "nothing took the slow path");
        assert_eq!(world.xdp("spoilt"), 0);
    });
}

#[test]
fn between_network_cards_datagrams_follow_the_kernels_routes() {
    apart(|| {
        let world = World::two_cards();
        let cards = ["--xdp", "native", "--xdp-interface", "ra,rb"];
        let relay = world.start(TempDir::new().unwrap(), &cards);
        for (at_a, at_b) in [("198.51.100.1:0", "198.51.101.1:0"), ("[2001:db8:a::1]:0", "198.51.101.1:0")] {
            let (mut a, mut b) = world.nodes(&relay, at_a, at_b);
            let ports = meet(&mut a, &mut b);
            let before = world.xdp("routed");
            exchange(&a, &b, ports, 50);
            assert_eq!(world.xdp("routed") - before, 100, "{at_a} {at_b}");
            a.ask(Action::Release, None, MAIN).unwrap();
            b.ask(Action::Release, None, MAIN).unwrap();
        }
    });
}

#[test]
fn generic_code_and_userspace_do_where_the_driver_does_not() {
    apart(|| {
        let world = World::routed();
        let relay = world.start(TempDir::new().unwrap(), &["--xdp", "generic"]);
        assert!(relay.ready.contains("by XDP on r0 (generic)"), "{}", relay.ready);
        let (mut a, mut b) = world.nodes(&relay, "198.51.100.1:0", "198.51.101.1:0");
        let ports = meet(&mut a, &mut b);
        exchange(&a, &b, ports, 20);
        assert_eq!(world.xdp("returned"), 40);
        // Fragments are put together by the kernel and relayed by userspace.
        let before = world.metric("socket_packets_total{result=\"forwarded\"}");
        a.send(ports.1, &data(1, 3000));
        let mut buffer = [0; 4000];
        let (len, _) = uninterrupted(|| b.socket.recv_from(&mut buffer)).unwrap();
        assert_eq!(buffer[..len], data(1, 3000));
        assert_eq!(world.metric("socket_packets_total{result=\"forwarded\"}") - before, 1);
        assert!(world.xdp("fragment") >= 2);
    });
}

/// Sends numbered datagrams all the time while `change` happens; all of them have to arrive.
fn nothing_is_lost_during<T>(a: &Node, b: &Node, port_b: u16, change: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    let numbered = |number: u32| {
        let mut payload = data(0, 100);
        payload[96..].copy_from_slice(&number.to_be_bytes());
        payload
    };
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut number = 0_u32;
            while !done.load(Ordering::Relaxed) {
                a.send(port_b, &numbered(number));
                number += 1;
                std::thread::sleep(Duration::from_micros(500));
            }
            number
        });
        let receiver = scope.spawn(|| {
            let mut next = 0_u32;
            let mut buffer = [0; 2048];
            loop {
                let (len, _) = uninterrupted(|| b.socket.recv_from(&mut buffer)).unwrap();
                let number = u32::from_be_bytes(buffer[len - 4..len].try_into().unwrap());
                if number == u32::MAX {
                    return next;
                }
                assert_eq!(number, next, "lost or reordered");
                next += 1;
            }
        });
        let result = change();
        done.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap();
        a.send(port_b, &numbered(u32::MAX));
        assert_eq!(receiver.join().unwrap(), sent);
        assert!(sent > 100, "{sent}");
        result
    })
}

#[test]
fn a_relay_that_is_killed_or_upgraded_drops_nothing_and_goes_on() {
    apart(|| {
        let world = World::routed();
        let relay = world.start(TempDir::new().unwrap(), &["--xdp", "native"]);
        let (mut a, mut b) = world.nodes(&relay, "198.51.100.1:0", "198.51.101.1:0");
        let (port_a, port_b) = meet(&mut a, &mut b);
        exchange(&a, &b, (port_a, port_b), 5);

        let relay = nothing_is_lost_during(&a, &b, port_b, || {
            let state = relay.kill();
            std::thread::sleep(Duration::from_millis(200));
            world.start(state, &["--xdp", "native"])
        });
        // It knows whose ports and bindings it has found.
        assert_eq!(world.metric("nodes"), 2);
        assert_eq!(world.metric("pairs"), 1);
        assert_eq!(a.ask(Action::Refresh, None, MAIN).unwrap().relayed.port(), port_a);
        assert!(a.ask(Action::Refresh, Some(2), port_b).unwrap().peer_bound);

        let relay = nothing_is_lost_during(&a, &b, port_b, || {
            let state = relay.end(Signal::SIGHUP);
            world.start(state, &["--xdp", "native"])
        });
        exchange(&a, &b, (port_a, port_b), 5);
        // A pair that ends after all that is gone from the kernel, too.
        a.ask(Action::Release, None, MAIN).unwrap();
        let before = world.xdp("unknown_source");
        b.send(port_a, &data(1, 100));
        b.ask(Action::Refresh, None, MAIN).unwrap();
        assert_eq!(world.xdp("unknown_source") - before, 1);
        b.ask(Action::Release, None, MAIN).unwrap();

        relay.end(Signal::SIGTERM);
        assert!(!world.pins.exists(), "pins are left");
        world.relay.enter();
        let link = Command::new("ip").args(["link", "show", "r0"]).output().unwrap();
        assert!(!String::from_utf8_lossy(&link.stdout).contains("xdp"), "the program is left");
    });
}

#[test]
fn what_a_killed_relay_left_can_be_removed() {
    apart(|| {
        let world = World::routed();
        let relay = world.start(TempDir::new().unwrap(), &["--xdp", "native"]);
        let _state = relay.kill();
        assert!(world.pins.exists());
        let binary = env!("CARGO_BIN_EXE_ghostwire-relay");
        let status = Command::new(binary).arg("detach").arg("--bpf-dir").arg(&world.pins).status().unwrap();
        assert!(status.success() && !world.pins.exists());
    });
}

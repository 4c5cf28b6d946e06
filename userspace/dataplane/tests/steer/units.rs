//! Single packets through the programs by `BPF_PROG_TEST_RUN`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};

use ghostwire_dataplane::steer::{Class, Family, Path, PeerId, Reason, Steer, carried};
use ghostwire_dataplane::wireguard::Choice;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::lab::{Node, counted};
use crate::netns::Netns;
use crate::packets::{ETHERNET, Read, frame, read, udp, without_checksum};

const PASS: u32 = u32::MAX;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;

/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE` (Linux 6.16): the packet as a device hands it over that has summed all of it; the
/// sum is compared afterwards.
const SUMMED: u32 = 4;

const PEER: PeerId = PeerId(0x0907);
const LOCAL4: &str = "192.0.2.1:51821";
const LOCAL6: &str = "[2001:db8:1::1]:51821";
const REMOTE4: &str = "192.0.2.2:40000";
const REMOTE6: &str = "[2001:db8:1::2]:40001";
const STRANGER4: &str = "192.0.2.9:40000";
const STRANGER6: &str = "[2001:db8:1::9]:40001";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A node with an uplink whose other end nobody uses.
struct Bench {
    node: Node,
    _neighbour: Netns,
    steer: Steer,
}

impl Bench {
    fn new(family: Family) -> Self {
        let mut node = Node::new(Choice::Userspace, 1);
        node.options.l3_offset = 14;
        node.options.family = family;
        node.options.unknown_per_second = u32::MAX;
        node.options.control_per_second = u32::MAX;
        let neighbour = Netns::new();
        node.netns.connect(&neighbour, "eth0", "192.0.2.1/24", "192.0.2.2/24");
        node.netns.ip("address add 2001:db8:1::1/64 dev eth0 nodad");
        let mut steer = node.steer();
        node.set_uplinks(&mut steer);
        for remote in [REMOTE4, REMOTE6] {
            steer.admit(at(remote), PEER, Class::Direct).unwrap();
        }
        Self { node, _neighbour: neighbour, steer }
    }

    fn wire(&self, local: &str, remote: &str) -> Path {
        self.node.wire(&at(local).ip().to_string(), remote)
    }

    /// Runs a program. Returns its verdict and the frame afterwards.
    fn run(&self, program: &'static str, frame: &[u8], flags: u32) -> io::Result<(u32, Vec<u8>)> {
        let descriptor = self.steer.program(program).unwrap().fd().unwrap();
        self.node.netns.run(|| test_run(descriptor.as_fd().as_raw_fd(), frame, flags))
    }

    /// Runs a program on a packet at an Ethernet device, and says what it was counted as.
    fn judge(&self, program: &'static str, packet: &[u8]) -> (u32, Option<Reason>) {
        let before = self.steer.counters().unwrap();
        let (verdict, _) = self.run(program, &frame(packet), 0).unwrap();
        let after = self.steer.counters().unwrap();
        let counted =
            Reason::ALL.into_iter().find(|reason| after.get(*reason).packets != before.get(*reason).packets);
        (verdict, counted)
    }
}

/// `BPF_PROG_TEST_RUN` and the attributes that it takes.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

fn test_run(program: i32, frame: &[u8], flags: u32) -> io::Result<(u32, Vec<u8>)> {
    let mut out = vec![0_u8; 4096];
    let mut attr = RunAttr {
        prog_fd: program.cast_unsigned(),
        data_size_in: u32::try_from(frame.len()).unwrap(),
        data_size_out: u32::try_from(out.len()).unwrap(),
        data_in: frame.as_ptr().expose_provenance() as u64,
        data_out: out.as_mut_ptr().expose_provenance() as u64,
        repeat: 1,
        flags,
        ..RunAttr::default()
    };
    // SAFETY: the attributes name buffers of the lengths that they say.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, 10, std::ptr::from_mut(&mut attr), size_of::<RunAttr>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    out.truncate(usize::try_from(attr.data_size_out).unwrap());
    Ok((attr.retval, out))
}

fn data(length: usize) -> Vec<u8> {
    let mut payload = vec![4, 0, 0, 0];
    payload.extend((0..=u8::MAX).cycle().step_by(31).take(length.saturating_sub(4)));
    payload
}

/// Lengths around the smallest message, odd and even, up to a full packet.
const LENGTHS: [usize; 7] = [32, 33, 48, 149, 500, 1431, 1452];

#[test]
fn what_comes_in_is_from_the_stable_endpoint_with_right_checksums() {
    for family in [Family::V4, Family::V6] {
        let bench = Bench::new(family);
        let own = match family {
            Family::V4 => "198.19.0.1:51821",
            Family::V6 => "[fd67:7773:7465:6572::1:1]:51821",
        };
        for (remote, local) in [(REMOTE4, LOCAL4), (REMOTE6, LOCAL6)] {
            for length in LENGTHS {
                let payload = data(length);
                let packet = udp(at(remote), at(local), &payload);
                let (verdict, out) = bench.run("steer_in", &frame(&packet), 0).unwrap();
                assert_eq!(verdict, REDIRECT, "{remote} {length}");
                let expected = Read {
                    src: PEER.stable_endpoint(family),
                    dst: at(own),
                    class: 0x28,
                    hops: 63,
                    payload: &payload,
                };
                assert_eq!(read(&out[ETHERNET..], true), expected);
                match bench.run("steer_in", &frame(&packet), SUMMED) {
                    Ok((verdict, _)) => assert_eq!(verdict, REDIRECT),
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                        println!("NOT COVERED HERE: packets that the device has summed (Linux 6.16)");
                    }
                    Err(error) => panic!("{family:?} {remote} {length}: the sum is wrong now: {error}"),
                }
            }
        }
        // IPv4 may do without a checksum, where it stays IPv4.
        let bare = without_checksum(udp(at(REMOTE4), at(LOCAL4), &data(64)));
        let (verdict, out) = bench.run("steer_in", &frame(&bare), 0).unwrap();
        match family {
            Family::V4 => {
                assert_eq!(verdict, REDIRECT);
                read(&out[ETHERNET..], false);
            }
            Family::V6 => assert_eq!((verdict, counted(&bench.steer, Reason::NoChecksum)), (DROP, 1)),
        }
        let traffic = bench.steer.traffic(PEER).received[Class::Direct as usize];
        assert!(traffic.packets >= 14 && traffic.bytes > 7000, "{traffic:?}");
    }
}

#[test]
fn what_goes_out_takes_the_path_with_right_checksums() {
    for family in [Family::V4, Family::V6] {
        let mut bench = Bench::new(family);
        let own = match family {
            Family::V4 => "198.19.0.1:51821",
            Family::V6 => "[fd67:7773:7465:6572::1:1]:51821",
        };
        for (local, remote) in [(LOCAL4, REMOTE4), (LOCAL6, REMOTE6)] {
            let path = bench.wire(local, remote);
            bench.node.set_path(&mut bench.steer, PEER, &path, None);
            for length in LENGTHS {
                // With its IPv6 header the longest would not fit.
                let payload = data(length.min(1452));
                let packet = udp(at(own), PEER.stable_endpoint(family), &payload);
                let (verdict, out) = bench.run("steer_out", &frame(&packet), 0).unwrap();
                assert_eq!(verdict, REDIRECT, "{remote} {length}");
                // Room for a second Ethernet header was made in front of the test's own.
                let expected =
                    Read { src: at(local), dst: at(remote), class: 0x28, hops: 63, payload: &payload };
                assert_eq!(read(&out[2 * ETHERNET..], true), expected);
            }
            let packet = udp(at(own), PEER.stable_endpoint(family), &data(1480));
            assert_eq!(bench.judge("steer_out", &packet), (DROP, Some(Reason::TooBig)));
        }
        let carrier = Path::Carrier { class: Class::Quic };
        bench.node.set_path(&mut bench.steer, PEER, &carrier, None);
        let packet = udp(at(own), PEER.stable_endpoint(family), &data(64));
        assert_eq!(bench.judge("steer_out", &packet), (0, None));
        assert_eq!(bench.steer.traffic(PEER).sent[Class::Quic as usize].packets, 1);
        let other = PeerId(77).stable_endpoint(family);
        assert_eq!(bench.judge("steer_out", &udp(at(own), other, &data(64))), (DROP, Some(Reason::NoPath)));
        let wrong_port = SocketAddr::new(other.ip(), 1);
        let not = (DROP, Some(Reason::NotSynthetic));
        assert_eq!(bench.judge("steer_out", &udp(at(own), wrong_port, &data(64))), not);
        let foreign = if family == Family::V4 { LOCAL4 } else { LOCAL6 };
        assert_eq!(bench.judge("steer_out", &udp(at(foreign), other, &data(64))), not);
    }
}

#[test]
fn the_controller_gets_what_is_its_and_the_port_is_put_back() {
    let bench = Bench::new(Family::V4);
    let stun = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
    let dressed = carried::wrap(&stun);
    for (remote, stranger, local) in [(REMOTE4, STRANGER4, LOCAL4), (REMOTE6, STRANGER6, LOCAL6)] {
        for (from, payload, reason) in [
            (remote, &stun, Reason::ControlReported),
            (remote, &dressed, Reason::ControlReported),
            (stranger, &stun, Reason::ControlReported),
            (stranger, &data(64), Reason::UnknownReported),
        ] {
            let packet = udp(at(from), at(local), payload);
            assert_eq!(bench.judge("steer_in", &packet), (PASS, Some(reason)));
            let (_, out) = bench.run("steer_in", &frame(&packet), 0).unwrap();
            let inside = read(&out[ETHERNET..], true);
            assert_eq!((inside.src, inside.payload), (at(from), &payload[..]));
            assert_ne!(inside.dst.port(), at(local).port());
            // What the controller sends from there leaves from WireGuard's port.
            let answer = udp(inside.dst, at(from), payload);
            let (verdict, out) = bench.run("uplink_out", &frame(&answer), 0).unwrap();
            assert_eq!(verdict, PASS);
            let outside = read(&out[ETHERNET..], true);
            assert_eq!((outside.src, outside.dst), (at(local), at(from)));
            // Everybody else's datagrams are left alone.
            let other = udp(at(local), at(from), payload);
            let (verdict, out) = bench.run("uplink_out", &frame(&other), 0).unwrap();
            assert_eq!((verdict, &out[ETHERNET..]), (PASS, &other[..]));
        }
    }
    let escaping = udp(at(LOCAL4), PEER.stable_endpoint(Family::V4), &data(64));
    assert_eq!(bench.judge("uplink_out", &escaping), (DROP, Some(Reason::Escaped)));
    let escaping = udp(at(LOCAL6), PEER.stable_endpoint(Family::V6), &data(64));
    assert_eq!(bench.judge("uplink_out", &escaping), (DROP, Some(Reason::Escaped)));
}

/// An IPv6 packet with a header in between.
fn with_extension(packet: &[u8], kind: u8, header: [u8; 8]) -> Vec<u8> {
    let mut longer = packet[..40].to_vec();
    let length = u16::from_be_bytes([packet[4], packet[5]]) + 8;
    longer[4..6].copy_from_slice(&length.to_be_bytes());
    longer[6] = kind;
    longer.extend(header);
    longer.extend(&packet[40..]);
    longer
}

#[test]
fn options_extension_headers_and_fragments_are_no_way_in() {
    let bench = Bench::new(Family::V4);
    let packet = udp(at(STRANGER6), at(LOCAL6), &data(64));
    let mut chain = packet.clone();
    for _ in 0..12 {
        chain = with_extension(&chain, 60, [chain[6], 0, 1, 4, 0, 0, 0, 0]);
    }
    for (kind, header, expected) in [
        (0, [17, 0, 1, 4, 0, 0, 0, 0], Some(Reason::Options)),
        (60, [17, 0, 1, 4, 0, 0, 0, 0], Some(Reason::Options)),
        (43, [17, 0, 4, 0, 0, 0, 0, 0], Some(Reason::Options)),
        (44, [17, 0, 0, 1, 0, 0, 0, 9], Some(Reason::Fragment)),
        (44, [17, 0, 0, 0, 0, 0, 0, 9], Some(Reason::Options)),
        (44, [17, 0, 0x10, 1, 0, 0, 0, 9], None),
    ] {
        let verdict = if expected.is_some() { DROP } else { PASS };
        let extended = with_extension(&packet, kind, header);
        assert_eq!(bench.judge("steer_in", &extended), (verdict, expected), "{kind} {header:?}");
        // To another port it is none of our business.
        let elsewhere =
            with_extension(&udp(at(STRANGER6), at("[2001:db8:1::1]:53"), &data(64)), kind, header);
        assert_eq!(bench.judge("steer_in", &elsewhere), (PASS, None));
    }
    let (verdict, counted) = bench.judge("steer_in", &chain);
    assert_eq!(verdict, DROP, "{counted:?}");
    let mut optional = udp(at(REMOTE4), at(LOCAL4), &data(64));
    optional[0] = 0x46;
    let total = u16::try_from(optional.len() + 4).unwrap();
    optional[2..4].copy_from_slice(&total.to_be_bytes());
    optional.splice(20..20, [1, 1, 1, 1]);
    assert_eq!(bench.judge("steer_in", &optional), (DROP, Some(Reason::Options)));
    let mut fragment = udp(at(REMOTE4), at(LOCAL4), &data(64));
    fragment[6] = 0x20;
    assert_eq!(bench.judge("steer_in", &fragment), (DROP, Some(Reason::Fragment)));
    fragment[6..8].copy_from_slice(&[0, 9]);
    assert_eq!(bench.judge("steer_in", &fragment), (PASS, None), "a later one leads nowhere by itself");
}

#[test]
fn truncated_and_damaged_packets_are_never_steered_and_nothing_breaks() {
    let mut bench = Bench::new(Family::V4);
    let path = bench.wire(LOCAL6, REMOTE6);
    bench.node.set_path(&mut bench.steer, PEER, &path, None);
    let out = udp(at("198.19.0.1:51821"), PEER.stable_endpoint(Family::V4), &data(40));
    let samples = [
        udp(at(REMOTE4), at(LOCAL4), &data(40)),
        udp(at(REMOTE6), at(LOCAL6), &data(40)),
        with_extension(&udp(at(REMOTE6), at(LOCAL6), &data(40)), 60, [17, 0, 1, 4, 0, 0, 0, 0]),
        out,
    ];
    for program in ghostwire_dataplane::steer::PROGRAMS {
        for sample in &samples {
            for length in 0..sample.len() {
                // The kernel itself refuses frames that are shorter than the IP header of their type.
                let Ok((verdict, _)) = bench.run(program, &frame_as(sample, length), 0) else { continue };
                assert_ne!(verdict, REDIRECT, "{program} {length} of {}", sample.len());
            }
        }
    }
    let mut rng = StdRng::seed_from_u64(11);
    let mut steered = 0;
    for _ in 0..4000 {
        let sample = &samples[rng.random_range(0..samples.len())];
        let mut packet = sample.clone();
        for _ in 0..rng.random_range(0..3) {
            let at = rng.random_range(0..packet.len());
            packet[at] = rng.random();
        }
        let program = ghostwire_dataplane::steer::PROGRAMS[rng.random_range(0..3)];
        let Ok((verdict, frame)) = bench.run(program, &frame_as(&packet, packet.len()), 0) else { continue };
        assert!(matches!(verdict, PASS | DROP | REDIRECT | 0), "{verdict}");
        if verdict == REDIRECT {
            steered += 1;
            assert!(frame.len() > ETHERNET + 20);
        }
    }
    assert!(steered > 200, "{steered}: most samples are sound");
}

/// The beginning of a packet behind the Ethernet header of the whole.
fn frame_as(packet: &[u8], length: usize) -> Vec<u8> {
    let mut frame = frame(packet);
    frame.truncate(ETHERNET + length);
    frame
}

//! What has to become of a frame: a reader of headers that shares nothing with the program's, and the decision of
//! the userspace path.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use aya::programs::{TestRun as _, TestRunOptions};
use ghostwire_relay::limits::Rate;
use ghostwire_relay::sessions::config::Limits;
use ghostwire_relay::table::MapTable;
use ghostwire_relay::xdp::{Xdp, settings};
use ghostwire_relay_fastpath::table::{Header, Key, Pair, Writer, lines_needed};
use ghostwire_relay_fastpath::{Datagram, Forward, Ip, Pace, Reason, Verdict, decide};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use crate::frames::Spec;

pub(crate) const MAIN: u16 = 3478;
pub(crate) const LOCALS: [&str; 3] = ["203.0.113.1", "2001:db8::1", "203.0.113.2"];

/// What a program does with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Pass,
    Drop,
    Transmit(Vec<u8>),
}

/// The program with a table.
pub(crate) struct Lab {
    pub(crate) xdp: Xdp,
    pub(crate) table: Writer<MapTable>,
}

impl Lab {
    /// Without a limit of handshakes, which random frames are many of.
    pub(crate) fn new(entries: u32, seed: u64) -> Self {
        let mut limits = Limits::default();
        limits.session.handshakes = Rate { per_second: 1_000_000_000, burst: 1_000_000_000 };
        Self::with(entries, seed, &limits)
    }

    pub(crate) fn with(entries: u32, seed: u64, limits: &Limits) -> Self {
        let (lines, log2_buckets) = lines_needed(entries).unwrap();
        let xdp = Xdp::detached(lines, &settings(limits)).expect("the program, loaded as root");
        let header = Header { log2_buckets, seed, main_port: MAIN, first_port: 50_000, last_port: 50_099 };
        let locals = LOCALS.map(|ip| Ip::from(ip.parse::<IpAddr>().unwrap()));
        let table = Writer::format(xdp.table().clone(), header, &locals).unwrap();
        Self { xdp, table }
    }

    /// Binds a source to a port, and says where its datagrams go.
    pub(crate) fn bind(&mut self, spec: &Spec, to: SocketAddr, from_local: u8, from_port: u16) {
        let local = local_of(spec.destination.ip()).unwrap();
        let key = Key { local, port: spec.destination.port(), source: spec.source.into() };
        let pair = Pair {
            local: from_local,
            port: from_port,
            destination: to.into(),
            session: 1,
            generation: 1,
            same_way: true,
            pace: Pace::UNLIMITED,
        };
        self.table.insert(&key, &pair).unwrap();
    }

    /// Runs the program on a frame.
    pub(crate) fn run(&self, frame: &[u8]) -> Outcome {
        let mut out = vec![0; frame.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let result = self.xdp.program().unwrap().test_run(options).expect("BPF_PROG_TEST_RUN");
        let len = result.data_size_out as usize;
        match result.return_value {
            1 => Outcome::Drop,
            2 => {
                assert_eq!(&out[..len], frame, "a frame that is passed on has to be as it came");
                Outcome::Pass
            }
            3 => Outcome::Transmit(out[..len].to_vec()),
            other => panic!("XDP action {other}"),
        }
    }

    /// What has to become of a frame. `None`: it comes from an unknown source, and may be dropped or reported.
    pub(crate) fn expected(&self, frame: &[u8]) -> Option<Outcome> {
        let Some(packet) = read(frame) else { return Some(Outcome::Pass) };
        if packet.datagram.port == MAIN {
            return Some(Outcome::Pass);
        }
        match decide(self.table.table(), &packet.datagram) {
            Verdict::Forward(forward) => Some(packet.forwarded(frame, &forward)),
            Verdict::Control | Verdict::Drop(Reason::Busy) => Some(Outcome::Pass),
            Verdict::Drop(Reason::UnknownSource) => None,
            Verdict::Drop(Reason::NotWireGuard | Reason::HopLimit) => Some(Outcome::Drop),
        }
    }
}

pub(crate) fn local_of(ip: IpAddr) -> Option<u8> {
    LOCALS.iter().position(|local| local.parse() == Ok(ip)).map(|at| at as u8)
}

/// A datagram that a socket of the relay would get.
pub(crate) struct Packet {
    pub(crate) datagram: Datagram,
    ethernet_len: usize,
    tos: u8,
    udp_at: usize,
    v4: bool,
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// `None`: nothing for the relay's sockets, or something that the program leaves to the kernel.
pub(crate) fn read(frame: &[u8]) -> Option<Packet> {
    let (ethertype, ethernet_len) = match word(frame, 12)? {
        0x8100 | 0x88A8 => (word(frame, 16)?, 18),
        other => (other, 14),
    };
    let ip = frame.get(ethernet_len..)?;
    let (source, destination, hops, tos, header_len, ip_len) = match ethertype {
        0x0800 => {
            if *ip.first()? != 0x45 || *ip.get(9)? != 17 || word(ip, 6)? & 0x3FFF != 0 {
                return None;
            }
            let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
            (address(12)?, address(16)?, *ip.get(8)?, *ip.get(1)?, 20, usize::from(word(ip, 2)?))
        }
        0x86DD => {
            if ip.first()? >> 4 != 6 || *ip.get(6)? != 17 {
                return None;
            }
            let address = |at: usize| {
                Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?)))
            };
            let tos = (word(ip, 0)? >> 4) as u8;
            (address(8)?, address(24)?, *ip.get(7)?, tos, 40, 40 + usize::from(word(ip, 4)?))
        }
        _ => return None,
    };
    let udp = ip.get(header_len..ip_len)?;
    let (source_port, port, len) = (word(udp, 0)?, word(udp, 2)?, usize::from(word(udp, 4)?));
    let local = local_of(destination)?;
    let ours = port == MAIN || (50_000..=50_099).contains(&port);
    let sane = len == udp.len() && len >= 16 && (header_len == 20 || word(udp, 6)? != 0);
    if !ours || !sane {
        return None;
    }
    let datagram = Datagram {
        local,
        port,
        source: SocketAddr::new(source, source_port).into(),
        hops,
        len: (len - 8) as u32,
        head: udp.get(8..16)?.try_into().ok()?,
    };
    Some(Packet { datagram, ethernet_len, tos, udp_at: ethernet_len + header_len, v4: header_len == 20 })
}

impl Packet {
    pub(crate) fn payload<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        &frame[self.udp_at + 8..self.udp_at + 8 + self.datagram.len as usize]
    }

    /// The frame that has to leave, put together anew.
    fn forwarded(&self, frame: &[u8], forward: &Forward) -> Outcome {
        let from: IpAddr = LOCALS[usize::from(forward.local)].parse().unwrap();
        let destination = SocketAddr::from(forward.destination);
        let checksum = word(frame, self.udp_at + 6).unwrap();
        if self.v4 && destination.is_ipv6() && checksum == 0 {
            // IPv6 needs one, which userspace's socket makes.
            return Outcome::Pass;
        }
        let mut spec =
            Spec::new(SocketAddr::new(from, forward.port), destination, self.payload(frame).to_vec());
        spec.vlan = (self.ethernet_len == 18).then(|| frame[12..16].try_into().unwrap());
        spec.hops = forward.hops;
        spec.tos = self.tos;
        spec.without_checksum = checksum == 0;
        if self.v4 {
            spec.id = word(frame, self.ethernet_len + 4).unwrap();
            spec.fragment = word(frame, self.ethernet_len + 6).unwrap();
        } else {
            spec.id = checksum;
        }
        let mut expected = spec.bytes();
        expected[..6].copy_from_slice(&frame[6..12]);
        expected[6..12].copy_from_slice(&frame[..6]);
        if destination.is_ipv6() {
            // The flow label stays, or there is none.
            let label =
                if self.v4 { [0; 3] } else { frame[15 + self.ethernet_len - 14..][..3].try_into().unwrap() };
            let at = self.ethernet_len + 1;
            expected[at] = expected[at] & 0xF0 | label[0] & 0x0F;
            expected[at + 1..at + 3].copy_from_slice(&label[1..]);
        }
        // Padding stays behind the packet.
        let end = self.udp_at + 8 + self.datagram.len as usize;
        expected.extend(&frame[end..]);
        Outcome::Transmit(expected)
    }
}

/// How much a limit lets through: the test has to stay on one processor, since each counts for itself.
pub(crate) struct Allowance {
    started: Instant,
    per_second: f64,
    burst: f64,
}

impl Allowance {
    pub(crate) fn new(per_second: f64, burst: f64) -> Self {
        let mut processors = CpuSet::new();
        processors.set(sched_getcpu().unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &processors).unwrap();
        Self { started: Instant::now(), per_second, burst }
    }

    /// The burst, and what the time since has added. The program's clock ticks every few milliseconds.
    pub(crate) fn most(&self) -> f64 {
        self.burst + self.per_second * (self.started.elapsed().as_secs_f64() + 0.02) + 1.0
    }

    /// Whether the burst passed, and no more than may.
    pub(crate) fn fits(&self, passed: usize) -> bool {
        (self.burst.floor()..=self.most()).contains(&(passed as f64))
    }
}

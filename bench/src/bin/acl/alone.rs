//! The programs by themselves: nanoseconds over an empty program.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::Instant;

use anyhow::Result;
use ghostwire_bench::acl::bpf;
use ghostwire_bench::acl::kernel::{DROPPED, PASSED, Scale, frame};
use ghostwire_bench::acl::policies::{Peers, Size};
use ghostwire_bench::acl::samples::{Pair, Spread};
use ghostwire_bench::acl::steps::STEPS;
use ghostwire_dataplane::acl::{Image, InstallTimings};
use ghostwire_ebpf_abi::event::Direction;

use crate::lab::Lab;

/// How often the programs are loaded and everything is measured. Where the kernel puts a program differs from load to
/// load, which makes more of a difference than anything else: a nanosecond or two.
const LOADS: usize = 10;
/// Bytes of the header that `BPF_PROG_TEST_RUN` insists on.
const ETHERNET: u32 = 14;
/// Frames for varying keys.
const FRAMES: usize = 1_000;
/// From one pair of address and port to the next: a prime, so that neither repeats sooner than it must.
const STRIDE: usize = 99_991;

/// What a packet is to the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A rule lets it in.
    In,
    /// A rule lets it out, and another would let its answer in.
    Out,
    /// A rule lets it out, and the connection is remembered, because no rule would let its answer in.
    OutRemembered,
    /// The answer to that.
    Answer,
    /// No rule lets it in.
    Denied,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::In => "in, by a rule",
            Self::Out => "out, by a rule for each way",
            Self::OutRemembered => "out, remembered connection",
            Self::Answer => "in, answer to a remembered one",
            Self::Denied => "in, denied and reported",
        }
    }

    fn direction(self) -> Direction {
        match self {
            Self::In | Self::Answer | Self::Denied => Direction::Ingress,
            Self::Out | Self::OutRemembered => Direction::Egress,
        }
    }
}

/// Ports of this node's own connections.
const CLIENT: u16 = 50_000;
const SERVER: u16 = 53;

/// A policy and a kind of packet, and what was measured.
struct Row {
    size: Size,
    way: Way,
    image: Image,
    /// The packet that is run again and again.
    frame: Vec<u8>,
    /// The packet that makes its connection known.
    opener: Option<Vec<u8>>,
    /// Packets with varying keys.
    frames: Vec<Vec<u8>>,
    /// Of each load: what is added, as a multiple of an empty program.
    warm: Vec<f64>,
    /// Of each load: nanoseconds over an empty program.
    varying: Vec<f64>,
    swaps: Vec<InstallTimings>,
}

impl Row {
    fn new(rules: u32, peers: u32, place: Peers, way: Way) -> Result<Self> {
        let size = Size { rules, peers, place };
        let pairs = size.pairs();
        let own = place.own();
        let (peer, port) = pairs[pairs.len() / 2];
        let out = frame((own, CLIENT), (peer, SERVER));
        let (frame, opener) = match way {
            Way::In => (inbound(peer, own, port), None),
            Way::Out => (frame((own, port), (peer, SERVER)), None),
            Way::OutRemembered => (out.clone(), Some(out)),
            Way::Answer => (frame((peer, SERVER), (own, CLIENT)), Some(out)),
            Way::Denied => (inbound(peer, own, 1), None),
        };
        let frames = match way {
            Way::In => (0..FRAMES)
                .map(|number| pairs[number * STRIDE % pairs.len()])
                .map(|(peer, port)| inbound(peer, own, port))
                .collect(),
            _ => Vec::new(),
        };
        let image = size.image(1)?;
        let (warm, varying, swaps) = Default::default();
        Ok(Self { size, way, image, frame, opener, frames, warm, varying, swaps })
    }

    fn measure(&mut self, lab: &mut Lab, scale: &mut Scale) -> Result<()> {
        self.swaps.push(lab.acl.install(&self.image)?);
        if let Some(opener) = &self.opener {
            bpf::run(lab.program(Direction::Egress)?, opener, 1)?;
        }
        let program = lab.program(self.way.direction())?;
        let verdict = if self.way == Way::Denied { DROPPED } else { PASSED };
        self.warm.push(extra(&scale.warm(program, &self.frame, verdict)?));
        if !self.frames.is_empty() {
            self.varying.push(scale.varying(program, &self.frames)?);
        }
        Ok(())
    }
}

/// A packet from a peer to a port of ours.
fn inbound(peer: IpAddr, own: IpAddr, port: u16) -> Vec<u8> {
    frame((peer, CLIENT), (own, port))
}

fn extra(pairs: &[Pair]) -> f64 {
    Spread::of(pairs.iter().map(|pair| pair.extra())).median
}

/// What was measured.
pub(crate) struct Alone {
    rows: Vec<Row>,
    ways: Vec<Row>,
    /// Names, and of each load what is added, as a multiple of an empty program.
    steps: Vec<(&'static str, Vec<f64>)>,
    /// Nanoseconds of the empty program in the best moment.
    floor: f64,
}

/// Places of rows that have to be found again.
const FEW: usize = 0;
const MANY: usize = 4;
const SUBNETS4: usize = 6;
const SUBNETS6: usize = 10;

/// Measures.
pub(crate) fn measure() -> Result<Alone> {
    let mut rows = Vec::new();
    for (rules, peers, place) in [
        (10, 10, Peers::Overlay4),
        (1_000, 10, Peers::Overlay4),
        (1_000, 10_000, Peers::Overlay4),
        (100_000, 10, Peers::Overlay4),
        (100_000, 10_000, Peers::Overlay4),
        (10, 10, Peers::Subnets4),
        (100_000, 10_000, Peers::Subnets4),
        (10, 10, Peers::Overlay6),
        (100_000, 10_000, Peers::Overlay6),
        (10, 10, Peers::Subnets6),
        (100_000, 10_000, Peers::Subnets6),
    ] {
        rows.push(Row::new(rules, peers, place, Way::In)?);
    }
    let mut ways = Vec::new();
    for way in [Way::In, Way::Out, Way::OutRemembered, Way::Answer, Way::Denied] {
        ways.push(Row::new(10, 10, Peers::Overlay4, way)?);
    }
    let mut alone = Alone { rows, ways, steps: Vec::new(), floor: f64::MAX };
    let started = Instant::now();
    for load in 1..=LOADS {
        alone.load()?;
        eprintln!("  … programs by themselves: load {load} of {LOADS} ({} s)", started.elapsed().as_secs());
    }
    Ok(alone)
}

impl Alone {
    fn load(&mut self) -> Result<()> {
        let mut lab = Lab::new("lo", ETHERNET)?;
        let mut scale = Scale::new(self.floor)?;
        for row in self.rows.iter_mut().chain(&mut self.ways) {
            row.measure(&mut lab, &mut scale)?;
        }
        if self.steps.is_empty() {
            self.steps = STEPS.map(|name| (name, Vec::new())).to_vec();
        }
        let frame = &self.rows[FEW].frame;
        for (step, (_, measured)) in lab.steps.iter().zip(&mut self.steps) {
            measured.push(extra(&scale.warm(step.as_fd(), frame, PASSED)?));
        }
        self.floor = scale.floor;
        Ok(())
    }

    fn nanoseconds(&self, extra: &[f64]) -> Spread {
        Spread::of(extra.iter().copied()).times(self.floor)
    }

    /// Overlay peers, warm keys, 10 rules.
    pub(crate) fn few(&self) -> Spread {
        self.nanoseconds(&self.rows[FEW].warm)
    }

    /// Overlay peers, warm keys, 100,000 rules.
    pub(crate) fn many(&self) -> Spread {
        self.nanoseconds(&self.rows[MANY].warm)
    }

    /// Peers behind subnet routers, warm keys, 100,000 rules: the dearer family.
    pub(crate) fn subnets(&self) -> Spread {
        let [four, six] = [SUBNETS4, SUBNETS6].map(|row| self.nanoseconds(&self.rows[row].warm));
        if four.median > six.median { four } else { six }
    }

    /// From 10 to 100,000 rules, program by program.
    pub(crate) fn growth(&self) -> Spread {
        Spread::of(self.rows[FEW].warm.iter().zip(&self.rows[MANY].warm).map(|(few, many)| many / few))
    }

    /// The median swap of 100,000 rules, without networks.
    pub(crate) fn swap(&self) -> InstallTimings {
        let mut swaps = self.rows[MANY].swaps.clone();
        swaps.sort_by_key(InstallTimings::total);
        swaps.get(swaps.len() / 2).copied().unwrap_or_default()
    }

    /// The tables.
    pub(crate) fn print(&self) {
        println!(
            "Nanoseconds per packet over an empty program ({:.1}), BPF_PROG_TEST_RUN, median and quartiles of {LOADS} \
             loads of the programs",
            self.floor
        );
        println!(
            "{:>8} {:>7}  {:<14} {:>6} {:>13} {:>8} {:>9} {:>9}",
            "rules", "peers", "peers in", "warm", "quartiles", "varying", "build ms", "swap ms"
        );
        for row in &self.rows {
            let warm = self.nanoseconds(&row.warm);
            let varying = Spread::of(row.varying.iter().copied()).median;
            let milliseconds =
                |part: fn(&InstallTimings) -> f64| Spread::of(row.swaps.iter().map(part)).median;
            println!(
                "{:>8} {:>7}  {:<14} {:>6.1} {:>6.1} {:>6.1} {varying:>8.1} {:>9.2} {:>9.2}",
                row.size.rules,
                row.size.peers,
                row.size.place.name(),
                warm.median,
                warm.lower,
                warm.upper,
                milliseconds(|swap| (swap.nets + swap.build).as_secs_f64() * 1e3),
                milliseconds(|swap| swap.swap.as_secs_f64() * 1e3),
            );
        }
        println!("\n{:<48} {:>6} {:>13}", "a packet's way, overlay, IPv4, 10 rules", "warm", "quartiles");
        for row in &self.ways {
            self.print_line(row.way.name(), &row.warm);
        }
        println!("\n{:<48} {:>6} {:>13}", "what a part of it costs alone", "warm", "quartiles");
        for (name, measured) in &self.steps {
            self.print_line(name, measured);
        }
    }

    fn print_line(&self, name: &str, measured: &[f64]) {
        let warm = self.nanoseconds(measured);
        println!("{name:<48} {:>6.1} {:>6.1} {:>6.1}", warm.median, warm.lower, warm.upper);
    }
}

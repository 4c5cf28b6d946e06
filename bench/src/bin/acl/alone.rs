//! The programs by themselves: nanoseconds over an empty program.

use std::time::Instant;

use anyhow::Result;
use ghostwire_bench::acl::bpf;
use ghostwire_bench::acl::kernel::{DROPPED, PASSED, Scale, frame};
use ghostwire_bench::acl::policies::{Peers, Size};
use ghostwire_bench::acl::samples::{Pair, Spread};
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

/// A policy and a kind of packet, and what was measured.
struct Row {
    size: Size,
    way: Way,
    image: Image,
    frames: Vec<Vec<u8>>,
    /// The packet that makes the connection known.
    opener: Option<Vec<u8>>,
    /// Of each load: what is added, as a multiple of an empty program.
    warm: Vec<f64>,
    /// Of each load: nanoseconds over an empty program.
    varying: Vec<f64>,
    swaps: Vec<InstallTimings>,
}

impl Row {
    fn new(rules: u32, peers: u32, place: Peers, way: Way) -> Result<Self> {
        const CLIENT: u16 = 50_000;
        const SERVER: u16 = 53;
        let size = Size { rules, peers, place };
        let pairs = size.pairs();
        let step = (pairs.len() / FRAMES).max(1);
        let own = place.own();
        let frames = pairs.iter().skip(step / 2).step_by(step).map(|&(peer, port)| match way {
            Way::In => frame((peer, 40_000), (own, port)),
            Way::Out => frame((own, port), (peer, SERVER)),
            Way::OutRemembered => frame((own, CLIENT), (peer, SERVER)),
            Way::Answer => frame((peer, SERVER), (own, CLIENT)),
            Way::Denied => frame((peer, 40_000), (own, 1)),
        });
        let frames: Vec<_> = frames.collect();
        let opener = matches!(way, Way::OutRemembered | Way::Answer)
            .then(|| frame((own, CLIENT), (pairs[pairs.len() / 2].0, SERVER)));
        let image = size.image(1)?;
        let (warm, varying, swaps) = Default::default();
        Ok(Self { size, way, image, frames, opener, warm, varying, swaps })
    }

    fn measure(&mut self, lab: &mut Lab, scale: &mut Scale) -> Result<()> {
        self.swaps.push(lab.acl.install(&self.image)?);
        if let Some(opener) = &self.opener {
            bpf::run(lab.program(Direction::Egress)?, opener, 1)?;
        }
        let program = lab.program(self.way.direction())?;
        let verdict = if self.way == Way::Denied { DROPPED } else { PASSED };
        self.warm.push(extra(&scale.warm(program, &self.frames[self.frames.len() / 2], verdict)?));
        if self.way == Way::In {
            self.varying.push(scale.varying(program, &self.frames)?);
        }
        Ok(())
    }
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
const SUBNETS: usize = 6;

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
            self.steps = lab.steps.iter().map(|step| (step.name, Vec::new())).collect();
        }
        let frame = &self.rows[FEW].frames[0];
        for (step, (_, measured)) in lab.steps.iter().zip(&mut self.steps) {
            measured.push(extra(&scale.warm(step.program(), frame, PASSED)?));
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

    /// Peers behind subnet routers, warm keys, 100,000 rules.
    pub(crate) fn subnets(&self) -> Spread {
        self.nanoseconds(&self.rows[SUBNETS].warm)
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

//! Real datagrams: what our program and what nftables add to their way.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use ghostwire_bench::acl::bpf;
use ghostwire_bench::acl::nft::{FORMS, Form, Scope};
use ghostwire_bench::acl::policies::{Peers, Size};
use ghostwire_bench::acl::samples::{Pair, Spread};
use ghostwire_bench::acl::steps::{self, STEPS};
use ghostwire_bench::acl::wire::{DEVICE, Namespace, Tunnel};
use ghostwire_ebpf_abi::event::Direction;

use crate::lab::Lab;

/// How often devices and sockets are made anew: where they lie in memory makes a difference of some nanoseconds.
const SETUPS: usize = 24;
/// After how many of them our program is loaded anew, for the same reason.
const SETUPS_PER_LOAD: usize = 4;
/// Slices of each subject in one set-up.
const ROUNDS: usize = 300;
const SIZE: Size = Size { rules: 100_000, peers: 10_000, place: Peers::Overlay4 };

/// What is put on the way. Each has a namespace and a device of its own, so that they take turns every two hundred
/// microseconds and meet the same moments of a shared machine.
#[derive(Clone, Copy)]
enum What {
    Nothing,
    EmptyProgram,
    /// One thing that our program does, by its number.
    Step(usize),
    Ours,
    Nftables(Form),
}

/// Ways with nothing on them: the mean of several, because all the others are compared with it.
const BARE: usize = 3;
/// Places of subjects that have to be found again.
const EMPTY: usize = BARE;
const OURS: usize = BARE + 1;
const FIRST_STEP: usize = BARE + 2;
const FIRST_FORM: usize = FIRST_STEP + STEPS.len();

/// What was measured.
pub(crate) struct Path {
    subjects: Vec<What>,
    /// Of each subject and set-up: what it adds, as a multiple of the way with nothing on it.
    extra: Vec<Vec<f64>>,
    /// Nanoseconds of the way with nothing on it, in the best moment.
    floor: f64,
}

/// Measures.
pub(crate) fn measure() -> Result<Path> {
    let mut subjects = vec![What::Nothing; BARE];
    subjects.extend([What::EmptyProgram, What::Ours]);
    subjects.extend((0..STEPS.len()).map(What::Step));
    subjects.extend(FORMS.map(What::Nftables));
    let started = Instant::now();
    eprintln!("  … real datagrams: loading {} rules into nftables, {} times", SIZE.rules, FORMS.len());
    let mut sites = subjects.iter().map(|what| Site::new(*what)).collect::<Result<Vec<_>>>()?;
    let extra = vec![Vec::new(); subjects.len()];
    let mut path = Path { subjects, extra, floor: f64::MAX };
    for setup in 0..SETUPS {
        if setup % SETUPS_PER_LOAD == 0 {
            for site in &mut sites {
                site.load()?;
            }
            let seconds = started.elapsed().as_secs();
            eprintln!("  … real datagrams: set-up {} of {SETUPS} ({seconds} s)", setup + 1);
        }
        path.set_up(&sites)?;
    }
    Ok(path)
}

/// A subject's namespace.
struct Site {
    what: What,
    namespace: Namespace,
    program: Option<Program>,
}

/// What is attached.
enum Program {
    Empty(OwnedFd),
    Ours(Box<Lab>),
}

impl Path {
    fn set_up(&mut self, sites: &[Site]) -> Result<()> {
        let mut stations = sites.iter().map(Site::open).collect::<Result<Vec<_>>>()?;
        let mut pairs = vec![Vec::with_capacity(ROUNDS); sites.len()];
        for _ in 0..ROUNDS {
            let mut measured = Vec::with_capacity(sites.len());
            for station in &mut stations {
                measured.push(station.tunnel.slice()?);
            }
            #[expect(clippy::cast_precision_loss, reason = "three")]
            let plain = measured[..BARE].iter().sum::<f64>() / BARE as f64;
            self.floor = self.floor.min(plain);
            for (pairs, measured) in pairs.iter_mut().zip(measured) {
                pairs.push(Pair { plain, measured });
            }
        }
        for (extra, pairs) in self.extra.iter_mut().zip(pairs) {
            extra.push(Spread::of(pairs.into_iter().map(Pair::extra)).median);
        }
        for (site, station) in sites.iter().zip(stations) {
            site.close(station)?;
        }
        Ok(())
    }

    fn nanoseconds(&self, subject: usize) -> Spread {
        Spread::of(self.extra[subject].iter().copied()).times(self.floor)
    }

    fn scope(&self, subject: usize) -> Scope {
        match self.subjects[subject] {
            What::Nftables(form) => form.scope,
            _ => Scope::Nothing,
        }
    }

    /// The cheapest form of nftables that does so much.
    fn cheapest(&self, wanted: Scope) -> usize {
        let forms = (FIRST_FORM..self.subjects.len()).filter(|index| self.scope(*index) == wanted);
        let cost = |index: &usize| self.nanoseconds(*index).median;
        forms.min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(FIRST_FORM)
    }

    /// Nanoseconds that an empty program adds.
    pub(crate) fn empty(&self) -> Spread {
        self.nanoseconds(EMPTY)
    }

    /// Nanoseconds that our program adds.
    pub(crate) fn ours(&self) -> Spread {
        self.nanoseconds(OURS)
    }

    /// Name of the cheapest form of nftables that does so much, and nanoseconds that it adds.
    pub(crate) fn form(&self, scope: Scope) -> (&'static str, Spread) {
        let index = self.cheapest(scope);
        (self.subjects[index].name(), self.nanoseconds(index))
    }

    /// What we add as a share of what the cheapest form of nftables adds that does so much.
    pub(crate) fn share(&self, scope: Scope) -> Spread {
        self.share_of(self.cheapest(scope))
    }

    /// Set-up by set-up.
    fn share_of(&self, other: usize) -> Spread {
        Spread::of(self.extra[OURS].iter().zip(&self.extra[other]).map(|(ours, other)| ours / other))
    }

    /// The table.
    pub(crate) fn print(&self) {
        println!(
            "\nNanoseconds added to a datagram's way through a layer 3 device ({:.0} without), {} rules, {} peers, \
             median and quartiles of {SETUPS} set-ups",
            self.floor, SIZE.rules, SIZE.peers
        );
        println!("{:<48} {:>6} {:>13}  {:>22}", "", "added", "quartiles", "our share, quartiles");
        for (index, what) in self.subjects.iter().enumerate().skip(BARE) {
            let added = self.nanoseconds(index);
            print!("{:<48} {:>6.0} {:>6.0} {:>6.0}", what.name(), added.median, added.lower, added.upper);
            let scope = self.scope(index);
            if scope != Scope::Nothing {
                let share = self.share_of(index);
                print!("  {:>8.2} {:>6.2} {:>6.2}", share.median, share.lower, share.upper);
                if self.cheapest(scope) == index {
                    print!(
                        "{}",
                        if scope == Scope::Stateful { "  cheapest with answers" } else { "  cheapest" }
                    );
                }
            }
            println!();
        }
    }
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::EmptyProgram => "empty program, tcx ingress",
            Self::Ours => "GhostWire, tcx ingress",
            Self::Step(number) => STEPS[number],
            Self::Nftables(form) => form.name,
        }
    }
}

/// A subject at work.
struct Station {
    tunnel: Tunnel,
    /// Ends what is attached.
    _link: Option<OwnedFd>,
}

impl Site {
    fn new(what: What) -> Result<Self> {
        let namespace = Namespace::new()?;
        if let What::Nftables(form) = what {
            form.load(&SIZE.pairs())?;
        }
        Ok(Self { what, namespace, program: None })
    }

    /// Loads the program, if there is one.
    fn load(&mut self) -> Result<()> {
        self.program = match self.what {
            What::EmptyProgram => Some(Program::Empty(steps::empty()?)),
            What::Ours | What::Step(_) => {
                self.namespace.enter()?;
                let mut lab = Lab::new("lo", 0)?;
                lab.acl.install(&SIZE.image(1)?)?;
                Some(Program::Ours(Box::new(lab)))
            }
            What::Nothing | What::Nftables(_) => None,
        };
        Ok(())
    }

    fn open(&self) -> Result<Station> {
        self.namespace.enter()?;
        let pairs = SIZE.pairs();
        let (peer, port) = pairs[pairs.len() / 2];
        let IpAddr::V4(peer) = peer else { bail!("the benchmark's peers have IPv4 addresses") };
        let mut tunnel = Tunnel::new(peer, port)?;
        let link = match &self.program {
            Some(Program::Empty(program)) => Some(bpf::attach_ingress(program.as_fd(), DEVICE)?),
            Some(Program::Ours(lab)) => {
                let program = match self.what {
                    What::Step(number) => lab.steps[number].as_fd(),
                    _ => lab.program(Direction::Ingress)?,
                };
                Some(bpf::attach_ingress(program, DEVICE)?)
            }
            None => None,
        };
        if let What::Nftables(form) = self.what {
            form.hook()?;
            if form.scope == Scope::Stateful {
                tunnel.answer()?;
            }
        }
        ensure!(tunnel.arrives()?, "{}: the benchmark's datagram does not arrive", self.what.name());
        Ok(Station { tunnel, _link: link })
    }

    fn close(&self, station: Station) -> Result<()> {
        self.namespace.enter()?;
        if let What::Nftables(form) = self.what {
            form.unhook()?;
        }
        drop(station);
        Ok(())
    }
}

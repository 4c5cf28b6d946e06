//! Real datagrams: what our program and what nftables add to their way.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use ghostwire_bench::acl::nft::{FORMS, Form, Scope};
use ghostwire_bench::acl::policies::{Peers, Size};
use ghostwire_bench::acl::samples::{Pair, Spread};
use ghostwire_bench::acl::wire::{DEVICE, Tunnel};
use ghostwire_bench::acl::{bpf, steps};
use ghostwire_ebpf_abi::event::Direction;

use crate::lab::Lab;

/// How often everything is set up anew, because it makes a difference where the kernel puts things.
const SETUPS: usize = 8;
/// Slices of each subject in one set-up.
const ROUNDS: usize = 400;
const SIZE: Size = Size { rules: 100_000, peers: 10_000, place: Peers::Overlay4 };

/// What is put on the way. Each has a namespace and a device of its own, so that they take turns every few hundred
/// microseconds and meet the same moments of a shared machine.
#[derive(Clone, Copy)]
enum What {
    Nothing,
    EmptyProgram,
    Ours,
    Nftables(Form),
}

/// Places of subjects that have to be found again.
const NOTHING: usize = 0;
const EMPTY: usize = 1;
const OURS: usize = 2;
const FIRST_FORM: usize = 3;

fn subjects() -> Vec<What> {
    [What::Nothing, What::EmptyProgram, What::Ours]
        .into_iter()
        .chain(FORMS.into_iter().map(What::Nftables))
        .collect()
}

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
    let subjects = subjects();
    let extra = vec![Vec::new(); subjects.len()];
    let mut path = Path { subjects, extra, floor: f64::MAX };
    let started = Instant::now();
    for setup in 1..=SETUPS {
        path.set_up()?;
        eprintln!("  … real datagrams: set-up {setup} of {SETUPS} ({} s)", started.elapsed().as_secs());
    }
    Ok(path)
}

/// A subject at work.
struct Site {
    tunnel: Tunnel,
    /// Ends what is attached.
    _link: Option<OwnedFd>,
    _lab: Option<Lab>,
}

impl Path {
    fn set_up(&mut self) -> Result<()> {
        let mut sites = Vec::new();
        for what in &self.subjects {
            sites.push(what.set_up()?);
        }
        let mut pairs = vec![Vec::with_capacity(ROUNDS); sites.len()];
        let mut before = sites[NOTHING].tunnel.slice()?;
        for _ in 0..ROUNDS {
            let mut measured = Vec::with_capacity(sites.len());
            for site in &mut sites[EMPTY..] {
                measured.push(site.tunnel.slice()?);
            }
            let after = sites[NOTHING].tunnel.slice()?;
            self.floor = self.floor.min(after);
            let plain = f64::midpoint(before, after);
            for (pairs, measured) in pairs[EMPTY..].iter_mut().zip(measured) {
                pairs.push(Pair { plain, measured });
            }
            before = after;
        }
        for (extra, pairs) in self.extra.iter_mut().zip(pairs) {
            extra.push(Spread::of(pairs.into_iter().map(Pair::extra)).median);
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
        for (index, what) in self.subjects.iter().enumerate().skip(EMPTY) {
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
            Self::Nftables(form) => form.name,
        }
    }

    fn set_up(self) -> Result<Site> {
        let pairs = SIZE.pairs();
        let (peer, port) = pairs[pairs.len() / 2];
        let std::net::IpAddr::V4(peer) = peer else { bail!("the benchmark's peers have IPv4 addresses") };
        let mut tunnel = Tunnel::new(peer, port)?;
        let (mut link, mut lab) = (None, None);
        match self {
            Self::Nothing => {}
            Self::EmptyProgram => link = Some(bpf::attach_ingress(steps::empty()?.as_fd(), DEVICE)?),
            Self::Ours => {
                let mut ours = Lab::new(DEVICE, 0)?;
                ours.acl.install(&SIZE.image(1)?)?;
                link = Some(bpf::attach_ingress(ours.program(Direction::Ingress)?, DEVICE)?);
                lab = Some(ours);
            }
            Self::Nftables(form) => {
                form.install(&pairs)?;
                if form.scope == Scope::Stateful {
                    tunnel.answer()?;
                }
            }
        }
        ensure!(tunnel.arrives()?, "{}: the benchmark's datagram does not arrive", self.name());
        Ok(Site { tunnel, _link: link, _lab: lab })
    }
}

//! `cargo xtask bench acl`: what access control costs per packet. A table, then one line of JSON.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use ghostwire_bench::acl::policies::{self, OWN, Peers};
use ghostwire_bench::acl::{kernel, wire};
use ghostwire_dataplane::acl::{Acl, Image, Options};
use ghostwire_ebpf_abi::event::Direction;

/// The programs on a loopback device, removed at the end.
struct Lab {
    acl: Acl,
    dir: PathBuf,
}

impl Lab {
    fn new() -> Result<Self> {
        let dir = PathBuf::from(format!("/sys/fs/bpf/ghostwire-bench-{}", std::process::id()));
        let options = Options { l3_offset: 14, ..Options::default() };
        let acl = Acl::open_or_create("lo", &dir, &options)?;
        // The programs are run by themselves, or attached for as long as a measurement lasts.
        for pin in ["lo/ingress", "lo/egress"] {
            fs::remove_file(dir.join(pin)).with_context(|| format!("detaching {pin}"))?;
        }
        Ok(Self { acl, dir })
    }

    fn program(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.acl.program(Direction::Ingress)?.fd()?.as_fd())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = Acl::remove("lo", &self.dir) {
            eprintln!("cannot clean up {}: {error}", self.dir.display());
        }
    }
}

fn frames(pairs: &[(Ipv4Addr, u16)]) -> Vec<Vec<u8>> {
    let step = (pairs.len() / 5_000).max(1);
    pairs.iter().step_by(step).map(|(src, port)| kernel::frame(*src, OWN, *port)).collect()
}

/// How often all cases are gone through.
const PASSES: u32 = 12;

/// A policy, and what was measured under it.
struct Case {
    rules: u32,
    peers: u32,
    place: Peers,
    image: Image,
    frames: Vec<Vec<u8>>,
    warm: f64,
    varying: f64,
    swap_ms: f64,
}

impl Case {
    fn new(rules: u32, peers: u32, place: Peers) -> Result<Self> {
        let image = policies::image(rules, peers, place, 1)?;
        let frames = frames(&policies::pairs(rules, peers, place));
        Ok(Self { rules, peers, place, image, frames, warm: f64::MAX, varying: f64::MAX, swap_ms: f64::MAX })
    }

    fn measure(&mut self, lab: &mut Lab, empty: BorrowedFd<'_>, floor: &mut f64) -> Result<()> {
        let timings = lab.acl.install(&self.image)?;
        self.swap_ms = self.swap_ms.min(timings.total().as_secs_f64() * 1e3);
        let frame = &self.frames[self.frames.len() / 2];
        *floor = floor.min(kernel::warm(empty, frame)?);
        self.warm = self.warm.min(kernel::warm(lab.program()?, frame)?);
        self.varying = self.varying.min(kernel::varying(lab.program()?, empty, &self.frames)?);
        Ok(())
    }
}

fn main() -> Result<()> {
    wire::enter_namespace()?;
    let mut lab = Lab::new()?;
    let empty = kernel::empty_program()?;

    let mut cases = Vec::new();
    for (rules, count, place) in [
        (10, 10, Peers::Overlay),
        (1_000, 10, Peers::Overlay),
        (1_000, 10_000, Peers::Overlay),
        (100_000, 10, Peers::Overlay),
        (100_000, 10_000, Peers::Overlay),
        (10, 10, Peers::Subnets),
        (100_000, 10_000, Peers::Subnets),
    ] {
        cases.push(Case::new(rules, count, place)?);
    }
    // All cases in turn, and again: a busy neighbour slows all of them, and the best pass counts.
    let mut floor = f64::MAX;
    for _ in 0..PASSES {
        for case in &mut cases {
            case.measure(&mut lab, empty.as_fd(), &mut floor)?;
        }
    }
    println!(
        "ns per packet over an empty program ({floor:.1} ns), BPF_PROG_TEST_RUN, best of {PASSES} x 120 x 20,000"
    );
    println!("{:>8} {:>7} {:>9} {:>7} {:>9} {:>9}", "rules", "peers", "where", "warm", "varying", "swap ms");
    for case in &cases {
        let place = if case.place == Peers::Overlay { "overlay" } else { "subnets" };
        println!(
            "{:>8} {:>7} {place:>9} {:>7.1} {:>9.1} {:>9.2}",
            case.rules,
            case.peers,
            case.warm - floor,
            case.varying,
            case.swap_ms
        );
    }
    let [first, _, _, _, large, ..] = cases.as_slice() else { anyhow::bail!("no cases") };
    let (small, swap_ms, large) = (first.warm - floor, large.swap_ms, large.warm - floor);

    let (ours, nft) = on_the_wire(&mut lab)?;
    let figures = serde_json::json!({
        "ns_over_empty_10": small,
        "ns_over_empty_100k": large,
        "growth": large / small,
        "nft_ratio": ours / nft,
        "swap_ms": swap_ms,
    });
    println!("{figures}");
    Ok(())
}

/// What 100,000 rules add to a real datagram's way, by our program and by nftables at the same hook.
fn on_the_wire(lab: &mut Lab) -> Result<(f64, f64)> {
    const ROUNDS: usize = 12;
    let pairs = policies::pairs(100_000, 10_000, Peers::Overlay);
    lab.acl.install(&policies::image(100_000, 10_000, Peers::Overlay, 1)?)?;
    let (src, port) = pairs[pairs.len() / 2];
    let flow = wire::Flow::new(src, port)?;
    let (mut bare, mut ours, mut nft) = (Vec::new(), Vec::new(), Vec::new());
    flow.measure()?;
    for _ in 0..ROUNDS {
        bare.push(flow.measure()?);
        let link = kernel::attach_ingress(lab.program()?, "lo")?;
        ours.push(flow.measure()?);
        drop(link);
        wire::nftables(&pairs)?;
        nft.push(flow.measure()?);
        wire::no_nftables()?;
    }
    let best = |samples: &[f64]| samples.iter().copied().fold(f64::MAX, f64::min);
    let (bare, ours, nft) = (best(&bare), best(&ours), best(&nft));
    println!();
    println!(
        "ns per datagram over loopback, 100,000 rules, 10,000 peers, best slice of {ROUNDS} x 60 x 2,048"
    );
    println!("{:>28} {bare:>8.0}", "no access control");
    println!("{:>28} {ours:>8.0}  {:+.0}", "GhostWire, tcx ingress", ours - bare);
    println!("{:>28} {nft:>8.0}  {:+.0}", "nftables, netdev ingress", nft - bare);
    Ok((ours - bare, nft - bare))
}

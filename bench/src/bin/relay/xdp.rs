//! The XDP program against the MAC swap, in alternating rounds.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ghostwire_bench::relay::lab::{self, Lab, RELAY, RELAY_IP};
use ghostwire_bench::relay::program::{Flow, Generator, Link, Sink, mac_swap};
use ghostwire_relay::sessions::config::Limits;
use ghostwire_relay::xdp::{Xdp, settings};
use ghostwire_relay_fastpath::table::{Header, Key, Pair, Writer, lines_needed};
use ghostwire_relay_fastpath::{Endpoint, Ip, Pace};

use crate::{PAIRS, SIZES};

const ROUNDS: usize = 21;

/// Frames in a round: long enough that the clock does not matter, short enough that most rounds are undisturbed.
const FRAMES: u32 = 200_000;

const FIRST_PORT: u16 = 49_152;
const PORTS: u32 = 16_384;
const WIREGUARD: u16 = 51_820;

/// A session's limit that is accounted for and never reached: 100 Gbit/s.
const PACE: u64 = 12_500_000_000;

pub(crate) struct Row {
    pub(crate) size: usize,
    pub(crate) pairs: u32,
    pub(crate) swap_ns: f64,
    pub(crate) relay_ns: f64,
    /// The relay's rate, with the MAC swap's as 1: the median of rounds.
    pub(crate) share: f64,
    /// Part of the relay's frames that did not arrive.
    pub(crate) lost: f64,
}

pub(crate) struct Measured {
    pub(crate) rows: Vec<Row>,
    /// What the session's limit costs.
    pub(crate) limit_ns: f64,
}

pub(crate) fn measure(lab: &Lab) -> Result<Measured> {
    let swap = mac_swap()?;
    let sink = Sink::new()?;
    let interface = Lab::client_interface()?;
    let _sink = Link::new(sink.program(), interface)?;
    lab.relay.enter()?;
    let relay_interface = nix::net::if_::if_nametoindex(RELAY)?;
    let at_relay = Link::new(swap.as_fd(), relay_interface)?;
    lab.client.enter()?;
    let mut bench = Bench { sink, interface, at_relay, swap: swap.as_fd() };
    let mut rows = Vec::new();
    for pairs in PAIRS {
        let relay = Relay::new(pairs, Pace::per_second(PACE))?;
        for size in SIZES {
            eprintln!("XDP: {pairs} pairs, {size} bytes");
            rows.push(bench.row(&relay, size)?);
        }
    }
    let (with, without) = (Relay::new(1, Pace::per_second(PACE))?, Relay::new(1, Pace::UNLIMITED)?);
    let limit_ns = bench.difference(&with, &without)?;
    Ok(Measured { rows, limit_ns })
}

/// The program with a table of so many pairs, and what generates their frames.
struct Relay {
    xdp: Xdp,
    generator: Generator,
    pairs: u32,
}

fn sender(pair: u32) -> (Ipv4Addr, u16) {
    (Ipv4Addr::from(0x0A00_0000 + pair), port(2 * pair))
}

fn port(number: u32) -> u16 {
    FIRST_PORT + u16::try_from(number % PORTS).unwrap_or_default()
}

impl Relay {
    fn new(pairs: u32, pace: Pace) -> Result<Self> {
        let (lines, log2_buckets) = lines_needed(2 * pairs).context("too many pairs")?;
        let xdp = Xdp::detached(lines, &settings(&Limits::default()))?;
        let header = Header {
            log2_buckets,
            seed: 0x2545_F491_4F6C_DD1D,
            main_port: 3478,
            first_port: FIRST_PORT,
            last_port: u16::MAX,
        };
        let locals = [Ip::from(RELAY_IP)];
        let writer = Writer::format(xdp.table().clone(), header, &locals);
        let mut writer = writer.map_err(|_| anyhow::anyhow!("the table does not fit"))?;
        let mut flows = Vec::new();
        for pair in 0..pairs {
            let (here, own_port) = sender(pair);
            let there = Ipv4Addr::from(0x0A80_0000 + pair);
            let other_port = port(2 * pair + 1);
            let endpoint = |ip: Ipv4Addr| Endpoint::from(SocketAddr::new(IpAddr::V4(ip), WIREGUARD));
            for (from, to, key_port, pair_port) in
                [(here, there, other_port, own_port), (there, here, own_port, other_port)]
            {
                let key = Key { local: 0, port: key_port, source: endpoint(from) };
                let value = Pair {
                    local: 0,
                    port: pair_port,
                    destination: endpoint(to),
                    session: pair,
                    generation: 0,
                    same_way: true,
                    pace,
                };
                writer.insert(&key, &value).map_err(|_| anyhow::anyhow!("the table is full"))?;
            }
            flows.push(Flow { source: here.octets(), source_port: WIREGUARD, port: other_port });
        }
        Ok(Self { xdp, generator: Generator::new(&flows)?, pairs })
    }

    fn program(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.xdp.program()?.fd()?.as_fd())
    }
}

struct Bench<'a> {
    sink: Sink,
    interface: u32,
    at_relay: Link,
    swap: BorrowedFd<'a>,
}

impl Bench<'_> {
    fn row(&mut self, relay: &Relay, size: usize) -> Result<Row> {
        let frame = data_frame(size)?;
        let (mut swaps, mut relays, mut shares, mut lost) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let swap = |bench: &mut Self| bench.round(relay, bench.swap, &frame);
            let ours = |bench: &mut Self| bench.round(relay, relay.program()?, &frame);
            let (swap, ours) = if round % 2 == 0 {
                let swap = swap(self)?;
                (swap, ours(self)?)
            } else {
                let ours = ours(self)?;
                (swap(self)?, ours)
            };
            // The first round warms up.
            if round > 0 {
                swaps.push(swap.nanoseconds);
                relays.push(ours.nanoseconds);
                shares.push(swap.nanoseconds / ours.nanoseconds);
                lost.push(ours.lost);
            }
        }
        let lost = median(&mut lost);
        ensure!(lost < 0.1, "a tenth of the frames are lost: {lost}");
        Ok(Row {
            size,
            pairs: relay.pairs,
            swap_ns: median(&mut swaps),
            relay_ns: median(&mut relays),
            share: median(&mut shares),
            lost,
        })
    }

    /// By how many nanoseconds one relay is slower than another.
    fn difference(&mut self, slower: &Relay, faster: &Relay) -> Result<f64> {
        let frame = data_frame(SIZES[0])?;
        let mut differences = Vec::new();
        for _ in 0..ROUNDS {
            let slow = self.round(slower, slower.program()?, &frame)?;
            let fast = self.round(faster, faster.program()?, &frame)?;
            differences.push(slow.nanoseconds - fast.nanoseconds);
        }
        Ok(median(&mut differences))
    }

    fn round(&mut self, relay: &Relay, program: BorrowedFd<'_>, frame: &[u8]) -> Result<Round> {
        self.at_relay.replace(program)?;
        let before = self.sink.count()?;
        let started = Instant::now();
        relay.generator.send(frame, self.interface, FRAMES)?;
        let mut ended = Instant::now();
        let mut arrived = self.sink.count()? - before;
        // What is still on its way; whatever has not come after a while is lost.
        while arrived < u64::from(FRAMES) && ended.elapsed() < Duration::from_millis(20) {
            let now = self.sink.count()? - before;
            if now != arrived {
                (arrived, ended) = (now, Instant::now());
            }
        }
        ensure!(arrived > 0, "nothing arrives");
        #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 frames")]
        let arrived = arrived as f64;
        Ok(Round {
            nanoseconds: (ended - started).as_secs_f64() * 1e9 / arrived,
            lost: 1.0 - arrived / f64::from(FRAMES),
        })
    }
}

struct Round {
    nanoseconds: f64,
    lost: f64,
}

/// A WireGuard data message of so many bytes; the generator gives it its addresses.
fn data_frame(size: usize) -> Result<Vec<u8>> {
    let mut payload = vec![0x5A; size];
    payload[..4].copy_from_slice(&[4, 0, 0, 0]);
    let (ip, _) = sender(0);
    lab::frame(ip, WIREGUARD, port(1), &payload)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

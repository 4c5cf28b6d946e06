//! The kernel against the model: the same packets under the same policies, action and reason.

use std::path::Path;

use aya::maps::{HashMap, Map, MapData};
use ghostwire_dataplane::acl::{Acl, Counters, Image};
use ghostwire_ebpf_abi::config::Config;
use ghostwire_ebpf_abi::event::{Direction, Reason};
use ghostwire_ebpf_abi::image;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::lab::{Lab, counted, run as run_packet};
use crate::model::Model;
use crate::{packets, policies};

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Packets under one policy: few enough that nothing times out, even in an emulated machine.
const PACKETS: usize = 300;
const POLICIES: u16 = 360;

fn seed() -> u64 {
    let seed = std::env::var("GHOSTWIRE_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    eprintln!("seed {seed} (repeat with GHOSTWIRE_TEST_SEED={seed})");
    seed
}

/// Empties a table that has no use for being emptied but this.
fn clear<const KEY: usize, const VALUE: usize>(dir: &Path, name: &str) {
    let map = MapData::from_pin(dir.join(format!("lo/maps-{}", image::MAGIC & 0xff)).join(name)).unwrap();
    let mut map: HashMap<_, [u8; KEY], [u8; VALUE]> = HashMap::try_from(Map::LruHashMap(map)).unwrap();
    let keys: Vec<[u8; KEY]> = map.keys().flatten().collect();
    for key in keys {
        map.remove(&key).unwrap();
    }
}

/// A difference between kernel and model, in words.
#[derive(Debug)]
struct Difference(String);

/// Runs packets through both until they differ. Returns how often each reason was seen.
struct Run<'a> {
    lab: &'a Lab,
    acl: Acl,
    counters: Counters,
    rng: StdRng,
    seen: std::collections::BTreeMap<(u8, Reason), usize>,
    packets: usize,
}

impl Run<'_> {
    fn compare(&mut self, model: &mut Model, direction: Direction, packet: &[u8]) -> Result<(), Difference> {
        // The kernel's own test frame refuses packets without an IP header's first byte.
        if packet.is_empty() {
            return Ok(());
        }
        let expected = model.judge(direction, packet);
        let action = run_packet(&self.acl, direction, packet);
        let counters = self.acl.counters().unwrap();
        let found = (action, counted(&self.counters, &counters, direction));
        self.counters = counters;
        *self.seen.entry((direction as u8, expected.1)).or_default() += 1;
        self.packets += 1;
        if found == expected {
            return Ok(());
        }
        let filter = model.rules.as_ref().map(|rules| &rules.filter);
        Err(Difference(format!(
            "{direction:?} {packet:02x?}: kernel {found:?}, model {expected:?}, under {filter:#?}"
        )))
    }

    /// Something new, or what may follow an earlier packet.
    fn next(&mut self, earlier: &[(Direction, Vec<u8>)], first_id: u16) -> (Direction, Vec<u8>) {
        if !earlier.is_empty() && self.rng.random_bool(0.6) {
            let (direction, packet) = &earlier[self.rng.random_range(0..earlier.len())];
            if let Some((packet, back)) = packets::sequel(&mut self.rng, packet) {
                let other = DIRECTIONS[1 - *direction as usize];
                return (if back { other } else { *direction }, packet);
            }
        }
        let direction = DIRECTIONS[self.rng.random_range(0..2)];
        (direction, packets::random(&mut self.rng, direction == Direction::Ingress, first_id))
    }

    /// One node's life: two policies, one after the other.
    fn life(&mut self, number: u16, sabotage: impl Fn(&mut Image)) -> Result<(), Difference> {
        clear::<40, 16>(self.lab.dir(), "FRAGMENTS");
        clear::<16, 16>(self.lab.dir(), "BUCKETS");
        self.acl.forget_connections().unwrap();
        let mut model = Model::new();
        model.burst = if self.rng.random_bool(0.3) { 1 } else { 1_000_000 };
        let config = Config {
            drop_events_per_second: 10,
            accept_sample: u32::from(self.rng.random_bool(0.3)) * 7,
            states_per_second: 0,
            states_burst: u32::try_from(model.burst).unwrap(),
        };
        self.acl.set_config(&config).unwrap();
        let mut earlier = Vec::new();
        for half in 0..2 {
            let generation = 2 * u32::from(number) + half + 1;
            let rules = policies::random(&mut self.rng, generation);
            let mut image = policies::image(&rules);
            sabotage(&mut image);
            self.acl.install(&image).unwrap();
            model.rules = Some(rules);
            for _ in 0..PACKETS / 2 {
                let (direction, packet) = self.next(&earlier, number * 4);
                self.compare(&mut model, direction, &packet)?;
                if !packet.is_empty() {
                    earlier.push((direction, packet));
                    earlier.drain(..earlier.len().saturating_sub(6));
                }
            }
            let packet = packets::random(&mut self.rng, half == 0, number * 4);
            for length in 0..=packet.len() {
                self.compare(&mut model, DIRECTIONS[half as usize], &packet[..length])?;
            }
        }
        Ok(())
    }
}

fn run(lab: &Lab, seed: u64) -> Run<'_> {
    let acl = lab.open();
    let counters = acl.counters().unwrap();
    Run { lab, acl, counters, rng: StdRng::seed_from_u64(seed), seen: [].into(), packets: 0 }
}

#[test]
fn kernel_and_model_agree_on_every_packet() {
    let seed = seed();
    let lab = Lab::new();
    let mut run = run(&lab, seed);
    for number in 0..POLICIES {
        if let Err(Difference(difference)) = run.life(number, |_| ()) {
            panic!("seed {seed}, policy {number}: {difference}");
        }
    }
    eprintln!("{} packets, no difference: {:?}", run.packets, run.seen);
    assert!(run.packets >= 100_000, "only {} packets", run.packets);
    // Every reason but a missing image was met, in every direction that has it.
    for reason in Reason::ALL {
        for direction in DIRECTIONS {
            let impossible = match reason {
                Reason::NoImage => true,
                Reason::Reply => direction == Direction::Ingress,
                Reason::Connection | Reason::InvalidState => direction == Direction::Egress,
                _ => false,
            };
            let count = run.seen.get(&(direction as u8, reason)).copied().unwrap_or(0);
            assert_eq!(count == 0, impossible, "{direction:?} {reason:?} was met {count} times");
        }
    }
}

#[test]
fn one_wrong_bit_in_an_image_is_found() {
    let seed = seed();
    let lab = Lab::new();
    let mut run = run(&lab, seed);
    // The specimen: every inbound row allows the first 64 service classes.
    let broken = |image: &mut Image| {
        let base = usize::try_from(image.words[image::header::IN_BASE as usize]).unwrap();
        let end = usize::try_from(image.words[image::header::OUT_BASE as usize]).unwrap();
        image.words[base..end].fill(u64::MAX);
    };
    let found = (0..40).any(|number| run.life(number, broken).is_err());
    assert!(found, "seed {seed}: a broken image went unnoticed");
}

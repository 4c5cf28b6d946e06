//! Reader and writer interleaved word by word, without threads and without chance: at each load of a reader the writer
//! does something, and at each store of the writer a reader looks up everything.

use core::cell::{Cell, RefCell};
use std::boxed::Box;
use std::rc::Rc;
use std::vec::Vec;

use super::{Busy, Header, Key, Line, Pair, Writer, lines_needed, lookup};
use crate::{Endpoint, Ip, Pace};

/// What happens at a step. It is taken away while it runs, since what it does are steps, too.
type Hook = Box<dyn FnMut()>;

std::thread_local! {
    static AT_LOADS: RefCell<Option<Hook>> = const { RefCell::new(None) };
    static AT_STORES: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

fn step(hook: &'static std::thread::LocalKey<RefCell<Option<Hook>>>) {
    let Some(mut run) = hook.take() else { return };
    run();
    hook.set(Some(run));
}

/// Before each load of a word.
pub(super) fn before_load() {
    step(&AT_LOADS);
}

/// Before each store of a word.
pub(super) fn before_store() {
    step(&AT_STORES);
}

/// Keys that are always there.
const STAYING: u32 = 24;

/// Keys that come and go. There are 32 slots, and tables are made so that nine tenths suffice.
const GUESTS: u32 = 4;

fn key(number: u32) -> Key {
    Key { local: 0, port: 50_000, source: Endpoint { ip: Ip([number, 0, 0, 0]), port: 7 } }
}

/// Every field follows from two numbers, so that a mixture shows.
fn pair(key: u32, version: u32) -> Pair {
    let number = key * 1000 + version;
    Pair {
        local: 0,
        port: 7,
        destination: Endpoint { ip: Ip([number, !number, number, !number]), port: 7 },
        session: number,
        generation: !number,
        same_way: false,
        pace: Pace::UNLIMITED,
    }
}

struct Table {
    lines: &'static [Line],
    writer: Writer<&'static [Line]>,
    versions: [u32; STAYING as usize],
    random: u64,
}

impl Table {
    /// Full enough that entries have to move for others.
    fn new(seed: u64) -> Self {
        let (count, log2_buckets) = lines_needed(1).unwrap();
        let lines: Vec<Line> = (0..count).map(|_| Line::default()).collect();
        let lines: &'static [Line] = lines.leak();
        let header = Header { log2_buckets, seed, main_port: 1, first_port: 50_000, last_port: 50_001 };
        let writer = Writer::format(lines, header, &[]).unwrap();
        let mut table = Self { lines, writer, versions: [0; STAYING as usize], random: seed };
        for number in 0..STAYING {
            table.writer.insert(&key(number), &pair(number, 0)).unwrap();
        }
        for _ in 0..20 {
            table.change();
        }
        table
    }

    fn next(&mut self, below: u32) -> u32 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.random >> 33) % u64::from(below)) as u32
    }

    /// One change: a new value, or a guest that comes or goes.
    fn change(&mut self) {
        let number = self.next(2 * STAYING);
        if number < STAYING {
            self.update(number);
        } else {
            let guest = key(STAYING + number % GUESTS);
            if self.writer.remove(&guest).is_none() {
                // There may be no room, which changes nothing.
                let _ = self.writer.insert(&guest, &pair(STAYING, 1));
            }
        }
    }

    fn update(&mut self, number: u32) {
        let version = self.versions[number as usize] + 1;
        self.writer.insert(&key(number), &pair(number, version)).unwrap();
        self.versions[number as usize] = version;
    }
}

#[test]
fn a_reader_that_is_stopped_at_any_word_sees_a_value_that_there_was() {
    let (mut looked, mut busy) = (0_u32, 0_u32);
    for seed in 0..60 {
        let table = Rc::new(RefCell::new(Table::new(seed)));
        for number in 0..STAYING {
            for at in 0..40 {
                let (lines, before) = {
                    let table = table.borrow();
                    (table.lines, table.versions[number as usize])
                };
                let (steps, writing) = (Cell::new(0), Rc::clone(&table));
                AT_LOADS.set(Some(Box::new(move || {
                    if steps.replace(steps.get() + 1) == at {
                        let mut table = writing.borrow_mut();
                        for _ in 0..3 {
                            table.change();
                            table.update(number);
                        }
                    }
                })));
                let seen = lookup(lines, &key(number));
                AT_LOADS.set(None);
                let after = table.borrow().versions[number as usize];
                looked += 1;
                match seen {
                    Ok(Some(seen)) => {
                        let whole = (before..=after).any(|version| seen == pair(number, version));
                        assert!(whole, "{seen:?} is none of {before} to {after} of key {number}");
                    }
                    Ok(None) => panic!("key {number} was there all the time"),
                    Err(Busy) => busy += 1,
                }
            }
        }
    }
    // What changed once is looked at again.
    assert_eq!(busy, 0, "of {looked}");
}

#[test]
fn between_any_two_stores_everything_is_there() {
    let (mut looked, mut busy) = (0_u32, 0_u32);
    for seed in 0..60 {
        let mut table = Table::new(seed);
        for _ in 0..100 {
            let (lines, before) = (table.lines, table.versions);
            let seen = Rc::new(RefCell::new(Vec::new()));
            let noting = Rc::clone(&seen);
            AT_STORES.set(Some(Box::new(move || {
                for number in 0..STAYING {
                    noting.borrow_mut().push((number, lookup(lines, &key(number))));
                }
            })));
            table.change();
            AT_STORES.set(None);
            for (number, found) in seen.borrow().iter() {
                let (old, new) = (before[*number as usize], table.versions[*number as usize]);
                let told = [old, new].map(|version| Ok(Some(pair(*number, version))));
                // Where entries fill both of their buckets and can go nowhere else, one is written over.
                let over = *found == Err(Busy) && old != new;
                assert!(over || told.contains(found), "key {number}, {old} to {new}: {found:?}");
                looked += 1;
                busy += u32::from(over);
            }
        }
    }
    assert!(busy * 1000 < looked, "{busy} of {looked}");
}

//! A relay that is restarted finds the table in the kernel and the journal in a file.

use ghostwire_relay::sessions::config::Secrets;
use ghostwire_relay::sessions::journal::Record;
use ghostwire_relay::sessions::{Event, Sessions};
use ghostwire_relay::table::HeapTable;
use ghostwire_relay_fastpath::table::Lines as _;
use ghostwire_relay_protocol::control::{Action, code};

use crate::world::{AT_A, AT_B, KEY, MAIN, Met, Node, RELAY, World, address, config, coordinator};

/// What the shell would have appended.
fn appended(world: &World) -> Vec<Record> {
    let begin = world.relay.journal().next().unwrap();
    let records = world.events.iter().filter_map(|event| match event {
        Event::Record(record) => Some(*record),
        _ => None,
    });
    [begin].into_iter().chain(records).collect()
}

/// The relay's process is another one; the table and the journal are the same.
fn restart(world: &mut World, journal: Vec<Record>) -> bool {
    let secrets = Secrets {
        relay: RELAY,
        key: world.secret.clone(),
        coordinators: vec![(KEY, coordinator().verifying_key())],
    };
    let table = world.relay.table().clone();
    let resumed = Sessions::resume(&config(), &secrets, &table, &[42; 32], journal.into_iter()).unwrap();
    world.events.clear();
    let done = resumed.is_some();
    if let Some(resumed) = resumed {
        world.relay = resumed;
        world.now.monotonic = std::time::Duration::from_secs(1);
        world.pass(0);
    }
    done
}

fn lines(table: &HeapTable) -> Vec<u64> {
    (0..).map_while(|index| table.line(index)).flat_map(|line| (0..8).map(|word| line.load(word))).collect()
}

#[test]
fn a_restarted_relay_goes_on_without_touching_what_it_finds() {
    let mut met = Met::new();
    let before = lines(met.world.relay.table());
    let journal = appended(&met.world);
    assert!(restart(&mut met.world, journal));
    assert_eq!(lines(met.world.relay.table()), before, "nothing is written, so nothing is lost meanwhile");
    assert_eq!(met.world.relay.load(), (2, 1));
    assert!(met.flows(AT_A, AT_B));
    let opened = met.world.events.iter().filter(|event| matches!(event, Event::OpenPort(_))).count();
    assert_eq!(opened, 2);
    // Everybody goes on as before, and ports that are given out are others.
    let again = met.a.ask(&mut met.world, Action::Refresh, None, MAIN, address(AT_A)).unwrap();
    assert_eq!(again.relayed.port(), met.port_a);
    assert!(met.a.bind(&mut met.world, 2, met.port_b, AT_A).unwrap().peer_bound);
    let other = Node::new(3).allocate(&mut met.world, "198.51.100.3:3").unwrap();
    assert!(![met.port_a, met.port_b].contains(&other));
    // What is not refreshed ends, counted from the restart.
    met.world.pass(700);
    assert_eq!(met.world.relay.load(), (0, 0));
    assert!(!met.flows(AT_A, AT_B));
}

#[test]
fn a_journal_that_was_compacted_says_the_same() {
    let mut met = Met::new();
    met.a.bind(&mut met.world, 2, met.port_b, "198.51.100.1:4444").unwrap();
    let journal: Vec<Record> = met.world.relay.journal().collect();
    assert!(journal.len() < appended(&met.world).len());
    assert!(restart(&mut met.world, journal));
    assert!(met.flows("198.51.100.1:4444", AT_B) && !met.flows(AT_A, AT_B));
}

#[test]
fn what_ended_before_the_restart_stays_ended() {
    let mut met = Met::new();
    met.a.ask(&mut met.world, Action::Release, Some(2), met.port_b, address(AT_A)).unwrap();
    let journal = appended(&met.world);
    assert!(restart(&mut met.world, journal));
    assert_eq!(met.world.relay.load(), (2, 0));
    assert!(!met.flows(AT_A, AT_B));
    met.a.bind(&mut met.world, 2, met.port_b, AT_A).unwrap();
    assert!(met.flows(AT_A, AT_B));
}

/// A kill between the table and the journal: the journal counts.
#[test]
fn table_and_journal_are_made_to_agree() {
    let mut met = Met::new();
    let journal = appended(&met.world);
    // The node moved, but the journal does not know yet: it was not answered either.
    met.a.bind(&mut met.world, 2, met.port_b, "198.51.100.1:4444").unwrap();
    assert!(restart(&mut met.world, journal));
    assert!(met.flows(AT_A, AT_B) && !met.flows("198.51.100.1:4444", AT_B));
    assert_eq!(met.world.relay.load(), (2, 1));
}

#[test]
fn an_older_bind_is_still_refused_after_a_restart() {
    let mut met = Met::new();
    let mut old = met.a.clone();
    met.a.sequence += 1000;
    met.a.bind(&mut met.world, 2, met.port_b, "198.51.100.1:4444").unwrap();
    let journal = appended(&met.world);
    assert!(restart(&mut met.world, journal));
    assert_eq!(old.bind(&mut met.world, 2, met.port_b, AT_A), Err(code::OUT_OF_ORDER));
}

#[test]
fn another_tables_journal_is_not_believed() {
    let mut met = Met::new();
    let mut journal = appended(&met.world);
    journal[0] = Record::Begin { seed: 1 };
    assert!(!restart(&mut met.world, journal));
    assert!(!restart(&mut met.world, Vec::new()));
}

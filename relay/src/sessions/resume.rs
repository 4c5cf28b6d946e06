//! Going on where another process has stopped.

use std::collections::HashMap;
use std::time::Duration;

use ghostwire_relay_fastpath::Ip;
use ghostwire_relay_fastpath::table::{Header, Key, Lines, Pair, Writer};

use super::config::{Config, ConfigError, Secrets};
use super::journal::Record;
use super::pairs::{Leg, PairId, PairState};
use super::{Allocation, Event, Owner, Sessions, table_size};

impl<T: Lines + Clone> Sessions<T> {
    /// A relay that goes on with the pair table in `table`, as far as the journal knows whose its entries are. What
    /// both agree on is not touched. `None`: there is no such table, or the journal is not this table's: then a
    /// relay has to begin with nothing.
    pub fn resume(
        config: &Config,
        secrets: &Secrets,
        table: &T,
        seed: &[u8; 32],
        journal: impl Iterator<Item = Record>,
    ) -> Result<Option<Self>, ConfigError> {
        config.check()?;
        let mut journal = journal.peekable();
        let (_, log2_buckets) = table_size(config)?;
        let header = Header {
            log2_buckets,
            seed: 0,
            main_port: config.main_port,
            first_port: *config.ports.start(),
            last_port: *config.ports.end(),
        };
        let locals: Vec<Ip> = config.locals.iter().map(|local| local.local.into()).collect();
        let Ok(writer) = Writer::adopt(table.clone(), &header, &locals) else { return Ok(None) };
        if journal.next() != Some(Record::Begin { seed: writer.header().seed }) {
            return Ok(None);
        }
        let mut sessions = Self::with_table(config.clone(), secrets.clone(), writer, seed);
        for record in journal {
            sessions.replay(record);
        }
        sessions.reconcile();
        Ok(Some(sessions))
    }

    fn replay(&mut self, record: Record) {
        match record {
            Record::Begin { .. } => {}
            Record::Port { owner, port, order, source } => {
                let expires = self.config.allocation_lease;
                let pairs = self.allocations.get(&owner).map_or(0, |old| old.pairs);
                if self.ports.claim(port, owner) {
                    self.allocations.insert(owner, Allocation { port, expires, order, source, pairs });
                }
            }
            Record::PortEnded { owner } => self.release_allocation(owner),
            Record::Leg { owner, peer, local, source, order, session, rate } => {
                let Some(id) = PairId::new(owner, peer) else { return };
                if !id.owners().iter().all(|owner| self.allocations.contains_key(owner)) {
                    return;
                }
                if !self.pairs.contains_key(&id) {
                    if !self.numbers.claim(session) {
                        return;
                    }
                    for owner in id.owners() {
                        if let Some(allocation) = self.allocations.get_mut(&owner) {
                            allocation.pairs += 1;
                        }
                    }
                    self.pairs.insert(id, PairState::new(session, rate));
                    self.pair_of.insert(session, id);
                }
                let leg = Leg { local, source, expires: self.config.binding_lease };
                if let Some(pair) = self.pairs.get_mut(&id) {
                    pair.rate = rate;
                    pair.legs[id.side(owner)] = Some(leg);
                    pair.orders[id.side(owner)] = Some(order);
                    pair.empty_since = None;
                }
            }
            Record::LegEnded { owner, peer } => {
                let Some(id) = PairId::new(owner, peer) else { return };
                if let Some(pair) = self.pairs.get_mut(&id) {
                    pair.legs[id.side(owner)] = None;
                    if pair.legs.iter().all(Option::is_none) {
                        pair.empty_since = Some(Duration::ZERO);
                    }
                }
            }
        }
    }

    /// Makes the table say what the journal says, and tells the shell what there is.
    fn reconcile(&mut self) {
        self.events.clear();
        self.bound.clear();
        let found: HashMap<Key, Pair> = self.table.entries().collect();
        let mut wanted = HashMap::new();
        let ids: Vec<PairId> = self.pairs.keys().copied().collect();
        for id in ids {
            let ports = self.ports_of(id);
            let Some(pair) = self.pairs.get_mut(&id) else { continue };
            // The generation only has to be a new one when something changes.
            for (side, owner) in (0..).zip(id.owners()) {
                let (Some(Some(leg)), Some(Some(port))) = (pair.legs.get(side), ports.get(1 - side)) else {
                    continue;
                };
                let key = super::key_of(leg, *port);
                if let Some(entry) = found.get(&key) {
                    pair.generation = pair.generation.max(entry.generation);
                    pair.same_way = entry.same_way;
                }
                self.bound.insert(key, owner);
            }
            self.events.push_back(Event::SessionOpened { session: pair.session, rate: pair.rate });
            for (key, entry) in self.entries_of(id).into_iter().flatten() {
                wanted.insert(key, entry);
            }
        }
        for key in found.keys().filter(|key| !wanted.contains_key(key)) {
            self.table.remove(key);
        }
        for (key, entry) in wanted {
            if found.get(&key) != Some(&entry) {
                // There is room: the journal's pairs are within the limit that the table was made for.
                let _ = self.table.insert(&key, &entry);
            }
        }
        for allocation in self.allocations.values() {
            self.events.push_back(Event::OpenPort(allocation.port));
        }
        let connected: Vec<_> = self.connected().collect();
        self.events
            .extend(connected.into_iter().map(|(session, ends)| Event::PairConnected { session, ends }));
    }
}

impl<T: Lines> Sessions<T> {
    /// A journal of what there is.
    pub fn journal(&self) -> impl Iterator<Item = Record> {
        let ports = self.allocations.iter().map(|(owner, allocation)| Record::Port {
            owner: *owner,
            port: allocation.port,
            order: allocation.order,
            source: allocation.source,
        });
        let legs = self.pairs.keys().flat_map(|id| {
            let [low, high] = id.owners();
            [self.leg_record(*id, low), self.leg_record(*id, high)].into_iter().flatten()
        });
        [Record::Begin { seed: self.table.header().seed }].into_iter().chain(ports).chain(legs)
    }

    /// The record of a node's leg in a pair.
    pub(super) fn leg_record(&self, id: PairId, owner: Owner) -> Option<Record> {
        let pair = self.pairs.get(&id)?;
        let side = id.side(owner);
        let leg = pair.legs.get(side)?.as_ref()?;
        Some(Record::Leg {
            owner,
            peer: id.owners().get(1 - side)?.node,
            local: leg.local,
            source: leg.source,
            order: pair.orders.get(side).copied().flatten()?,
            session: pair.session,
            rate: pair.rate,
        })
    }
}

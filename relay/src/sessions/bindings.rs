//! What authentic requests do.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ghostwire_relay_fastpath::Pace;
use ghostwire_relay_fastpath::table::{Key, Lines, Pair};
use ghostwire_relay_protocol::control::{Lease, code};
use ghostwire_relay_protocol::token::NodeId;

use super::control::Authentic;
use super::journal::Record;
use super::pairs::{Leg, PairId, PairState};
use super::{Allocation, Event, Now, Owner, Sessions, challenge, key_of};
use crate::limits::{Rate, SessionRate};

impl<T: Lines> Sessions<T> {
    /// Gives a node a port, or the one that it has.
    pub(super) fn allocate(&mut self, now: Now, request: &Authentic) -> Result<Lease, u16> {
        if self.allocations.contains_key(&request.owner) {
            return self.refresh_allocation(now, request);
        }
        if self.draining {
            return Err(code::TRY_ALTERNATE);
        }
        self.check_leg(request.arrival.source)?;
        let from_there = |allocation: &&Allocation| allocation.source.ip() == request.arrival.source.ip();
        if self.allocations.values().filter(from_there).count() >= self.config.limits.allocations_per_source {
            self.counters.quota_refused += 1;
            return Err(code::QUOTA);
        }
        let port = self.ports.take(request.owner).ok_or(code::CAPACITY)?;
        let allocation = Allocation {
            port,
            expires: now.monotonic + self.config.allocation_lease,
            order: request.order,
            source: request.arrival.source,
            pairs: 0,
        };
        let (owner, order, source) = (request.owner, request.order, allocation.source);
        self.allocations.insert(owner, allocation);
        self.events.push_back(Event::Record(Record::Port { owner, port, order, source }));
        self.events.push_back(Event::OpenPort(port));
        Ok(self.lease(request, port, self.config.allocation_lease, false))
    }

    /// Prolongs a node's port.
    pub(super) fn refresh_allocation(&mut self, now: Now, request: &Authentic) -> Result<Lease, u16> {
        let lease = self.config.allocation_lease;
        let allocation = self.allocations.get_mut(&request.owner).ok_or(code::MISMATCH)?;
        if request.order < allocation.order {
            self.counters.out_of_order += 1;
            return Err(code::OUT_OF_ORDER);
        }
        allocation.order = request.order;
        allocation.expires = now.monotonic + lease;
        allocation.source = request.arrival.source;
        let port = allocation.port;
        Ok(self.lease(request, port, lease, false))
    }

    /// Takes a node's port and all its legs back.
    pub(super) fn release(&mut self, request: &Authentic) -> Result<Lease, u16> {
        let allocation = self.allocations.get(&request.owner).ok_or(code::MISMATCH)?;
        if request.order < allocation.order {
            self.counters.out_of_order += 1;
            return Err(code::OUT_OF_ORDER);
        }
        let port = allocation.port;
        self.release_allocation(request.owner);
        Ok(self.lease(request, port, Duration::ZERO, false))
    }

    /// Tells a node its peer's port. Changes nothing.
    pub(super) fn look_up(&self, request: &Authentic, peer: NodeId) -> Result<Lease, u16> {
        let id = PairId::new(request.owner, peer).ok_or(code::MISMATCH)?;
        let peer = Owner { network: request.owner.network, node: peer };
        let allocation = self.allocations.get(&peer).ok_or(code::MISMATCH)?;
        let bound =
            self.pairs.get(&id).is_some_and(|pair| pair.legs.get(id.side(peer)).is_some_and(Option::is_some));
        Ok(self.lease(request, allocation.port, Duration::ZERO, bound))
    }

    /// Makes the request's source the node's address towards its peer. The newest request wins, also over
    /// another node's leg at the same address: whoever is there now has just shown it.
    pub(super) fn bind(&mut self, now: Now, request: &Authentic, peer: NodeId) -> Result<Lease, u16> {
        let id = self.pair_at(request, peer)?;
        self.check_leg(request.arrival.source)?;
        let side = id.side(request.owner);
        let rate = self.rate(request.token.rate_kbit);
        self.ensure_pair(id, rate)?;
        let Some(pair) = self.pairs.get(&id) else { return Err(code::CAPACITY) };
        let arrival = request.arrival;
        let expires = now.monotonic + self.config.binding_lease;
        let leg = Leg { local: arrival.local, source: arrival.source, expires };
        let is_there = |old: &Leg| (old.local, old.source) == (leg.local, leg.source);
        let unchanged = pair.legs.get(side).and_then(Option::as_ref).is_some_and(is_there);
        match pair.orders.get(side).copied().flatten() {
            Some(newest) if request.order < newest || (request.order == newest && !unchanged) => {
                self.counters.out_of_order += 1;
                return Err(code::OUT_OF_ORDER);
            }
            _ => {}
        }
        if !unchanged {
            self.displace(now.monotonic, request.owner, &leg, arrival.port);
        }
        self.set_leg(now.monotonic, id, side, Some(leg));
        let pair = self.pairs.get_mut(&id).ok_or(code::CAPACITY)?;
        if let Some(order) = pair.orders.get_mut(side) {
            *order = Some(request.order);
        }
        let same_rate = pair.rate == rate;
        if !same_rate {
            pair.rate = rate;
            self.events.push_back(Event::SessionOpened { session: pair.session, rate });
        }
        let complete = pair.is_complete();
        if !(unchanged && same_rate) {
            if !self.connect(id) {
                self.set_leg(now.monotonic, id, side, None);
                return Err(code::CAPACITY);
            }
            self.events.extend(self.leg_record(id, request.owner).map(Event::Record));
        }
        Ok(self.lease(request, arrival.port, self.config.binding_lease, complete))
    }

    /// Prolongs a leg, from where it is bound and from nowhere else.
    pub(super) fn refresh_leg(&mut self, now: Now, request: &Authentic, peer: NodeId) -> Result<Lease, u16> {
        let id = self.pair_at(request, peer)?;
        let side = id.side(request.owner);
        let lease = self.config.binding_lease;
        let pair = self.pairs.get_mut(&id).ok_or(code::MISMATCH)?;
        let leg = pair.legs.get_mut(side).and_then(Option::as_mut).ok_or(code::MISMATCH)?;
        if (leg.local, leg.source) != (request.arrival.local, request.arrival.source) {
            return Err(code::MISMATCH);
        }
        leg.expires = now.monotonic + lease;
        let complete = pair.is_complete();
        Ok(self.lease(request, request.arrival.port, lease, complete))
    }

    /// Ends a leg.
    pub(super) fn release_leg(&mut self, now: Now, request: &Authentic, peer: NodeId) -> Result<Lease, u16> {
        let id = self.pair_at(request, peer)?;
        let side = id.side(request.owner);
        let pair = self.pairs.get_mut(&id).ok_or(code::MISMATCH)?;
        let newest = pair.orders.get_mut(side).ok_or(code::MISMATCH)?;
        if newest.is_some_and(|newest| request.order < newest) {
            self.counters.out_of_order += 1;
            return Err(code::OUT_OF_ORDER);
        }
        *newest = Some(request.order);
        self.set_leg(now.monotonic, id, side, None);
        Ok(self.lease(request, request.arrival.port, Duration::ZERO, false))
    }

    /// The pair that a request on a relay port is about: the port must be the peer's, and the node must have one
    /// of its own for what it sends to leave from.
    fn pair_at(&self, request: &Authentic, peer: NodeId) -> Result<PairId, u16> {
        let peer_owner = Owner { network: request.owner.network, node: peer };
        if self.ports.owner(request.arrival.port) != Some(peer_owner)
            || !self.allocations.contains_key(&request.owner)
        {
            return Err(code::MISMATCH);
        }
        PairId::new(request.owner, peer).ok_or(code::MISMATCH)
    }

    fn check_leg(&mut self, source: SocketAddr) -> Result<(), u16> {
        if self.legs.allows(source) {
            return Ok(());
        }
        self.counters.legs_refused += 1;
        Err(code::FORBIDDEN)
    }

    fn rate(&self, kbit: Option<u32>) -> SessionRate {
        let default = self.config.limits.session;
        let Some(kbit) = kbit else { return default };
        let per_second = u64::from(kbit) * 125;
        // A tenth of a second, and at least what one GSO burst of a sender is.
        SessionRate { bytes: Rate { per_second, burst: (per_second / 10).max(128 << 10) }, ..default }
    }

    fn lease(&self, request: &Authentic, port: u16, lease: Duration, peer_bound: bool) -> Lease {
        let source = request.arrival.source;
        let local = self.config.locals.get(usize::from(request.arrival.local));
        let relayed = local.map_or(source.ip(), |local| local.advertised);
        Lease {
            mapped: source,
            relayed: SocketAddr::new(relayed, port),
            seconds: u32::try_from(lease.as_secs()).unwrap_or(u32::MAX),
            peer_bound,
            draining: self.draining,
        }
    }

    /// Makes a pair if there is none, within its nodes' quotas.
    fn ensure_pair(&mut self, id: PairId, rate: SessionRate) -> Result<(), u16> {
        if self.pairs.contains_key(&id) {
            return Ok(());
        }
        let limit = self.config.limits.pairs_per_node;
        let full = |owner| self.allocations.get(&owner).is_none_or(|allocation| allocation.pairs >= limit);
        if id.owners().into_iter().any(full) {
            self.counters.quota_refused += 1;
            return Err(code::QUOTA);
        }
        let session = self.numbers.take().ok_or(code::CAPACITY)?;
        for owner in id.owners() {
            if let Some(allocation) = self.allocations.get_mut(&owner) {
                allocation.pairs += 1;
            }
        }
        self.pairs.insert(id, PairState::new(session, rate));
        self.pair_of.insert(session, id);
        self.events.push_back(Event::SessionOpened { session, rate });
        Ok(())
    }

    /// Ends another node's leg at the address that a new leg takes.
    fn displace(&mut self, now: Duration, owner: Owner, leg: &Leg, port: u16) {
        let Some(other) = self.bound.get(&key_of(leg, port)).copied().filter(|other| *other != owner) else {
            return;
        };
        let Some(peer) = self.ports.owner(port) else { return };
        if let Some(id) = PairId::new(other, peer.node) {
            self.set_leg(now, id, id.side(other), None);
        }
    }

    /// Changes a leg. The table's entries of the old one go first; [`Sessions::connect`] makes those of the new one.
    fn set_leg(&mut self, now: Duration, id: PairId, side: usize, leg: Option<Leg>) {
        let ports = self.ports_of(id);
        let Some(pair) = self.pairs.get_mut(&id) else { return };
        let old = pair.legs.get(side).copied().flatten();
        let same_place = |old: &Leg, new: &Leg| (old.local, old.source) == (new.local, new.source);
        let moved = match (&old, &leg) {
            (Some(old), Some(new)) => !same_place(old, new),
            (None, None) => false,
            _ => true,
        };
        if moved {
            // The port of the other side is where this leg's datagrams arrive.
            if let (Some(old), Some(Some(port))) = (old, ports.get(1 - side)) {
                let key = key_of(&old, *port);
                self.table.remove(&key);
                self.bound.remove(&key);
                self.counters.rebound += u64::from(leg.is_some());
            }
            // With one leg gone, the other one's datagrams have nowhere to go. When it only moved, `connect`
            // replaces the entry instead, so that none is lost meanwhile.
            let other = pair.legs.get(1 - side).copied().flatten();
            if let (None, Some(other), Some(Some(port))) = (leg, other, ports.get(side)) {
                self.table.remove(&key_of(&other, *port));
            }
            if let (Some(new), Some(Some(port)), Some(owner)) =
                (leg, ports.get(1 - side), id.owners().get(side))
            {
                self.bound.insert(key_of(&new, *port), *owner);
            }
            pair.generation = pair.generation.wrapping_add(1);
            pair.same_way = false;
        }
        if let Some(slot) = pair.legs.get_mut(side) {
            *slot = leg;
        }
        let [low, high] = id.owners();
        let (owner, peer) = if side == 0 { (low, high.node) } else { (high, low.node) };
        if old.is_some() && leg.is_none() {
            self.events.push_back(Event::Record(Record::LegEnded { owner, peer }));
        }
        pair.empty_since =
            if pair.legs.iter().all(Option::is_none) { pair.empty_since.or(Some(now)) } else { None };
    }

    /// The two entries of a pair, if both legs are bound.
    pub(super) fn entries_of(&self, id: PairId) -> Option<[(Key, Pair); 2]> {
        let [Some(low_port), Some(high_port)] = self.ports_of(id) else { return None };
        let pair = self.pairs.get(&id)?;
        let [Some(low), Some(high)] = pair.legs else { return None };
        let entry = |to: &Leg, port| Pair {
            local: to.local,
            port,
            destination: to.source.into(),
            session: pair.session,
            generation: pair.generation,
            same_way: pair.same_way,
            pace: Pace::per_second(pair.rate.bytes.per_second),
        };
        let from_low = (key_of(&low, high_port), entry(&high, low_port));
        let from_high = (key_of(&high, low_port), entry(&low, high_port));
        Some([from_low, from_high])
    }

    /// Writes the two entries of a pair, if both legs are bound. `false`: the table is full; then neither is there.
    fn connect(&mut self, id: PairId) -> bool {
        let Some(entries) = self.entries_of(id) else { return true };
        let written = entries.iter().all(|(key, entry)| self.table.insert(key, entry).is_ok());
        if !written {
            for (key, _) in &entries {
                self.table.remove(key);
            }
            return false;
        }
        if let Some(PairState { session, legs: [Some(low), Some(high)], .. }) = self.pairs.get(&id) {
            let ends = [low.source.ip(), high.source.ip()];
            self.events.push_back(Event::PairConnected { session: *session, ends });
        }
        true
    }

    /// Says whether both legs of a session's pair are behind the same neighbour of the relay, after
    /// [`Event::PairConnected`].
    pub fn set_same_way(&mut self, session: u32, same_way: bool) {
        let Some(id) = self.pair_of.get(&session).copied() else { return };
        let Some(pair) = self.pairs.get_mut(&id).filter(|pair| pair.same_way != same_way) else { return };
        pair.same_way = same_way;
        self.connect(id);
        // It is what the caller knows.
        self.events.retain(
            |event| !matches!(event, Event::PairConnected { session: connected, .. } if *connected == session),
        );
    }

    /// The pairs that carry traffic: sessions, and where both ends are.
    pub fn connected(&self) -> impl Iterator<Item = (u32, [IpAddr; 2])> {
        self.pairs.values().filter_map(|pair| match pair.legs {
            [Some(low), Some(high)] => Some((pair.session, [low.source.ip(), high.source.ip()])),
            _ => None,
        })
    }

    pub(super) fn ports_of(&self, id: PairId) -> [Option<u16>; 2] {
        id.owners().map(|owner| self.allocations.get(&owner).map(|allocation| allocation.port))
    }

    /// Ends a pair altogether.
    fn remove_pair(&mut self, now: Duration, id: PairId) {
        for side in 0..2 {
            self.set_leg(now, id, side, None);
        }
        let Some(pair) = self.pairs.remove(&id) else { return };
        for owner in id.owners() {
            if let Some(allocation) = self.allocations.get_mut(&owner) {
                allocation.pairs = allocation.pairs.saturating_sub(1);
            }
        }
        self.pair_of.remove(&pair.session);
        self.numbers.give_back(pair.session);
        self.events.push_back(Event::SessionClosed { session: pair.session });
    }

    /// Ends a node's port, with its pairs.
    pub(super) fn release_allocation(&mut self, owner: Owner) {
        let pairs: Vec<PairId> =
            self.pairs.keys().filter(|id| id.owners().contains(&owner)).copied().collect();
        for id in pairs {
            self.remove_pair(Duration::ZERO, id);
        }
        if let Some(allocation) = self.allocations.remove(&owner) {
            self.ports.give_back(allocation.port);
            self.events.push_back(Event::Record(Record::PortEnded { owner }));
            self.events.push_back(Event::ClosePort(allocation.port));
        }
    }

    /// Ends what has not been refreshed.
    pub(super) fn expire(&mut self, now: Duration) {
        let mut ended = Vec::new();
        for (id, pair) in &self.pairs {
            for (side, leg) in (0..).zip(&pair.legs) {
                if leg.is_some_and(|leg| leg.expires <= now) {
                    ended.push((*id, side));
                }
            }
        }
        for (id, side) in ended {
            self.set_leg(now, id, side, None);
        }
        // A challenge outlives a leg by no more than its own time; until then the pair remembers its order.
        let forgotten = |since: Duration| now >= since + challenge::LIFETIME * 2;
        let pairs: Vec<PairId> = self
            .pairs
            .iter()
            .filter(|(_, pair)| pair.empty_since.is_some_and(forgotten))
            .map(|(id, _)| *id)
            .collect();
        for id in pairs {
            self.remove_pair(now, id);
        }
        let ended = |allocation: &Allocation| allocation.expires <= now;
        let owners: Vec<Owner> = self
            .allocations
            .iter()
            .filter(|(_, allocation)| ended(allocation))
            .map(|(owner, _)| *owner)
            .collect();
        for owner in owners {
            self.release_allocation(owner);
        }
    }
}

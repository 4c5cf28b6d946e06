//! Limits per client address: connections, and failed attempts to prove something.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tonic::Status;

use crate::model::UnixMs;

/// Where a request comes from; an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub SocketAddr);

/// Failures within [`WINDOW_MS`] after which an address has to wait.
const MOST_FAILURES: u32 = 60;
const WINDOW_MS: i64 = 60_000;
/// Addresses remembered. Beyond it the table starts anew: a flood from many addresses must not cost memory.
const MOST_ADDRESSES: usize = 65_536;

/// Slows down who tries keys.
#[derive(Debug, Default)]
pub struct FailureLimit(Mutex<HashMap<IpAddr, (UnixMs, u32)>>);

impl FailureLimit {
    /// Refuses an address with too many failures.
    pub fn check(&self, from: Option<IpAddr>, now: UnixMs) -> Result<(), Status> {
        let Some(from) = from.map(block) else { return Ok(()) };
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match table.get(&from) {
            Some((since, count)) if *count >= MOST_FAILURES && now.saturating_sub(*since) < WINDOW_MS => {
                Err(Status::resource_exhausted("too many failed attempts from this address; wait a minute"))
            }
            _ => Ok(()),
        }
    }

    /// Counts a failure.
    pub fn count(&self, from: Option<IpAddr>, now: UnixMs) {
        let Some(from) = from.map(block) else { return };
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= MOST_ADDRESSES && !table.contains_key(&from) {
            table.clear();
        }
        let entry = table.entry(from).or_insert((now, 0));
        if now.saturating_sub(entry.0) >= WINDOW_MS {
            *entry = (now, 0);
        }
        entry.1 += 1;
    }
}

/// One client: an IPv4 address, or the /64 that an IPv6 client chooses its addresses from.
fn block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => std::net::Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
    }
}

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// In all.
    pub total: usize,
    /// From one address.
    pub per_address: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { total: 20_000, per_address: 4_096 }
    }
}

/// Counts open connections.
#[derive(Debug)]
pub struct Connections {
    limits: ConnectionLimits,
    open: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// One open connection; counted until it is dropped.
#[derive(Debug)]
pub struct Slot {
    connections: Arc<Connections>,
    from: IpAddr,
}

impl Connections {
    /// Nothing is open yet.
    pub fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self { limits, open: Mutex::default() })
    }

    /// Room for a connection from this address, or `None`.
    pub fn admit(self: &Arc<Self>, from: IpAddr) -> Option<Slot> {
        let from = block(from);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let here = open.1.get(&from).copied().unwrap_or_default();
        if open.0 >= self.limits.total || here >= self.limits.per_address {
            return None;
        }
        open.0 += 1;
        open.1.insert(from, here + 1);
        Some(Slot { connections: self.clone(), from })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.0 = open.0.saturating_sub(1);
        let left = open.1.get(&self.from).copied().unwrap_or_default().saturating_sub(1);
        if left == 0 {
            open.1.remove(&self.from);
        } else {
            open.1.insert(self.from, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_failures_have_to_wait_a_minute() {
        let limit = FailureLimit::default();
        let from = Some("192.0.2.1".parse().unwrap());
        for _ in 0..MOST_FAILURES {
            assert!(limit.check(from, 1_000).is_ok());
            limit.count(from, 1_000);
        }
        assert!(limit.check(from, 2_000).is_err());
        assert!(limit.check(Some("192.0.2.2".parse().unwrap()), 2_000).is_ok());
        assert!(limit.check(from, 1_000 + WINDOW_MS).is_ok());
    }

    #[test]
    fn connections_are_limited_per_address_and_in_all() {
        let connections = Connections::new(ConnectionLimits { total: 3, per_address: 2 });
        let (a, b): (IpAddr, IpAddr) = ("2001:db8::1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = connections.admit(a).unwrap();
        let _second = connections.admit("2001:db8::2".parse().unwrap()).unwrap();
        assert!(connections.admit(a).is_none());
        let _third = connections.admit(b).unwrap();
        assert!(connections.admit(b).is_none());
        drop(first);
        assert!(connections.admit(a).is_some());
    }
}

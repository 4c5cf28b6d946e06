//! The connection table, read out.

use std::net::IpAddr;
use std::time::Duration;

use aya::Pod;
use aya::maps::HashMap;
use ghostwire_ebpf_abi::conntrack::{Conn, ConnKey4, ConnKey6, Fragment, FragmentKey};

use super::{Acl, AclError, Wire};
use crate::bpf::BpfError;

/// A connection that this side opened, and whose answers depend on being remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Address on this side.
    pub local: IpAddr,
    /// Address on the far side.
    pub remote: IpAddr,
    /// Port on this side; ICMP: the identifier.
    pub local_port: u16,
    /// Port on the far side, 0 where the protocol has none.
    pub remote_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// One of [`ghostwire_ebpf_abi::conntrack::state`].
    pub state: u32,
    /// Generation of the policy that last approved it.
    pub generation: u32,
    /// Time since its last packet.
    pub idle: Duration,
    /// Packets of both directions.
    pub packets: u64,
    /// Bytes of both directions.
    pub bytes: u64,
}

impl Acl {
    /// All remembered connections, also those that have timed out but not yet been replaced.
    pub fn connections(&self) -> Result<Vec<Connection>, AclError> {
        let now = now_ns()?;
        let mut connections = Vec::new();
        self.collect("CONN4", &mut connections, |key: ConnKey4, conn| Connection {
            local: IpAddr::from(key.local),
            remote: IpAddr::from(key.remote),
            ..describe(key.local_port_be, key.remote_port_be, key.protocol, conn, now)
        })?;
        self.collect("CONN6", &mut connections, |key: ConnKey6, conn| Connection {
            local: IpAddr::from(key.local),
            remote: IpAddr::from(key.remote),
            ..describe(key.local_port_be, key.remote_port_be, key.protocol, conn, now)
        })?;
        Ok(connections)
    }

    /// Forgets all connections: their answers are denied until this side speaks again.
    pub fn forget_connections(&mut self) -> Result<(), AclError> {
        self.clear::<Wire<ConnKey4>, Wire<Conn>>("CONN4")?;
        self.clear::<Wire<ConnKey6>, Wire<Conn>>("CONN6")
    }

    /// Forgets the datagrams of which fragments are on their way: the rest of them is dropped.
    pub(super) fn forget_fragments(&mut self) -> Result<(), AclError> {
        self.clear::<Wire<FragmentKey>, Wire<Fragment>>("FRAGMENTS")
    }

    fn collect<K: Copy + 'static>(
        &self,
        name: &'static str,
        connections: &mut Vec<Connection>,
        describe: impl Fn(K, Conn) -> Connection,
    ) -> Result<(), AclError> {
        let map: HashMap<_, Wire<K>, Wire<Conn>> = HashMap::try_from(self.map(name)?)?;
        // An entry that is replaced while we walk is left out.
        connections.extend(map.iter().flatten().map(|(Wire(key), Wire(conn))| describe(key, conn)));
        Ok(())
    }

    fn clear<K: Pod, V: Pod>(&mut self, name: &'static str) -> Result<(), AclError> {
        let map = self.ebpf.map_mut(name).ok_or(BpfError::Object { what: name })?;
        let mut map: HashMap<_, K, V> = HashMap::try_from(map)?;
        let keys: Vec<K> = map.keys().flatten().collect();
        for key in &keys {
            // It may have been evicted meanwhile.
            let _gone = map.remove(key);
        }
        Ok(())
    }
}

fn describe(local_port_be: u16, remote_port_be: u16, protocol: u8, conn: Conn, now: u64) -> Connection {
    let nowhere = IpAddr::from([0, 0, 0, 0]);
    Connection {
        local: nowhere,
        remote: nowhere,
        local_port: u16::from_be(local_port_be),
        remote_port: u16::from_be(remote_port_be),
        protocol,
        state: conn.state,
        generation: conn.generation,
        idle: Duration::from_nanos(now.saturating_sub(conn.last_seen_ns)),
        packets: conn.packets,
        bytes: conn.bytes,
    }
}

fn now_ns() -> Result<u64, AclError> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_err(|errno| BpfError::System { call: "clock_gettime", source: errno.into() })?;
    Ok(u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX))
}

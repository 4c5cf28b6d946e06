//! What an operator chooses, and the relay's keys.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ed25519_dalek::VerifyingKey;
use ghostwire_relay_fastpath::table::MAX_LOCALS;
use ghostwire_relay_protocol::token::{KeyNumber, RelayId};
use ipnet::IpNet;
use thiserror::Error;
use x25519_dalek::StaticSecret;

use crate::limits::{Rate, SessionRate};

/// One of the relay's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// The address that the machine has.
    pub local: IpAddr,
    /// The address that the world sees: another one behind a 1:1 NAT.
    pub advertised: IpAddr,
}

/// How much of everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pairs in total.
    pub pairs: u32,
    /// Pairs of one node.
    pub pairs_per_node: usize,
    /// Relay ports asked for from one IP address: nodes behind one NAT.
    pub allocations_per_source: usize,
    /// Control and STUN messages per second from one IP address (IPv6: one /64).
    pub control: Rate,
    /// Requests per second, of all sources together, whose token and integrity are verified.
    pub crypto: Rate,
    /// What a failed verification costs its source, in messages.
    pub penalty: u64,
    /// What a session may send, if its token does not say.
    pub session: SessionRate,
    /// Reports of unknown sources per second.
    pub reports: Rate,
    /// Time between two reports about one port.
    pub report_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pairs: 131_072,
            pairs_per_node: 4096,
            allocations_per_source: 256,
            control: Rate { per_second: 200, burst: 400 },
            crypto: Rate { per_second: 3000, burst: 3000 },
            penalty: 20,
            session: SessionRate {
                bytes: Rate { per_second: 125_000_000, burst: 4 << 20 },
                handshakes: Rate { per_second: 20, burst: 40 },
            },
            reports: Rate { per_second: 20, burst: 50 },
            report_interval: Duration::from_secs(3),
        }
    }
}

/// What a relay is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its addresses, one to eight.
    pub locals: Vec<LocalAddress>,
    /// Where STUN and Allocate are answered.
    pub main_port: u16,
    /// The relay ports.
    pub ports: RangeInclusive<u16>,
    /// Addresses that are legs although they are private, or the relay's own.
    pub allowed_legs: Vec<IpNet>,
    /// How long a relay port lasts without a refresh.
    pub allocation_lease: Duration,
    /// How long a binding lasts without a refresh.
    pub binding_lease: Duration,
    /// How much of everything.
    pub limits: Limits,
}

/// Keys and names.
#[derive(Clone)]
pub struct Secrets {
    /// The relay's name in tokens.
    pub relay: RelayId,
    /// Its private key, from which integrity keys are derived.
    pub key: StaticSecret,
    /// The coordinator's public keys. Several while one is replaced.
    pub coordinators: Vec<(KeyNumber, VerifyingKey)>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("relay", &self.relay).finish_non_exhaustive()
    }
}

/// Why a relay cannot be as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// No address, or more than eight.
    #[error("a relay has one to eight addresses")]
    Addresses,
    /// An address that is not one machine's.
    #[error("{0} is not an address of one machine; name each address that the relay is to use")]
    Unspecified(IpAddr),
    /// The local and the advertised address are of different families.
    #[error("{0} and {1}: an address is advertised as one of the same family")]
    Family(IpAddr, IpAddr),
    /// No ports, or the main port among them.
    #[error("the relay ports must not be empty and must not hold the main port")]
    Ports,
    /// More pairs than a table can hold.
    #[error("the pair table cannot hold that many pairs")]
    TooManyPairs,
    /// The memory given is too small for the table.
    #[error("the pair table does not fit its memory")]
    TableMemory,
}

impl Config {
    /// Finds what cannot be.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.locals.is_empty() || self.locals.len() > usize::from(MAX_LOCALS) {
            return Err(ConfigError::Addresses);
        }
        for LocalAddress { local, advertised } in &self.locals {
            for ip in [local, advertised] {
                if ip.is_unspecified() || ip.is_multicast() {
                    return Err(ConfigError::Unspecified(*ip));
                }
            }
            if local.is_ipv4() != advertised.is_ipv4() {
                return Err(ConfigError::Family(*local, *advertised));
            }
        }
        if self.ports.is_empty() || *self.ports.start() == 0 || self.ports.contains(&self.main_port) {
            return Err(ConfigError::Ports);
        }
        Ok(())
    }
}

//! The stream relay: DERP version 2 over HTTP, over TLS where it is configured.
//!
//! - [`http`]: requests to answers, without I/O.
//! - [`registry`]: who is connected and who has heard of whom, without I/O.
//! - [`queue`]: what waits for one client; bounded, the oldest is dropped.
//! - `connection`: one client, from handshake to end.
//! - [`server`]: listeners and limits.
//! - [`Admission`]: who may connect.
//!
//! Servers that mesh among each other and watchers are not supported: a frame that needs the mesh key ends the
//! connection.

mod connection;
pub mod http;
pub mod queue;
pub mod registry;
pub mod server;

use std::collections::HashSet;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use ghostwire_relay_protocol::derp::PublicKey;

use crate::limits::Rate;

/// Decides who may connect. A client has shown that it holds its key before it is asked about.
pub trait Admission: Send + Sync {
    /// Whether the client may use this server. The answer may come from elsewhere; it has five seconds.
    fn admit(&self, key: PublicKey, source: SocketAddr) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
}

/// Admits the keys of a list.
#[derive(Clone, Debug, Default)]
pub struct Listed(pub HashSet<PublicKey>);

impl Admission for Listed {
    fn admit(&self, key: PublicKey, _: SocketAddr) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(std::future::ready(self.0.contains(&key)))
    }
}

/// Admits everybody: for tests, and for those who want to run a public relay.
#[derive(Clone, Copy, Debug)]
pub struct Everybody;

impl Admission for Everybody {
    fn admit(&self, _: PublicKey, _: SocketAddr) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(std::future::ready(true))
    }
}

/// Limits of the stream relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections in total, clients and others.
    pub connections: usize,
    /// Connections from one IP address.
    pub connections_per_source: usize,
    /// What a client may send, in bytes.
    pub client: Rate,
    /// How long TLS, a request and the handshake may take, each.
    pub handshake: Duration,
    /// How long a client may take to accept what is written to it.
    pub write: Duration,
    /// How often a silent connection is shown to live. Up to five seconds are added, so that clients that came
    /// together do not stay together.
    pub keep_alive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_source: 512,
            client: Rate { per_second: 12_500_000, burst: 4 << 20 },
            handshake: Duration::from_secs(10),
            write: Duration::from_secs(2),
            keep_alive: Duration::from_mins(1),
        }
    }
}

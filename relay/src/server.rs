//! The whole relay: sockets, listeners, and their end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ghostwire_relay_protocol::derp::handshake::SecretKey;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::derp::{self, Admission};
use crate::sessions::config::{Config, Secrets};
use crate::udp::{Kernel, Observer, Plane};
use crate::xdp;

/// How often it is looked whether the last client is gone.
const DRAIN_POLL: Duration = Duration::from_millis(100);

/// What a relay is made of.
pub struct Options {
    /// Relay ports and STUN.
    pub config: Config,
    /// Their keys.
    pub secrets: Secrets,
    /// 32 random bytes.
    pub seed: [u8; 32],
    /// Who hears of unknown sources.
    pub observer: Arc<dyn Observer>,
    /// The stream relay's key.
    pub derp_key: SecretKey,
    /// Its limits.
    pub derp_limits: derp::Limits,
    /// Who may use it.
    pub admission: Arc<dyn Admission>,
    /// Where it listens with TLS.
    pub tls: Vec<(SocketAddr, TlsAcceptor)>,
    /// Where it listens without, for those who end TLS in front of it.
    pub plain: Option<SocketAddr>,
    /// The XDP program; `None`: everything in userspace.
    pub kernel: Option<Kernel>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Nodes with a relay port.
    pub nodes: usize,
    /// Pairs that carry traffic.
    pub pairs: usize,
    /// Clients of the stream relay.
    pub clients: usize,
    /// How much of what the relay has room for that is, at the scarcest place: 0 to 1000.
    pub permille: u32,
    /// It is about to stop.
    pub draining: bool,
}

/// Looks at a relay from elsewhere.
#[derive(Clone, Debug)]
pub struct Watch {
    plane: Arc<Plane>,
    derp: derp::server::Server,
}

impl Watch {
    /// What there is to do.
    pub fn load(&self) -> Load {
        let (nodes, pairs) = self.plane.load();
        let clients = self.derp.clients();
        let config = self.plane.config();
        let share =
            |used: usize, room: usize| u32::try_from(used * 1000 / room.max(1)).unwrap_or(1000).min(1000);
        let permille = share(nodes, config.ports.len())
            .max(share(pairs, config.limits.pairs as usize))
            .max(share(clients, self.derp.limits().connections));
        Load { nodes, pairs, clients, permille, draining: self.derp.is_draining() }
    }

    /// The relay ports.
    pub fn plane(&self) -> &Plane {
        &self.plane
    }

    /// The stream relay.
    pub fn derp(&self) -> &derp::server::Server {
        &self.derp
    }
}

/// A relay at work.
#[derive(Debug)]
pub struct Server {
    /// The relay ports.
    pub plane: Arc<Plane>,
    /// The stream relay.
    pub derp: derp::server::Server,
    /// Where the stream relay listens with TLS.
    pub tls: Vec<SocketAddr>,
    /// And without.
    pub plain: Option<SocketAddr>,
    listeners: JoinSet<()>,
    kernel: Option<Kernel>,
}

impl Server {
    /// Opens all sockets, or none.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let derp = derp::server::Server::new(options.derp_key, options.derp_limits, options.admission);
        let mut listeners = JoinSet::new();
        let mut listen = async |address: SocketAddr, tls: Option<TlsAcceptor>| {
            let listener = TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("cannot listen on TCP {address}"))?;
            let bound = listener.local_addr()?;
            listeners.spawn(derp.clone().listen(listener, tls));
            anyhow::Ok(bound)
        };
        let mut tls = Vec::new();
        for (address, acceptor) in options.tls {
            tls.push(listen(address, Some(acceptor)).await?);
        }
        let plain = match options.plain {
            Some(address) => Some(listen(address, None).await?),
            None => None,
        };
        let kernel = options.kernel.clone();
        let plane =
            Plane::start(options.config, options.secrets, &options.seed, options.observer, options.kernel)?;
        Ok(Self { plane, derp, tls, plain, listeners, kernel })
    }

    /// Looks at it from elsewhere.
    pub fn watch(&self) -> Watch {
        Watch { plane: Arc::clone(&self.plane), derp: self.derp.clone() }
    }

    /// Ends the relay gracefully: takes nobody new, tells everybody, and goes when nobody is left or `grace` is
    /// over.
    pub async fn drain(&mut self, grace: Duration) {
        self.plane.drain();
        self.derp.drain(Duration::ZERO, Duration::from_mins(1));
        let end = Instant::now() + grace;
        while Instant::now() < end && (self.derp.clients() > 0 || self.plane.load().0 > 0) {
            sleep(DRAIN_POLL).await;
        }
        let (nodes, pairs) = self.plane.load();
        info!(nodes, pairs, clients = self.derp.clients(), "the relay ends");
        self.listeners.abort_all();
        self.derp.close();
        self.plane.stop();
        // What was queued for DERP clients is written within their own time limit.
        sleep(DRAIN_POLL).await;
        self.remove_program();
    }

    /// Takes the XDP program away, with all that it knows.
    pub fn remove_program(&self) {
        let Some(kernel) = &self.kernel else { return };
        if let Err(error) = xdp::remove(&kernel.dir) {
            warn!(%error, "the XDP program is left behind; `ghostwire-relay detach` removes it");
        }
        // Of a table that is gone.
        let _ = std::fs::remove_file(&kernel.journal);
    }
}

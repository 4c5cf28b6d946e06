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
use tracing::info;

use crate::derp::{self, Admission};
use crate::sessions::config::{Config, Secrets};
use crate::udp::{Observer, Plane};

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
    pub tls: Option<(SocketAddr, TlsAcceptor)>,
    /// Where it listens without, for those who end TLS in front of it.
    pub plain: Option<SocketAddr>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("config", &self.config).finish_non_exhaustive()
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
    pub tls: Option<SocketAddr>,
    /// And without.
    pub plain: Option<SocketAddr>,
    listeners: JoinSet<()>,
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
        let tls = match options.tls {
            Some((address, acceptor)) => Some(listen(address, Some(acceptor)).await?),
            None => None,
        };
        let plain = match options.plain {
            Some(address) => Some(listen(address, None).await?),
            None => None,
        };
        let plane = Plane::start(options.config, options.secrets, &options.seed, options.observer)?;
        Ok(Self { plane, derp, tls, plain, listeners })
    }

    /// Ends the relay gracefully: takes nobody new, tells everybody, and goes when nobody is left or `grace` is
    /// over.
    pub async fn drain(mut self, grace: Duration) {
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
    }
}

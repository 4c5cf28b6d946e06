//! Two endpoints in network namespaces of their own.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ghostwire_quic::{Endpoint, Event, Identity, Inbox, Link, PublicKey, bind};
use ghostwire_tests::lab::{Host, Lab};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// Longer than anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A node: an endpoint on a host.
pub(crate) struct Node {
    pub(crate) host: Host,
    pub(crate) key: PublicKey,
    pub(crate) endpoint: Endpoint,
    pub(crate) inbox: Inbox,
}

/// Two nodes, `a` and `b`, that know nobody yet.
pub(crate) struct Pair {
    pub(crate) runtime: Runtime,
    pub(crate) a: Node,
    pub(crate) b: Node,
    _lab: Lab,
}

impl Pair {
    pub(crate) fn strangers() -> Result<Self> {
        let mut lab = Lab::new()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (a, b) = {
            let _in_runtime = runtime.enter();
            (Node::new(lab.host("a")?, 1)?, Node::new(lab.host("b")?, 2)?)
        };
        Ok(Self { runtime, a, b, _lab: lab })
    }

    /// Two nodes that are each other's peers.
    pub(crate) fn peers() -> Result<Self> {
        let pair = Self::strangers()?;
        pair.a.endpoint.set_peers(HashSet::from([pair.b.key]));
        pair.b.endpoint.set_peers(HashSet::from([pair.a.key]));
        Ok(pair)
    }

    /// `a` calls `b`; both ends.
    pub(crate) fn connect(&mut self, to: SocketAddr) -> Result<(Link, Link)> {
        self.a.endpoint_connect(to, self.b.key);
        let at_a = self.runtime.block_on(self.a.up())?;
        let at_b = self.runtime.block_on(self.b.up())?;
        Ok((at_a, at_b))
    }
}

impl Node {
    fn new(host: Host, seed: u8) -> Result<Self> {
        let identity = Identity::derive(&[seed; 32])?;
        let socket = host.netns.run(|| bind(&[443, 0], 0).context("a socket"))?;
        let (endpoint, inbox) = Endpoint::open(socket, &identity)?;
        Ok(Self { host, key: identity.public(), endpoint, inbox })
    }

    pub(crate) fn at(&self) -> SocketAddr {
        let ip: IpAddr = self.host.address.parse().unwrap_or(IpAddr::from([0; 4]));
        SocketAddr::new(ip, self.endpoint.port())
    }

    pub(crate) fn at6(&self) -> Result<SocketAddr> {
        let ip: IpAddr = self.host.v6.as_deref().context("an IPv6 address")?.parse()?;
        Ok(SocketAddr::new(ip, self.endpoint.port()))
    }

    pub(crate) fn endpoint_connect(&self, to: SocketAddr, key: PublicKey) -> u64 {
        self.endpoint.connect(None, to, key)
    }

    pub(crate) async fn event(&mut self) -> Result<Event> {
        let event = timeout(PATIENCE, self.inbox.events.recv()).await.context("no event came")?;
        event.context("the endpoint is gone")
    }

    pub(crate) async fn up(&mut self) -> Result<Link> {
        match self.event().await? {
            Event::Up(link) => Ok(link),
            other => bail!("no connection but {other:?}"),
        }
    }

    /// The next message; how the other end moved is passed over.
    pub(crate) async fn messages(&mut self) -> Result<Vec<Vec<u8>>> {
        loop {
            match self.event().await? {
                Event::Messages(_, messages) => return Ok(messages),
                Event::Moved(..) => {}
                other => bail!("no message but {other:?}"),
            }
        }
    }
}

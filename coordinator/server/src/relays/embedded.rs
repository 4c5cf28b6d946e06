//! The relay that runs in this process, so that a new mesh needs no second program.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use ghostwire_proto::join_key::Address;
use ghostwire_proto::v1;
use ghostwire_relay::derp::{self, Admission};
use ghostwire_relay::keys::Keys;
use ghostwire_relay::server::{Options, Server};
use ghostwire_relay::sessions::Owner;
use ghostwire_relay::sessions::config::{Config, Limits, LocalAddress, Secrets};
use ghostwire_relay::sessions::legs::is_global;
use ghostwire_relay::state_dir::StateDir as RelayDir;
use ghostwire_relay::tls::Identity;
use ghostwire_relay::udp::{Kernel, Observer};
use ghostwire_relay::xdp::Mode;
use ghostwire_relay_protocol::derp::PublicKey;
use ipnet::IpNet;
use tokio::task::JoinHandle;
use tracing::warn;

use super::{Description, Load, Relays, StreamId, service};
use crate::cli::{RelayArgs, RelayListen};
use crate::model::NodeId;
use crate::state_dir::StateDir;
use crate::writer::Handle;
use crate::{advertise, clock};

/// STUN's port; DERP's and the relay's, too.
const PORT: u16 = 3478;

/// What the embedded relay is registered with in place of an auth key; no auth key has such an id.
pub(super) const KEY: &str = "this server's own";

/// How often the relay says what there is to do.
const REPORT: Duration = Duration::from_secs(5);

/// How long nodes have to move elsewhere when the server stops.
const DRAIN: Duration = Duration::from_secs(2);

const BPF_DIR: &str = "/sys/fs/bpf/ghostwire/server-relay";

/// Networks that a relay without any public address serves: it is in one of them.
const PRIVATE: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];

/// A relay at work.
#[derive(Debug)]
pub struct Embedded {
    server: Server,
    reports: JoinHandle<()>,
    relays: Relays,
    stream: StreamId,
    port: u16,
    addresses: Vec<IpAddr>,
}

impl fmt::Display for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        write!(f, "relay at {} port {}", addresses.join(", "), self.port)
    }
}

/// Starts the relay as the command line wants it. By default, a relay that cannot start is warned of and left out.
pub async fn start(
    args: &RelayArgs,
    state: &StateDir,
    handle: &Handle,
    relays: &Relays,
    advertised: &[Address],
) -> anyhow::Result<Option<Embedded>> {
    let (locals, port) = match args.relay {
        RelayListen::Off => return Ok(None),
        RelayListen::Default => (local_addresses(advertised), PORT),
        RelayListen::At(address) if address.ip().is_unspecified() => {
            (local_addresses(advertised), address.port())
        }
        RelayListen::At(address) => (vec![address.ip()], address.port()),
    };
    let started = launch(args, state, handle, relays, locals, port).await;
    match (started, args.relay) {
        (Ok(embedded), _) => Ok(Some(embedded)),
        (Err(error), RelayListen::Default) => {
            warn!(
                error = format!("{error:#}"),
                "no relay runs here: nodes that cannot reach each other stay apart (--relay ADDR:PORT puts it elsewhere)"
            );
            Ok(None)
        }
        (Err(error), _) => Err(error.context("the relay cannot start; --relay off leaves it out")),
    }
}

/// This machine's addresses that nodes may reach, those that are advertised first.
fn local_addresses(advertised: &[Address]) -> Vec<IpAddr> {
    let all = advertise::default_addresses(SocketAddr::from(([0_u16; 8], 1)));
    let ip = |address: &Address| address.to_string().parse::<SocketAddr>().ok().map(|address| address.ip());
    let mut ips: Vec<IpAddr> = all.iter().filter_map(ip).collect();
    let told: Vec<IpAddr> = advertised.iter().filter_map(ip).collect();
    ips.sort_by_key(|ip| !told.contains(ip));
    ips.truncate(8);
    ips
}

async fn launch(
    args: &RelayArgs,
    state: &StateDir,
    handle: &Handle,
    relays: &Relays,
    locals: Vec<IpAddr>,
    port: u16,
) -> anyhow::Result<Embedded> {
    let directory = RelayDir::open(&state.path().join("relay"))?;
    let keys = Keys::load(&directory)?;
    let config = config(args, &locals, port)?;
    let names: Vec<String> = config.locals.iter().map(|local| local.advertised.to_string()).collect();
    let derp_key = keys.derp.public();
    let acceptor = Identity::own(&directory, &names)?.acceptor(derp_key)?;
    let description = description(args, &config, &keys, port)?;
    let observer =
        Arc::new(Notices { handle: handle.clone(), relays: relays.clone(), stream: OnceLock::new() });
    let kernel = args.relay_xdp.then(|| kernel(&config, &directory)).transpose()?;
    let server = Server::start(Options {
        secrets: Secrets {
            relay: keys.relay,
            key: keys.key.clone(),
            coordinators: vec![relays.signer().verifier()],
        },
        seed: rand::random(),
        observer: observer.clone(),
        derp_key: keys.derp.clone(),
        derp_limits: derp::Limits::default(),
        admission: Arc::new(Nodes(handle.clone())),
        tls: locals.iter().map(|ip| (SocketAddr::new(*ip, port), acceptor.clone())).collect(),
        plain: None,
        kernel,
        config,
    })
    .await?;
    let stream = relays.connect(description, KEY, env!("CARGO_PKG_VERSION"))?;
    // The first notice can come only after the first node.
    let _ = observer.stream.set(stream);
    let reports = tokio::spawn(report(server.watch(), relays.clone(), stream));
    Ok(Embedded { server, reports, relays: relays.clone(), stream, port, addresses: locals })
}

fn config(args: &RelayArgs, locals: &[IpAddr], port: u16) -> anyhow::Result<Config> {
    let local = |ip: &IpAddr| LocalAddress {
        local: *ip,
        advertised: args.relay_public.filter(|public| public.is_ipv4() == ip.is_ipv4()).unwrap_or(*ip),
    };
    let locals: Vec<LocalAddress> = locals.iter().map(local).collect();
    let mut allowed_legs: Vec<IpNet> = Vec::new();
    if !locals.iter().any(|local| is_global(local.advertised)) {
        allowed_legs.extend(PRIVATE.iter().filter_map(|net| net.parse::<IpNet>().ok()));
    }
    let config = Config {
        locals,
        main_port: port,
        ports: args.relay_ports.0.clone(),
        allowed_legs,
        allocation_lease: Duration::from_mins(10),
        binding_lease: Duration::from_mins(5),
        limits: Limits::default(),
    };
    config.check()?;
    Ok(config)
}

fn kernel(config: &Config, directory: &RelayDir) -> anyhow::Result<Kernel> {
    let interfaces = ghostwire_relay::xdp::interfaces_of(config)?;
    Ok(Kernel { dir: BPF_DIR.into(), interfaces, mode: Mode::Auto, journal: directory.file("journal") })
}

fn description(args: &RelayArgs, config: &Config, keys: &Keys, port: u16) -> anyhow::Result<Description> {
    let octets = |local: &LocalAddress| match local.advertised {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let relay = v1::Relay {
        id: keys.relay.0.to_vec(),
        region: args.relay_region.clone(),
        addresses: config.locals.iter().map(octets).collect(),
        udp_port: port.into(),
        key: x25519_dalek::PublicKey::from(&keys.key).as_bytes().to_vec(),
        derp_key: keys.derp.public().0.to_vec(),
        derp_port: port.into(),
        ..v1::Relay::default()
    };
    Description::parse(relay).context("the relay of this server")
}

async fn report(server: ghostwire_relay::server::Watch, relays: Relays, stream: StreamId) {
    let mut ticks = tokio::time::interval(REPORT);
    loop {
        ticks.tick().await;
        let load = server.load();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let load = Load {
            nodes: count(load.nodes),
            pairs: count(load.pairs),
            clients: count(load.clients),
            permille: load.permille,
            draining: load.draining,
        };
        relays.report(stream, load);
    }
}

impl Embedded {
    /// Ends it. Nodes are told first.
    pub async fn stop(mut self) {
        self.reports.abort();
        self.relays.report(self.stream, Load { draining: true, ..Load::default() });
        self.server.drain(DRAIN).await;
        self.relays.disconnect(self.stream, clock::now());
    }
}

/// Hears of unknown sources.
struct Notices {
    handle: Handle,
    relays: Relays,
    stream: OnceLock<StreamId>,
}

impl Observer for Notices {
    fn unknown_source(&self, owner: Owner, _: SocketAddr) {
        if let Some(stream) = self.stream.get() {
            service::unknown_source(&self.relays, *stream, &self.handle.world(), NodeId(owner.node.0));
        }
    }
}

/// Lets in the nodes of the network.
struct Nodes(Handle);

impl Admission for Nodes {
    fn admit(&self, key: PublicKey, _: SocketAddr) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        let world = self.0.world();
        let known = world.network.nodes.values().any(|node| *node.node_key.as_bytes() == key.0);
        Box::pin(std::future::ready(known))
    }
}

//! `ghostwire-relay`: a relay by itself. See the library for what happens inside.

mod cli;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser as _;
use cli::{Cli, Command, IdentityArgs, LogFormat, RunArgs};
use ghostwire_proto::v1;
use ghostwire_relay::coordinator::{self, Notices, Registration, Told};
use ghostwire_relay::derp::{self, Admission, Everybody, Listed};
use ghostwire_relay::keys::Keys;
use ghostwire_relay::metrics;
use ghostwire_relay::server::{Options, Server};
use ghostwire_relay::sessions::config::{Config, LocalAddress, Secrets};
use ghostwire_relay::state_dir::StateDir;
use ghostwire_relay::tls::Identity;
use ghostwire_relay_protocol::derp::PublicKey;
use ghostwire_relay_protocol::token::RelayId;
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;
use tracing_subscriber::EnvFilter;

const JOURNAL: &str = "journal";
const SIGNERS: &str = "coordinator.keys";

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => {
            start_logging(args.log_format);
            run(&args)
        }
        Command::Identity(args) => identity(&args),
        Command::Detach(args) => ghostwire_relay::xdp::remove(&args.bpf_dir).map_err(anyhow::Error::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ghostwire-relay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn identity(args: &IdentityArgs) -> anyhow::Result<()> {
    let keys = Keys::load(&StateDir::beside(&args.state_dir)?)?;
    let document = serde_json::json!({
        "relay_id": hex::encode(keys.relay.0),
        "relay_key": hex::encode(x25519_dalek::PublicKey::from(&keys.key).as_bytes()),
        "derp_key": keys.derp.public().to_string(),
    });
    println!("{document:#}");
    Ok(())
}

#[tokio::main]
async fn run(args: &RunArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut hand_over = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    let directory = StateDir::open(&args.state_dir)?;
    let keys = Keys::load(&directory)?;
    let join_key = args.join_key_file.as_deref().map(coordinator::join_key_from).transpose()?;
    if args.coordinator_keys.is_empty() && join_key.is_none() {
        warn!("no --join-key-file and no --coordinator-key: nobody can get a relay port; STUN and DERP work");
    }
    let config = args.config()?;
    let tls = match args.tls_listen.0 {
        None => Vec::new(),
        Some(address) => {
            let identity = match (&args.tls_cert, &args.tls_key) {
                (Some(certificate), Some(key)) => Identity::from_files(certificate, key)?,
                _ => Identity::own(&directory, &certificate_names(&config))?,
            };
            vec![(address, identity.acceptor(keys.derp.public())?)]
        }
    };
    let relay = keys.relay;
    let described = described(args, &config, &keys);
    let signers = directory.file(SIGNERS);
    let mut coordinators = args.coordinators();
    if join_key.is_some() {
        coordinators.extend(coordinator::known_signers(&signers));
    }
    let told = Arc::new(Told::default());
    let (notices, noticed) = Notices::new();
    let kernel = args.kernel(&config, directory.file(JOURNAL))?;
    let mut server = Server::start(Options {
        secrets: Secrets { relay, key: keys.key, coordinators },
        config,
        seed: rand::random(),
        observer: Arc::new(notices),
        derp_key: keys.derp,
        derp_limits: derp::Limits::default(),
        admission: admission(args, &told)?,
        tls,
        plain: args.http_listen.0,
        kernel,
    })
    .await?;
    if let Some(join_key) = join_key {
        let registration = Registration { join_key, relay: described, signers };
        tokio::spawn(registration.keep(server.watch(), told, noticed));
    }
    if let Some(address) = args.metrics_listen.0 {
        metrics::listen(address, server.watch()).await?;
    }
    println!("{}", ready_line(&server, relay, args));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hand_over.recv() => {
            tracing::info!("leaving what is in the kernel to the next relay");
            return Ok(());
        }
    }
    tracing::info!("draining for at most {} s; a second signal ends it at once", args.drain_seconds);
    tokio::select! {
        () = server.drain(Duration::from_secs(args.drain_seconds)) => return Ok(()),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    server.remove_program();
    Ok(())
}

/// The names of a certificate that the relay makes for itself: how the world sees it.
fn certificate_names(config: &Config) -> Vec<String> {
    config.locals.iter().map(|local| local.advertised.to_string()).collect()
}

fn ready_line(server: &Server, relay: RelayId, args: &RunArgs) -> String {
    let off_or =
        |address: Option<SocketAddr>| address.map_or("off".to_owned(), |address| address.to_string());
    format!(
        "ghostwire-relay ready: relay {}; UDP port {}, relay ports {}, {}; \
         DERP key {}, over TLS {}, over plain HTTP {}",
        hex::encode(relay.0),
        args.port,
        args.ports,
        in_kernel(server),
        server.derp.key(),
        off_or(server.tls.first().copied()),
        off_or(server.plain),
    )
}

/// Where datagrams are relayed.
fn in_kernel(server: &Server) -> String {
    let Some(xdp) = server.plane.xdp() else { return "in userspace".to_owned() };
    let each = xdp.attached().iter().map(|attached| {
        let mode = if attached.native { "native" } else { "generic" };
        format!("{} ({mode})", attached.interface)
    });
    format!("by XDP on {}", each.collect::<Vec<_>>().join(" and "))
}

/// The relay as nodes are to see it.
fn described(args: &RunArgs, config: &Config, keys: &Keys) -> v1::Relay {
    let octets = |local: &LocalAddress| match local.advertised {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    v1::Relay {
        id: keys.relay.0.to_vec(),
        region: args.region.clone(),
        addresses: config.locals.iter().map(octets).collect(),
        udp_port: config.main_port.into(),
        key: x25519_dalek::PublicKey::from(&keys.key).as_bytes().to_vec(),
        derp_key: keys.derp.public().0.to_vec(),
        derp_port: args.tls_listen.0.map_or(0, |address| address.port().into()),
        ..v1::Relay::default()
    }
}

/// Whom the coordinator names, if nothing is said.
fn admission(args: &RunArgs, told: &Arc<Told>) -> anyhow::Result<Arc<dyn Admission>> {
    if args.derp_open {
        warn!("--derp-open: everybody on the internet can send through this relay, at your expense");
        return Ok(Arc::new(Everybody));
    }
    let Some(path) = &args.derp_clients else { return Ok(Arc::<Told>::clone(told)) };
    Ok(Arc::new(Listed(client_keys(path)?)))
}

/// One key per line, 64 hexadecimal digits; `#` starts a comment.
fn client_keys(path: &Path) -> anyhow::Result<HashSet<PublicKey>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut keys = HashSet::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let mut key = PublicKey([0; 32]);
        if hex::decode_to_slice(line, &mut key.0).is_err() {
            bail!("{}:{number}: a key is 64 hexadecimal digits", path.display());
        }
        keys.insert(key);
    }
    Ok(keys)
}

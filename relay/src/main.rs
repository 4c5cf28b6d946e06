//! `ghostwire-relay`: a relay by itself. See the library for what happens inside.

mod cli;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser as _;
use cli::{Cli, Command, IdentityArgs, LogFormat, RunArgs};
use ghostwire_relay::derp::{self, Admission, Everybody, Listed};
use ghostwire_relay::server::{Options, Server};
use ghostwire_relay::sessions::Owner;
use ghostwire_relay::sessions::config::{Config, Secrets};
use ghostwire_relay::state_dir::StateDir;
use ghostwire_relay::tls::Identity;
use ghostwire_relay::udp::Observer;
use ghostwire_relay_protocol::derp::PublicKey;
use ghostwire_relay_protocol::derp::handshake::SecretKey;
use ghostwire_relay_protocol::token::RelayId;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, warn};
use tracing_subscriber::EnvFilter;
use x25519_dalek::StaticSecret;

const RELAY_ID: &str = "relay.id";
const RELAY_KEY: &str = "relay.key";
const DERP_KEY: &str = "derp.key";

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => {
            start_logging(args.log_format);
            run(&args)
        }
        Command::Identity(args) => identity(&args),
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

/// The relay's names and keys, as the coordinator needs them.
struct Keys {
    relay: RelayId,
    key: StaticSecret,
    derp: SecretKey,
}

impl Keys {
    fn load(directory: &StateDir) -> anyhow::Result<Self> {
        Ok(Self {
            relay: RelayId(*directory.random(RELAY_ID)?),
            key: StaticSecret::from(*directory.random::<32>(RELAY_KEY)?),
            derp: SecretKey::new(*directory.random(DERP_KEY)?),
        })
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

/// Without a coordinator's stream, unknown sources are only logged.
struct Log;

impl Observer for Log {
    fn unknown_source(&self, owner: Owner, source: SocketAddr) {
        debug!(network = owner.network.0, node = owner.node.0, %source, "datagrams from an unknown source");
    }
}

#[tokio::main]
async fn run(args: &RunArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let directory = StateDir::open(&args.state_dir)?;
    let keys = Keys::load(&directory)?;
    if args.coordinator_keys.is_empty() {
        warn!("no --coordinator-key: nobody can get a relay port; STUN and DERP work");
    }
    let config = args.config()?;
    let tls = match args.tls_listen.0 {
        None => None,
        Some(address) => {
            let identity = match (&args.tls_cert, &args.tls_key) {
                (Some(certificate), Some(key)) => Identity::from_files(certificate, key)?,
                _ => Identity::own(&directory, &certificate_names(&config))?,
            };
            Some((address, identity.acceptor(keys.derp.public())?))
        }
    };
    let relay = keys.relay;
    let server = Server::start(Options {
        secrets: Secrets { relay, key: keys.key, coordinators: args.coordinators() },
        config,
        seed: rand::random(),
        observer: Arc::new(Log),
        derp_key: keys.derp,
        derp_limits: derp::Limits::default(),
        admission: admission(args)?,
        tls,
        plain: args.http_listen.0,
    })
    .await?;
    println!("{}", ready_line(&server, relay, args));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining for at most {} s; a second signal ends it at once", args.drain_seconds);
    tokio::select! {
        () = server.drain(Duration::from_secs(args.drain_seconds)) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
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
        "ghostwire-relay ready: relay {}; UDP port {}, relay ports {}; DERP over TLS {}, over plain HTTP {}",
        hex::encode(relay.0),
        args.port,
        args.ports,
        off_or(server.tls),
        off_or(server.plain),
    )
}

/// Nobody, if nothing is said.
fn admission(args: &RunArgs) -> anyhow::Result<Arc<dyn Admission>> {
    if args.derp_open {
        return Ok(Arc::new(Everybody));
    }
    let Some(path) = &args.derp_clients else { return Ok(Arc::new(Listed::default())) };
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

//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ghostwire_proto::join_key::Address;

/// GhostWire's coordination server: admits machines, numbers them, tells each what concerns it.
///
/// It never sees the traffic between machines and never can: it only knows public keys.
#[derive(Debug, Parser)]
#[command(name = "ghostwire-server", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server until it is told to stop (SIGTERM or Ctrl-C).
    Run(Box<RunArgs>),
}

/// What `run` takes.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Where the database and the CA are kept. Made with mode 0700 if it is not there.
    #[arg(
        long,
        value_name = "DIR",
        env = "GHOSTWIRE_SERVER_STATE_DIR",
        default_value = "/var/lib/ghostwire/server"
    )]
    pub state_dir: PathBuf,

    /// Address and TCP port for nodes (gRPC) and people (HTTP), both over TLS.
    #[arg(long, value_name = "ADDR", env = "GHOSTWIRE_SERVER_LISTEN", default_value = "[::]:8080")]
    pub listen: SocketAddr,

    /// Where nodes find this server, best first; goes into join keys. Repeat for several.
    /// [default: this machine's own addresses]
    #[arg(long, value_name = "HOST:PORT", env = "GHOSTWIRE_SERVER_ADVERTISE", value_delimiter = ',')]
    pub advertise: Vec<Address>,

    /// Local socket for administration with gwctl. Root and the group `ghostwire` may use it.
    #[arg(
        long,
        value_name = "PATH",
        env = "GHOSTWIRE_SERVER_SOCKET",
        default_value = "/run/ghostwire/server.sock"
    )]
    pub socket: PathBuf,

    /// Certificate chain (PEM) instead of the server's own CA. Join keys pin its last certificate.
    #[arg(long, value_name = "FILE", env = "GHOSTWIRE_SERVER_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key (PEM) for --tls-cert.
    #[arg(long, value_name = "FILE", env = "GHOSTWIRE_SERVER_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Ephemeral nodes are removed this many seconds after they disconnect.
    #[arg(long, value_name = "SECONDS", env = "GHOSTWIRE_SERVER_EPHEMERAL_GRACE", default_value_t = 300)]
    pub ephemeral_grace: u64,

    /// The relay of this server.
    #[command(flatten)]
    pub relay: RelayArgs,

    /// How log lines look. RUST_LOG chooses which there are.
    #[arg(long, value_name = "FORMAT", env = "GHOSTWIRE_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// The relay that runs in this process.
#[derive(Clone, Debug, Args)]
pub struct RelayArgs {
    /// Relay for nodes that cannot reach each other: `on` (UDP and TCP port 3478 of this machine's addresses, if they
    /// are free), `off`, or the address and port to relay on.
    #[arg(long, value_name = "on|off|ADDR:PORT", env = "GHOSTWIRE_SERVER_RELAY", default_value = "on")]
    pub relay: RelayListen,

    /// What the world sees instead of the relay's address, behind a 1:1 NAT.
    #[arg(long, value_name = "IP", env = "GHOSTWIRE_SERVER_RELAY_PUBLIC")]
    pub relay_public: Option<IpAddr>,

    /// UDP ports that the relay gives to nodes, one each.
    #[arg(
        long,
        value_name = "FIRST-LAST",
        env = "GHOSTWIRE_SERVER_RELAY_PORTS",
        default_value = "49152-65535"
    )]
    pub relay_ports: PortRange,

    /// What the relay's region is called.
    #[arg(long, value_name = "NAME", env = "GHOSTWIRE_SERVER_RELAY_REGION", default_value = "")]
    pub relay_region: String,

    /// Relay in the kernel, by XDP on the interfaces with the relay's addresses.
    #[arg(long, env = "GHOSTWIRE_SERVER_RELAY_XDP")]
    pub relay_xdp: bool,
}

/// Where to relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayListen {
    /// On port 3478 of this machine's addresses, if they are free.
    Default,
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

impl FromStr for RelayListen {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "on" => Ok(Self::Default),
            "off" => Ok(Self::Off),
            address => address
                .parse()
                .map(Self::At)
                .with_context(|| format!("`{address}` is neither `on` nor `off` nor an address with a port")),
        }
    }
}

/// `FIRST-LAST`.
#[derive(Clone, Debug)]
pub struct PortRange(pub RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (first, last) = text.split_once('-').context("give the first and the last port: 49152-65535")?;
        let parse = |port: &str| port.parse::<u16>().with_context(|| format!("`{port}` is not a port"));
        Ok(Self(parse(first)?..=parse(last)?))
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

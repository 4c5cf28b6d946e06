//! The command line.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ed25519_dalek::VerifyingKey;
use ghostwire_relay::limits::Rate;
use ghostwire_relay::sessions::config::{Config, Limits, LocalAddress};
use ghostwire_relay::udp::Kernel;
use ghostwire_relay::xdp::{self, Mode};
use ghostwire_relay_protocol::token::KeyNumber;
use ipnet::IpNet;
use nix::ifaddrs::InterfaceAddress;

/// GhostWire's relay: carries WireGuard datagrams and DERP packets that it cannot read.
#[derive(Debug, Parser)]
#[command(name = "ghostwire-relay", version, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the relay until it is told to stop (SIGTERM or Ctrl-C).
    Run(Box<RunArgs>),
    /// Show the relay's name and public keys, which the coordinator has to know, as JSON.
    Identity(IdentityArgs),
    /// Remove the XDP program that a relay has left behind. Not while one is running.
    Detach(DetachArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// Folder of its pins in the BPF filesystem.
    #[arg(long, value_name = "DIR", env = "GHOSTWIRE_RELAY_BPF_DIR", default_value = BPF_DIR)]
    pub(crate) bpf_dir: PathBuf,
}

const BPF_DIR: &str = "/sys/fs/bpf/ghostwire/relay";

#[derive(Debug, Args)]
pub(crate) struct IdentityArgs {
    /// Where the keys are kept. Made with mode 0700 if it is not there.
    #[arg(
        long,
        value_name = "DIR",
        env = "GHOSTWIRE_RELAY_STATE_DIR",
        default_value = "/var/lib/ghostwire/relay"
    )]
    pub(crate) state_dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Where the keys are kept. Made with mode 0700 if it is not there.
    #[arg(
        long,
        value_name = "DIR",
        env = "GHOSTWIRE_RELAY_STATE_DIR",
        default_value = "/var/lib/ghostwire/relay"
    )]
    pub(crate) state_dir: PathBuf,

    /// An address of this machine to relay on. Behind a 1:1 NAT, say what the world sees: 10.0.0.5=203.0.113.5.
    /// Repeat for several, at most eight. [default: all public addresses of this machine]
    #[arg(
        long = "address",
        value_name = "IP[=PUBLIC]",
        env = "GHOSTWIRE_RELAY_ADDRESS",
        value_delimiter = ','
    )]
    pub(crate) addresses: Vec<Address>,

    /// UDP port for STUN and for nodes that ask for a relay port.
    #[arg(long, value_name = "PORT", env = "GHOSTWIRE_RELAY_PORT", default_value_t = 3478)]
    pub(crate) port: u16,

    /// UDP ports to give to nodes, one each. Open them in every firewall.
    #[arg(long, value_name = "FIRST-LAST", env = "GHOSTWIRE_RELAY_PORTS", default_value = "49152-65535")]
    pub(crate) ports: PortRange,

    /// Public key of the coordinator, with its number if it is not 1. Repeat while keys are replaced.
    #[arg(
        long = "coordinator-key",
        value_name = "[N:]HEX",
        env = "GHOSTWIRE_RELAY_COORDINATOR_KEY",
        value_delimiter = ','
    )]
    pub(crate) coordinator_keys: Vec<CoordinatorKey>,

    /// Key by which the coordinator admits this relay (`gwctl key create --relay`); it also says where the coordinator
    /// is. In a file, since other users see command lines.
    #[arg(long, value_name = "FILE", env = "GHOSTWIRE_RELAY_JOIN_KEY_FILE")]
    pub(crate) join_key_file: Option<PathBuf>,

    /// What the relay's region is called.
    #[arg(long, value_name = "NAME", env = "GHOSTWIRE_RELAY_REGION", default_value = "")]
    pub(crate) region: String,

    /// Relay also to these addresses although they are private, or this machine's own.
    #[arg(long = "allow-leg", value_name = "CIDR", env = "GHOSTWIRE_RELAY_ALLOW_LEG", value_delimiter = ',')]
    pub(crate) allowed_legs: Vec<IpNet>,

    /// The most pairs of nodes at a time. Each takes about 150 bytes.
    #[arg(long, value_name = "N", env = "GHOSTWIRE_RELAY_PAIRS", default_value_t = 131_072)]
    pub(crate) pairs: u32,

    /// What a pair may send, in Mbit/s, if its token does not say.
    #[arg(long, value_name = "MBIT", env = "GHOSTWIRE_RELAY_SESSION_RATE", default_value_t = 1000)]
    pub(crate) session_rate: u32,

    /// Relay in the kernel: by the driver where it can, else by the kernel's generic code (auto); only by the driver
    /// (native); only by generic code; or in userspace (off).
    #[arg(long, value_name = "MODE", env = "GHOSTWIRE_RELAY_XDP", default_value = "auto")]
    pub(crate) xdp: XdpArg,

    /// Interfaces for the XDP program. [default: those with the relay's addresses]
    #[arg(
        long = "xdp-interface",
        value_name = "NAME",
        env = "GHOSTWIRE_RELAY_XDP_INTERFACE",
        value_delimiter = ','
    )]
    pub(crate) xdp_interfaces: Vec<String>,

    /// Folder of the XDP program's pins in the BPF filesystem.
    #[arg(long, value_name = "DIR", env = "GHOSTWIRE_RELAY_BPF_DIR", default_value = BPF_DIR)]
    pub(crate) bpf_dir: PathBuf,

    /// Where DERP and health checks are served over TLS, or `off`.
    #[arg(long, value_name = "ADDR", env = "GHOSTWIRE_RELAY_TLS_LISTEN", default_value = "[::]:443")]
    pub(crate) tls_listen: Listen,

    /// The same without TLS, for a proxy in front, or `off`.
    #[arg(long, value_name = "ADDR", env = "GHOSTWIRE_RELAY_HTTP_LISTEN", default_value = "off")]
    pub(crate) http_listen: Listen,

    /// Certificate chain (PEM). Without one, the relay makes its own, and clients pin its DERP key.
    #[arg(long, value_name = "FILE", env = "GHOSTWIRE_RELAY_TLS_CERT", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Private key (PEM) for --tls-cert.
    #[arg(long, value_name = "FILE", env = "GHOSTWIRE_RELAY_TLS_KEY", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Where metrics are served over HTTP, for Prometheus, or `off`.
    #[arg(
        long,
        value_name = "ADDR",
        env = "GHOSTWIRE_RELAY_METRICS_LISTEN",
        default_value = "127.0.0.1:9478"
    )]
    pub(crate) metrics_listen: Listen,

    /// Who may use DERP: a file with one public key per line. Without it, nobody may.
    #[arg(long, value_name = "FILE", env = "GHOSTWIRE_RELAY_DERP_CLIENTS")]
    pub(crate) derp_clients: Option<PathBuf>,

    /// Let everybody use DERP: any client of version 2, at the operator's expense.
    #[arg(long, env = "GHOSTWIRE_RELAY_DERP_OPEN", conflicts_with = "derp_clients")]
    pub(crate) derp_open: bool,

    /// How long nodes and clients have to move elsewhere when the relay is told to stop.
    #[arg(long, value_name = "SECONDS", env = "GHOSTWIRE_RELAY_DRAIN", default_value_t = 10)]
    pub(crate) drain_seconds: u64,

    /// How log lines look. RUST_LOG chooses which there are.
    #[arg(long, value_name = "FORMAT", env = "GHOSTWIRE_LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Whether and how the XDP program is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum XdpArg {
    Auto,
    Native,
    Generic,
    Off,
}

/// `IP` or `IP=PUBLIC`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address(LocalAddress);

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (local, advertised) = text.split_once('=').unwrap_or((text, text));
        let parse = |ip: &str| ip.parse().with_context(|| format!("`{ip}` is not an IP address"));
        Ok(Self(LocalAddress { local: parse(local)?, advertised: parse(advertised)? }))
    }
}

/// `FIRST-LAST`.
#[derive(Clone, Debug)]
pub(crate) struct PortRange(RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (first, last) = text.split_once('-').context("give the first and the last port: 49152-65535")?;
        let parse = |port: &str| port.parse::<u16>().with_context(|| format!("`{port}` is not a port"));
        Ok(Self(parse(first)?..=parse(last)?))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

/// `HEX` or `N:HEX`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoordinatorKey(KeyNumber, VerifyingKey);

impl FromStr for CoordinatorKey {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (number, digits) = text.split_once(':').unwrap_or(("1", text));
        let number = number.parse().with_context(|| format!("`{number}` is not the number of a key"))?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).context("a key is 64 hexadecimal digits")?;
        Ok(Self(
            KeyNumber(number),
            VerifyingKey::from_bytes(&bytes).context("this is not an Ed25519 public key")?,
        ))
    }
}

/// An address, or `off`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listen(pub(crate) Option<SocketAddr>);

impl FromStr for Listen {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text == "off" {
            return Ok(Self(None));
        }
        let address =
            text.parse().with_context(|| format!("`{text}` is neither an address with a port nor `off`"))?;
        Ok(Self(Some(address)))
    }
}

impl RunArgs {
    /// The relay that the options describe.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let mut locals: Vec<LocalAddress> = self.addresses.iter().map(|address| address.0).collect();
        if locals.is_empty() {
            locals = public_addresses()?;
        }
        let mut limits = Limits { pairs: self.pairs, ..Limits::default() };
        let per_second = u64::from(self.session_rate) * 125_000;
        limits.session.bytes = Rate { per_second, burst: (per_second / 10).max(128 << 10) };
        let config = Config {
            locals,
            main_port: self.port,
            ports: self.ports.0.clone(),
            allowed_legs: self.allowed_legs.clone(),
            allocation_lease: Duration::from_mins(10),
            binding_lease: Duration::from_mins(5),
            limits,
        };
        config.check()?;
        Ok(config)
    }

    /// The XDP program, if there is to be one.
    pub(crate) fn kernel(&self, config: &Config, journal: PathBuf) -> anyhow::Result<Option<Kernel>> {
        let mode = match self.xdp {
            XdpArg::Off => return Ok(None),
            XdpArg::Auto => Mode::Auto,
            XdpArg::Native => Mode::Native,
            XdpArg::Generic => Mode::Generic,
        };
        let mut interfaces = self.xdp_interfaces.clone();
        if interfaces.is_empty() {
            interfaces = match xdp::interfaces_of(config) {
                Err(error) if mode == Mode::Auto => {
                    tracing::warn!(error = %error, "relaying in userspace, which is slower");
                    return Ok(None);
                }
                found => found?,
            };
        }
        Ok(Some(Kernel { dir: self.bpf_dir.clone(), interfaces, mode, journal }))
    }

    pub(crate) fn coordinators(&self) -> Vec<(KeyNumber, VerifyingKey)> {
        self.coordinator_keys.iter().map(|key| (key.0, key.1)).collect()
    }
}

fn ip_of(interface: &InterfaceAddress) -> Option<IpAddr> {
    let address = interface.address?;
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// The machine's addresses that the internet reaches, as far as an address can tell.
fn public_addresses() -> anyhow::Result<Vec<LocalAddress>> {
    let addresses = nix::ifaddrs::getifaddrs().context("cannot list this machine's addresses")?;
    let ips = addresses.filter_map(|interface| ip_of(&interface));
    let mut public: Vec<IpAddr> = ips.filter(|ip| ghostwire_relay::sessions::legs::is_global(*ip)).collect();
    public.sort_unstable();
    public.dedup();
    if public.is_empty() {
        bail!(
            "this machine has no public address; name those to relay on with --address, and behind a 1:1 NAT also \
             what the world sees: --address 10.0.0.5=203.0.113.5"
        );
    }
    Ok(public.into_iter().map(|ip| LocalAddress { local: ip, advertised: ip }).collect())
}

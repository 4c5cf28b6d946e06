//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

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

    /// How log lines look. RUST_LOG chooses which there are.
    #[arg(long, value_name = "FORMAT", env = "GHOSTWIRE_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
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

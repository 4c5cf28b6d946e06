//! `ghostwire-client`: the node daemon, and the hidden helpers that it starts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ghostwire_client::api::Socket;
use ghostwire_client::daemon::{Config, Daemon, PortMapping, QuicPort, Steered};
use ghostwire_client::plane::Machinery as _;
use ghostwire_client::plane::kernel::{Kernel, KernelOptions};
use ghostwire_client::single::InterfaceLock;
use ghostwire_client::store::Store;
use ghostwire_dataplane::netlink::LinkName;
use ghostwire_dataplane::wireguard::{Choice, run_userspace};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;

/// GhostWire's node daemon. Usually started by the system or by `gwctl up`; everything else is `gwctl`'s.
#[derive(Debug, Parser)]
#[command(name = "ghostwire-client", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node daemon in the foreground
    ///
    /// Ending it (SIGTERM) leaves the interface, its policy and all connections as they are, so that it can be
    /// upgraded without an interruption; the next start adopts them. `gwctl down` removes them.
    Run(RunArgs),
    /// Own a TUN device and run WireGuard on it (started by `run`)
    #[command(hide = true)]
    UserspaceWireguard {
        /// Interface
        name: LinkName,
        /// Directory of its configuration socket
        #[arg(long, value_name = "DIR")]
        uapi_dir: PathBuf,
    },
    /// Remove what a daemon that runs no more has left in the system (started by `gwctl down`)
    #[command(hide = true)]
    TearDown(RunArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Keys, the network map and logs
    #[arg(long, default_value = "/var/lib/ghostwire/client", value_name = "DIR")]
    state_dir: PathBuf,
    /// Where gwctl finds the daemon
    #[arg(long, env = "GHOSTWIRE_SOCKET", default_value = "/run/ghostwire/client.sock", value_name = "PATH")]
    socket: PathBuf,
    /// Name of the network interface
    #[arg(long, default_value = "gw0", value_name = "NAME")]
    interface: LinkName,
    /// WireGuard of the kernel, or in userspace where the kernel has none
    #[arg(long, default_value = "auto", value_name = "auto|kernel|userspace")]
    wireguard: Choice,
    /// UDP port of WireGuard; another one is taken if it is in use
    #[arg(long, default_value_t = 51820, value_name = "PORT")]
    listen_port: u16,
    /// Where eBPF programs and maps are pinned
    #[arg(long, default_value = "/sys/fs/bpf/ghostwire", value_name = "DIR")]
    bpf_dir: PathBuf,
    /// Find and switch paths with eBPF, or give WireGuard plain endpoints
    #[arg(long, default_value = "auto", value_name = "auto|off")]
    steering: Steered,
    /// Ask routers (PCP, NAT-PMP) to forward a port to this machine
    #[arg(long, default_value = "auto", value_name = "auto|off")]
    port_mapping: PortMapping,
    /// UDP port of QUIC, for networks that WireGuard does not pass; auto: 51821 if it is free, else any. 443 passes most
    /// networks, if no web server of this machine needs it
    #[arg(long, default_value = "auto", value_name = "PORT|auto|off")]
    quic_port: QuicPort,
    /// How to log to standard error; what, is said by RUST_LOG (default: info)
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
    /// End after `gwctl down`
    #[arg(long, hide = true)]
    exit_on_down: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => run(&args),
        Command::UserspaceWireguard { name, uapi_dir } => {
            log_to_stderr(LogFormat::Text);
            run_userspace(&name, &uapi_dir).map_err(anyhow::Error::from)
        }
        Command::TearDown(args) => tear_down(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ghostwire-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &RunArgs) -> anyhow::Result<()> {
    log_to_stderr(args.log_format);
    must_be_root()?;
    // Two threads: one for the loop, one for what the API does by itself.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(async {
        let _lock = InterfaceLock::take(args.interface.as_str())?;
        let config = Config {
            state_dir: args.state_dir.clone(),
            kernel: kernel_options(args),
            steered: args.steering,
            port_mapping: args.port_mapping,
            quic: args.quic_port,
            exit_on_down: args.exit_on_down,
        };
        let (requests, inbox) = mpsc::channel(64);
        let (daemon, inbox) = Daemon::open(config, inbox)?;
        let socket = Socket::bind(&args.socket)?;
        eprintln!("ghostwire-client ready: {} at {}", daemon.summary(), args.socket.display());
        tokio::select! {
            ended = daemon.run(inbox) => ended,
            served = socket.serve(requests) => served.context("the local API failed"),
        }
    })
}

/// Removes the data plane of a daemon that does not run.
fn tear_down(args: &RunArgs) -> anyhow::Result<()> {
    log_to_stderr(args.log_format);
    must_be_root()?;
    let _lock = InterfaceLock::take(args.interface.as_str())?;
    let store = Store::open(&args.state_dir)?;
    let mut settings = store.settings()?;
    settings.up = false;
    store.save_settings(&settings)?;
    let identity = store.identity()?;
    Kernel::new(kernel_options(args), *identity.node_key.expose())?.tear_down()?;
    Ok(())
}

fn kernel_options(args: &RunArgs) -> KernelOptions {
    KernelOptions {
        interface: args.interface.clone(),
        choice: args.wireguard,
        listen_port: args.listen_port,
        uapi_dir: args.socket.parent().unwrap_or(Path::new("/run/ghostwire")).join("wireguard"),
        bpf_dir: args.bpf_dir.clone(),
        helper_log: args.state_dir.join("wireguard.log"),
    }
}

fn must_be_root() -> anyhow::Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "making network interfaces and loading eBPF programs needs root; run it with sudo"
    );
    Ok(())
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

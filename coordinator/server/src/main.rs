//! `ghostwire-server`: the coordination server. See the library for what happens inside.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use ghostwire_server::cli::{Cli, Command, LogFormat, RunArgs};
use ghostwire_server::server;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let Command::Run(args) = Cli::parse().command;
    start_logging(args.log_format);
    match run(*args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ghostwire-server: {error:#}");
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

#[tokio::main]
async fn run(args: RunArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let socket = args.socket.clone();
    let server = server::start(args).await?;
    let advertised: Vec<String> = server.advertised.iter().map(ToString::to_string).collect();
    println!(
        "ghostwire-server ready on {}; nodes find it at {}; CA {}; gwctl socket {}; {}",
        server.listen,
        advertised.join(", "),
        server.ca,
        socket.display(),
        server.relaying
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("shutting down");
    server.shutdown().await
}

//! GhostWire in two minutes: a coordinator, a relay and five machines in network namespaces, real packets, SPEC.md's
//! example policy enforced in the kernel, NATs and firewalls in the way.
//!
//! [`story`] is the demonstration, step by step, [`paths`] its part about ways around NATs and firewalls; [`narrator`] prints it; [`cleanup`] removes whatever a
//! demonstration left behind, also an earlier one that was killed or kept.

mod cleanup;
mod narrator;
mod paths;
mod policy;
mod story;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};

use narrator::Narrator;

/// Prefix of everything the demonstration creates.
const ID: &str = "gwdemo";

/// Runs a mesh on this machine and shows what GhostWire does with real packets.
#[derive(Debug, Parser)]
struct Args {
    /// Leave the mesh running at the end and print what to try.
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Remove a mesh that was left running, and do nothing else.
    #[arg(long)]
    clean: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces and eBPF programs need root: run it as root, or with sudo");
    }
    if args.clean {
        cleanup::everything(ID)?;
        println!("removed");
        return Ok(true);
    }
    if cleanup::exists(ID)? {
        bail!(
            "a demonstration is running or was kept on this machine; remove it with `cargo xtask demo --clean`, \
             then try again"
        );
    }
    end_cleanly_on_signals()?;
    let mut narrator = Narrator::new();
    let outcome = story::tell(&mut narrator, args.keep);
    if outcome.is_err() || !args.keep {
        cleanup::everything(ID)?;
    }
    if let Err(error) = outcome {
        narrator.failed(&error);
    }
    Ok(narrator.summary())
}

/// On ctrl-c or SIGTERM nothing may stay behind: the guards of the story's thread would not run.
fn end_cleanly_on_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("block signals")?;
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            eprintln!("\ninterrupted: removing the mesh");
            if let Err(error) = cleanup::everything(ID) {
                eprintln!("{error:#}");
            }
            std::process::exit(130);
        }
    });
    Ok(())
}

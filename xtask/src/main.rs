//! `cargo xtask`: everything a developer or a CI machine does with GhostWire besides `cargo build`.
//!
//! Every command first makes sure that what it needs is there (`setup`), then does its work with
//! visible progress:
//!
//! - `setup`: Debian packages, the eBPF toolchain, bpf-linker, kernels and QEMU for the virtual machines
//! - `vm`: an initramfs from the host's own tools, a QEMU run, a list of jobs inside it, their exit codes
//! - `test`: formatting, lints, every test on this host, then the kernel matrix inside the machines
//! - `conformance`, `bench`, `demo`, `dist`: thin drivers of binaries that live in other crates
//! - `fuzz`: the targets of the `fuzz` workspace, instrumented, for a while each
//!
//! `command` runs one external command as a named step (and says what to do when it fails); `progress`
//! shows that it is alive. The crate depends on nothing heavy: it is the first thing a fresh clone builds.

mod bench;
mod cargo;
mod command;
mod conformance;
mod demo;
mod dist;
mod fuzz;
mod progress;
mod setup;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set up, build, demonstrate, test, measure and package GhostWire.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Find or install everything that building and testing needs (safe to repeat; quick when all is there)
    Setup(setup::Arguments),
    /// Run a mesh with real packets under a real policy on this machine, and check what it shows
    Demo(demo::Arguments),
    /// Check formatting and lints, run all tests here, then the kernel matrix in virtual machines
    Test(test::Arguments),
    /// Boot a virtual machine with kernel WireGuard and run a command or a crate's tests in it
    Vm(vm::Arguments),
    /// Run a folder of policy case files against the policy engine
    Conformance(conformance::Arguments),
    /// Fuzz the parsers of outside input; a finding is printed with the way to see it again
    Fuzz(fuzz::Arguments),
    /// Run a benchmark; the last line of stdout is a JSON object with its figures
    Bench(bench::Arguments),
    /// Build stripped release binaries into target/dist
    Dist(dist::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Setup(arguments) => setup::run(&arguments),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Vm(arguments) => vm::run(&arguments),
        Task::Conformance(arguments) => conformance::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Dist(arguments) => dist::run(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("\nerror: {}", command::explain(&error));
        ExitCode::FAILURE
    })
}

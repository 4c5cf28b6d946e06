//! The commands, one file for each thing they are about.

mod acl;
mod key;
mod node;
mod path;
mod ping;
mod policy;
mod relay;
mod server;
pub mod status;
mod up;
mod user;
mod version;

use crate::cli::{Cli, Command, Global};
use crate::exit::{Failure, Outcome};
use crate::output::Output;

/// What every command gets.
#[derive(Clone, Debug)]
pub struct Context {
    /// Sockets and form of output.
    pub global: Global,
    /// Where output goes.
    pub output: Output,
}

/// Does what the command line says.
pub async fn run(cli: Cli) -> Outcome {
    let output = Output::standard(cli.global.json);
    let context = Context { global: cli.global, output };
    match cli.command {
        Command::Up(args) => up::up(&context, args).await,
        Command::Down(args) => up::down(&context, &args).await,
        Command::Status { peer } => status::status(&context, peer.as_deref()).await,
        Command::Ping(args) => ping::ping(&context, &args).await,
        Command::Netcheck => path::netcheck(&context).await,
        Command::Why { peer } => path::why(&context, &peer).await,
        Command::Path(args) => path::path(&context, &args).await,
        Command::Version => version::version(&context).await,
        Command::Acl(command) => acl::run(&context, command).await,
        Command::Server(command) => server::run(&context, command).await,
        Command::User(command) => user::run(&context, command).await,
        Command::Key(command) => key::run(&context, command).await,
        Command::Node(command) => node::run(&context, command).await,
        Command::Relay(command) => relay::run(&context, command).await,
        Command::Policy(command) => policy::run(&context, command).await,
        Command::Completions { shell } => completions(&context, shell),
    }
}

fn completions(context: &Context, shell: clap_complete::Shell) -> Outcome {
    use clap::CommandFactory as _;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "gwctl", &mut script);
    let script = String::from_utf8(script).map_err(|error| Failure::failed(error.to_string()))?;
    context.output.line(script.trim_end())
}

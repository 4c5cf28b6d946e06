//! `gwctl up` and `gwctl down`

use std::fs::OpenOptions;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ghostwire_proto::join_key;
use ghostwire_proto::local::{DownRequest, StatusResponse, UpProgress, UpRequest};
use serde_json::json;

use super::{Context, status};
use crate::cli::{DaemonArgs, UpArgs};
use crate::connect::{self, Daemon};
use crate::exit::{Code, Failure, Outcome};
use crate::output::units::now_ms;
use crate::output::{Style, json as documents};

/// A daemon that does not answer by then has a problem that its log tells.
const START_PATIENCE: Duration = Duration::from_secs(15);
const PROGRAM: &str = "ghostwire-client";

pub(super) async fn up(context: &Context, args: UpArgs) -> Outcome {
    if let Some(key) = &args.join_key {
        // Told here, before a daemon is started for nothing.
        join_key::parse(key).map_err(|error| Failure::failed(error.to_string()))?;
    }
    let mut daemon = match connect::daemon(&context.global.socket).await {
        Ok(daemon) => daemon,
        Err(failure) if failure.code == Code::Unreachable && nix::unistd::geteuid().is_root() => {
            start(context, &args.daemon).await?
        }
        Err(failure) if failure.code == Code::Unreachable => {
            let hint = "run `gwctl up` as root, which starts it, or start it as a service";
            return Err(Failure { hint: Some(hint.to_owned()), ..failure });
        }
        Err(failure) => return Err(failure),
    };
    let request = UpRequest {
        join_key: args.join_key.unwrap_or_default(),
        hostname: args.hostname.unwrap_or_default(),
        advertise_routes: args.advertise_routes,
        static_endpoints: args.endpoint,
    };
    let failed = |status: tonic::Status| Failure::of_status("connect this machine", &status);
    let mut steps = daemon.up(request).await.map_err(failed)?.into_inner();
    while let Some(UpProgress { step, done, status }) = steps.message().await.map_err(failed)? {
        if done {
            return finished(context, &status.unwrap_or_default());
        }
        tell(context, &step);
    }
    Err(Failure::new(
        Code::Failed,
        "the daemon ended before the node was up",
        "see its log, and `gwctl status`",
    ))
}

fn finished(context: &Context, status: &StatusResponse) -> Outcome {
    let output = &context.output;
    output.either(&documents::Status::from(status), || {
        let node = status.node.clone().unwrap_or_default();
        let addresses = documents::prefixes(&node.addresses).join("  ");
        let name = output.paint(Style::Bold, &node.name);
        if !status.problems.is_empty() || status.state != "running" {
            return status::overview(output, status, now_ms());
        }
        let connected = output.paint(Style::Good, "Connected");
        format!("{connected}: {name} is {addresses}. `gwctl status` shows the peers.")
    })
}

/// Steps are for people, and no part of a command's result.
fn tell(context: &Context, step: &str) {
    if !context.output.json && !step.is_empty() {
        eprintln!("{step} …");
    }
}

async fn start(context: &Context, args: &DaemonArgs) -> Result<Daemon, Failure> {
    let program = find_program()?;
    let log = args.state_dir.join("daemon.log");
    let failed = |what: &str, error: &std::io::Error| {
        Failure::failed(format!("cannot start the node daemon: {what}: {error}"))
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.state_dir)
        .map_err(|error| failed(&args.state_dir.display().to_string(), &error))?;
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
    let file = file.map_err(|error| failed(&log.display().to_string(), &error))?;
    tell(context, &format!("Starting the node daemon (log: {})", log.display()));
    let mut command = Command::new(&program);
    command.arg("run").arg("--exit-on-down").args(daemon_arguments(context, args));
    // Its own session would need fork; its own group is enough to outlive the terminal's signals.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).process_group(0);
    let mut child = command.spawn().map_err(|error| failed(&program.display().to_string(), &error))?;
    let started = Instant::now();
    loop {
        if let Ok(daemon) = connect::daemon(&context.global.socket).await {
            return Ok(daemon);
        }
        if let Ok(Some(ended)) = child.try_wait() {
            let message = format!("the node daemon ended at once ({ended}): {}", last_line(&log));
            return Err(Failure::new(Code::Failed, message, format!("its log is {}", log.display())));
        }
        if started.elapsed() > START_PATIENCE {
            let message = format!("the node daemon does not answer at {}", context.global.socket.display());
            return Err(Failure::new(Code::Unreachable, message, format!("its log is {}", log.display())));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn daemon_arguments(context: &Context, args: &DaemonArgs) -> Vec<std::ffi::OsString> {
    let port = args.listen_port.to_string();
    let pairs: [(&str, &std::ffi::OsStr); 6] = [
        ("--socket", context.global.socket.as_os_str()),
        ("--state-dir", args.state_dir.as_os_str()),
        ("--interface", args.interface.as_ref()),
        ("--wireguard", args.wireguard.as_ref()),
        ("--listen-port", port.as_ref()),
        ("--bpf-dir", args.bpf_dir.as_os_str()),
    ];
    pairs.iter().flat_map(|(flag, value)| [(*flag).into(), (*value).to_owned()]).collect()
}

/// Beside gwctl, else in `PATH`.
fn find_program() -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = beside.into_iter().chain(std::env::split_paths(&path).map(|dir| dir.join(PROGRAM)));
    candidates.find(|candidate| candidate.is_file()).ok_or_else(|| {
        Failure::new(
            Code::Failed,
            format!("the node daemon does not run, and {PROGRAM} is neither beside gwctl nor in PATH"),
            format!("install {PROGRAM}, or start it by hand: {PROGRAM} run"),
        )
    })
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("its log is empty").to_owned()
}

pub(super) async fn down(context: &Context, args: &DaemonArgs) -> Outcome {
    match connect::daemon(&context.global.socket).await {
        Ok(mut daemon) => {
            let answer = daemon.down(DownRequest {}).await;
            answer.map_err(|status| Failure::of_status("disconnect this machine", &status))?;
        }
        Err(failure) if failure.code == Code::Unreachable && nix::unistd::geteuid().is_root() => {
            tear_down(context, args)?;
        }
        Err(failure) => return Err(failure),
    }
    context.output.either(&json!({ "state": "stopped" }), || {
        "Disconnected: interface, routes and eBPF programs are removed. `gwctl up` comes back under the same name and \
         address."
            .to_owned()
    })
}

/// Nobody answers; what a killed daemon has left is removed by its own program.
fn tear_down(context: &Context, args: &DaemonArgs) -> Outcome {
    let program = find_program()?;
    let ended = Command::new(&program).arg("tear-down").args(daemon_arguments(context, args)).output();
    let ended =
        ended.map_err(|error| Failure::failed(format!("cannot run {}: {error}", program.display())))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    let why = said.lines().last().unwrap_or("it does not say why").to_owned();
    Err(Failure::failed(format!(
        "no daemon answers at {}, and cleaning up failed: {why}",
        context.global.socket.display()
    )))
}

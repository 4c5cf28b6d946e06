//! The disk: full, and not to be written.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use ghostwire_proto::v1;
use tonic::Code;

use crate::faults::get;
use crate::harness::{Files, Machine, Server, eventually, needs_root};

/// A server whose state directory is a file system of its own, mounted with these options, that nobody else sees.
/// `before` is done in it first.
fn on_a_disk(files: &Files, options: &str, before: &str) -> Command {
    needs_root("to mount");
    std::fs::create_dir_all(files.state()).unwrap();
    let inner = files.command("127.0.0.1:0");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-ec"]);
    command.arg(format!("mount -t tmpfs -o mode=0700,{options} tmpfs \"$0\"; {before} exec \"$@\""));
    command.arg(files.state()).arg(inner.get_program()).args(inner.get_args()).env("RUST_LOG", "warn");
    command
}

/// The server's state directory as the server sees it.
fn seen_by(server: &Server) -> std::path::PathBuf {
    let root = format!("/proc/{}/root", server.pid());
    Path::new(&root).join(server.files().state().strip_prefix("/").unwrap())
}

fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for block in [1 << 16, 1 << 10, 1] {
        while file.write_all(&vec![0; block]).is_ok() {}
    }
}

#[tokio::test]
async fn a_full_disk_refuses_changes_and_recovers_by_itself() {
    let files = Files::new();
    let server = Server::spawn(&files, &mut on_a_disk(&files, "size=4m", ""));
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let mut stream = Machine::new("one").join(&join_key).await;
    let filler = seen_by(&server).join("filler");
    fill(&filler);

    let create = v1::CreateUserRequest { email: "bob@example.com".to_owned(), ..Default::default() };
    let refused = admin.0.create_user(create.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("nothing was changed: the disk is full"), "{refused}");
    let refused = admin.set_policy(crate::harness::OPEN).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(Machine::new("two").enroll(&join_key).await.unwrap_err().code(), Code::Unavailable);
    let status = admin.0.status(v1::ServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.users, status.nodes, status.policy_version), (1, 1, 1));
    assert!(status.problems[0].contains("disk is full"), "{:?}", status.problems);
    assert!(get(&server, join_key.ca, "/healthz").await.starts_with("HTTP/1.1 503"));

    std::fs::remove_file(&filler).unwrap();
    admin.0.create_user(create).await.unwrap();
    Machine::new("two").enroll(&join_key).await.unwrap();
    stream.until("two", |map| map.peers.len() == 1).await;
    eventually("the problem is gone", || {
        let mut admin = admin.clone();
        async move { admin.0.status(v1::ServerStatusRequest {}).await.unwrap().into_inner().problems.is_empty() }
    })
    .await;
}

/// The error of a server that does not start.
fn refusal(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_state_directory_that_cannot_be_written_is_refused_at_the_start() {
    let files = Files::new();
    let error = refusal(on_a_disk(&files, "ro", ""));
    assert!(error.contains("cannot use the state directory"), "{error}");
    assert!(error.contains("Read-only file system") && error.contains("--state-dir"), "{error}");
    // A server that has been there before finds its files, and must still be able to write.
    let kept = Files::new();
    drop(Server::start_in(&kept, &[]));
    let used = "tar -cC \"$KEPT\" . | tar -xC \"$0\"; mount -o remount,ro \"$0\";";
    let mut command = on_a_disk(&files, "size=16m", used);
    command.env("KEPT", kept.state());
    let error = refusal(command);
    assert!(error.contains("Read-only file system"), "{error}");
}

#[tokio::test]
async fn a_disk_that_is_full_at_the_start_is_said_to_be_full_and_holds_nothing_half_made() {
    let files = Files::new();
    let said = files.folder.path().join("said");
    // The first start finds room for a little; the second, in the same directory, for all.
    let first = "head -c 1m /dev/zero >\"$0/filler\" || true; truncate -s -8k \"$0/filler\"; \
                 if \"$@\" 2>\"$SAID\"; then exit 9; fi; rm \"$0/filler\"; mount -o remount,size=16m \"$0\";";
    let mut command = on_a_disk(&files, "size=64k", first);
    let server = Server::spawn(&files, command.env("SAID", &said));
    let error = std::fs::read_to_string(&said).unwrap();
    assert!(error.contains("No space left") || error.contains("disk is full"), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    let join_key = server.admin().await.reusable("alice@example.com").await;
    Machine::new("one").enroll(&join_key).await.unwrap();
}

#[tokio::test]
async fn a_server_that_was_killed_on_a_full_disk_starts_again_when_there_is_room() {
    needs_root("to mount");
    let files = Files::new();
    let server = Server::spawn(&files, &mut on_a_disk(&files, "size=4m", ""));
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let node = Machine::new("one").enroll(&join_key).await.unwrap();
    fill(&seen_by(&server).join("filler"));
    assert_eq!(Machine::new("two").enroll(&join_key).await.unwrap_err().code(), Code::Unavailable);
    // What is on that disk now, on another one with room.
    let state = seen_by(&server);
    let moved = Files::new();
    std::fs::create_dir_all(moved.state()).unwrap();
    nix::sys::signal::kill(server.pid(), nix::sys::signal::Signal::SIGSTOP).unwrap();
    for entry in std::fs::read_dir(&state).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "filler" {
            std::fs::copy(entry.path(), moved.state().join(entry.file_name())).unwrap();
        }
    }
    drop(server);
    let server = Server::start_in(&moved, &[]);
    let nodes = server.admin().await.nodes().await;
    assert_eq!(nodes.iter().map(|node| node.id).collect::<Vec<_>>(), [node.id], "all that was acknowledged");
}

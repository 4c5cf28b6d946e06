//! The command line as scripts meet it: exit codes, errors, offline policy commands.
#![expect(clippy::unwrap_used, reason = "the helpers of tests fail the test, as the tests do")]

use std::path::PathBuf;
use std::process::{Command, Output};

const POLICY: &str = r#"{
  "hosts": { "web": "100.64.0.3" },
  "acls": [
    // everybody of ours may see the web server
    { "action": "accept", "src": ["alice@example.com"], "dst": ["web:80"] },
  ],
  "tests": [{ "src": "alice@example.com", "accept": ["web:80"], "deny": ["web:22"] }],
}"#;

const NETWORK: &str = r#"{
  "users": ["alice@example.com"],
  "nodes": {
    "laptop": { "user": "alice@example.com", "ipv4": "100.64.0.2", "ipv6": "fd00::2" },
    "server": { "tags": ["tag:web"], "ipv4": "100.64.0.3", "ipv6": "fd00::3" }
  }
}"#;

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn gwctl(&self, args: &[&str]) -> Output {
        let nowhere: PathBuf = self.dir.path().join("no.sock");
        Command::new(env!("CARGO_BIN_EXE_gwctl"))
            .args(args)
            .env("GHOSTWIRE_SOCKET", &nowhere)
            .env("GHOSTWIRE_SERVER_SOCKET", &nowhere)
            .env_remove("COLUMNS")
            .output()
            .unwrap()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_lists_the_exit_codes_and_the_first_steps() {
    let output = Files::new().gwctl(&["--help"]);
    let text = stdout(&output);
    assert_eq!(code(&output), 0);
    assert!(text.contains("Exit codes:") && text.contains("gwctl up JOIN_KEY"), "{text}");
}

#[test]
fn a_wrong_command_line_is_2_and_suggests() {
    let files = Files::new();
    let output = files.gwctl(&["statsu"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("'status'"), "{}", stderr(&output));
    assert_eq!(code(&files.gwctl(&["key", "create"])), 2);
    assert_eq!(code(&files.gwctl(&["key", "create", "--user", "a", "--expires", "soon"])), 2);
    assert_eq!(code(&files.gwctl(&["up", "--advertise-routes", "10.0.0/8"])), 2);
}

#[test]
fn nobody_there_is_3_and_says_what_to_do() {
    let files = Files::new();
    let output = files.gwctl(&["status"]);
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("gwctl up"), "{}", stderr(&output));
    let output = files.gwctl(&["node", "list"]);
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("ghostwire-server run"), "{}", stderr(&output));
    let output = files.gwctl(&["--json", "status"]);
    let error: serde_json::Value = serde_json::from_str(&stderr(&output)).unwrap();
    assert_eq!(error["error"]["code"], 3);
}

#[test]
fn a_damaged_join_key_starts_nothing() {
    let output = Files::new().gwctl(&["up", "gwjoin-1-nonsense"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("join key"), "{}", stderr(&output));
}

#[test]
fn version_works_with_nobody_there() {
    let output = Files::new().gwctl(&["--json", "version"]);
    assert_eq!(code(&output), 0);
    let versions: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(versions["gwctl"], env!("CARGO_PKG_VERSION"));
    assert!(versions["daemon"].is_null());
}

#[test]
fn policies_are_checked_without_a_server() {
    let files = Files::new();
    let policy = files.write("policy.hujson", POLICY);
    let network = files.write("net.json", NETWORK);
    let output = files.gwctl(&["policy", "check", &policy, "--offline"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let output = files.gwctl(&["policy", "check", &policy, "--topology", &network]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));

    let broken = files.write("broken.hujson", &POLICY.replace("accept\", \"src", "allow\", \"src"));
    let output = files.gwctl(&["policy", "check", &broken, "--offline"]);
    assert_eq!(code(&output), 5);
    assert!(stderr(&output).contains("line 5"), "{}", stderr(&output));
    let output = files.gwctl(&["--json", "policy", "check", &broken, "--offline"]);
    let document: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(
        (code(&output), &document["valid"], &document["errors"][0]["line"]),
        (5, &false.into(), &5.into())
    );
    assert_eq!(code(&files.gwctl(&["policy", "check", "/nowhere/policy.hujson"])), 1);
}

#[test]
fn policy_tests_run_without_a_server() {
    let files = Files::new();
    let network = files.write("net.json", NETWORK);
    let policy = files.write("policy.hujson", POLICY);
    let output = files.gwctl(&["policy", "test", &policy, "--topology", &network]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("1 test passed"), "{}", stdout(&output));
    let wrong = files.write("wrong.hujson", &POLICY.replace("web:22", "web:80"));
    let output = files.gwctl(&["policy", "test", &wrong, "--topology", &network]);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(stderr(&output).contains("failed"), "{}", stderr(&output));
}

#[test]
fn flows_are_explained_without_a_server() {
    let files = Files::new();
    let network = files.write("net.json", NETWORK);
    let policy = files.write("policy.hujson", POLICY);
    let explain = |src: &str, dst: &str| {
        files.gwctl(&["policy", "explain", src, dst, "--file", &policy, "--topology", &network])
    };
    let output = explain("laptop", "server:80");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("acls[0] (line 5)"), "{}", stdout(&output));
    let output = explain("alice@example.com", "server:22");
    assert_eq!(code(&output), 5);
    assert!(stdout(&output).contains("DENIED"), "{}", stdout(&output));
    assert_eq!(code(&explain("laptop", "server/icmp")), 0);
    assert_eq!(code(&explain("nobody-here", "server:80")), 5);
    assert_eq!(code(&explain("laptop", "server:http")), 1);
}

#[test]
fn completions_know_the_commands() {
    let files = Files::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = files.gwctl(&["completions", shell]);
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).contains("policy"), "{shell}");
    }
}

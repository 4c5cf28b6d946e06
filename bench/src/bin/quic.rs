//! `cargo xtask bench quic`: TCP through the mesh over QUIC against the same over the direct path, userspace WireGuard both
//! times. The two take turns, so that a machine that changes its speed changes it for both; what counts is the ratio.
//! A table, then one line of JSON.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use ghostwire_tests::mesh::{Mesh, Node, Owner, json, text};
use ghostwire_tests::process::{Process, check_in, run_in};
use ghostwire_tests::wait::{patience, until};
use serde_json::Value;

/// Turns of both.
const TURNS: usize = 5;
/// Of each iperf3 run.
const SECONDS: &str = "5";
const PORT: &str = "5201";
const POLICY: &str = r#"{ "acls": [{ "action": "accept", "src": ["*"], "dst": ["*:*"] }] }"#;
const KINDS: [&str; 2] = ["direct", "quic"];
/// At least that share of the direct path's rate is wanted.
const WANTED: f64 = 0.5;

fn main() -> Result<()> {
    let mut mesh = Mesh::start()?;
    mesh.create_user("dora@company.com")?;
    mesh.set_policy(POLICY)?;
    for name in ["a", "b"] {
        mesh.add_node(name, Owner::User("dora@company.com"))?;
    }
    mesh.wait_enforced()?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let backend = text(&a.status()?, "wireguard_backend").unwrap_or_default();
    println!("WireGuard: {backend}\n{:>5} {:>14} {:>14} {:>8}", "turn", "direct", "QUIC", "ratio");
    let mut ratios = Vec::new();
    for turn in 0..TURNS {
        let mut rates = [0.0; KINDS.len()];
        for (kind, rate) in KINDS.into_iter().zip(&mut rates) {
            for (from, to) in [(a, b), (b, a)] {
                use_path(from, to, kind)?;
            }
            let log = mesh.lab.dir().join(format!("iperf-{turn}-{kind}.log"));
            *rate = iperf3(a, b, b.v4, &log)?;
        }
        let [direct, quic] = rates;
        ratios.push(quic / direct);
        println!("{turn:>5} {direct:>7.0} Mbit/s {quic:>7.0} Mbit/s {:>8.2}", quic / direct);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(TURNS / 2).copied().unwrap_or_default();
    let remark = if median >= WANTED { "" } else { "  missed" };
    println!("\nmedian of the ratios {median:.2}, at least {WANTED:.2}{remark}");
    println!("{}", serde_json::json!({ "vs_direct": (median * 1e3).round() / 1e3 }));
    Ok(())
}

fn use_path(from: &Node, to: &Node, kind: &str) -> Result<()> {
    from.gwctl(&["path", to.name(), "--pin", kind])?;
    until(&format!("{} to reach {} by {kind}", from.name(), to.name()), patience(30), || {
        run_in(&from.host.netns, "ping", &["-c", "1", "-W", "1", &to.v4.to_string()])?;
        let why = json(&from.gwctl(&["--json", "why", to.name()])?)?;
        let class = text(&why, "path_class")?;
        ensure!(class == kind, "it is {class}");
        Ok(())
    })
}

/// One TCP stream; megabits per second at the receiver.
fn iperf3(from: &Node, to: &Node, address: IpAddr, log: &Path) -> Result<f64> {
    let mut server = Process::spawn(
        &to.host.netns,
        "iperf3 server",
        Path::new("/usr/bin/iperf3"),
        &["-s", "-1", "-p", PORT, "--forceflush"],
        log,
    )?;
    until("iperf3 to listen", patience(10), || {
        server.check_alive()?;
        ensure!(server.log().contains("listening"), "not yet");
        Ok(())
    })?;
    let address = address.to_string();
    let args = ["-J", "-t", SECONDS, "-O", "1", "-c", &address, "-p", PORT, "--connect-timeout", "10000"];
    let report: Value = serde_json::from_str(&check_in(&from.host.netns, "iperf3", &args)?)?;
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    Ok(bits.context("a rate in iperf3's report")? / 1e6)
}

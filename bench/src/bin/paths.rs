//! `cargo xtask bench paths`: how soon nodes in all kinds of networks talk, how soon directly, and what a change of path
//! costs. A grid, then one line of JSON. `GHOSTWIRE_BENCH_ROUNDS`: how many failovers, 10 if not set.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ghostwire_tests::grid::{Cell, Grid, Nodes};
use ghostwire_tests::mesh::{Mesh, Owner};
use ghostwire_tests::nat::Network;
use ghostwire_tests::relay::Relay;
use ghostwire_tests::switching;

const USER: &str = "dora@company.com";
const POLICY: &str = r#"{ "acls": [{ "action": "accept", "src": ["*"], "dst": ["*:*"] }] }"#;
/// A failover takes some seconds with what has to be undone after it.
const ROUNDS: usize = 10;

fn main() -> Result<()> {
    let grid = Grid::measure(&Network::ALL, Nodes::TwoInEach, |_| Ok(()))?;
    println!("path; time to the first packet / to the best path\n{grid}\n");
    if !grid.wrong.is_empty() {
        bail!("these pairs are not as theory has them:\n{}", grid.wrong.join("\n"));
    }
    let first = sorted(grid.cells.values().map(|cell| cell.first));
    let is_direct = |cell: &&Cell| cell.class == "direct";
    let direct = sorted(grid.cells.values().filter(is_direct).map(|cell| cell.best));

    let (lost, overtaken) = upgrades()?;
    let gaps = sorted(failovers()?.into_iter());
    let figures = [
        ("first_packet_ms_p50", at(&first, 50)),
        ("direct_ms_p50", at(&direct, 50)),
        ("failover_ms_p99", at(&gaps, 99)),
    ];
    println!("pairs                       {} of which {} direct", first.len(), direct.len());
    println!("first packet, median        {:.1} ms", figures[0].1);
    println!("direct, median              {:.1} ms", figures[1].1);
    println!("failover, p99 of {:<3}        {:.1} ms", gaps.len(), figures[2].1);
    println!("relay to direct             {lost} lost, {overtaken} overtaken");
    let mut json: serde_json::Map<String, serde_json::Value> =
        figures.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    json.insert("switch_lost_packets".to_owned(), lost.into());
    json.insert("switch_reordered_packets".to_owned(), overtaken.into());
    println!("{}", serde_json::Value::Object(json));
    Ok(())
}

fn rounds() -> usize {
    std::env::var("GHOSTWIRE_BENCH_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(ROUNDS)
        .max(1)
}

fn pair(second: Network) -> Result<Mesh> {
    let mut mesh = Mesh::start()?;
    mesh.create_user(USER)?;
    mesh.set_policy(POLICY)?;
    mesh.add_node_in("a", Owner::User(USER), Network::PortPreserving)?;
    mesh.add_node_in("b", Owner::User(USER), second)?;
    mesh.wait_enforced()?;
    Ok(mesh)
}

/// Packets lost and overtaken while paths change from a relay to direct.
fn upgrades() -> Result<(u64, u64)> {
    let mut mesh = pair(Network::PortPreserving)?;
    let _relay = Relay::join(&mut mesh, "frankfurt")?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let (mut lost, mut overtaken) = (0, 0);
    for _ in 0..rounds() {
        for report in switching::upgrade(a, b, "frankfurt")? {
            lost += report.lost();
            overtaken += report.reordered;
        }
    }
    Ok((lost, overtaken))
}

/// How long nothing arrived after the direct path was blocked.
fn failovers() -> Result<Vec<Duration>> {
    let mesh = pair(Network::Public)?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let mut gaps = Vec::new();
    for _ in 0..rounds() {
        switching::until_class(a, b, "direct").context("before a failover")?;
        gaps.push(switching::failover(a, b)?);
        switching::unblock(a, b)?;
    }
    Ok(gaps)
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e3).collect();
    times.sort_unstable_by(f64::total_cmp);
    times
}

/// A percentile, by the nearest rank.
fn at(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

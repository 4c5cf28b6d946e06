//! Every pair of networks: the path that is reached, the time to the first packet, the time to the best path.
//!
//! Needs root. Prints the grid; `cargo test -p ghostwire-tests --test grid -- --nocapture` shows it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ghostwire_tests::mesh::{Mesh, Node, Owner, json, text};
use ghostwire_tests::nat::Network;
use ghostwire_tests::process::{check_in, run_in, tail};
use ghostwire_tests::wait::patience;

const POLICY: &str = r#"{ "acls": [{ "action": "accept", "src": ["*"], "dst": ["*:*"] }] }"#;

/// What came of one pair.
struct Cell {
    class: String,
    first: Duration,
    best: Duration,
}

fn name(network: Network, side: char) -> String {
    let at = Network::ALL.iter().position(|known| *known == network).unwrap_or_default();
    format!("n{at}{side}")
}

fn measure(a: &Node, b: &Node, direct: bool) -> Result<Cell> {
    let began = Instant::now();
    check_in(&a.host.netns, "ping", &["-c", "1", "-W", "15", &b.v4.to_string()])
        .with_context(|| format!("no packet from {} to {}", a.name(), b.name()))?;
    let first = began.elapsed();
    let limit = if direct { patience(25) } else { patience(6) };
    loop {
        let why = json(&a.gwctl(&["--json", "why", b.name()])?)?;
        let class = text(&why, "path_class")?;
        if class == "direct" {
            return Ok(Cell { class, first, best: began.elapsed() });
        }
        if began.elapsed() > limit {
            let since = why.get("in_use_s").and_then(serde_json::Value::as_f64).unwrap_or_default();
            let best = began.elapsed().saturating_sub(Duration::from_secs_f64(since.max(0.0)));
            return Ok(Cell { class, first, best });
        }
        run_in(&a.host.netns, "ping", &["-c", "1", "-W", "1", "-i", "0.2", &b.v4.to_string()])?;
    }
}

fn print(cells: &BTreeMap<(Network, Network), Cell>) -> String {
    let mut grid = format!("{:<16}", "");
    for column in Network::ALL {
        let _ = write!(grid, "{column:<16}");
    }
    for row in Network::ALL {
        let mut lines = [format!("\n{row:<16}"), format!("\n{:<16}", "")];
        for column in Network::ALL {
            let cell = cells.get(&(row, column));
            let class = cell.map_or("", |cell| cell.class.as_str());
            let times = cell.map_or_else(String::new, |cell| {
                format!("{} / {} ms", cell.first.as_millis(), cell.best.as_millis())
            });
            let _ = write!(lines[0], "{class:<16}");
            let _ = write!(lines[1], "{times:<16}");
        }
        grid.push_str(&lines.concat());
    }
    grid
}

#[test]
fn every_pair_of_networks_connects_by_the_best_path_there_is() -> Result<()> {
    let mut mesh = Mesh::start()?;
    mesh.create_user("dora@company.com")?;
    mesh.set_policy(POLICY)?;
    for network in Network::ALL {
        for side in ['a', 'b'] {
            mesh.add_node_in(&name(network, side), Owner::User("dora@company.com"), network)?;
        }
    }
    mesh.wait_enforced()?;
    let mut cells = BTreeMap::new();
    let mut wrong = Vec::new();
    for (at, row) in Network::ALL.into_iter().enumerate() {
        for column in Network::ALL.into_iter().skip(at) {
            let (a, b) = (mesh.node(&name(row, 'a'))?, mesh.node(&name(column, 'b'))?);
            let direct = row.can_be_direct(column);
            match measure(a, b, direct) {
                Ok(cell) => {
                    if direct && cell.class != "direct" {
                        let why = a.gwctl(&["why", b.name()])?;
                        wrong.push(format!("{row} and {column} stay on {}:\n{why}", cell.class));
                    }
                    cells.insert((row, column), cell);
                }
                Err(error) => {
                    let why = a.gwctl(&["why", b.name()]).unwrap_or_default();
                    let log = tail(&a.log(), 10);
                    wrong.push(format!("{row} and {column} do not connect: {error:#}\n{why}\n{log}"));
                }
            }
        }
    }
    println!("path; time to the first packet / to the best path\n{}", print(&cells));
    ensure!(!cells.is_empty(), "nothing was measured");
    if !wrong.is_empty() {
        bail!("{} of {} cells are wrong:\n{}", wrong.len(), cells.len(), wrong.join("\n"));
    }
    Ok(())
}

//! Every pair of networks: the path that is reached, the time to the first packet, the time to the best path.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::mesh::{Mesh, NewNode, Node, Owner, text};
use crate::nat::Network;
use crate::pair::{self, OPEN};
use crate::process::{check_in, run_in, tail};
use crate::wait::{patience, time_factor};

const USER: &str = "dora@company.com";
/// The best first.
const CLASSES: [&str; 4] = ["direct", "quic", "relay-udp", "relay-tls"];

/// What came of one pair.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The kind of path that it came to.
    pub class: String,
    /// From the first packet's sending to its answer.
    pub first: Duration,
    /// From the first packet's sending to the use of that path.
    pub best: Duration,
}

/// What came of all pairs.
#[derive(Debug, Default)]
pub struct Grid {
    networks: Vec<Network>,
    /// By networks, the first one's node sending first.
    pub cells: BTreeMap<(Network, Network), Cell>,
    /// What is not as theory has it, explained.
    pub wrong: Vec<String>,
}

/// Which nodes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// Two in each network, which are a pair too.
    TwoInEach,
    /// One in each: only pairs of different networks.
    OneInEach,
}

impl Grid {
    /// Starts a mesh with nodes in these networks and measures all pairs. `prepare` is called before the first packet.
    pub fn measure(
        networks: &[Network],
        nodes: Nodes,
        prepare: impl FnOnce(&Mesh) -> Result<()>,
    ) -> Result<Self> {
        let mut mesh = Mesh::start()?;
        mesh.create_user(USER)?;
        mesh.set_policy(OPEN)?;
        let named = |side| networks.iter().map(move |network| (name(*network, side), *network));
        let second = (nodes == Nodes::TwoInEach).then(|| named('b')).into_iter().flatten();
        let wanted: Vec<NewNode<'_>> = named('a')
            .chain(second)
            .map(|(name, network)| NewNode { name, owner: Owner::User(USER), network })
            .collect();
        mesh.add_nodes(wanted)?;
        mesh.wait_enforced()?;
        prepare(&mesh)?;
        let mut grid = Self { networks: networks.to_vec(), ..Self::default() };
        for (at, row) in networks.iter().enumerate() {
            let first = at + usize::from(nodes == Nodes::OneInEach);
            for column in networks.iter().skip(first) {
                let other = if nodes == Nodes::TwoInEach { 'b' } else { 'a' };
                grid.fill(*row, *column, mesh.node(&name(*row, 'a'))?, mesh.node(&name(*column, other))?);
            }
        }
        Ok(grid)
    }

    fn fill(&mut self, row: Network, column: Network, a: &Node, b: &Node) {
        let best = row.best_class(column);
        let explained = |what: String| {
            let why = a.gwctl(&["why", b.name()]).unwrap_or_else(|error| format!("{error:#}"));
            let back = b.gwctl(&["why", a.name()]).unwrap_or_else(|error| format!("{error:#}"));
            format!("{row} and {column} {what}\n{why}\n{back}\n{}\n{}", tail(&a.log(), 5), tail(&b.log(), 5))
        };
        match measure(a, b, best) {
            Ok(cell) => {
                if rank(&cell.class) > rank(best) {
                    self.wrong.push(explained(format!("stay on {} instead of {best}", cell.class)));
                }
                self.cells.insert((row, column), cell);
            }
            Err(error) => self.wrong.push(explained(format!("do not connect: {error:#}"))),
        }
    }
}

fn name(network: Network, side: char) -> String {
    let at = Network::ALL.iter().position(|known| *known == network).unwrap_or_default();
    format!("n{at}{side}")
}

fn rank(class: &str) -> usize {
    CLASSES.iter().position(|known| *known == class).unwrap_or(CLASSES.len())
}

/// Sends a first packet, and more until a path of the class `best` is in use.
pub fn measure(a: &Node, b: &Node, best: &str) -> Result<Cell> {
    let began = Instant::now();
    let (to, limit) = (b.v4.to_string(), patience(15).as_secs().to_string());
    // Machines that are slow have an impaired network, which may lose the one packet; elsewhere the first one has to arrive.
    let until_answered = if time_factor() > 1 { "-w" } else { "-W" };
    check_in(&a.host.netns, "ping", &["-c", "1", until_answered, &limit, &to])
        .with_context(|| format!("no packet from {} to {}", a.name(), b.name()))?;
    let first = began.elapsed();
    loop {
        let asked = began.elapsed();
        let why = pair::why(a, b)?;
        let class = text(&why, "path_class")?;
        if rank(&class) <= rank(best) || began.elapsed() > patience(30) {
            let since = why.get("in_use_s").and_then(Value::as_f64).unwrap_or_default();
            let best = asked.saturating_sub(Duration::from_secs_f64(since.max(0.0)));
            return Ok(Cell { class, first, best });
        }
        run_in(&a.host.netns, "ping", &["-c", "1", "-W", "1", &to])?;
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<16}", "")?;
        for column in &self.networks {
            write!(f, "{column:<16}")?;
        }
        for row in &self.networks {
            let cells: Vec<Option<&Cell>> =
                self.networks.iter().map(|column| self.cells.get(&(*row, *column))).collect();
            write!(f, "\n{row:<16}")?;
            for cell in &cells {
                write!(f, "{:<16}", cell.map_or("", |cell| cell.class.as_str()))?;
            }
            write!(f, "\n{:<16}", "")?;
            for cell in &cells {
                let times = cell.map_or_else(String::new, |cell| {
                    format!("{} / {} ms", cell.first.as_millis(), cell.best.as_millis())
                });
                write!(f, "{times:<16}")?;
            }
        }
        Ok(())
    }
}

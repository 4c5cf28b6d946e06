//! Every pair of networks connects, and by the best path that theory allows.
//!
//! Needs root. Prints the grid: `cargo test -p ghostwire-tests --test grid -- --nocapture`.

use anyhow::{Result, bail, ensure};
use ghostwire_tests::grid::{Grid, Nodes};
use ghostwire_tests::nat::Network;
use ghostwire_tests::wait::time_factor;

/// For machines with an emulated processor, where a node takes half a minute to start.
const FEW: [Network; 4] = [Network::Public, Network::PortPreserving, Network::Symmetric, Network::UdpBlocked];

#[test]
fn every_pair_of_networks_connects_by_the_best_path_there_is() -> Result<()> {
    let slow = time_factor() > 1;
    let (networks, nodes, cells) =
        if slow { (&FEW[..], Nodes::OneInEach, 6) } else { (&Network::ALL[..], Nodes::TwoInEach, 55) };
    let grid = Grid::measure(networks, nodes, |mesh| {
        // Such machines have their own kernels, with netem: there the world is far away and loses packets.
        if slow { mesh.lab.impair("delay 20ms 2ms loss 1%") } else { Ok(()) }
    })?;
    println!("path; time to the first packet / to the best path\n{grid}");
    if !grid.wrong.is_empty() {
        bail!("{} of {cells} cells are wrong:\n{}\n{grid}", grid.wrong.len(), grid.wrong.join("\n"));
    }
    ensure!(grid.cells.len() == cells, "{} cells instead of {cells}", grid.cells.len());
    Ok(())
}

//! `cargo xtask bench policy`: from a policy's text to filters and images, by size.
//!
//! A table, then as the last line of stdout one JSON object. Wanted: 10,000 nodes and 10,000 rules, one node's
//! image in under 50 ms, all nodes' filters after a one-rule edit in under 1 s.

use std::time::Duration;

use ghostwire_bench::policy::{Size, measure};

const SIZES: [(u32, u32); 8] = [
    (100, 100),
    (100, 10_000),
    (1_000, 1_000),
    (1_000, 10_000),
    (10_000, 1_000),
    (10_000, 10_000),
    (1_000, 100_000),
    (10_000, 100_000),
];

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn main() {
    println!(
        "{:>8} {:>8} {:>14} {:>12} {:>12} {:>20}",
        "nodes", "rules", "largest filter", "image", "compile", "all nodes after edit"
    );
    let mut json = String::new();
    for (nodes, rules) in SIZES {
        let measured = measure(Size { nodes, rules });
        let (compile, all_nodes) = (milliseconds(measured.compile), milliseconds(measured.all_nodes));
        let kib = measured.image / 1024;
        println!(
            "{nodes:>8} {rules:>8} {:>14} {kib:>8} KiB {compile:>9.1} ms {all_nodes:>17.1} ms",
            measured.filter
        );
        if (nodes, rules) == (10_000, 10_000) {
            json = format!("{{\"compile_ms_10k\": {compile:.2}, \"all_nodes_edit_ms\": {all_nodes:.1}}}");
        }
    }
    println!("{json}");
}

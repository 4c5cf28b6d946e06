//! `cargo xtask bench relay`: what relaying a WireGuard datagram costs in XDP, against a program that only swaps MAC
//! addresses, our own userspace path, and coturn with channel data. A table, then one line of JSON. Signs of life go to
//! stderr.

mod sockets;
mod xdp;

use anyhow::Result;
use ghostwire_bench::acl::wire;
use ghostwire_bench::relay::lab::Lab;

/// UDP payloads, in bytes.
const SIZES: [usize; 4] = [64, 148, 512, 1400];

/// Bound pairs.
const PAIRS: [u32; 3] = [1, 1_000, 100_000];

fn main() -> Result<()> {
    wire::stay_on_one_processor()?;
    let lab = Lab::new()?;
    let kernel = xdp::measure(&lab)?;
    let ours = sockets::ours(&lab)?;
    let coturn = sockets::coturn(&lab)?;

    println!(
        "{:>8} {:>8} {:>13} {:>12} {:>9} {:>9} {:>8} {:>13} {:>12}",
        "bytes", "pairs", "MAC swap", "relay", "share", "over", "lost", "userspace", "coturn"
    );
    for row in &kernel.rows {
        let at = SIZES.iter().position(|size| *size == row.size).unwrap_or_default();
        let sockets = if row.pairs == 1 {
            format!("{:>9.3} Mp/s {:>8.3} Mp/s", ours[at] / 1e6, coturn[at] / 1e6)
        } else {
            String::new()
        };
        println!(
            "{:>8} {:>8} {:>8.2} Mp/s {:>7.2} Mp/s {:>9.3} {:>6.1} ns {:>8.5} {sockets}",
            row.size,
            row.pairs,
            1e3 / row.swap_ns,
            1e3 / row.relay_ns,
            row.share,
            row.relay_ns - row.swap_ns,
            row.lost,
        );
    }
    println!("without a limit on the session: {:.1} ns less", kernel.limit_ns);

    let worst = |pairs| {
        let rows = kernel.rows.iter().filter(|row| row.pairs == pairs);
        rows.map(|row| row.share).fold(f64::INFINITY, f64::min)
    };
    let single = || kernel.rows.iter().filter(|row| row.pairs == 1);
    let against = |other: &[f64]| {
        let ratios = single().zip(other).map(|(row, other)| 1e9 / row.relay_ns / other);
        ratios.fold(f64::INFINITY, f64::min)
    };
    let over = single().map(|row| row.relay_ns - row.swap_ns).fold(0.0, f64::max);
    let wanted = [
        ("share of the MAC swap's rate, 1 pair", worst(1), 0.85),
        ("share of the MAC swap's rate, 100,000 pairs", worst(100_000), 0.75),
        ("times coturn", against(&coturn), 20.0),
    ];
    println!("\n{:<46} {:>9} {:>9}   (worst of all sizes)", "", "measured", "at least");
    for (what, measured, limit) in wanted {
        let remark = if measured >= limit { "" } else { "  missed" };
        println!("{what:<46} {measured:>9.3} {limit:>9.2}{remark}");
    }
    println!(
        "{}",
        serde_json::json!({
            "limit_ratio": round(worst(1)),
            "limit_ratio_100k": round(worst(100_000)),
            "vs_coturn": round(against(&coturn)),
            "vs_userspace": round(against(&ours)),
            "ns_over_limit": round(over),
        })
    );
    Ok(())
}

/// To thousandths, which is more than is known.
fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

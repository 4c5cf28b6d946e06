//! `cargo xtask bench acl`: what access control costs per packet. Tables, then one line of JSON. Signs of life go to
//! stderr.

mod alone;
mod lab;
mod path;

use anyhow::Result;
use ghostwire_bench::acl::nft::Scope;
use ghostwire_bench::acl::wire;

fn main() -> Result<()> {
    wire::stay_on_one_processor()?;
    let _namespace = wire::Namespace::new()?;
    let alone = alone::measure()?;
    alone.print();
    let path = path::measure()?;
    path.print();
    let wanted = [
        ("overlay peers, warm keys, 10 rules", alone.few().median, 15.0, "ns"),
        ("overlay peers, warm keys, 100,000 rules", alone.many().median, 15.0, "ns"),
        ("peers behind subnet routers, warm keys", alone.subnets().median, 45.0, "ns"),
        ("growth from 10 to 100,000 rules", alone.growth().median, 1.05, ""),
        ("share of nftables' overhead, same path, same policy", path.share(Scope::Stateful).median, 0.2, ""),
    ];
    println!("\n{:<52} {:>9} {:>9}", "", "measured", "at most");
    for (what, measured, limit, unit) in wanted {
        let remark = if measured <= limit { "" } else { "  missed" };
        println!("{what:<52} {measured:>9.2} {limit:>9} {unit:<2}{remark}");
    }
    // The same policy lets answers in to what this node opened; a set of pairs alone does not.
    let (form, nft) = path.form(Scope::Stateful);
    let (inbound_form, inbound_nft) = path.form(Scope::Inbound);
    let swap = alone.swap();
    println!(
        "{}",
        serde_json::json!({
            "ns_over_empty_10": round(alone.few().median),
            "ns_over_empty_100k": round(alone.many().median),
            "ns_over_empty_subnets": round(alone.subnets().median),
            "growth": round(alone.growth().median),
            "nft_ratio": round(path.share(Scope::Stateful).median),
            "nft_form": form,
            "nft_ratio_inbound_only": round(path.share(Scope::Inbound).median),
            "nft_form_inbound_only": inbound_form,
            "path_ns_ours": round(path.ours().median),
            "path_ns_empty_program": round(path.empty().median),
            "path_ns_nft": round(nft.median),
            "path_ns_nft_inbound_only": round(inbound_nft.median),
            "swap_ms": round(swap.total().as_secs_f64() * 1e3),
            "swap_build_ms": round((swap.nets + swap.build).as_secs_f64() * 1e3),
        })
    );
    Ok(())
}

/// To thousandths, which is more than is known.
fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

//! A filter → an image.

use std::sync::Arc;

use ipnet::IpNet;

use super::layout::{self, Layout};
use super::matrix::{Side, direction};
use super::{ClassImage, CompileError, NodeContext};
use crate::filter::{AddrSet, NodeFilter};

/// Compiles what the node enforces. Never leaves anything out: what does not fit is an error.
pub fn compile(filter: &NodeFilter, context: &NodeContext) -> Result<ClassImage, CompileError> {
    check(context)?;
    let own_v4 = context.own4.map(u32::from).map(|addr| (addr, addr));
    let own_v6 = context.own6.map(u128::from).map(|addr| (addr, addr));
    let own = AddrSet { v4: own_v4.into_iter().collect(), v6: own_v6.into_iter().collect() };
    let named;
    let known = if let Some(peers) = &context.peers {
        peers.as_ref()
    } else {
        named =
            union(filter.inbound.iter().map(|rule| &rule.src), filter.outbound.iter().map(|rule| &rule.dst));
        &named
    };
    let routed =
        union(filter.inbound.iter().map(|rule| &rule.dst), filter.outbound.iter().map(|rule| &rule.src))
            .difference(&own);
    let inbound = direction(&filter.inbound, Side::Destination, &own, known, &routed)?;
    let outbound = direction(&filter.outbound, Side::Source, &own, known, &routed)?;
    Layout { context, inbound: &inbound, outbound: &outbound, known, routed: &routed }.build()
}

/// The union of sets that are shared by many rules.
fn union<'f>(
    left: impl Iterator<Item = &'f Arc<AddrSet>>,
    right: impl Iterator<Item = &'f Arc<AddrSet>>,
) -> AddrSet {
    let mut distinct: Vec<&AddrSet> = left.chain(right).map(AsRef::as_ref).collect();
    distinct.sort_unstable_by_key(|set| std::ptr::from_ref(*set));
    distinct.dedup_by_key(|set| std::ptr::from_ref(*set));
    AddrSet::union_of(distinct)
}

fn check(context: &NodeContext) -> Result<(), CompileError> {
    if context.generation == 0 {
        return Err(CompileError::ZeroGeneration);
    }
    if context.net_slot > 1 {
        return Err(CompileError::NetSlot(context.net_slot));
    }
    let size = |net: IpNet, bits: u8| {
        if net.prefix_len() == bits { Ok(()) } else { Err(CompileError::OverlaySize { net, bits }) }
    };
    context.overlay4.map_or(Ok(()), |net| size(net.into(), layout::OVERLAY4_BITS))?;
    context.overlay6.map_or(Ok(()), |net| size(net.into(), layout::OVERLAY6_BITS))
}

//! The data plane of a node: eBPF programs and maps, WireGuard devices, links, addresses and routes.

pub mod acl;
pub mod netlink;
pub mod wireguard;

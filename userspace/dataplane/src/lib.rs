//! The data plane of a node: eBPF programs and maps, WireGuard devices, links, addresses and routes.

pub mod acl;
mod bpf;
pub mod netlink;
pub mod steer;
pub mod wireguard;

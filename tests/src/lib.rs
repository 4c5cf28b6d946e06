//! The mesh as a whole, on real parts: network namespaces, the real binaries, real packets.
//!
//! - [`netns`]: namespaces that exist as long as their guard.
//! - [`process`]: programs under test, started inside a namespace, ended by pid.
//! - [`lab`]: a bridge ("the internet") and hosts around it.
//! - [`nat`]: what can be between a host and that internet.
//! - [`mesh`]: a coordinator and nodes on the hosts of a lab, driven through `gwctl` as a user would.
//! - [`grid`]: every pair of kinds of network: the path that is reached, and how soon.
//! - [`pair`]: two nodes in networks of their own.
//! - [`relay`]: a relay on a host of the lab.
//! - [`switching`]: what a change of path costs.
//! - [`traffic`]: numbered UDP streams, TCP conversations and probes, whose losses are counted exactly.
//! - [`wireguard`]: a bare WireGuard tunnel with the same backend, to compare with.
//!
//! The tests in `tests/` and the `ghostwire-demo` binary are written on top. Both run on the host (userspace
//! WireGuard where the kernel has none) and inside virtual machines (kernel WireGuard).

pub mod grid;
pub mod lab;
pub mod mesh;
pub mod nat;
pub mod netns;
pub mod pair;
pub mod process;
pub mod relay;
pub mod switching;
pub mod traffic;
pub mod wait;
pub mod wireguard;

//! What the fuzzer runs: every parser of outside input, and what must hold of what it lets through.
//!
//! One module for each target, with one function `run(&[u8]) -> bool`: it panics if the code under test panics or
//! breaks a promise, and says whether the input got past the first parser, so that a seed which no longer does is
//! noticed. The libFuzzer binaries in `fuzz/` call these functions; `tests/replay.rs` calls them with the checked-in
//! seeds and with every input that ever broke one, in the ordinary test run.
//!
//! | target | input | comes from |
//! |---|---|---|
//! | [`packet`] | IP packets | any peer, any application |
//! | [`echo`] | ICMP replies | any peer |
//! | [`certificate`] | certificate chains | whoever answers at the coordinator's address |
//! | [`session`] | the coordinator's messages | the coordinator |
//! | [`filter_message`], [`image`] | filters | the coordinator |
//! | [`node_messages`] | enrolment, hello, updates | any machine |
//! | [`hujson`], [`policy`], [`network`] | policies, topologies | administrators |
//! | [`join_key`] | join keys, addresses, auth keys | what people paste |
//! | [`state_file`] | the node's files | the disk |
//! | [`uapi`] | requests and answers about a WireGuard device | the process at the other end of a socket |
//! | [`gwctl_words`], [`gwctl_status`] | the command line, answers to be shown | people, daemons |

pub mod certificate;
pub mod echo;
pub mod filter_message;
pub mod gwctl_status;
pub mod gwctl_words;
pub mod hujson;
pub mod image;
pub mod join_key;
mod judge;
pub mod network;
pub mod node_messages;
pub mod packet;
pub mod policy;
pub mod seeds;
pub mod session;
pub mod state_file;
pub mod uapi;

/// A target: its name, which is also that of its folders, and what it does.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// All of them.
pub const TARGETS: [Target; 15] = [
    ("certificate", certificate::run),
    ("echo", echo::run),
    ("filter_message", filter_message::run),
    ("gwctl_status", gwctl_status::run),
    ("gwctl_words", gwctl_words::run),
    ("hujson", hujson::run),
    ("image", image::run),
    ("join_key", join_key::run),
    ("network", network::run),
    ("node_messages", node_messages::run),
    ("packet", packet::run),
    ("policy", policy::run),
    ("session", session::run),
    ("state_file", state_file::run),
    ("uapi", uapi::run),
];

//! GhostWire's policy language: HuJSON → resolved policy → per-node filter → class image.
//!
//! Pure: no I/O but the conformance runner's reading of case files, no clock. The coordinator parses and
//! resolves; each node compiles its own filter into the image that its eBPF programs read.
//!
//! ```text
//! text ──hujson──▶ values with positions ──schema──▶ Policy ──resolve(Topology)──▶ ResolvedPolicy
//!                                                                                   │ per node
//!                                    kernel ◀── image::ClassImage ◀──compile── filter::NodeFilter
//! ```
//!
//! - [`hujson`]: the text format: JSON with comments and trailing commas, every value with its position.
//! - `schema`: values to rules; [`alias`] and [`service`] are the words of the language.
//! - [`policy`]: a checked [`Policy`], and who may own which tag.
//! - [`topology`]: users and nodes to resolve it against; also as JSON.
//! - [`resolve`]: who that is in addresses; per-node filters, visible peers, route approval.
//! - [`explain`]: which rule allows a flow, or what is missing.
//! - [`policy_tests`]: the policy's own `tests`.
//! - [`filter`]: what one node enforces, and the reference evaluator; [`addr_set`] is its arithmetic.
//! - [`image`]: the class image and its compiler.
//! - [`conformance`]: runs cases of the language's reference behaviour.

pub mod addr_set;
pub mod alias;
pub mod conformance;
pub mod error;
pub mod explain;
pub mod filter;
pub mod hujson;
pub mod image;
pub mod policy;
pub mod policy_tests;
pub mod resolve;
mod schema;
pub mod service;
pub mod topology;

pub use error::{PolicyError, PolicyErrors};
pub use policy::Policy;
pub use policy_tests::TestFailure;
pub use resolve::ResolvedPolicy;
pub use topology::Topology;

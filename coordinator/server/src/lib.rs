//! GhostWire's coordination server: admits machines, numbers them, and tells each node what concerns it.
//!
//! ```text
//! node ──TLS──▶ listener ──▶ stream::service ──proof──▶ writer ──commit──▶ storage (SQLite)
//!                                                         │ publish
//! node ◀──deltas── stream::session ◀──wake── view::World ◀┘
//! gwctl ──unix socket──▶ admin ──▶ writer
//! ```
//!
//! - [`model`]: the network as an immutable value; [`model::draft`] makes the next one.
//! - [`ipam`], [`names`], [`enroll`], [`node_update`]: the rules of membership; pure.
//! - [`view`]: the policy resolved for every node; [`stream::delta`]: what to say to whom; pure.
//! - [`writer`]: the one thread that changes anything: store first, then publish.
//! - [`storage`]: durable state; [`audit`]: who changed what.
//! - [`signals`]: what nodes tell each other through us.
//! - [`stream`]: nodes; [`admin`]: administrators; [`http`]: everybody else.
//! - [`relays`]: relays, of this process and others: registration, tokens, the list for nodes.
//! - [`listener`], [`tls`], [`limits`], [`nonces`]: what stands between the network and all that.
//! - [`server`]: wiring; [`cli`], [`state_dir`] and [`shutdown`] are its beginning and its end.

pub mod admin;
pub mod advertise;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod enroll;
pub mod http;
pub mod id_set;
pub mod ipam;
pub mod limits;
pub mod listener;
pub mod model;
pub mod names;
pub mod node_update;
pub mod nonces;
pub mod relays;
pub mod server;
pub mod shutdown;
pub mod signals;
pub mod state_dir;
pub mod storage;
pub mod stream;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod view;
pub mod writer;

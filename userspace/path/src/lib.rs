//! Which way to a peer: a sans-IO machine, one [`PathMachine`] per peer.
//!
//! The machine knows no socket, no clock and no random numbers of its own. The edge (the node daemon) calls
//! [`handle_input`](PathMachine::handle_input) when something happens, does what
//! [`poll_output`](PathMachine::poll_output) says, and calls again with [`Input::Tick`] at
//! [`poll_timeout`](PathMachine::poll_timeout). So two nodes, their NATs, a coordinator and relays run in one
//! unit test, hours in milliseconds.
//!
//! ```text
//! local addresses, STUN, port mapping ─┐                     ┌─► checks and answers, by every way
//! relays and their latencies ──────────┤                     ├─► signals for the peer
//! signals of the peer ─────────────────┼──► PathMachine ─────┼─► open or close a relay, QUIC
//! checks and answers ──────────────────┤    one per peer     ├─► admit a remote (REV map)
//! traffic seen, operator, sleep ───────┘                     └─► use these paths (PATH map)
//! ```
//!
//! # How a pair gets together
//!
//! 1. An application sends. The machine wakes ([`Input::Sent`]), tells the peer its candidates and calls it
//!    ([`Signal`], [`Attempt`]), opens the best relay both by UDP and by TLS, and begins to check every pair of
//!    addresses. Data goes over the first relay that is open, even before anything is proven.
//! 2. The first path that is *proven* carries the traffic; usually a relay's. A path is proven by a check that
//!    was answered by the same way, dressed as the path's own traffic ([`Framing::Carried`]).
//! 3. As soon as a path of a better class is proven, it is used. Classes: direct WireGuard, QUIC (tried when
//!    direct has had [`HEAD_START`](timing::HEAD_START)), relay port, relay stream.
//! 4. The path in use is checked every 3 s (consent: an address that does not answer gets nothing more), a
//!    standby less often, and earlier when data goes out and nothing comes back. A missed answer is *doubt*: a copy
//!    of everything goes over the best other path until the doubt is gone, and every other proven path is asked.
//!    6.5 s after the last proof the path is given up and held down.
//! 5. While the path in use is not direct, rounds of checks go on with growing pauses. Two sides behind NATs have
//!    to send at the same time, so a round begins with a call to the peer, through the coordinator and in every
//!    check that goes over a relay. Anything new (addresses, uplinks, the peer is back, waking up) begins a round
//!    at once.
//! 6. 45 s without traffic: the machine sleeps. It sends nothing and asks for no timer. The data plane is left
//!    with the last path and a copy through a relay's stream, so that the first packet afterwards arrives.
//!
//! [`PathMachine::why`] explains any state: the path in use and the reason, every path with its last failure,
//! the next round and its cause, and what would make things better.
//!
//! # Roles and ICE
//!
//! Candidates, priorities, pairs, triggered checks, peer-reflexive candidates and pacing are those of RFC 8445,
//! with these differences, all of which follow from the payload being WireGuard:
//! - Each side chooses the path that it sends by itself; WireGuard accepts packets from any. So nothing has to be
//!   agreed before traffic can flow. The controlling side (the higher public key: no conflict, no tie-breaker)
//!   still marks its path (USE-CANDIDATE), and the other gives that path a bonus of 15 % of its round trip.
//! - Checks never end: they are consent (RFC 7675), health and latency measurement at once.
//! - Every transmission is a transaction of its own, so that round trips are exact; up to
//!   [`REMEMBERED`](timing::REMEMBERED) of them may be answered late.
//! - No foundations and frozen states: there is one component, and few pairs.
//! - Signals are whole states with a generation and a revision instead of a stream of trickled candidates. A
//!   restart is a new generation; the node may keep its credentials over one, so that peers still answer when
//!   the coordinator is away.
//!
//! The crate `is` (the ICE agent of str0m) was considered and not used. It reads and writes STUN packets itself and
//! ends with one nominated pair and a connection state. Relay ports, relay streams and QUIC cannot be candidates
//! of it; two framings per pair, standby, copies on doubt, hold-down, sleep, and the reason for every state would
//! have to be built around an agent with timers and opinions of its own, and two machines would decide about one
//! path. What remains of ICE here is about three hundred lines.
//!
//! # What the edge has to do
//!
//! - **Checks.** [`Framing::Stun`]: a STUN binding request with USERNAME, MESSAGE-INTEGRITY and FINGERPRINT under
//!   [`PathMachine::peer_credentials`], from the base's socket. [`Framing::Carried`]: the same bytes in the dress of
//!   the path's traffic, so that what blocks one blocks the other:
//!
//!   | route | dress |
//!   |---|---|
//!   | direct, relay port | a WireGuard transport message (type 4, reserved bytes zero) whose receiver index is the STUN cookie and whose counter is 2^64 - 1: WireGuard never sends that counter, so no session can be mistaken for it; relays that pass only WireGuard pass it |
//!   | QUIC | a datagram of the connection that begins like STUN: WireGuard's messages begin with 1 to 4 and three zeros |
//!   | relay stream | a packet of the stream, told apart likewise |
//!
//!   A check whose integrity fails is no input. The attempt number travels as an attribute of its own.
//! - **Answers** go out at once, by the way and in the dress that the check came, also while the machine sleeps. The
//!   machine gives none for a way that it does not know: an answer promises that data is let in.
//! - **Admission.** Only remotes of [`Output::Admit`] get into the REV map: they have proven that they are the peer.
//!   A peer could otherwise name another peer's address as its candidate and draw that peer's packets to itself.
//! - **Traffic.** [`Input::Sent`] and [`Input::Received`] from the data plane's counters, a few times a second
//!   while there is traffic, and [`Input::Sent`] at once for the first packet after a pause. WireGuard's persistent
//!   keepalive has to be off: the machine keeps NAT mappings alive, and a keepalive would keep it awake.
//! - **Relays.** The binding of the node at its relays, their streams and their keepalive are the node's; a machine
//!   only asks for its peer's port ([`Output::Open`]). A stream delivers whether or not the receiver's machine is
//!   awake.
//! - **Pace of the node.** The machine bounds the rate of one peer's checks. With many peers waking at once, the
//!   edge spreads their sending.
//!
//! # Bounds
//!
//! Every interval and limit stands with its reason in [`timing`]. A machine keeps at most
//! [`MAX_PATHS`](timing::MAX_PATHS) paths with [`REMEMBERED`](timing::REMEMBERED) transactions each, whatever the peer
//! signals. It sends at most one unproven check per [`PACE`](timing::PACE) and one birthday probe per
//! [`BIRTHDAY_PACE`](timing::BIRTHDAY_PACE); the checks of proven paths come on top, a handful in 3 s.
//! Changes of path are bounded by the doubling hold-downs.
//!
//! # Where to find what
//!
//! `machine::routes`: which paths there are. `machine::rounds`: when what is tried. `machine::checks`: sending,
//! receiving, suspicion. `machine::choose`: which is used. `machine::birthday`: hard NATs. `path`: one path.
//! `why`: explanations. The tests in `tests/paths` simulate NATs after RFC 4787 and print a grid of all pairs of
//! networks: `cargo test -p ghostwire-path -- --nocapture every_pair`.

mod io;
mod machine;
mod path;
mod route;
mod signal;
pub mod timing;
mod why;

pub use io::{CarrierFailure, Check, Filter, InUse, Input, Output, Steer, Transaction};
pub use machine::choose::Reason;
pub use machine::rounds::Cause;
pub use machine::{Config, PathMachine};
pub use path::Failure;
pub use route::{Base, Class, Framing, PathId, RelayId, Route, Socket, UplinkId};
pub use signal::{
    Attempt, Candidate, CandidateKind, Credentials, Generation, LocalCandidate, Mapping, NatReport, Reach,
    RelayOffer, Signal,
};
pub use why::{Advice, PathState, PathWhy, Role, State, Why};

//! Every interval and limit, with its reason. None of them is configurable: each is part of how the two sides
//! of a pair understand each other, or of what we promise to the networks that we send into.

use std::time::Duration;

/// How often the path in use is checked. Three seconds keep every UDP mapping alive (RFC 4787 asks for two
/// minutes, real middleboxes give 20 s and more) and bound what an idle-looking but active peer costs.
pub const HEALTH: Duration = Duration::from_secs(3);
/// How often a standby is checked: often enough that it is rarely dead when it is needed.
pub const STANDBY: Duration = Duration::from_secs(10);
/// How often other proven paths are checked, so that their latency can be compared. Below the 30 s after
/// which the strictest middleboxes forget a mapping.
pub const SPARE: Duration = Duration::from_secs(25);
/// What is added to a path's interval to give the time after its last proof for which it is trusted: for the
/// path in use 6.5 s, which is two intervals and half a second for the answer.
pub const TRUST_MARGIN: Duration = Duration::from_millis(3_500);
/// A path that was just proven is measured this often until [`FIRST_SAMPLES`] round trips are known.
pub const MEASURE: Duration = Duration::from_millis(500);
/// Round trips before a path's latency may be compared with another's.
pub const FIRST_SAMPLES: u32 = 4;
/// Sent without anything received for this long: ask the path now instead of at its next interval. Longer than
/// any usual round trip, shorter than a second so that a dead relay costs less than two.
pub const SUSPECT: Duration = Duration::from_millis(600);
/// The least time between two checks out of suspicion (a one-way stream is always suspicious).
pub const SUSPECT_GAP: Duration = Duration::from_secs(1);
/// Sent without anything received for this long although the checks pass: the path does not carry WireGuard.
/// A peer that receives data answers with a keepalive after 10 s (KEEPALIVE_TIMEOUT); 5 s are left for a
/// handshake that has to be repeated once (REKEY_TIMEOUT).
pub const DATA_SILENT: Duration = Duration::from_secs(15);
/// A peer without traffic for this long is idle: nothing is sent for it until there is traffic again.
pub const IDLE_AFTER: Duration = Duration::from_secs(45);
/// A peer that asked for checks keeps us awake this long without any traffic: one round.
pub const ASKED_AWAKE: Duration = Duration::from_secs(12);

/// The least time between two ordinary checks of one peer (RFC 8445 section 14.2: Ta may go down to 5 ms and
/// is 50 ms by default, which is made for hosts that open a mapping per candidate; ours share one port).
pub const PACE: Duration = Duration::from_millis(20);
/// Patience with the first check of a path whose round trip is not known. Late answers still count.
pub const FIRST_PATIENCE: Duration = Duration::from_millis(250);
/// The least patience with a check, whatever the round trip was.
pub const LEAST_PATIENCE: Duration = Duration::from_millis(150);
/// The most.
pub const MOST_PATIENCE: Duration = Duration::from_secs(1);
/// Checks of an unproven path in one round: with growing patience about four seconds (RFC 8445 sends 7 over
/// 39 s for every pair once; we come back).
pub const TRIES: u32 = 7;
/// Remembered checks of a path; an answer to an older one counts no more.
pub const REMEMBERED: usize = 8;
/// Rounds do not start more often, whatever the peer or the network does.
pub const ROUND_GAP: Duration = Duration::from_secs(1);
/// While the path in use is worse than it could be: the next round after this long, doubling with each round
/// that brought nothing ..
pub const RETRY_FIRST: Duration = Duration::from_secs(5);
/// .. up to this.
pub const RETRY_MOST: Duration = Duration::from_mins(2);
/// .. or only this while no path at all works: data waits.
pub const NOWHERE_MOST: Duration = Duration::from_secs(8);
/// While the path in use is direct: how often unproven pairs get another chance (a lower latency, IPv6).
pub const REVIEW: Duration = Duration::from_mins(5);
/// Head start of direct WireGuard before QUIC is tried in a round.
pub const HEAD_START: Duration = Duration::from_secs(2);
/// The edge has this long to open a carrier or bind at a relay.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// A relay that is not up after this long gets company, a failed one is tried again first after it, doubling
/// up to [`RELAY_RETRY_MOST`].
pub const RELAY_PATIENCE: Duration = Duration::from_secs(1);
/// The longest pause before a failed relay is tried again.
pub const RELAY_RETRY_MOST: Duration = Duration::from_mins(1);
/// A relay or QUIC connection that is needed no more is kept this long.
pub const LINGER: Duration = Duration::from_secs(30);

/// A path of the same class has to be cheaper than this many hundredths of the one in use ..
pub const BETTER_PERCENT: u64 = 80;
/// .. and by this much ..
pub const BETTER_BY: Duration = Duration::from_millis(3);
/// .. for this long.
pub const BETTER_FOR: Duration = Duration::from_secs(5);
/// After a change for latency the next one has to wait this long, doubling with each up to [`HOLD_MOST`].
pub const LATENCY_HOLD: Duration = Duration::from_secs(10);
/// A path that fell silent while it was used is not used again for this long, doubling with each time up to
/// [`HOLD_MOST`], unless there is no other.
pub const HOLD_FIRST: Duration = Duration::from_secs(5);
/// The longest hold-down.
pub const HOLD_MOST: Duration = Duration::from_mins(5);
/// Hold-downs start from the beginning after this long without trouble.
pub const FORGIVE: Duration = Duration::from_mins(10);

/// Local bases considered; the first ones the edge names.
pub const MAX_BASES: usize = 8;
/// Remote candidates considered of those that a peer signals.
pub const MAX_CANDIDATES: usize = 16;
/// Paths of one peer, all kinds. What has the lowest priority is left out.
pub const MAX_PATHS: usize = 64;
/// Of which with addresses that nobody signalled (peer-reflexive).
pub const MAX_REFLEXIVE: usize = 8;
/// So many new ones are let in in this time. Two NATs that map every remote anew and let in everybody would show
/// each other a new address with every check, and every check triggers one.
pub const REFLEXIVE_WINDOW: Duration = Duration::from_secs(10);
/// Relays considered, best first by the sum of both sides' latencies.
pub const MAX_RELAYS: usize = 2;
/// Relays considered of those a signal or the edge offers.
pub const MAX_OFFERS: usize = 16;
/// Proven direct paths that are kept proven beside the ones with a role.
pub const MAX_SPARES: usize = 6;
/// Signals are gathered for this long, so that a burst of candidates makes one.
pub const SIGNAL_GAP: Duration = Duration::from_millis(250);

/// Birthday probing: ports that the side behind the hard NAT opens. 256 mappings against 1,024 probes of
/// 64,512 ports meet with a probability of 1 - (1 - 256/64512)^1024 = 98 %.
pub const BIRTHDAY_PORTS: u16 = 256;
/// Probes of the side behind the easy NAT.
pub const BIRTHDAY_PROBES: u16 = 1_024;
/// Time between two of them: 100 packets a second.
pub const BIRTHDAY_PACE: Duration = Duration::from_millis(10);
/// The easy side starts later, when the mappings are there.
pub const BIRTHDAY_DELAY: Duration = Duration::from_secs(4);
/// At most one attempt in this time, and only while active and relayed.
pub const BIRTHDAY_EVERY: Duration = Duration::from_mins(10);
/// How long an attempt may last.
pub const BIRTHDAY_LASTS: Duration = Duration::from_secs(20);

/// A call that comes this much later than the machine asked for means that the node slept.
pub const SLEPT: Duration = Duration::from_secs(10);

//! What goes into a [`Session`](super::Session), and what comes out of it.

use std::sync::Arc;

use super::map::NetworkMap;
use crate::pb;

/// What happens to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// The user wants the node up; it is enrolled.
    Up,
    /// The user wants every trace removed.
    Down,
    /// Policy should only report, or enforce again.
    Shadow(bool),
    /// A stream is open and the coordinator has accepted our hello, sent with [`Session::resume`](super::Session::resume).
    Opened {
        /// The coordinator's address.
        coordinator: String,
    },
    /// A message on the stream.
    Received(Box<pb::CoordinatorMessage>),
    /// No stream: it ended, or could not be opened.
    Closed {
        /// For people.
        why: String,
    },
    /// The data plane has done, or tried, what was asked.
    Applied(Report),
    /// The map could not be written.
    NotSaved {
        /// For people.
        why: String,
    },
    /// The map is on disk.
    Saved,
    /// What we tell about ourselves has changed.
    About(Box<pb::NodeUpdate>),
    /// Somebody has changed the data plane behind our back.
    Disturbed,
    /// Nothing happened, but a timer may be due.
    Tick,
}

/// The data plane's answer to [`Output::Apply`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Which [`Output::Apply`].
    pub ticket: u64,
    /// The kernel has all of it.
    pub complete: bool,
    /// Generation that the kernel enforces now, 0: none.
    pub enforced: u32,
    /// What is wrong, why, what to do.
    pub problems: Vec<String>,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Output {
    /// Open a stream; answer with `Opened` or `Closed`.
    Connect,
    /// Close the stream, or stop opening one. No answer.
    Disconnect,
    /// Say this on the stream.
    Send(Box<pb::NodeMessage>),
    /// Make the data plane so; answer with `Applied`.
    Apply(Desired),
    /// Remove every trace from the system.
    TearDown,
    /// A peer's signal.
    Signal(Box<pb::IncomingSignal>),
    /// All relays of the network.
    Relays(Vec<pb::Relay>),
    /// Tokens for relays.
    RelayTokens(Box<pb::RelayTokens>),
    /// A relay, by the coordinator's number, hears somebody at our port whom it does not know.
    RelayRebind(u32),
    /// Write the map; answer with `Saved` or `NotSaved`.
    SaveMap(Arc<NetworkMap>),
    /// Forget map and membership: the coordinator has deleted this node.
    ForgetNetwork,
}

/// The data plane as it should be.
#[derive(Clone, Debug)]
pub struct Desired {
    /// For the answer.
    pub ticket: u64,
    /// The network.
    pub map: Arc<NetworkMap>,
    /// Policy reports and lets pass.
    pub shadow: bool,
}

/// The node's state in a word, as `gwctl status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Down.
    Stopped,
    /// Up, with no map yet.
    Connecting,
    /// Up, coordinator there.
    Running,
    /// Up, on the stored map.
    Offline,
    /// The coordinator deleted this node.
    Removed,
}

impl State {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Connecting => "connecting",
            Self::Running => "running",
            Self::Offline => "offline",
            Self::Removed => "removed",
        }
    }
}

//! Who is connected.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use ghostwire_proto::keys::{MachineKey, NodeKey};
use ghostwire_proto::v1::goodbye::Reason;
use thiserror::Error;
use tokio::sync::Notify;
use tracing::{debug, warn};

use super::{Handle, WriteError, Writer};
use crate::clock;
use crate::model::NodeId;
use crate::node_update::NodeUpdate;
use crate::storage::{Change, StorageError};
use crate::stream::delta::Told;
use crate::stream::history::History;
use crate::view::World;

/// An open stream, as the writer knows it.
#[derive(Debug, Default)]
pub struct Session {
    number: u64,
    news: Notify,
    farewell: OnceLock<Farewell>,
}

/// Why a stream has to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// For the program.
    pub reason: Reason,
    /// For people.
    pub detail: String,
}

impl Session {
    /// Tells the stream to look for news.
    pub fn wake(&self) {
        self.news.notify_one();
    }

    /// Waits for [`Self::wake`] or [`Self::end`].
    pub async fn woken(&self) {
        self.news.notified().await;
    }

    /// Tells the stream to end.
    pub fn end(&self, farewell: Farewell) {
        // The first reason stands.
        let _ = self.farewell.set(farewell);
        self.news.notify_one();
    }

    /// Why the stream has to end, if it has to.
    pub fn farewell(&self) -> Option<&Farewell> {
        self.farewell.get()
    }
}

/// A node that opens its stream.
#[derive(Debug)]
pub struct Presence {
    /// Proven.
    pub machine_key: MachineKey,
    /// The key it uses.
    pub node_key: NodeKey,
    /// Its program's version.
    pub version: String,
    /// What it says about itself.
    pub update: Option<NodeUpdate>,
    /// Epoch and revision that it knows.
    pub resume: Option<(String, u64)>,
}

/// A stream that may start.
#[derive(Debug)]
pub struct Connected {
    /// Whose.
    pub node: NodeId,
    /// Name of the node, for logs.
    pub name: String,
    /// The stream, as the writer knows it.
    pub session: Arc<Session>,
    /// What the node was told, if it can resume there.
    pub told: Option<Told>,
    /// What it may come back with.
    pub history: History,
}

/// Why a stream may not start.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// Never enrolled, or so long ago that its deletion was forgotten.
    #[error("this machine is not enrolled here; join with a join key")]
    Unknown,
    /// Deleted.
    #[error("this node was removed from the mesh")]
    Removed,
    /// Enrolled with another node key.
    #[error("the node key is not the one that this machine enrolled with; join again")]
    NodeKey,
}

impl Handle {
    /// Opens a stream. Answers once the node's state is published.
    pub async fn connect(&self, presence: Presence) -> Result<Connected, WriteError<ConnectError>> {
        // A node that is known is let in whether or not what it says about itself can be stored: its stream works
        // without, and it says the same again next time. One that came with the same batch is not known.
        let anyway = |result: Result<Connected, _>, error: &StorageError, world: &World| match result {
            Ok(connected) if !world.network.nodes.contains_key(&connected.node) => {
                Err(WriteError::Storage(error.clone()))
            }
            result => {
                warn!(%error, "what a node says about itself is not stored");
                result
            }
        };
        let shared = self.share(move |writer| writer.connect(presence), anyway).await;
        shared.map_or(Err(WriteError::Stopped), |(connected, _)| connected)
    }

    /// Closes a stream.
    pub async fn disconnect(&self, node: NodeId, session: Arc<Session>, history: History) {
        let done = |(), _: &StorageError, _: &World| ();
        self.share(move |writer| writer.disconnect(node, &session, history), done).await;
    }

    /// Takes what a node says about itself.
    pub async fn update_node(&self, node: NodeId, update: NodeUpdate) -> Result<(), WriteError<Infallible>> {
        self.change(format!("node:{node}"), move |draft| {
            update.apply(draft, node);
            Ok(())
        })
        .await
    }

    /// Takes what a node reports about its enforcement.
    pub async fn report(&self, node: NodeId, enforced_generation: u32, problems: Vec<String>) {
        let report = move |writer: &mut Writer| {
            writer.change_in_memory(node, move |node| {
                node.enforced_generation = enforced_generation;
                node.problems.clone_from(&problems);
            });
        };
        self.share(report, |(), _, _| ()).await;
    }

    /// Ends every stream.
    pub async fn end_all(&self, farewell: Farewell) {
        let _ = self
            .run(move |writer| writer.sessions.values().for_each(|session| session.end(farewell.clone())))
            .await;
    }
}

impl Writer {
    fn connect(&mut self, presence: Presence) -> Result<Connected, WriteError<ConnectError>> {
        let refused = |error| Err(WriteError::Refused(error));
        let Some(node) = self.network.node_by_machine(&presence.machine_key).cloned() else {
            let removed = self.network.removed.contains(&presence.machine_key);
            return refused(if removed { ConnectError::Removed } else { ConnectError::Unknown });
        };
        if node.node_key != presence.node_key {
            return refused(ConnectError::NodeKey);
        }
        if let Some(update) = presence.update {
            let stored = self.change::<_, Infallible>(&format!("node:{}", node.id), |draft| {
                update.apply(draft, node.id);
                Ok(())
            });
            if let Err(error) = stored {
                warn!(node = %node.name, %error, "what the node says about itself is not stored");
            }
        }
        let (now, version) = (clock::now(), presence.version);
        self.change_in_memory(node.id, move |node| {
            node.online = true;
            node.last_seen = now;
            node.version.clone_from(&version);
        });
        self.unsaved.insert(node.id);
        let session = Arc::new(Session { number: self.next_session, ..Session::default() });
        self.next_session += 1;
        if let Some(old) = self.sessions.insert(node.id, session.clone()) {
            let detail = "the same node connected from elsewhere".to_owned();
            old.end(Farewell { reason: Reason::Replaced, detail });
        }
        let mut history = self.histories.remove(&node.id).unwrap_or_default();
        let told = presence
            .resume
            .filter(|(epoch, _)| *epoch == self.network.epoch)
            .and_then(|(_, revision)| history.rewind(revision));
        if told.is_none() {
            history = History::default();
        }
        Ok(Connected { node: node.id, name: node.name.clone(), session, told, history })
    }

    fn disconnect(&mut self, node: NodeId, session: &Arc<Session>, history: History) {
        if self.sessions.get(&node).is_none_or(|current| current.number != session.number) {
            return;
        }
        self.sessions.remove(&node);
        if !self.network.nodes.contains_key(&node) {
            return;
        }
        self.histories.insert(node, history);
        let now = clock::now();
        self.change_in_memory(node, move |node| {
            node.online = false;
            node.last_seen = now;
        });
        self.unsaved.insert(node);
    }

    /// Stores when nodes were seen last. Nobody was promised this, so a failure waits for the next time.
    pub(super) fn save_presence(&mut self) {
        self.unsaved.retain(|id| self.network.nodes.contains_key(id));
        self.histories.retain(|id, _| self.network.nodes.contains_key(id));
        if self.unsaved.is_empty() {
            return;
        }
        let changes: Vec<Change> = self
            .unsaved
            .iter()
            .filter_map(|id| self.network.nodes.get(id))
            .map(|node| Change::PutNode(node.clone()))
            .collect();
        match self.write(&changes) {
            Ok(()) => self.batch.saves_presence = true,
            Err(error) => debug!(%error, "times of last contact are not stored yet"),
        }
    }
}

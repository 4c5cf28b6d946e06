//! What the writer does since the last sync to disk, and how all of it becomes true or none.
//!
//! Each write is all or nothing by itself: a request that fails leaves its neighbours alone. When the batch as a
//! whole cannot be made durable (the disk is full, most likely), the network is again what it was before, but for what
//! needs no disk: who is connected, and what nodes report about themselves.

use std::sync::Arc;

use tracing::warn;

use super::{Writer, new_generations};
use crate::model::{Network, Node, NodeId};
use crate::storage::{Change, StorageError};
use crate::view::World;

/// Told whether the batch is durable, and the world that has been published since.
pub(super) type Answer = Box<dyn FnOnce(Result<(), &StorageError>, &Arc<World>) + Send>;

/// A change of a node that needs no disk.
type InMemory = Box<dyn Fn(&mut Node) + Send>;

/// What waits for the next sync.
pub(super) struct Batch {
    /// The network that is durable.
    before: Arc<Network>,
    /// Something of the batch is written.
    wrote: bool,
    /// The times of last contact are among it.
    pub(super) saves_presence: bool,
    /// What has to be done again if the batch is given up, in order.
    pub(super) in_memory: Vec<(NodeId, InMemory)>,
    /// Who waits for the outcome.
    pub(super) answers: Vec<Answer>,
}

impl Batch {
    pub(super) fn new(before: Arc<Network>) -> Self {
        Self { before, wrote: false, saves_presence: false, in_memory: Vec::new(), answers: Vec::new() }
    }
}

impl Writer {
    /// Writes all of `changes` or none.
    pub(super) fn write(&mut self, changes: &[Change]) -> Result<(), StorageError> {
        if changes.is_empty() {
            return Ok(());
        }
        let Err(error) = self.storage.write(changes) else {
            self.batch.wrote = true;
            return Ok(());
        };
        self.report(Some(&error));
        if self.batch.wrote && !self.storage.is_open() {
            self.give_up(&error);
        }
        Err(error)
    }

    /// Makes durable what was written since the last time, announces it, and answers who waits for that. What cannot
    /// be announced now is announced with the next batch; the clock makes one every second.
    pub(super) fn finish(&mut self) {
        let mut world = self.next_world();
        if let Some(next) = &world {
            // Generations must never go back, so nodes hear of a filter only once its generation is durable.
            let generations = self.generations_of(next);
            if let Err(error) = self.write(&generations) {
                warn!(%error, "filters wait to be announced");
                world = None;
            }
        }
        if self.batch.wrote {
            let finished = self.storage.finish();
            self.report(finished.as_ref().err());
            if let Err(error) = finished {
                return self.give_up(&error);
            }
        }
        if let Some(world) = world {
            self.announce(world);
        }
        self.conclude(Ok(()));
    }

    /// Goes back to what is durable.
    fn give_up(&mut self, error: &StorageError) {
        self.network = self.batch.before.clone();
        for (node, change) in std::mem::take(&mut self.batch.in_memory) {
            self.apply_in_memory(node, &*change);
        }
        let network = self.network.clone();
        self.sessions.retain(|node, _| network.nodes.contains_key(node));
        // What needs no disk can be announced all the same, unless filters wait.
        if let Some(world) = self.next_world()
            && self.generations_of(&world).is_empty()
        {
            self.announce(world);
        }
        self.conclude(Err(error));
    }

    /// Begins a new batch and answers who waited for this one.
    fn conclude(&mut self, outcome: Result<(), &StorageError>) {
        let batch = std::mem::replace(&mut self.batch, Batch::new(self.network.clone()));
        if batch.saves_presence && outcome.is_ok() {
            self.unsaved.clear();
        }
        for answer in batch.answers {
            answer(outcome, &self.published);
        }
    }

    fn report(&self, failure: Option<&StorageError>) {
        let problem = failure
            .map(|error| format!("changes are refused until the database can be written again: {error}"));
        self.problems.set("storage", problem);
    }

    /// The world to announce, if there is something to announce and it can be worked out.
    fn next_world(&self) -> Option<World> {
        if Arc::ptr_eq(&self.network, &self.published.network) {
            return None;
        }
        match self.published.next(self.network.clone()) {
            Ok(world) => {
                self.problems.set("policy", None);
                Some(world)
            }
            Err(errors) => {
                let problem =
                    format!("the last change cannot be announced; nodes keep what they have: {errors}");
                self.problems.set("policy", Some(problem));
                None
            }
        }
    }

    /// The generations that come with a world.
    fn generations_of(&self, world: &World) -> Vec<Change> {
        if Arc::ptr_eq(&self.published.views, &world.views) {
            return Vec::new();
        }
        let old = &self.published.views;
        new_generations(world, |node| old.get(&node).map(|view| (view.generation.get(), view.digest)))
    }

    fn announce(&mut self, world: World) {
        let world = Arc::new(world);
        let old = std::mem::replace(&mut self.published, world.clone());
        self.shared.store(world.clone());
        for node in world.affected(&old, self.sessions.keys().copied()) {
            if let Some(session) = self.sessions.get(&node) {
                session.wake();
            }
        }
    }
}

//! The one writer: a thread that owns the storage and makes every change.
//!
//! Jobs come through a bounded queue. A job drafts a change and writes it; when the queue is empty (or after a
//! batch, so that a flood does not delay the news) the writer makes the batch durable, publishes a new [`World`],
//! wakes the streams that it concerns, and only then answers. So one sync to disk serves all who asked meanwhile,
//! and nobody is told anything that a crash could take back. A job that fails fails alone ([`batch`]). Readers never
//! wait for the writer.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use crate::model::draft::Draft;
use crate::model::{Network, NodeId};
use crate::storage::{Change, PolicyVersion, Storage, StorageError, Stored};
use crate::stream::history::History;
use crate::view::{Generations, World};
use crate::{clock, model};

mod batch;
mod sessions;
#[cfg(test)]
mod tests;

use batch::{Answer, Batch};
pub use sessions::{ConnectError, Connected, Farewell, Presence, Session};

const QUEUE: usize = 1024;
/// Jobs between two publications under load.
const BATCH: usize = 256;

/// What the writer does next.
enum Job {
    /// Something that is made durable together with its neighbours.
    Shared(Box<dyn FnOnce(&mut Writer) -> Answer + Send>),
    /// Something that sees, and leaves behind, nothing that is not durable.
    Alone(Box<dyn FnOnce(&mut Writer) + Send>),
}

/// Why a change was not made.
#[derive(Debug, Error)]
pub enum WriteError<E: std::error::Error> {
    /// It is not allowed, or makes no sense.
    #[error(transparent)]
    Refused(E),
    /// It could not be stored. Nothing was changed.
    #[error("nothing was changed: {0}")]
    Storage(#[from] StorageError),
    /// The server is shutting down.
    #[error("the coordinator is shutting down")]
    Stopped,
}

/// Hands jobs to the writer and reads what it published.
#[derive(Clone)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    world: Arc<ArcSwap<World>>,
    problems: Arc<Problems>,
    revisions: Arc<AtomicU64>,
}

/// What is wrong with the coordinator itself, by topic.
#[derive(Default)]
struct Problems(Mutex<std::collections::BTreeMap<&'static str, String>>);

impl Problems {
    fn set(&self, topic: &'static str, problem: Option<String>) {
        let mut problems = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            Some(problem) => {
                if problems.get(topic) != Some(&problem) {
                    error!(topic, "{problem}");
                }
                problems.insert(topic, problem);
            }
            None => {
                if problems.remove(topic).is_some() {
                    info!(topic, "works again");
                }
            }
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("world", &self.world.load().seq).finish_non_exhaustive()
    }
}

impl Handle {
    /// The state that was published last.
    pub fn world(&self) -> Arc<World> {
        self.world.load_full()
    }

    /// What is wrong with the coordinator itself.
    pub fn problems(&self) -> Vec<String> {
        self.problems.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A revision that was never used before, in this or an earlier run.
    pub fn next_revision(&self) -> u64 {
        self.revisions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Runs `job` on the writer when all before it is durable. `None` if it has stopped.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Writer) -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move |writer: &mut Writer| drop(reply.send(job(writer))));
        self.jobs.send(Job::Alone(job)).await.ok()?;
        answer.await.ok()
    }

    /// Runs `job` as part of a batch and answers once what it changed is durable and can be read in
    /// [`Self::world`]. `on_failure`: what to answer when the batch cannot be made durable and the world is what it
    /// was.
    async fn share<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Writer) -> T + Send + 'static,
        on_failure: impl FnOnce(T, &StorageError, &World) -> T + Send + 'static,
    ) -> Option<(T, Arc<World>)> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move |writer: &mut Writer| -> Answer {
            let value = job(writer);
            Box::new(move |stored: Result<(), &StorageError>, world: &Arc<World>| {
                let value = match stored {
                    Ok(()) => value,
                    Err(error) => on_failure(value, error, world),
                };
                // Nobody waits any more if the request was cancelled.
                let _ = reply.send((value, world.clone()));
            })
        });
        self.jobs.send(Job::Shared(job)).await.ok()?;
        answer.await.ok()
    }

    /// Makes a change as part of a batch. What the change was refused for may have come with the batch, so nothing
    /// that was said in a batch that fails is true.
    async fn share_change<T: Send + 'static, E: std::error::Error + Send + 'static>(
        &self,
        actor: String,
        change: impl FnOnce(&mut Draft) -> Result<T, E> + Send + 'static,
    ) -> Result<(T, Arc<World>), WriteError<E>> {
        let failed = |_, error: &StorageError, _: &World| Err(WriteError::Storage(error.clone()));
        let shared = self.share(move |writer| writer.change(&actor, change), failed).await;
        let (result, world) = shared.ok_or(WriteError::Stopped)?;
        result.map(|value| (value, world))
    }

    /// Makes a change and answers once it is stored and published.
    pub async fn change<T, E>(
        &self,
        actor: String,
        change: impl FnOnce(&mut Draft) -> Result<T, E> + Send + 'static,
    ) -> Result<T, WriteError<E>>
    where
        T: Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        self.share_change(actor, change).await.map(|(value, _)| value)
    }

    /// The same, and tells how many nodes see the network differently since.
    pub async fn change_and_count<T, E>(
        &self,
        actor: String,
        change: impl FnOnce(&mut Draft) -> Result<T, E> + Send + 'static,
    ) -> Result<(T, usize), WriteError<E>>
    where
        T: Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        let before = self.world();
        let (value, after) = self.share_change(actor, change).await?;
        Ok((value, after.views_changed_since(&before)))
    }

    /// Ends the writer after the jobs that wait already.
    pub async fn stop(&self) {
        let _ = self.run(|writer| writer.stopping = true).await;
    }
}

/// The writer's own state.
pub struct Writer {
    storage: Box<dyn Storage>,
    network: Arc<Network>,
    published: Arc<World>,
    shared: Arc<ArcSwap<World>>,
    batch: Batch,
    sessions: HashMap<NodeId, Arc<Session>>,
    histories: HashMap<NodeId, History>,
    /// Nodes whose time of last contact is newer in memory than in storage.
    unsaved: HashSet<NodeId>,
    problems: Arc<Problems>,
    ephemeral_grace: Duration,
    next_session: u64,
    stopping: bool,
}

/// Starts the writer.
pub fn start(
    storage: Box<dyn Storage>,
    stored: Stored,
    ephemeral_grace: Duration,
) -> anyhow::Result<(Handle, JoinHandle<()>)> {
    let boots = u64::from(stored.boots);
    let mut writer = Writer::new(storage, stored, ephemeral_grace)?;
    let (world, problems) = (writer.shared.clone(), writer.problems.clone());
    let (jobs, queue) = mpsc::channel(QUEUE);
    let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(move || writer.work(queue))?;
    let revisions = Arc::new(AtomicU64::new(boots << 32));
    Ok((Handle { jobs, world, problems, revisions }, thread))
}

/// The generations that differ from those known.
fn new_generations(
    world: &World,
    known: impl Fn(NodeId) -> Option<(u32, crate::view::FilterDigest)>,
) -> Vec<Change> {
    let news = world.views.iter().filter(|(node, view)| {
        known(**node)
            .is_none_or(|(generation, digest)| generation != view.generation.get() || digest != view.digest)
    });
    news.map(|(node, view)| Change::PutGeneration {
        node: *node,
        generation: view.generation.get(),
        digest: view.digest,
    })
    .collect()
}

impl Writer {
    /// Announces what an earlier run stored but did not live to announce.
    fn new(storage: Box<dyn Storage>, stored: Stored, ephemeral_grace: Duration) -> anyhow::Result<Self> {
        let network = Arc::new(stored.network);
        let generations: Generations = stored
            .generations
            .into_iter()
            .map(|(node, generation, digest)| (node, (generation, digest)))
            .collect();
        let world = Arc::new(
            World::first(network.clone(), &generations)
                .map_err(|errors| anyhow::anyhow!("the stored policy cannot be resolved: {errors}"))?,
        );
        let mut writer = Self {
            storage,
            batch: Batch::new(network.clone()),
            network,
            published: world.clone(),
            shared: Arc::new(ArcSwap::new(world.clone())),
            sessions: HashMap::new(),
            histories: HashMap::new(),
            unsaved: HashSet::new(),
            problems: Arc::default(),
            ephemeral_grace,
            next_session: 1,
            stopping: false,
        };
        let known = |node: NodeId| generations.get(&node).copied();
        writer.storage.commit(&new_generations(&world, known))?;
        Ok(writer)
    }

    fn work(&mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = queue.blocking_recv() {
            self.perform(job);
            let mut count = 1;
            while count < BATCH && !self.stopping {
                let Ok(job) = queue.try_recv() else { break };
                self.perform(job);
                count += 1;
            }
            self.finish();
            if self.stopping {
                break;
            }
        }
        self.save_presence();
        self.finish();
    }

    fn perform(&mut self, job: Job) {
        match job {
            Job::Shared(job) => {
                let answer = job(self);
                self.batch.answers.push(answer);
            }
            Job::Alone(job) => {
                self.finish();
                job(self);
                self.finish();
            }
        }
    }

    /// Drafts a change, writes it, makes it part of the network. It is durable when the batch is finished.
    pub fn change<T, E: std::error::Error>(
        &mut self,
        actor: &str,
        change: impl FnOnce(&mut Draft) -> Result<T, E>,
    ) -> Result<T, WriteError<E>> {
        let mut draft = Draft::new(&self.network, actor, clock::now());
        let value = change(&mut draft).map_err(WriteError::Refused)?;
        let (network, changes) = draft.into_parts();
        self.write(&changes)?;
        self.network = Arc::new(network);
        Ok(value)
    }

    /// Changes what is true only while this process runs.
    fn change_in_memory(&mut self, id: NodeId, change: impl Fn(&mut model::Node) + Send + 'static) {
        self.apply_in_memory(id, &change);
        self.batch.in_memory.push((id, Box::new(change)));
    }

    fn apply_in_memory(&mut self, id: NodeId, change: &dyn Fn(&mut model::Node)) {
        let mut draft = Draft::new(&self.network, "system", clock::now());
        let Some(node) = draft.network().nodes.get(&id) else { return };
        let mut node = (**node).clone();
        change(&mut node);
        draft.put_node_in_memory(node);
        self.network = Arc::new(draft.into_parts().0);
    }

    /// Does what time demands; called every second.
    pub fn tick(&mut self) {
        self.remove_ephemeral_nodes();
        self.save_presence();
    }

    fn remove_ephemeral_nodes(&mut self) {
        let grace = i64::try_from(self.ephemeral_grace.as_millis()).unwrap_or(i64::MAX);
        let now = clock::now();
        let gone: Vec<NodeId> = self
            .network
            .nodes
            .values()
            .filter(|node| node.ephemeral && !node.online && now.saturating_sub(node.last_seen) > grace)
            .map(|node| node.id)
            .collect();
        if gone.is_empty() {
            return;
        }
        let count = gone.len();
        let removed = self.change::<_, std::convert::Infallible>("system", |draft| {
            for id in gone {
                if let Some(node) = draft.delete_node(id) {
                    draft.audit("node.delete", node.name.clone(), "ephemeral and disconnected");
                }
            }
            Ok(())
        });
        match removed {
            Ok(()) => info!(count, "removed ephemeral nodes"),
            Err(error) => warn!(%error, "ephemeral nodes stay for now"),
        }
    }

    /// A policy that was in force.
    pub fn policy_version(&self, version: u32) -> Result<Option<PolicyVersion>, StorageError> {
        self.storage.policy_version(version)
    }

    /// All policies that were in force, newest first, without their text.
    pub fn policy_versions(&self) -> Result<Vec<PolicyVersion>, StorageError> {
        self.storage.policy_versions()
    }
}

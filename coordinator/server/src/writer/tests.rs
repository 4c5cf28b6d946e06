//! Batches: one sync for many, and each answer true.

use std::collections::BTreeMap;
use std::sync::Mutex as StdMutex;

use proptest::prelude::*;
use tokio::runtime::Builder;
use tokio::task::JoinHandle as Task;

use super::*;
use crate::enroll::{Refusal, admit};
use crate::model::User;
use crate::storage::sqlite::Sqlite;
use crate::testing;

/// What the disk will do wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// One write fails and leaves the others alone.
    Write,
    /// One write fails and takes with it what was written before.
    Transaction,
    /// The sync fails.
    Sync,
}

/// A storage that fails when told to, in front of a real one.
struct Disk {
    durable: Sqlite,
    written: Vec<Change>,
    open: bool,
    state: Arc<StdMutex<(Fault, usize)>>,
}

impl Disk {
    fn full() -> StorageError {
        StorageError::Full("no space left on device".to_owned())
    }

    /// The fault, if it is this one; it happens once.
    fn strikes(&self, fault: Fault) -> bool {
        let mut state = self.state.lock().unwrap();
        let strikes = state.0 == fault;
        if strikes {
            state.0 = Fault::None;
        }
        strikes
    }
}

impl Storage for Disk {
    fn load(&mut self, seed: crate::storage::Seed) -> Result<Stored, StorageError> {
        self.durable.load(seed)
    }

    fn write(&mut self, changes: &[Change]) -> Result<(), StorageError> {
        if self.strikes(Fault::Write) {
            return Err(Self::full());
        }
        if self.strikes(Fault::Transaction) {
            (self.open, self.written) = (false, Vec::new());
            return Err(Self::full());
        }
        self.open = true;
        self.written.extend_from_slice(changes);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), StorageError> {
        let written = std::mem::take(&mut self.written);
        self.open = false;
        if self.strikes(Fault::Sync) {
            return Err(Self::full());
        }
        self.state.lock().unwrap().1 += 1;
        self.durable.commit(&written)
    }

    fn is_open(&self) -> bool {
        self.open
    }

    fn policy_version(&self, version: u32) -> Result<Option<PolicyVersion>, StorageError> {
        self.durable.policy_version(version)
    }

    fn policy_versions(&self) -> Result<Vec<PolicyVersion>, StorageError> {
        self.durable.policy_versions()
    }
}

/// A writer without its thread: jobs wait until the test performs them.
struct Bench {
    writer: Writer,
    handle: Handle,
    queue: mpsc::Receiver<Job>,
    folder: tempfile::TempDir,
    disk: Arc<StdMutex<(Fault, usize)>>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut durable = Sqlite::open(&folder.path().join("db")).unwrap();
        let stored = durable.load(testing::seed()).unwrap();
        let disk = Arc::new(StdMutex::new((Fault::None, 0)));
        let storage = Disk { durable, written: Vec::new(), open: false, state: disk.clone() };
        let writer = Writer::new(Box::new(storage), stored, Duration::from_mins(5)).unwrap();
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (world, problems) = (writer.shared.clone(), writer.problems.clone());
        let handle = Handle { jobs, world, problems, revisions: Arc::default() };
        Self { writer, handle, queue, folder, disk }
    }

    /// Performs what waits, as one batch.
    fn perform(&mut self, fault: Fault) {
        self.disk.lock().unwrap().0 = fault;
        while let Ok(job) = self.queue.try_recv() {
            self.writer.perform(job);
        }
        self.writer.finish();
        self.disk.lock().unwrap().0 = Fault::None;
    }

    fn syncs(&self) -> usize {
        self.disk.lock().unwrap().1
    }

    /// What a server finds that starts after this one was killed.
    fn after_a_crash(&self) -> Network {
        Sqlite::open(&self.folder.path().join("db")).unwrap().load(testing::seed()).unwrap().network
    }
}

fn user(number: u64) -> User {
    User {
        id: format!("u{number}"),
        email: format!("user{number}@example.com"),
        name: "User".to_owned(),
        role: "user".to_owned(),
        created: 0,
    }
}

#[derive(Debug, Error)]
#[error("this login is taken")]
struct Taken;

async fn create_user(handle: Handle, number: u64) -> Result<(), WriteError<Taken>> {
    let create = move |draft: &mut Draft| {
        let user = user(number);
        if draft.network().user_by_email(&user.email).is_some() {
            return Err(Taken);
        }
        draft.put_user(user);
        Ok(())
    };
    handle.change("test".to_owned(), create).await
}

async fn enroll(handle: Handle, number: u64) -> Result<NodeId, WriteError<Refusal>> {
    let application = testing::application(number, &testing::auth_key("k1").0);
    let admitted = handle.change("test".to_owned(), move |draft| admit(draft, &application)).await;
    admitted.map(|node| node.id)
}

async fn connect(handle: Handle, number: u64) -> Result<Connected, WriteError<ConnectError>> {
    let application = testing::application(number, &testing::auth_key("k1").0);
    let update = ghostwire_proto::v1::NodeUpdate {
        endpoints: vec![ghostwire_proto::v1::Endpoint { address: vec![192, 0, 2, 1], port: 7, kind: 1 }],
        ..Default::default()
    };
    let update = crate::node_update::NodeUpdate::parse(&update, &handle.world().network).unwrap();
    let presence = Presence {
        machine_key: application.machine_key,
        node_key: application.node_key,
        version: "0.1.0".to_owned(),
        update: Some(update),
        resume: None,
    };
    handle.connect(presence).await
}

/// Lets tasks run until all of them wait for the writer.
async fn let_them_ask() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

/// The reusable key that everybody enrols with.
async fn with_key(bench: &mut Bench) {
    let put = |draft: &mut Draft| -> Result<(), std::convert::Infallible> {
        draft.put_user(User { id: "u0".to_owned(), ..user(1_000_000) });
        draft.put_key(crate::model::AuthKeyRecord { reusable: true, ..testing::auth_key("k1").1 });
        Ok(())
    };
    let task = tokio::spawn({
        let handle = bench.handle.clone();
        async move { handle.change("test".to_owned(), put).await }
    });
    let_them_ask().await;
    bench.perform(Fault::None);
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn all_that_waits_shares_one_sync_and_who_is_refused_is_refused_alone() {
    let mut bench = Bench::new();
    with_key(&mut bench).await;
    let before = bench.syncs();
    let enrolled: Vec<_> =
        (1..=100).map(|number| tokio::spawn(enroll(bench.handle.clone(), number))).collect();
    let made = tokio::spawn(create_user(bench.handle.clone(), 7));
    let again = tokio::spawn(create_user(bench.handle.clone(), 7));
    let_them_ask().await;
    assert!(enrolled.iter().all(|task| !task.is_finished()), "nobody is answered before the sync");
    bench.perform(Fault::None);
    assert_eq!(bench.syncs(), before + 1);
    for task in enrolled {
        task.await.unwrap().unwrap();
    }
    made.await.unwrap().unwrap();
    assert!(matches!(again.await.unwrap(), Err(WriteError::Refused(Taken))));
    let crashed = bench.after_a_crash();
    assert_eq!((crashed.nodes.len(), crashed.users.len()), (100, 2));
    assert_eq!(bench.handle.world().network.nodes.len(), 100, "published before the answer");
}

#[tokio::test]
async fn a_write_that_fails_fails_alone() {
    let mut bench = Bench::new();
    with_key(&mut bench).await;
    let tasks: Vec<_> = (1..=5).map(|number| tokio::spawn(enroll(bench.handle.clone(), number))).collect();
    let_them_ask().await;
    bench.perform(Fault::Write);
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    assert!(matches!(results[0], Err(WriteError::Storage(StorageError::Full(_)))), "{results:?}");
    assert!(results[1..].iter().all(Result::is_ok), "{results:?}");
    assert_eq!(bench.after_a_crash().nodes.len(), 4);
}

#[tokio::test]
async fn a_batch_that_cannot_be_synced_changes_nothing_but_who_is_connected() {
    let mut bench = Bench::new();
    with_key(&mut bench).await;
    let known = tokio::spawn(enroll(bench.handle.clone(), 1));
    let_them_ask().await;
    bench.perform(Fault::None);
    let known = known.await.unwrap().unwrap();

    for fault in [Fault::Sync, Fault::Transaction] {
        let before = bench.handle.world().network.clone();
        // The write that takes everything along is the first to come after the others.
        let enrolled = tokio::spawn(enroll(bench.handle.clone(), 2));
        let_them_ask().await;
        if fault == Fault::Transaction {
            let job = bench.queue.try_recv().unwrap();
            bench.writer.perform(job);
        }
        let connected = tokio::spawn(connect(bench.handle.clone(), 1));
        let_them_ask().await;
        bench.perform(fault);
        assert!(matches!(enrolled.await.unwrap(), Err(WriteError::Storage(_))));
        assert_eq!(connected.await.unwrap().unwrap().node, known, "a known node is let in all the same");
        let after = bench.handle.world().network.clone();
        assert!(after.nodes[&known].online && after.nodes[&known].endpoints.is_empty());
        assert_eq!((after.nodes.len(), after.next_node), (before.nodes.len(), before.next_node));
        assert!(!bench.handle.problems().is_empty());
        assert_eq!(bench.after_a_crash().nodes.len(), 1);
    }
    // With room again, everything works and the problem is gone.
    let enrolled = tokio::spawn(enroll(bench.handle.clone(), 2));
    let connected = tokio::spawn(connect(bench.handle.clone(), 1));
    let_them_ask().await;
    bench.perform(Fault::None);
    enrolled.await.unwrap().unwrap();
    connected.await.unwrap().unwrap();
    assert!(bench.handle.problems().is_empty());
    assert_eq!(bench.after_a_crash().nodes[&known].endpoints.len(), 1);
}

#[derive(Clone, Copy, Debug)]
enum Request {
    User(u64),
    Enroll(u64),
    Connect(u64),
    Tick,
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        3 => (0_u64..6).prop_map(Request::User),
        4 => (0_u64..6).prop_map(Request::Enroll),
        3 => (0_u64..6).prop_map(Request::Connect),
        1 => Just(Request::Tick),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => Just(Fault::None),
        1 => Just(Fault::Write),
        1 => Just(Fault::Transaction),
        1 => Just(Fault::Sync),
    ]
}

/// Who asked for what, and will be told.
enum Asked {
    User(u64, Task<Result<(), WriteError<Taken>>>),
    Enroll(u64, Task<Result<NodeId, WriteError<Refusal>>>),
    Connect(Task<Result<Connected, WriteError<ConnectError>>>),
    Tick(Task<Option<()>>),
}

fn ask(handle: Handle, request: Request) -> Asked {
    match request {
        Request::User(number) => Asked::User(number, tokio::spawn(create_user(handle, number))),
        Request::Enroll(number) => Asked::Enroll(number, tokio::spawn(enroll(handle, number))),
        Request::Connect(number) => Asked::Connect(tokio::spawn(connect(handle, number))),
        Request::Tick => Asked::Tick(tokio::spawn(async move { handle.run(Writer::tick).await })),
    }
}

/// The network as the disk knows it: without what is true in memory only.
fn durable(network: &Network) -> impl PartialEq + std::fmt::Debug + use<> {
    let forget = |node: &model::Node| model::Node {
        online: false,
        last_seen: 0,
        version: String::new(),
        enforced_generation: 0,
        problems: Vec::new(),
        ..node.clone()
    };
    let nodes: BTreeMap<NodeId, model::Node> =
        network.nodes.iter().map(|(id, node)| (*id, forget(node))).collect();
    (network.users.clone(), network.keys.clone(), nodes, network.next_node)
}

async fn every_answer_is_true(batches: &[(Vec<Request>, Fault)]) {
    let mut bench = Bench::new();
    with_key(&mut bench).await;
    for (requests, fault) in batches {
        let asked: Vec<Asked> = requests.iter().map(|request| ask(bench.handle.clone(), *request)).collect();
        let_them_ask().await;
        bench.perform(*fault);
        let crashed = bench.after_a_crash();
        for asked in asked {
            match asked {
                Asked::User(number, task) => {
                    let there = crashed.user_by_email(&user(number).email).is_some();
                    assert!(task.await.unwrap().is_err() || there, "user {number} was promised");
                }
                Asked::Enroll(number, task) => {
                    let key = testing::application(number, &testing::auth_key("k1").0).machine_key;
                    let node = crashed.node_by_machine(&key).map(|node| node.id);
                    let answer = task.await.unwrap();
                    assert!(answer.is_err() || answer.ok() == node, "node {number} was promised");
                }
                Asked::Connect(task) => {
                    if let Ok(connected) = task.await.unwrap() {
                        assert!(bench.writer.network.nodes[&connected.node].online);
                    }
                }
                Asked::Tick(task) => assert_eq!(task.await.unwrap(), Some(())),
            }
        }
        assert_eq!(durable(&bench.writer.network), durable(&crashed), "memory and disk differ");
        let published = bench.handle.world();
        for (id, view) in published.views.iter() {
            assert!(bench.writer.network.nodes.contains_key(id) && view.generation.get() > 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_disk_does_every_answer_is_true(
        batches in prop::collection::vec((prop::collection::vec(request(), 0..8), fault()), 1..8),
    ) {
        let runtime = Builder::new_current_thread().build().unwrap();
        runtime.block_on(every_answer_is_true(&batches));
    }
}

//! One open stream.
//!
//! The session is woken when there may be news for its node. It then works out what to say from the difference
//! between what the node was told and the newest world, at the moment when there is room to send. A consumer that
//! is slow thus gets fewer, larger deltas, or a snapshot when it has missed too much; nothing queues up and
//! nothing is dropped. Signals of other nodes follow the news, since a node ignores what comes from somebody whom it
//! does not know yet.

use std::sync::Arc;
use std::time::Duration;

use ghostwire_proto::MAX_SIGNAL_BYTES;
use ghostwire_proto::v1::{
    Ack, CoordinatorMessage, Goodbye, KeepAlive, NodeMessage, NodeUpdate as WireUpdate, OutgoingSignal,
    RelayRebind, RelayTokensRequest, ReportedStatus, coordinator_message::Message, goodbye::Reason,
    node_message,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_stream::StreamExt as _;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::delta::{News, Told};
use super::history::History;
use crate::clock;
use crate::model::NodeId;
use crate::node_update::{self, NodeUpdate};
use crate::relays::Relays;
use crate::signals::{Reader, Signals};
use crate::writer::{Connected, Farewell, Handle};

/// Messages between the session and the connection. Small: news wait in the world, not in a queue.
pub const OUTBOUND: usize = 4;
/// Between two changes that one node makes.
const WRITE_INTERVAL: Duration = Duration::from_millis(50);
/// Signals of one node: so many at once (it wakes up with many peers), and then one in this time.
const SIGNAL_BURST: u32 = 512;
/// See [`SIGNAL_BURST`].
const SIGNAL_INTERVAL: Duration = Duration::from_millis(5);
/// How long a goodbye may wait for room.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Times of a stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamTimes {
    /// Between keep-alives.
    pub keep_alive: Duration,
    /// A node that says nothing, or reads nothing, for so long is gone.
    pub dead_after: Duration,
    /// Between snapshots that put right what may have gone wrong unnoticed.
    pub reconcile: Duration,
    /// A node that is this many worlds behind gets a snapshot.
    pub lag: u64,
}

impl Default for StreamTimes {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(15),
            dead_after: Duration::from_secs(45),
            reconcile: Duration::from_hours(1),
            lag: 256,
        }
    }
}

type Outbound = mpsc::Sender<Result<CoordinatorMessage, Status>>;

/// One open stream.
pub(super) struct Stream {
    handle: Handle,
    connected: Connected,
    history: History,
    told: Option<Told>,
    revision: u64,
    out: Outbound,
    times: StreamTimes,
    relays: Relays,
    /// When the node may make the writer work again.
    next_write: Instant,
    signals: Arc<Signals>,
    mail: Reader,
    /// When the node would have used up nothing of its burst of signals.
    signals_paid: Instant,
}

/// What a stream shares with all others.
pub(super) struct Shared {
    /// What nodes tell each other.
    pub(super) signals: Arc<Signals>,
    /// The relays.
    pub(super) relays: Relays,
}

/// Why a stream ends.
enum End {
    /// The node is to know.
    Goodbye(Farewell),
    /// The node broke the protocol.
    Refused(Status),
    /// The node is gone.
    Gone(&'static str),
}

impl Stream {
    /// Prepares a stream that [`Handle::connect`] let in. `revision` is what the node said it knows.
    pub(super) fn new(
        handle: Handle,
        shared: Shared,
        mut connected: Connected,
        revision: u64,
        out: Outbound,
        times: StreamTimes,
    ) -> Self {
        let told = connected.told.take();
        let history = std::mem::take(&mut connected.history);
        let Shared { signals, relays } = shared;
        let mail = signals.reader(connected.node);
        let now = Instant::now();
        let (next_write, signals_paid) = (now, now);
        Self {
            handle,
            connected,
            history,
            told,
            revision,
            out,
            times,
            relays,
            next_write,
            signals,
            mail,
            signals_paid,
        }
    }

    /// Runs until one side ends it.
    pub(super) async fn run(mut self, inbound: Streaming<NodeMessage>) {
        let name = self.connected.name.clone();
        info!(node = %name, resumed = self.told.is_some(), "connected");
        match self.converse(inbound).await {
            End::Goodbye(farewell) => {
                info!(node = %name, reason = ?farewell.reason, "goodbye");
                let goodbye = Goodbye { reason: farewell.reason.into(), detail: farewell.detail };
                let message = CoordinatorMessage { message: Some(Message::Goodbye(goodbye)) };
                let _ = self.out.send_timeout(Ok(message), GOODBYE_TIMEOUT).await;
            }
            End::Refused(status) => {
                warn!(node = %name, %status, "stream refused");
                let _ = self.out.send_timeout(Err(status), GOODBYE_TIMEOUT).await;
            }
            End::Gone(why) => info!(node = %name, why, "disconnected"),
        }
        self.handle.disconnect(self.connected.node, self.connected.session, self.history).await;
    }

    async fn converse(&mut self, mut inbound: Streaming<NodeMessage>) -> End {
        let session = self.connected.session.clone();
        let mut keep_alive = interval(self.times.keep_alive);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut sent = Instant::now();
        let mut reconcile = Instant::now() + self.times.reconcile;
        let (mut news, mut mail) = (true, false);
        let mut rebind = self.relays.attach(self.connected.node);
        let mut relays = self.relays.subscribe();
        // What there is already is news to this node.
        let mut list_news = !relays.borrow_and_update().relays.is_empty();
        loop {
            if let Some(farewell) = session.farewell() {
                return End::Goodbye(farewell.clone());
            }
            if !news && !list_news && !mail {
                sent = Instant::now();
            }
            let out = self.out.clone();
            tokio::select! {
                biased;
                () = session.woken() => news = true,
                () = self.mail.woken() => mail = true,
                message = inbound.next() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(message)) => if let Err(status) = self.hear(message).await {
                            return End::Refused(status);
                        },
                        Some(Err(status)) => return End::Gone(reason_of(&status)),
                        None => return End::Gone("the node closed the stream"),
                    }
                }
                permit = out.reserve(), if news || list_news || mail => {
                    let Ok(permit) = permit else { return End::Gone("the connection is closed") };
                    if list_news && !news {
                        let list = relays.borrow_and_update().clone();
                        let message = Message::Relays((*list).clone());
                        permit.send(Ok(CoordinatorMessage { message: Some(message) }));
                        list_news = false;
                        continue;
                    }
                    match self.say() {
                        Ok(Some(message)) => permit.send(Ok(message)),
                        Ok(None) => match self.forward() {
                            Some(message) => permit.send(Ok(message)),
                            None => mail = false,
                        },
                        Err(farewell) => return End::Goodbye(farewell),
                    }
                    news = false;
                }
                Some(relay) = rebind.recv() => {
                    let message = Message::RelayRebind(RelayRebind { relay });
                    // No room: the relay will notice again.
                    let _ = out.try_send(Ok(CoordinatorMessage { message: Some(message) }));
                }
                changed = relays.changed(), if !list_news => match changed {
                    Ok(()) => list_news = true,
                    Err(_) => return End::Gone("the server ends"),
                },
                _ = keep_alive.tick() => {
                    let message = Message::KeepAlive(KeepAlive { sent_unix_ms: clock::now() });
                    // No room: other messages are on their way and show as well that we live.
                    let _ = out.try_send(Ok(CoordinatorMessage { message: Some(message) }));
                }
                () = sleep_until(heard + self.times.dead_after) => return End::Gone("the node is silent"),
                () = sleep_until(sent + self.times.dead_after), if news || list_news || mail => {
                    return End::Gone("the node does not read");
                }
                () = sleep_until(reconcile) => {
                    reconcile += self.times.reconcile;
                    self.told = None;
                    news = true;
                }
            }
        }
    }

    /// The next message, if there is anything to say.
    fn say(&mut self) -> Result<Option<CoordinatorMessage>, Farewell> {
        let removed =
            || Farewell { reason: Reason::Removed, detail: "this node was removed from the mesh".to_owned() };
        let world = self.handle.world();
        let id = self.connected.node;
        let news = match &self.told {
            Some(told) if world.seq.saturating_sub(told.seq) <= self.times.lag => world.news(id, told),
            Some(_) => {
                debug!(node = %self.connected.name, "too far behind for a delta");
                News::Snapshot
            }
            None => News::Snapshot,
        };
        let now_told = world.told(id).ok_or_else(removed)?;
        let message = match news {
            News::Gone => return Err(removed()),
            News::None => {
                self.told = Some(now_told);
                return Ok(None);
            }
            News::Delta(mut delta) => {
                world.epoch().clone_into(&mut delta.epoch);
                delta.base_revision = self.revision;
                self.revision = self.handle.next_revision();
                delta.revision = self.revision;
                Message::Delta(*delta)
            }
            News::Snapshot => {
                self.revision = self.handle.next_revision();
                Message::Snapshot(world.snapshot(id, self.revision).ok_or_else(removed)?)
            }
        };
        self.history.push(self.revision, now_told.clone());
        self.told = Some(now_told);
        Ok(Some(CoordinatorMessage { message: Some(message) }))
    }

    /// The next signal for the node. Only when there is no other news: then it knows whom it sees.
    fn forward(&mut self) -> Option<CoordinatorMessage> {
        let view = self.told.as_ref().map(|told| told.view.clone())?;
        let signal = self.mail.next(|from| view.visible.contains(from))?;
        Some(CoordinatorMessage { message: Some(Message::Signal(signal)) })
    }

    async fn hear(&mut self, message: NodeMessage) -> Result<(), Status> {
        match message.message {
            Some(node_message::Message::Ack(Ack { revision })) => {
                if self.history.acknowledge(revision) {
                    Ok(())
                } else {
                    Err(Status::invalid_argument(format!("revision {revision} was never sent")))
                }
            }
            Some(node_message::Message::Update(update)) => self.update(&update).await,
            Some(node_message::Message::Status(ReportedStatus { enforced_generation, problems })) => {
                self.pace().await;
                let problems = node_update::problems(problems);
                self.handle.report(self.connected.node, enforced_generation, problems).await;
                Ok(())
            }
            Some(node_message::Message::RelayTokens(request)) => {
                self.pace().await;
                self.relay_tokens(&request).await;
                Ok(())
            }
            Some(node_message::Message::Signal(signal)) => self.signal(signal).await,
            Some(node_message::Message::Hello(_)) => Err(Status::invalid_argument("a second Hello")),
            // That it came is all that a keep-alive says; nothing is a kind of message that a newer program knows.
            Some(node_message::Message::KeepAlive(_)) | None => Ok(()),
        }
    }

    /// Holds back a node that talks too much: reading its next message waits.
    async fn pace(&mut self) {
        sleep_until(self.next_write).await;
        self.next_write = Instant::now() + WRITE_INTERVAL;
    }

    async fn relay_tokens(&mut self, request: &RelayTokensRequest) {
        let world = self.handle.world();
        let Some(view) = world.views.get(&self.connected.node) else { return };
        let tokens = self.relays.tokens(self.connected.node, &view.visible, request, clock::now());
        let message = CoordinatorMessage { message: Some(Message::RelayTokens(tokens)) };
        // A node that does not read is noticed elsewhere.
        let _ = self.out.send_timeout(Ok(message), self.times.dead_after).await;
    }

    /// Keeps a signal for a peer of the node. For anybody else it is silently dropped: what the policy says about
    /// the two may just have changed.
    async fn signal(&mut self, message: OutgoingSignal) -> Result<(), Status> {
        let now = Instant::now();
        self.signals_paid = self.signals_paid.max(now) + SIGNAL_INTERVAL;
        sleep_until(self.signals_paid - SIGNAL_INTERVAL * SIGNAL_BURST).await;
        let to = NodeId(message.to);
        let Some(signal) = message.signal else {
            return Err(Status::invalid_argument("a signal that says nothing"));
        };
        let world = self.handle.world();
        let visible = world.views.get(&self.connected.node).is_some_and(|view| view.visible.contains(to));
        if visible && !self.signals.put(self.connected.node, to, signal, clock::now()) {
            return Err(Status::invalid_argument(format!("a signal of more than {MAX_SIGNAL_BYTES} bytes")));
        }
        Ok(())
    }

    async fn update(&mut self, update: &WireUpdate) -> Result<(), Status> {
        self.pace().await;
        let update = NodeUpdate::parse(update, &self.handle.world().network)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        // Not stored: the node keeps its stream and says the same when it connects again.
        if let Err(error) = self.handle.update_node(self.connected.node, update).await {
            warn!(node = %self.connected.name, %error, "what the node says about itself is not stored");
        }
        Ok(())
    }
}

fn reason_of(status: &Status) -> &'static str {
    match status.code() {
        tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => {
            "the node sent a message that is too large"
        }
        tonic::Code::Internal | tonic::Code::InvalidArgument => "the node sent what is not a message",
        _ => "the connection ended",
    }
}

//! The stream of a relay that runs elsewhere.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ghostwire_proto::auth_key::AuthKey;
use ghostwire_proto::keys::NodeKey;
use ghostwire_proto::v1::relay_message::Message as FromRelay;
use ghostwire_proto::v1::relay_order::Message as ToRelay;
use ghostwire_proto::v1::relay_service_server::RelayService;
use ghostwire_proto::v1::{
    RelayClients, RelayHello, RelayLoad, RelayMessage, RelayOrder, RelayUnknownSource, RelayWelcome,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream as AsyncStream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::{Description, Load, Relays, StreamId};
use crate::clock;
use crate::enroll::{Refusal, usable_relay_key};
use crate::limits::{ClientAddress, FailureLimit};
use crate::model::{Network, NodeId};
use crate::view::World;
use crate::writer::Handle;

const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages between the service and the connection.
const OUTBOUND: usize = 4;
/// How often it is looked whether there are other nodes.
const LOOK: Duration = Duration::from_secs(1);
/// A relay that says nothing for so long is gone.
const DEAD_AFTER: Duration = Duration::from_secs(45);
/// Most keys in one message.
const KEYS_PER_MESSAGE: usize = 4096;

/// Serves relays.
pub struct RelayStreams {
    handle: Handle,
    relays: Relays,
    failures: Arc<FailureLimit>,
}

impl RelayStreams {
    /// Registers relays in `relays`.
    pub fn new(handle: Handle, relays: Relays) -> Self {
        Self { handle, relays, failures: Arc::default() }
    }

    fn admit(&self, hello: RelayHello) -> Result<StreamId, Status> {
        let key =
            AuthKey::parse(&hello.auth_key).map_err(|error| Status::unauthenticated(error.to_string()))?;
        let world = self.handle.world();
        let key = usable_relay_key(&world.network, &key, clock::now())
            .map_err(|refusal: Refusal| Status::unauthenticated(refusal.to_string()))?;
        let relay = hello.relay.ok_or_else(|| Status::invalid_argument("a relay describes itself"))?;
        let description =
            Description::parse(relay).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.relays
            .connect(description, &key.id, &hello.version)
            .map_err(|error| Status::failed_precondition(error.to_string()))
    }
}

type Outbound = Pin<Box<dyn AsyncStream<Item = Result<RelayOrder, Status>> + Send>>;

#[tonic::async_trait]
impl RelayService for RelayStreams {
    type ServeStream = Outbound;

    async fn serve(&self, request: Request<Streaming<RelayMessage>>) -> Result<Response<Outbound>, Status> {
        let from = request.extensions().get::<ClientAddress>().map(|address| address.0.ip());
        self.failures.check(from, clock::now())?;
        let mut inbound = request.into_inner();
        let first = timeout(HELLO_TIMEOUT, inbound.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello within 10 seconds"))?;
        let admitted = match first {
            Some(Ok(RelayMessage { message: Some(FromRelay::Hello(hello)) })) => self.admit(hello),
            Some(Err(status)) => Err(status),
            _ => Err(Status::invalid_argument("the first message must be a hello")),
        };
        let id = admitted.inspect_err(|status| {
            warn!(from = ?from, reason = status.message(), "a relay is refused");
            self.failures.count(from, clock::now());
        })?;
        info!(from = ?from, "a relay has connected");
        let (out, messages) = mpsc::channel(OUTBOUND);
        let stream = Stream {
            handle: self.handle.clone(),
            relays: self.relays.clone(),
            id,
            out,
            told: HashSet::new(),
            seen: None,
        };
        tokio::spawn(stream.run(inbound));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

struct Stream {
    handle: Handle,
    relays: Relays,
    id: StreamId,
    out: mpsc::Sender<Result<RelayOrder, Status>>,
    /// The nodes that the relay knows.
    told: HashSet<NodeKey>,
    /// The world that they are of.
    seen: Option<Arc<World>>,
}

impl Stream {
    async fn run(mut self, inbound: Streaming<RelayMessage>) {
        let why = self.converse(inbound).await;
        info!(why, "a relay has disconnected");
        self.relays.disconnect(self.id, clock::now());
    }

    async fn converse(&mut self, mut inbound: Streaming<RelayMessage>) -> &'static str {
        let signers = vec![self.relays.signer().message()];
        if !self.say(ToRelay::Welcome(RelayWelcome { signers })).await {
            return "the connection is closed";
        }
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                message = inbound.next() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(RelayMessage { message })) => if !self.hear(message.as_ref()) {
                            return "the relay has another stream, or no right to it any more";
                        },
                        Some(Err(_)) | None => return "the connection ended",
                    }
                }
                _ = look.tick() => {
                    if !self.relays.is_current(self.id) {
                        return "the relay has another stream, or no right to it any more";
                    }
                    if !self.tell_clients().await {
                        return "the connection is closed";
                    }
                }
                () = sleep_until(heard + DEAD_AFTER) => return "the relay is silent",
            }
        }
    }

    fn hear(&self, message: Option<&FromRelay>) -> bool {
        match message {
            Some(&FromRelay::Load(RelayLoad { nodes, pairs, clients, load_permille, draining })) => {
                let load = Load { nodes, pairs, clients, permille: load_permille, draining };
                self.relays.report(self.id, load)
            }
            Some(&FromRelay::UnknownSource(RelayUnknownSource { node })) => {
                unknown_source(&self.relays, self.id, &self.handle.world(), NodeId(node));
                true
            }
            // A kind of message that a newer relay knows.
            Some(FromRelay::Hello(_)) | None => true,
        }
    }

    /// Tells the relay which nodes have come and gone.
    async fn tell_clients(&mut self) -> bool {
        let world = self.handle.world();
        let seen = self.seen.replace(world.clone());
        if seen.as_ref().is_some_and(|seen| Arc::ptr_eq(&seen.network.nodes, &world.network.nodes)) {
            return true;
        }
        let now = node_keys(&world.network);
        let bytes = |key: &NodeKey| key.as_bytes().to_vec();
        let added: Vec<Vec<u8>> = now.difference(&self.told).map(bytes).collect();
        let removed: Vec<Vec<u8>> = self.told.difference(&now).map(bytes).collect();
        self.told = now;
        if seen.is_some() && added.is_empty() && removed.is_empty() {
            return true;
        }
        let mut clients = RelayClients { all: seen.is_none(), removed, ..RelayClients::default() };
        let mut chunks = added.chunks(KEYS_PER_MESSAGE);
        clients.added = chunks.next().unwrap_or_default().to_vec();
        if !self.say(ToRelay::Clients(clients)).await {
            return false;
        }
        for chunk in chunks {
            let more = RelayClients { added: chunk.to_vec(), ..RelayClients::default() };
            if !self.say(ToRelay::Clients(more)).await {
                return false;
            }
        }
        true
    }

    async fn say(&self, message: ToRelay) -> bool {
        self.out.send_timeout(Ok(RelayOrder { message: Some(message) }), DEAD_AFTER).await.is_ok()
    }
}

fn node_keys(network: &Network) -> HashSet<NodeKey> {
    network.nodes.values().map(|node| node.node_key).collect()
}

/// Tells a node, and those who see it, to bind again at a relay.
pub(super) fn unknown_source(relays: &Relays, id: StreamId, world: &World, node: NodeId) {
    let peers = world.views.get(&node).map(|view| view.visible.iter().collect::<Vec<_>>());
    relays.unknown_source(id, peers.into_iter().flatten().chain([node]));
}

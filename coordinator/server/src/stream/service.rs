//! The gRPC service for nodes: checks proofs and limits before anything reaches the writer.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ghostwire_proto::keys::{Fingerprint, NodeKey};
use ghostwire_proto::proof::{self, Provable, Proven};
use ghostwire_proto::v1::goodbye::Reason;
use ghostwire_proto::v1::{
    ChallengeRequest, ChallengeResponse, CoordinatorMessage, EnrollRequest, EnrollResponse, Goodbye, Hello,
    NodeMessage, coordinator_message::Message, node_message, node_service_server::NodeService,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream as AsyncStream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::session::{OUTBOUND, Shared, Stream, StreamTimes};
use crate::clock;
use crate::enroll::{self, Application, ApplicationError, MAX_LABEL, Refusal};
use crate::limits::{ClientAddress, FailureLimit};
use crate::node_update::NodeUpdate;
use crate::nonces::{NonceError, Nonces};
use crate::relays::Relays;
use crate::signals::{SignalLimits, Signals};
use crate::writer::{ConnectError, Handle, Presence, WriteError};

/// How long a stream may wait for its first message.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_EPOCH: usize = 128;

/// Serves nodes.
pub struct Nodes {
    handle: Handle,
    nonces: Arc<Nonces>,
    ca: Fingerprint,
    failures: Arc<FailureLimit>,
    signals: Arc<Signals>,
    times: StreamTimes,
    relays: Relays,
}

impl Nodes {
    /// `ca` is the fingerprint that join keys carry.
    pub fn new(
        handle: Handle,
        ca: Fingerprint,
        nonce_key: [u8; 32],
        times: StreamTimes,
        relays: Relays,
    ) -> Self {
        let nonces = Arc::new(Nonces::new(nonce_key));
        let signals = Signals::new(SignalLimits::default());
        Self { handle, ca, times, nonces, failures: Arc::default(), signals, relays }
    }

    fn prove<M: Provable>(&self, message: &M) -> Result<Proven, Status> {
        let proven =
            proof::verify(message, &self.ca).map_err(|error| Status::unauthenticated(error.to_string()))?;
        self.nonces.redeem(&proven.nonce, clock::now()).map_err(|error| match error {
            NonceError::Busy => Status::resource_exhausted(error.to_string()),
            _ => Status::unauthenticated(error.to_string()),
        })?;
        Ok(proven)
    }

    async fn admit(&self, request: EnrollRequest) -> Result<EnrollResponse, Status> {
        let application = application(&request, self.prove(&request)?)?;
        let machine_key = application.machine_key;
        let actor = format!("machine:{machine_key}");
        let node = self
            .handle
            .change(actor, move |draft| enroll::admit(draft, &application))
            .await
            .map_err(|error| enroll_status(&error))?;
        info!(node = %node.name, id = %node.id, "enrolled");
        Ok(EnrollResponse { node: Some(self.handle.world().network.self_node(&node)) })
    }

    async fn open(&self, hello: Hello, inbound: Streaming<NodeMessage>) -> Result<Outbound, Status> {
        let proven = self.prove(&hello)?;
        let presence = presence(&hello, proven, &self.handle)?;
        let (out, messages) = mpsc::channel(OUTBOUND);
        match self.handle.connect(presence).await {
            Ok(connected) => {
                let shared = Shared { signals: self.signals.clone(), relays: self.relays.clone() };
                let handle = self.handle.clone();
                let stream = Stream::new(handle, shared, connected, hello.revision, out, self.times);
                tokio::spawn(stream.run(inbound));
            }
            Err(WriteError::Refused(error @ ConnectError::Removed)) => {
                let goodbye = Goodbye { reason: Reason::Removed.into(), detail: error.to_string() };
                let message = CoordinatorMessage { message: Some(Message::Goodbye(goodbye)) };
                let _ = out.try_send(Ok(message));
            }
            Err(WriteError::Refused(error @ ConnectError::Unknown)) => {
                return Err(Status::not_found(error.to_string()));
            }
            Err(error @ WriteError::Refused(ConnectError::NodeKey)) => {
                return Err(Status::failed_precondition(error.to_string()));
            }
            Err(error) => return Err(Status::unavailable(error.to_string())),
        }
        Ok(Box::pin(ReceiverStream::new(messages)))
    }

    /// Counts a failure against the address it came from.
    fn judge<T>(&self, from: Option<IpAddr>, result: Result<T, Status>) -> Result<T, Status> {
        if let Err(status) = &result {
            warn!(from = ?from, code = ?status.code(), reason = status.message(), "refused");
            if matches!(status.code(), tonic::Code::Unauthenticated | tonic::Code::InvalidArgument) {
                self.failures.count(from, clock::now());
            }
        }
        result
    }
}

type Outbound = Pin<Box<dyn AsyncStream<Item = Result<CoordinatorMessage, Status>> + Send>>;

#[tonic::async_trait]
impl NodeService for Nodes {
    async fn challenge(
        &self,
        request: Request<ChallengeRequest>,
    ) -> Result<Response<ChallengeResponse>, Status> {
        self.failures.check(address_of(&request), clock::now())?;
        let nonce = self.nonces.issue(clock::now(), rand::random());
        Ok(Response::new(ChallengeResponse { nonce: nonce.to_vec() }))
    }

    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let from = address_of(&request);
        self.failures.check(from, clock::now())?;
        let result = self.admit(request.into_inner()).await;
        self.judge(from, result).map(Response::new)
    }

    type SyncStream = Outbound;

    async fn sync(&self, request: Request<Streaming<NodeMessage>>) -> Result<Response<Outbound>, Status> {
        let from = address_of(&request);
        self.failures.check(from, clock::now())?;
        let mut inbound = request.into_inner();
        let first = timeout(HELLO_TIMEOUT, inbound.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello within 10 seconds"))?;
        let result = match first {
            Some(Ok(NodeMessage { message: Some(node_message::Message::Hello(hello)) })) => {
                self.open(hello, inbound).await
            }
            Some(Ok(_)) => Err(Status::invalid_argument("the first message must be a Hello")),
            Some(Err(status)) => Err(status),
            None => Err(Status::invalid_argument("the stream ended before its Hello")),
        };
        self.judge(from, result).map(Response::new)
    }
}

fn address_of<T>(request: &Request<T>) -> Option<IpAddr> {
    request.extensions().get::<ClientAddress>().map(|address| address.0.ip().to_canonical())
}

fn application(request: &EnrollRequest, proven: Proven) -> Result<Application, Status> {
    Application::parse(request, proven).map_err(|error| match error {
        ApplicationError::AuthKey(_) => Status::unauthenticated(error.to_string()),
        _ => Status::invalid_argument(error.to_string()),
    })
}

fn node_key(bytes: &[u8]) -> Result<NodeKey, Status> {
    NodeKey::try_from(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn presence(hello: &Hello, proven: Proven, handle: &Handle) -> Result<Presence, Status> {
    if hello.version.len() > MAX_LABEL || hello.epoch.len() > MAX_EPOCH {
        return Err(Status::invalid_argument("version or epoch is too long"));
    }
    let update = hello.update.as_ref().map(|update| NodeUpdate::parse(update, &handle.world().network));
    Ok(Presence {
        machine_key: proven.machine_key,
        node_key: node_key(&hello.node_key)?,
        version: hello.version.clone(),
        update: update.transpose().map_err(|error| Status::invalid_argument(error.to_string()))?,
        resume: (!hello.epoch.is_empty()).then(|| (hello.epoch.clone(), hello.revision)),
    })
}

fn enroll_status(error: &WriteError<Refusal>) -> Status {
    let text = error.to_string();
    match error {
        WriteError::Refused(Refusal::Tag { .. }) => Status::permission_denied(text),
        WriteError::Refused(Refusal::NodeKeyTaken) => Status::already_exists(text),
        WriteError::Refused(Refusal::NoAddress) => Status::resource_exhausted(text),
        WriteError::Refused(_) => Status::unauthenticated(text),
        WriteError::Storage(_) | WriteError::Stopped => Status::unavailable(text),
    }
}

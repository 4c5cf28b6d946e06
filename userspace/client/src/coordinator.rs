//! The thin shell around the coordinator's gRPC service: enrolment, and one stream.
//!
//! Nothing is decided here. [`run_stream`] opens a stream, says hello with what the session knows, and carries
//! messages both ways until one side ends it.

use ed25519_dalek::SigningKey;
use ghostwire_proto::MAX_MESSAGE_BYTES;
use ghostwire_proto::auth_key::AuthKey;
use ghostwire_proto::channel::{self, ConnectError};
use ghostwire_proto::join_key::Address;
use ghostwire_proto::keys::Fingerprint;
use ghostwire_proto::proof::{self, NONCE_LEN};
use ghostwire_proto::v1::node_service_client::NodeServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::pb;
use crate::store::Identity;

/// Messages that may wait for a slow network before the stream is given up.
const OUTGOING: usize = 64;

/// Where the coordinator is, how to know it, and who we are.
#[derive(Clone)]
pub struct Contact {
    /// Tried in turn.
    pub addresses: Vec<Address>,
    /// What its certificate must come from.
    pub ca: Fingerprint,
    /// The machine's key.
    pub key: SigningKey,
    /// WireGuard's public key.
    pub node_key: [u8; 32],
}

impl std::fmt::Debug for Contact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contact")
            .field("addresses", &self.addresses)
            .field("ca", &self.ca)
            .finish_non_exhaustive()
    }
}

/// Why the coordinator did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ContactError {
    /// No address of it answers.
    #[error("the coordinator cannot be reached: {}", .0.join("; "))]
    Unreachable(Vec<String>),
    /// It answers, and says no.
    #[error("the coordinator at {coordinator} {}: {}", verb(.status), .status.message())]
    Refused {
        /// Its address.
        coordinator: String,
        /// What it says.
        status: Box<tonic::Status>,
    },
    /// It answers nonsense.
    #[error("the coordinator at {coordinator} {what}")]
    Nonsense {
        /// Its address.
        coordinator: String,
        /// Which.
        what: &'static str,
    },
}

fn verb(status: &tonic::Status) -> &'static str {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => "went away",
        _ => "refuses",
    }
}

/// What happens on a stream.
#[derive(Debug)]
pub enum StreamEvent {
    /// The hello was accepted.
    Opened {
        /// By whom.
        coordinator: String,
    },
    /// A message.
    Received(Box<pb::CoordinatorMessage>),
    /// It is over, or never began.
    Closed {
        /// Why.
        why: String,
    },
}

impl Contact {
    /// For a machine with this identity.
    pub fn new(identity: &Identity, addresses: Vec<Address>, ca: Fingerprint) -> Self {
        Self {
            addresses,
            ca,
            key: SigningKey::from_bytes(identity.machine_key.expose()),
            node_key: identity.node_public(),
        }
    }

    /// The first address that answers, and a nonce for the next proof.
    async fn reach(&self) -> Result<(String, NodeServiceClient<Channel>, [u8; NONCE_LEN]), ContactError> {
        let mut tried = Vec::new();
        for address in &self.addresses {
            let channel = match channel::coordinator(address, self.ca).await {
                Ok(channel) => channel,
                Err(error) => {
                    tried.push(unreachable(address, &error));
                    continue;
                }
            };
            let mut client = NodeServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
            let coordinator = address.to_string();
            match client.challenge(pb::ChallengeRequest {}).await {
                Ok(challenge) => {
                    let nonce = challenge.into_inner().nonce.as_slice().try_into();
                    let what = "sends a challenge of the wrong size";
                    let nonce = nonce
                        .map_err(|_| ContactError::Nonsense { coordinator: coordinator.clone(), what })?;
                    return Ok((coordinator, client, nonce));
                }
                Err(status) if status.code() == tonic::Code::Unavailable => {
                    tried.push(format!("{address}: {}", status.message()));
                }
                Err(status) => return Err(ContactError::Refused { coordinator, status: Box::new(status) }),
            }
        }
        Err(ContactError::Unreachable(tried))
    }

    /// Asks to be admitted. Idempotent for the same machine.
    pub async fn enroll(
        &self,
        auth_key: &AuthKey,
        hostname: &str,
    ) -> Result<(String, pb::SelfNode), ContactError> {
        let (coordinator, mut client, nonce) = self.reach().await?;
        let mut request = pb::EnrollRequest {
            proof: None,
            node_key: self.node_key.to_vec(),
            auth_key: auth_key.expose(),
            hostname: hostname.to_owned(),
            requested_tags: Vec::new(),
            os: std::env::consts::OS.to_owned(),
            version: crate::VERSION.to_owned(),
        };
        request.proof = Some(proof::sign(&self.key, &nonce, &self.ca, &request));
        let answer = client.enroll(request).await.map_err(|status| ContactError::Refused {
            coordinator: coordinator.clone(),
            status: Box::new(status),
        })?;
        let what = "admitted this machine without telling its address";
        match answer.into_inner().node {
            Some(node) => Ok((coordinator, node)),
            None => Err(ContactError::Nonsense { coordinator, what }),
        }
    }

    async fn sync(
        &self,
        resume: (String, u64),
        about: pb::NodeUpdate,
        outgoing: &mpsc::Sender<pb::NodeMessage>,
        queue: mpsc::Receiver<pb::NodeMessage>,
    ) -> Result<(String, tonic::Streaming<pb::CoordinatorMessage>), ContactError> {
        let (coordinator, mut client, nonce) = self.reach().await?;
        let mut hello = pb::Hello {
            proof: None,
            node_key: self.node_key.to_vec(),
            version: crate::VERSION.to_owned(),
            epoch: resume.0,
            revision: resume.1,
            update: Some(about),
        };
        hello.proof = Some(proof::sign(&self.key, &nonce, &self.ca, &hello));
        let first = pb::NodeMessage { message: Some(pb::node_message::Message::Hello(hello)) };
        let what = "cannot be told anything";
        if outgoing.try_send(first).is_err() {
            return Err(ContactError::Nonsense { coordinator, what });
        }
        match client.sync(ReceiverStream::new(queue)).await {
            Ok(answer) => Ok((coordinator, answer.into_inner())),
            Err(status) => Err(ContactError::Refused { coordinator, status: Box::new(status) }),
        }
    }
}

fn unreachable(address: &Address, error: &ConnectError) -> String {
    match error {
        ConnectError::Coordinator { reason, .. } => format!("{address}: {reason}"),
        other => format!("{address}: {other}"),
    }
}

/// A stream that is open or being opened. Dropping it ends it.
#[derive(Debug)]
pub struct Stream {
    outgoing: mpsc::Sender<pb::NodeMessage>,
    task: tokio::task::JoinHandle<()>,
}

impl Stream {
    /// Whether there is room for something that can wait.
    pub fn has_room(&self) -> bool {
        self.outgoing.capacity() > OUTGOING / 2
    }

    /// Says something. False: the stream is over, or too slow to be of use.
    pub fn send(&self, message: pb::NodeMessage) -> bool {
        self.outgoing.try_send(message).is_ok()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens a stream; what happens on it comes out of `events`, marked with `number`.
pub fn run_stream(
    contact: Contact,
    resume: (String, u64),
    about: pb::NodeUpdate,
    number: u64,
    events: mpsc::Sender<(u64, StreamEvent)>,
) -> Stream {
    let (outgoing, queue) = mpsc::channel(OUTGOING);
    let sender = outgoing.clone();
    let task = tokio::spawn(async move {
        let why = match contact.sync(resume, about, &sender, queue).await {
            Ok((coordinator, incoming)) => {
                let opened = StreamEvent::Opened { coordinator: coordinator.clone() };
                if events.send((number, opened)).await.is_err() {
                    return;
                }
                receive(&coordinator, incoming, number, &events).await
            }
            Err(error) => error.to_string(),
        };
        // Nobody listens when the daemon ends.
        let _ = events.send((number, StreamEvent::Closed { why })).await;
    });
    Stream { outgoing, task }
}

async fn receive(
    coordinator: &str,
    mut incoming: tonic::Streaming<pb::CoordinatorMessage>,
    number: u64,
    events: &mpsc::Sender<(u64, StreamEvent)>,
) -> String {
    loop {
        match incoming.message().await {
            Ok(Some(message)) => {
                if events.send((number, StreamEvent::Received(Box::new(message)))).await.is_err() {
                    return String::new();
                }
            }
            Ok(None) => return format!("the coordinator at {coordinator} ended the stream"),
            Err(status) => {
                let why = if status.message().is_empty() { "connection lost" } else { status.message() };
                return format!("the connection to the coordinator at {coordinator} broke: {why}");
            }
        }
    }
}

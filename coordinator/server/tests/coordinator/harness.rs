//! A server process in a directory of its own, administrators, and machines.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use ghostwire_proto::join_key::{self, JoinKey};
use ghostwire_proto::v1::admin_service_client::AdminServiceClient;
use ghostwire_proto::v1::coordinator_message::Message;
use ghostwire_proto::v1::node_service_client::NodeServiceClient;
use ghostwire_proto::v1::{self, node_message};
use ghostwire_proto::{channel, proof};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Nothing takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Every node reaches every node.
pub(crate) const OPEN: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

/// A server process; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    files: Files,
}

/// Where a server keeps its things. Outlives the process, so that it can be started again.
#[derive(Clone)]
pub(crate) struct Files {
    pub(crate) folder: std::sync::Arc<TempDir>,
}

impl Files {
    pub(crate) fn new() -> Self {
        Self { folder: std::sync::Arc::new(tempfile::tempdir().unwrap()) }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("server.sock")
    }

    pub(crate) fn command(&self, listen: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ghostwire-server"));
        command
            // Relays have a test of their own; here they would listen on this machine's own addresses.
            .args(["run", "--listen", listen, "--relay", "off", "--state-dir"])
            .arg(self.state())
            .arg("--socket")
            .arg(self.socket());
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()));
        command
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_in(&Files::new(), &[])
    }

    pub(crate) fn start_in(files: &Files, arguments: &[&str]) -> Self {
        Self::spawn(files, files.command("127.0.0.1:0").args(arguments))
    }

    /// Starts it again at the same address.
    pub(crate) fn start_at(files: &Files, address: SocketAddr) -> Self {
        Self::spawn(files, &mut files.command(&address.to_string()))
    }

    pub(crate) fn spawn(files: &Files, command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut ready_line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready_line).unwrap();
        let address = ready_line
            .strip_prefix("ghostwire-server ready on ")
            .and_then(|rest| rest.split(';').next())
            .unwrap_or_else(|| panic!("no ready line but {ready_line:?}"));
        let address = address.parse().unwrap();
        Self { child, address, files: files.clone() }
    }

    pub(crate) fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// SIGKILL, and wait.
    pub(crate) fn kill(mut self) -> Files {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.files.clone()
    }

    /// SIGTERM, and wait for a clean end. Clients go on meanwhile: they have to hang up.
    pub(crate) async fn terminate(mut self) -> Files {
        nix::sys::signal::kill(self.pid(), nix::sys::signal::Signal::SIGTERM).unwrap();
        let wait = move || {
            let status = self.child.wait().unwrap();
            assert!(status.success(), "{status}");
            self.files.clone()
        };
        tokio::task::spawn_blocking(wait).await.unwrap()
    }

    pub(crate) async fn admin(&self) -> Admin {
        Admin(AdminServiceClient::new(channel::unix(&self.files.socket()).await.unwrap()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What to ask of a new auth key.
pub(crate) fn key_request(user: &str) -> v1::CreateAuthKeyRequest {
    v1::CreateAuthKeyRequest { user: user.to_owned(), ..Default::default() }
}

/// An administrator on the local socket.
#[derive(Clone)]
pub(crate) struct Admin(pub(crate) AdminServiceClient<Channel>);

impl Admin {
    pub(crate) async fn user(&mut self, email: &str) -> v1::User {
        let request = v1::CreateUserRequest { email: email.to_owned(), ..Default::default() };
        self.0.create_user(request).await.unwrap().into_inner()
    }

    pub(crate) async fn key(&mut self, request: v1::CreateAuthKeyRequest) -> (JoinKey, v1::AuthKey) {
        let created = self.0.create_auth_key(request).await.unwrap().into_inner();
        (join_key::parse(&created.join_key).unwrap(), created.key.unwrap())
    }

    /// A user and a reusable key.
    pub(crate) async fn reusable(&mut self, email: &str) -> JoinKey {
        self.user(email).await;
        self.key(v1::CreateAuthKeyRequest { reusable: true, ..key_request(email) }).await.0
    }

    pub(crate) async fn set_policy(&mut self, content: &str) -> Result<v1::SetPolicyResponse, Status> {
        let request = v1::SetPolicyRequest { content: content.to_owned(), ..Default::default() };
        self.0.set_policy(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn nodes(&mut self) -> Vec<v1::Node> {
        self.0.list_nodes(v1::ListNodesRequest {}).await.unwrap().into_inner().nodes
    }

    pub(crate) async fn delete(&mut self, node: &str) {
        self.0.delete_node(v1::DeleteNodeRequest { node: node.to_owned() }).await.unwrap();
    }
}

/// A machine with its keys.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) key: SigningKey,
    pub(crate) node_key: [u8; 32],
    pub(crate) hostname: String,
}

impl Machine {
    pub(crate) fn new(hostname: &str) -> Self {
        Self {
            key: SigningKey::from_bytes(&rand::random()),
            node_key: rand::random(),
            hostname: hostname.to_owned(),
        }
    }

    /// A request, not signed yet.
    pub(crate) fn request(&self, join_key: &JoinKey) -> v1::EnrollRequest {
        v1::EnrollRequest {
            node_key: self.node_key.to_vec(),
            auth_key: join_key.auth_key.expose(),
            hostname: self.hostname.clone(),
            os: "linux".to_owned(),
            version: "0.1.0".to_owned(),
            ..Default::default()
        }
    }

    pub(crate) async fn enroll(&self, join_key: &JoinKey) -> Result<v1::SelfNode, Status> {
        let mut client = node_client(join_key).await;
        self.enroll_over(&mut client, join_key).await
    }

    pub(crate) async fn enroll_over(
        &self,
        client: &mut NodeServiceClient<Channel>,
        join_key: &JoinKey,
    ) -> Result<v1::SelfNode, Status> {
        let mut request = self.request(join_key);
        request.proof = Some(proof::sign(&self.key, &nonce(client).await?, &join_key.ca, &request));
        Ok(client.enroll(request).await?.into_inner().node.unwrap())
    }

    /// Opens the stream from nothing.
    pub(crate) async fn connect(&self, join_key: &JoinKey) -> Result<Stream, Status> {
        self.connect_from(join_key, v1::Hello::default()).await
    }

    pub(crate) async fn connect_from(&self, join_key: &JoinKey, hello: v1::Hello) -> Result<Stream, Status> {
        let mut client = node_client(join_key).await;
        self.connect_over(&mut client, join_key, hello).await
    }

    pub(crate) async fn connect_over(
        &self,
        client: &mut NodeServiceClient<Channel>,
        join_key: &JoinKey,
        mut hello: v1::Hello,
    ) -> Result<Stream, Status> {
        hello.node_key = self.node_key.to_vec();
        hello.proof = Some(proof::sign(&self.key, &nonce(client).await?, &join_key.ca, &hello));
        let (out, messages) = mpsc::unbounded_channel();
        out.send(v1::NodeMessage { message: Some(node_message::Message::Hello(hello)) }).unwrap();
        let inbound = client.sync(UnboundedReceiverStream::new(messages)).await?.into_inner();
        Ok(Stream { out, inbound, known: v1::Snapshot::default(), acknowledge: true })
    }

    /// Joins, opens the stream, takes the snapshot.
    pub(crate) async fn join(&self, join_key: &JoinKey) -> Stream {
        self.enroll(join_key).await.unwrap();
        let mut stream = self.connect(join_key).await.unwrap();
        stream.snapshot().await;
        stream
    }
}

pub(crate) async fn node_client(join_key: &JoinKey) -> NodeServiceClient<Channel> {
    let channel = channel::coordinator(&join_key.addresses[0], join_key.ca).await.unwrap();
    NodeServiceClient::new(channel).max_decoding_message_size(ghostwire_proto::MAX_MESSAGE_BYTES)
}

pub(crate) async fn nonce(client: &mut NodeServiceClient<Channel>) -> Result<[u8; 32], Status> {
    let response = client.challenge(v1::ChallengeRequest {}).await?.into_inner();
    Ok(response.nonce.try_into().unwrap())
}

/// A node's end of a stream, with the map that the node keeps.
pub(crate) struct Stream {
    pub(crate) out: mpsc::UnboundedSender<v1::NodeMessage>,
    pub(crate) inbound: Streaming<v1::CoordinatorMessage>,
    pub(crate) known: v1::Snapshot,
    pub(crate) acknowledge: bool,
}

impl Stream {
    /// The next message that is not a keep-alive, applied to the map.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, Status> {
        loop {
            let message = timeout(PATIENCE, self.inbound.message()).await.expect("a message in time")?;
            let Some(message) = message else { return Ok(None) };
            let message = message.message.unwrap();
            let revision = match &message {
                Message::KeepAlive(_) => continue,
                Message::Goodbye(_) | Message::Signal(_) => return Ok(Some(message)),
                Message::Snapshot(snapshot) => {
                    self.known = snapshot.clone();
                    snapshot.revision
                }
                Message::Delta(delta) => {
                    assert_eq!(delta.base_revision, self.known.revision, "a delta for another state");
                    assert!(delta.revision > delta.base_revision);
                    apply(&mut self.known, delta);
                    delta.revision
                }
                Message::Relays(_) | Message::RelayTokens(_) | Message::RelayRebind(_) => {
                    return Ok(Some(message));
                }
            };
            if self.acknowledge {
                self.send(node_message::Message::Ack(v1::Ack { revision }));
            }
            return Ok(Some(message));
        }
    }

    pub(crate) fn send(&self, message: node_message::Message) {
        // The coordinator may have ended the stream; reading from it tells.
        let _ = self.out.send(v1::NodeMessage { message: Some(message) });
    }

    pub(crate) async fn snapshot(&mut self) -> v1::Snapshot {
        match self.next().await.unwrap() {
            Some(Message::Snapshot(snapshot)) => snapshot,
            other => panic!("expected a snapshot, got {other:?}"),
        }
    }

    pub(crate) async fn delta(&mut self) -> v1::Delta {
        match self.next().await.unwrap() {
            Some(Message::Delta(delta)) => delta,
            other => panic!("expected a delta, got {other:?}"),
        }
    }

    pub(crate) async fn goodbye(&mut self) -> v1::goodbye::Reason {
        loop {
            match self.next().await.unwrap() {
                Some(Message::Goodbye(goodbye)) => return goodbye.reason(),
                Some(_) => {}
                None => panic!("the stream ended without a goodbye"),
            }
        }
    }

    /// Takes messages until the map is as wanted.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&v1::Snapshot) -> bool) {
        while !wanted(&self.known) {
            match self.next().await {
                Ok(Some(Message::Snapshot(_) | Message::Delta(_) | Message::Signal(_))) => {}
                other => panic!("waiting for {what}: {other:?}"),
            }
        }
    }

    pub(crate) fn hello(&self) -> v1::Hello {
        v1::Hello { epoch: self.known.epoch.clone(), revision: self.known.revision, ..Default::default() }
    }

    pub(crate) fn peers(&self) -> Vec<&str> {
        self.known.peers.iter().map(|peer| peer.name.as_str()).collect()
    }

    pub(crate) fn peer(&self, name: &str) -> Option<&v1::Peer> {
        self.known.peers.iter().find(|peer| peer.name == name)
    }

    pub(crate) fn generation(&self) -> u32 {
        self.known.filter.as_ref().unwrap().generation
    }
}

fn apply(known: &mut v1::Snapshot, delta: &v1::Delta) {
    let mut peers: BTreeMap<u64, v1::Peer> = known.peers.drain(..).map(|peer| (peer.id, peer)).collect();
    for id in &delta.removed {
        assert!(peers.remove(id).is_some(), "removal of a peer that is not known");
    }
    peers.extend(delta.changed.iter().map(|peer| (peer.id, peer.clone())));
    for patch in &delta.patched {
        let peer = peers.get_mut(&patch.id).expect("a patch for a known peer");
        peer.online = patch.online.unwrap_or(peer.online);
        if let Some(list) = &patch.endpoints {
            peer.endpoints.clone_from(&list.endpoints);
        }
    }
    known.peers = peers.into_values().collect();
    known.revision = delta.revision;
    if delta.filter.is_some() {
        known.filter.clone_from(&delta.filter);
    }
    if delta.node.is_some() {
        known.node.clone_from(&delta.node);
    }
}

/// A test that cannot do its work must not pass.
pub(crate) fn needs_root(what_for: &str) {
    assert!(
        nix::unistd::getuid().is_root(),
        "this test takes root, {what_for}: run it with `cargo xtask test`"
    );
}

/// Waits for a condition.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} did not happen"));
}

pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

//! Wiring: from a command line to a running server, and down again.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ghostwire_proto::join_key::Address;
use ghostwire_proto::v1::admin_service_server::AdminServiceServer;
use ghostwire_proto::v1::goodbye::Reason;
use ghostwire_proto::v1::node_service_server::NodeServiceServer;
use ghostwire_proto::v1::relay_service_server::RelayServiceServer;
use ghostwire_proto::{MAX_NODE_MESSAGE_BYTES, keys::Fingerprint};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::{InterceptorLayer, Routes};
use tracing::{error, info, warn};

use crate::admin::{Access, Admin, ServerFacts};
use crate::cli::RunArgs;
use crate::limits::{ConnectionLimits, Connections};
use crate::listener;
use crate::relays::service::RelayStreams;
use crate::relays::signer::Signer;
use crate::relays::{Relays, embedded};
use crate::shutdown::{self, Stopper, Stopping};
use crate::state_dir::StateDir;
use crate::storage::sqlite::Sqlite;
use crate::storage::{Seed, Storage as _};
use crate::stream::service::Nodes;
use crate::stream::session::StreamTimes;
use crate::tls::{self, Identity};
use crate::writer::{self, Farewell, Handle};
use crate::{advertise, clock, http};

/// The largest policy that an administrator can set.
const MAX_ADMIN_MESSAGE_BYTES: usize = 16 << 20;
const TICK: Duration = Duration::from_secs(1);
/// How long each part of the server may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(6);

/// The policy of a new network: everybody in the mesh reaches everybody in it.
const FIRST_POLICY: &str = r#"// The policy of a new mesh: every node may reach every node.
// Edit it, then `gwctl policy check FILE` and `gwctl policy set FILE`.
{
  "acls": [
    {"action": "accept", "src": ["autogroup:member", "autogroup:tagged"], "dst": ["*:*"]},
  ],
}
"#;

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where nodes are told to find it.
    pub advertised: Vec<Address>,
    /// What join keys pin.
    pub ca: Fingerprint,
    /// Where the relay of this process is, for people.
    pub relaying: String,
    stop: Stopper,
    handle: Handle,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    writer: std::thread::JoinHandle<()>,
    relay: Option<embedded::Embedded>,
    socket: std::path::PathBuf,
    _state: StateDir,
}

/// Starts a server.
pub async fn start(args: RunArgs) -> anyhow::Result<Server> {
    raise_file_limit();
    let started = clock::now();
    let state = StateDir::open(&args.state_dir)?;
    let listener = bind(args.listen).await?;
    let listen = listener.local_addr()?;
    let advertised = match args.advertise.as_slice() {
        [] => advertise::default_addresses(listen),
        given => given.to_vec(),
    };
    let identity = Arc::new(match (&args.tls_cert, &args.tls_key) {
        (Some(certificates), Some(key)) => Identity::from_files(certificates, key, &advertised)?,
        _ => Identity::own(state.path(), &advertised)?,
    });
    let ca = identity.fingerprint();
    let database = state.database()?;
    let opened = || format!("cannot use the database {}", database.display());
    let mut storage = Sqlite::open(&database).with_context(opened)?;
    let stored = storage.load(seed(started)).with_context(opened)?;
    let grace = Duration::from_secs(args.ephemeral_grace);
    let (handle, writer) = writer::start(Box::new(storage), stored, grace)?;

    let (stop, stopping) = shutdown::channel();
    let relays = Relays::new(Signer::load(state.path(), &ca)?);
    let nodes = Nodes::new(handle.clone(), ca, rand::random(), StreamTimes::default(), relays.clone());
    let nodes = NodeServiceServer::new(nodes).max_decoding_message_size(MAX_NODE_MESSAGE_BYTES);
    let streams = RelayStreams::new(handle.clone(), relays.clone());
    let streams = RelayServiceServer::new(streams).max_decoding_message_size(MAX_NODE_MESSAGE_BYTES);
    let router = http::routes(handle.clone(), Routes::new(nodes).add_service(streams).into_axum_router());
    let relay = embedded::start(&args.relay, &state, &handle, &relays, advertised.as_slice()).await?;
    let acceptor = TlsAcceptor::from(Arc::new(identity.server_config()?));
    let connections = Connections::new(ConnectionLimits::default());
    let facts = ServerFacts { started, listen: listen.to_string(), advertised: advertised.clone(), ca };
    let admin = Admin::new(handle.clone(), facts, relays.clone());
    let socket = bind_socket(&args.socket)?;
    let tasks = vec![
        tokio::spawn(listener::serve(
            listener,
            acceptor,
            router,
            connections,
            listener::Times::default(),
            stopping.clone(),
        )),
        tokio::spawn(serve_admin(socket, admin, stopping.clone())),
        tokio::spawn(tick(handle.clone(), relays, stopping.clone())),
        tokio::spawn(renew(identity, stopping)),
    ];
    let relaying = relay.as_ref().map_or_else(|| "no relay".to_owned(), ToString::to_string);
    Ok(Server {
        listen,
        advertised,
        ca,
        relaying,
        stop,
        handle,
        tasks,
        writer,
        relay,
        socket: args.socket,
        _state: state,
    })
}

impl Server {
    /// Says goodbye to every node, lets connections end, stores what is left.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        let detail = "the coordinator is shutting down".to_owned();
        self.handle.end_all(Farewell { reason: Reason::Shutdown, detail }).await;
        if let Some(relay) = self.relay {
            relay.stop().await;
        }
        self.stop.stop();
        for mut task in self.tasks {
            match tokio::time::timeout(DRAIN_TIMEOUT, &mut task).await {
                Ok(ended) => ended.context("a task failed")?,
                // A client that does not hang up, most likely.
                Err(_) => task.abort(),
            }
        }
        // A socket that nobody serves would make clients wait for nothing.
        let _ = std::fs::remove_file(&self.socket);
        self.handle.stop().await;
        let writer = self.writer;
        tokio::task::spawn_blocking(move || writer.join())
            .await?
            .map_err(|_| anyhow::anyhow!("the writer failed"))
    }
}

fn seed(now: i64) -> Seed {
    Seed {
        epoch: hex::encode(rand::random::<[u8; 16]>()),
        ula: rand::random(),
        policy: FIRST_POLICY.to_owned(),
        now,
    }
}

/// Each node is a connection; the usual soft limit of 1,024 is for programs that use select().
fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        warn!(%error, "cannot raise the limit of open files: at most {soft} nodes can connect");
    }
}

async fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(listen).await {
        Ok(listener) => Ok(listener),
        // A kernel without IPv6.
        Err(error)
            if listen.ip().is_unspecified()
                && listen.is_ipv6()
                && error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) =>
        {
            let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port()));
            TcpListener::bind(v4).await.with_context(|| format!("cannot listen on {v4}"))
        }
        Err(error) => Err(error).with_context(|| {
            format!(
                "cannot listen on {listen}; is another program using the port? choose another with --listen"
            )
        }),
    }
}

/// Binds the local socket: 0660 for the group if there is one, else 0600.
fn bind_socket(path: &Path) -> anyhow::Result<(UnixListener, Access)> {
    let failed = || format!("cannot make the local socket {}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(failed)?;
    }
    match std::fs::symlink_metadata(path) {
        // Left by a server that was killed. The lock on the state directory does not tell whether another server
        // with another directory serves it, but a connection does.
        Ok(metadata) if metadata.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                bail!(
                    "another ghostwire-server serves {}; choose another path with --socket",
                    path.display()
                );
            }
            std::fs::remove_file(path).with_context(failed)?;
        }
        Ok(_) => bail!("{} is in the way and is not a socket", path.display()),
        Err(_) => {}
    }
    let access = Access::of_this_system();
    // Nobody else can connect between bind and the change of mode.
    let previous = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(previous);
    let listener = bound.with_context(failed)?;
    if let Some(group) = access.group() {
        match nix::unistd::chown(path, None, Some(group)) {
            Ok(()) => {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
                    .with_context(failed)?;
            }
            Err(error) => warn!(%error, "only the server's own user can use the local socket"),
        }
    }
    Ok((listener, access))
}

async fn serve_admin((listener, access): (UnixListener, Access), admin: Admin, mut stop: Stopping) {
    let service = AdminServiceServer::new(admin).max_decoding_message_size(MAX_ADMIN_MESSAGE_BYTES);
    let served = tonic::transport::Server::builder()
        .layer(InterceptorLayer::new(move |request| access.check(request)))
        .add_service(service)
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener),
            async move { stop.requested().await },
        )
        .await;
    if let Err(error) = served {
        error!(%error, "the local socket is not served any more");
    }
}

async fn tick(handle: Handle, relays: Relays, mut stop: Stopping) {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let _ = handle.run(writer::Writer::tick).await;
                let (now, network) = (clock::now(), handle.world().network.clone());
                relays.tick(now, |key| network.keys.get(key).is_some_and(|key| key.is_usable(now)));
            }
            () = stop.requested() => return,
        }
    }
}

async fn renew(identity: Arc<Identity>, mut stop: Stopping) {
    let mut renewals = tokio::time::interval(tls::RENEWAL);
    renewals.tick().await;
    loop {
        tokio::select! {
            _ = renewals.tick() => match identity.renew() {
                Ok(()) => info!("issued a new certificate"),
                Err(error) => error!(%error, "cannot issue a new certificate; the old one ends within a week"),
            },
            () = stop.requested() => return,
        }
    }
}

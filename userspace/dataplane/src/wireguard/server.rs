//! The process that owns a userspace device: TUN, engine, configuration socket.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::stat::{Mode, umask},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use zeroize::Zeroizing;

use super::{
    Error,
    process::{drop_privileges, run_first},
    tunnel::Tunnel,
    uapi::{self, Framer, Request},
    userspace::socket_path,
};
use crate::netlink::{Change, LinkName, Monitor, Netlink};

/// Conversations at a time; a further client waits.
const MAX_CONVERSATIONS: usize = 8;

/// A client that says nothing for so long is hung up on.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The body of the hidden subcommand `userspace-wireguard NAME --uapi-dir DIR`: opens the TUN device
/// `name`, runs WireGuard on it and serves its configuration socket `uapi_dir/name.sock` until SIGTERM
/// or SIGINT, or until something deletes the TUN device (which is an error).
///
/// Call it on the first thread, before others exist and outside any async runtime: the capabilities
/// that it gives up are those of the calling thread, and it brings its own runtime.
pub fn run_userspace(name: &LinkName, uapi_dir: &Path) -> Result<(), Error> {
    let lock = take_lock(name, uapi_dir)?;
    let netlink = Netlink::open()?;
    if let Some(link) = netlink.link(name)? {
        let kind = link.kind.unwrap_or_else(|| "hardware".to_owned());
        return Err(Error::NameTaken { name: name.clone(), kind });
    }
    if let Err(error) = run_first() {
        tracing::warn!(%error, "packets wait for ordinary programs: CAP_SYS_NICE is missing");
    }
    drop_privileges()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Start { program: PathBuf::from("tokio runtime"), source })?;
    let socket = socket_path(name, uapi_dir);
    let result = runtime.block_on(serve(name, &socket, &netlink));
    // The lock is still held: the socket cannot be another process's.
    drop(std::fs::remove_file(&socket));
    drop(lock);
    result
}

/// One process per device: two would fight over the socket.
fn take_lock(name: &LinkName, uapi_dir: &Path) -> Result<Flock<File>, Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(uapi_dir).map_err(|source| Error::File {
        action: "create directory",
        path: uapi_dir.to_owned(),
        source,
    })?;
    let path = uapi_dir.join(format!("{name}.lock"));
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| Error::File { action: "open", path: path.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => Error::AlreadyRunning { name: name.clone(), lock: path },
        error => Error::File { action: "lock", path, source: error.into() },
    })
}

/// A request from a conversation, and the way back for the answer.
type Job = (Request, oneshot::Sender<Zeroizing<String>>);

async fn serve(name: &LinkName, socket: &Path, netlink: &Netlink) -> Result<(), Error> {
    let failed = |source| Error::Start { program: PathBuf::from("signal handler"), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;

    let mut monitor = Monitor::open()?;
    let mut tunnel = Tunnel::open(name).await?;
    let link = netlink.existing_link(name)?;
    netlink.make_no_link_local(&link)?;
    netlink.mark_ours(&link)?;
    let listener = listen(socket)?;
    let (jobs, mut inbox) = mpsc::channel(MAX_CONVERSATIONS);
    let accepting = tokio::spawn(accept(listener, jobs));
    tracing::info!(interface = %name, socket = %socket.display(), "userspace WireGuard is ready");

    let failed = |reason: &str| Error::Engine { name: name.clone(), reason: reason.to_owned() };
    let result = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            () = tunnel.failed() => break Err(failed("its engine stopped")),
            change = monitor.next() => match change {
                Ok(Change::LinkGone(gone)) if gone.index == link.index => {
                    break Err(failed("its TUN device was deleted"));
                }
                Ok(Change::Lost) if netlink.link(name)?.is_none_or(|now| now.index != link.index) => {
                    break Err(failed("its TUN device was deleted"));
                }
                Ok(_) => {}
                Err(error) => break Err(error.into()),
            },
            Some((request, reply)) = inbox.recv() => {
                // The client may have hung up meanwhile.
                drop(reply.send(answer(&mut tunnel, request).await));
            }
        }
    };
    accepting.abort();
    tunnel.stop().await;
    tracing::info!(interface = %name, "userspace WireGuard ends");
    result
}

async fn answer(tunnel: &mut Tunnel, request: Request) -> Zeroizing<String> {
    match request {
        Request::Get => uapi::get_answer(&tunnel.status().await),
        Request::Set(update) => {
            let errno = tunnel.change(&update).await.err().unwrap_or(0);
            if errno != 0 {
                let reason = io::Error::from_raw_os_error(errno);
                tracing::warn!(%reason, "a change was refused");
            }
            Zeroizing::new(uapi::errno_answer(errno))
        }
    }
}

/// Binds the socket so that it never exists with wider permissions than it should.
fn listen(socket: &Path) -> Result<UnixListener, Error> {
    let failed = |action, source| Error::File { action, path: socket.to_owned(), source };
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove the stale socket", error));
        }
        _ => {}
    }
    let usual = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(socket);
    umask(usual);
    listener.map_err(|source| failed("listen on", source))
}

/// Takes connections for as long as the process serves.
async fn accept(listener: UnixListener, jobs: mpsc::Sender<Job>) {
    let room = Arc::new(Semaphore::new(MAX_CONVERSATIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let jobs = jobs.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &jobs).await {
                        tracing::debug!(%error, "a configuration client was hung up on");
                    }
                    drop(permit);
                });
            }
            // Out of descriptors or memory, or the client is gone: neither is cured by hurrying.
            Err(error) => {
                tracing::warn!(%error, "a configuration client could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers one client's requests until it hangs up, falls silent, or does not keep to the protocol.
async fn converse(mut stream: UnixStream, jobs: &mpsc::Sender<Job>) -> io::Result<()> {
    let mut framer = Framer::default();
    let mut chunk = Zeroizing::new([0; 4096]);
    loop {
        let length = timeout(IDLE_TIMEOUT, stream.read(chunk.as_mut())).await??;
        if length == 0 {
            return Ok(());
        }
        let mut rest = &chunk[..length];
        while !rest.is_empty() {
            let pushed = framer.push(rest);
            let request = match pushed {
                Ok((used, message)) => {
                    rest = &rest[used..];
                    let Some(message) = message else { continue };
                    uapi::parse_request(&message)
                }
                Err(error) => Err(error),
            };
            match request {
                Ok(request) => {
                    let (reply, answered) = oneshot::channel();
                    jobs.send((request, reply)).await.map_err(io::Error::other)?;
                    let text = answered.await.map_err(io::Error::other)?;
                    timeout(IDLE_TIMEOUT, stream.write_all(text.as_bytes())).await??;
                }
                Err(error) => {
                    let refusal = uapi::errno_answer(libc::EINVAL);
                    timeout(IDLE_TIMEOUT, stream.write_all(refusal.as_bytes())).await??;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
        }
    }
}

//! The daemon's side of a userspace device: start its process, find one that runs, talk to it.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::OpenOptionsExt as _, net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    DeviceStatus, Error, Update,
    portions::portions,
    process::{pidfd_open, pidfd_signal, pidfd_wait},
    uapi::{self, Framer},
};
use crate::netlink::LinkName;

/// The hidden subcommand that runs [`run_userspace`](super::run_userspace):
/// `PROGRAM userspace-wireguard NAME --uapi-dir DIR`.
pub const SUBCOMMAND: &str = "userspace-wireguard";

/// How long a userspace process may take to answer: milliseconds as a rule, also for a portion of a large change, but
/// emulated machines are slow.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a userspace process may take to become ready. Generous: emulated machines are slow.
pub const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a userspace process may take to end after SIGTERM, before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How often readiness is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How the process of a userspace device is started.
#[derive(Debug, Clone)]
pub struct Helper {
    program: PathBuf,
    arguments: Vec<OsString>,
    log: Option<PathBuf>,
}

impl Helper {
    /// A program that knows the subcommand [`SUBCOMMAND`], usually `std::env::current_exe()`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), log: None }
    }

    /// Puts an argument before the subcommand.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Appends what the process writes to a file; else it goes where the daemon's own stderr goes.
    #[must_use]
    pub fn log_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.log = Some(path.into());
        self
    }
}

/// A userspace device that runs.
#[derive(Debug, Clone)]
pub struct UserspaceDevice {
    name: LinkName,
    socket: PathBuf,
}

/// The socket of a userspace device.
pub(super) fn socket_path(name: &LinkName, uapi_dir: &Path) -> PathBuf {
    uapi_dir.join(format!("{name}.sock"))
}

/// The process of this device, if one runs and answers.
pub fn adopt(name: &LinkName, uapi_dir: &Path) -> Result<Option<UserspaceDevice>, Error> {
    let device = UserspaceDevice { name: name.clone(), socket: socket_path(name, uapi_dir) };
    match device.status() {
        Ok(_) => Ok(Some(device)),
        Err(Error::Gone(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Starts the process of a userspace device and waits until it answers. The process is in a session
/// of its own: it outlives the daemon, whatever kills it.
pub fn spawn_userspace(helper: &Helper, name: &LinkName, uapi_dir: &Path) -> Result<UserspaceDevice, Error> {
    let uapi_dir = std::path::absolute(uapi_dir).map_err(|source| Error::File {
        action: "resolve",
        path: uapi_dir.to_owned(),
        source,
    })?;
    let device = UserspaceDevice { name: name.clone(), socket: socket_path(name, &uapi_dir) };
    let mut child = start(helper, name, &uapi_dir)?;
    let ready = wait_until_ready(&device, &mut child);
    if ready.is_err() {
        // It may be gone already.
        drop(child.kill());
    }
    reap(child);
    ready.map(|()| device)
}

fn start(helper: &Helper, name: &LinkName, uapi_dir: &Path) -> Result<Child, Error> {
    let mut command = Command::new(&helper.program);
    command
        .args(&helper.arguments)
        .args([SUBCOMMAND, name.as_str(), "--uapi-dir"])
        .arg(uapi_dir)
        .current_dir("/")
        .stdin(Stdio::null());
    if let Some(path) = &helper.log {
        let open = || -> io::Result<(File, File)> {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
            Ok((file.try_clone()?, file))
        };
        let (output, errors) =
            open().map_err(|source| Error::File { action: "open log", path: path.clone(), source })?;
        command.stdout(output).stderr(errors);
    } else {
        command.stdout(Stdio::null());
    }
    // SAFETY: setsid is async-signal-safe, takes no memory and touches nothing of the parent.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
    }
    command.spawn().map_err(|source| Error::Start { program: helper.program.clone(), source })
}

fn wait_until_ready(device: &UserspaceDevice, child: &mut Child) -> Result<(), Error> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match device.status() {
            Ok(_) => return Ok(()),
            Err(Error::Gone(_)) => {}
            Err(error) => return Err(error),
        }
        match child.try_wait() {
            Ok(Some(status)) => return Err(Error::Died { name: device.name.clone(), status }),
            Ok(None) => {}
            Err(source) => return Err(Error::Talk { name: device.name.clone(), source }),
        }
        if Instant::now() >= deadline {
            return Err(Error::NotReady { name: device.name.clone() });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Waits for the process in the background, so that it does not become a zombie if it ends before
/// the daemon does.
fn reap(mut child: Child) {
    std::thread::spawn(move || {
        if let Ok(status) = child.wait() {
            tracing::debug!(pid = child.id(), %status, "a userspace WireGuard process ended");
        }
    });
}

impl UserspaceDevice {
    /// Name of its interface.
    pub fn name(&self) -> &LinkName {
        &self.name
    }

    /// Its configuration socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it is.
    pub fn status(&self) -> Result<DeviceStatus, Error> {
        Ok(self.ask(&mut self.connect()?, uapi::get_request())?.status)
    }

    /// Makes exactly this change, a large one in portions. On an error those before it have been made.
    pub fn change(&self, update: &Update) -> Result<(), Error> {
        let mut stream = self.connect()?;
        for portion in portions(update) {
            let answer = self.ask(&mut stream, &uapi::set_request(&portion))?;
            if answer.errno != 0 {
                let source = io::Error::from_raw_os_error(answer.errno.saturating_abs());
                return Err(Error::Refused { name: self.name.clone(), source });
            }
        }
        Ok(())
    }

    /// Process id of the process that serves it, as seen from the caller's process namespace.
    pub fn pid(&self) -> Result<i32, Error> {
        self.peer_pid(&self.connect()?)
    }

    /// Ends the process, and with it the interface. It is no error if it has ended already.
    pub fn stop(&self) -> Result<(), Error> {
        let mut stream = match self.connect() {
            Ok(stream) => stream,
            Err(Error::Gone(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let pid = self.peer_pid(&stream)?;
        let process: OwnedFd = match pidfd_open(pid) {
            Ok(process) => process,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            Err(source) => return Err(self.unreachable(source)),
        };
        // An answer now proves that the number still meant this process when it was opened.
        match self.ask(&mut stream, uapi::get_request()) {
            Ok(_) => {}
            Err(Error::Gone(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        for (signal, patience) in [(libc::SIGTERM, STOP_TIMEOUT), (libc::SIGKILL, STOP_TIMEOUT)] {
            pidfd_signal(process.as_fd(), signal).map_err(|source| self.unreachable(source))?;
            if pidfd_wait(process.as_fd(), patience).map_err(|source| self.unreachable(source))? {
                return Ok(());
            }
        }
        Err(Error::NotStopping { name: self.name.clone(), pid })
    }

    fn connect(&self) -> Result<UnixStream, Error> {
        let stream = UnixStream::connect(&self.socket).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::Gone(self.name.clone()),
            _ => self.unreachable(source),
        })?;
        stream
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_TIMEOUT)))
            .map_err(|source| self.unreachable(source))?;
        Ok(stream)
    }

    fn ask(&self, stream: &mut UnixStream, request: &str) -> Result<uapi::Answer, Error> {
        stream.write_all(request.as_bytes()).map_err(|source| self.lost(source))?;
        let mut framer = Framer::default();
        // Keys pass through it.
        let mut chunk = zeroize::Zeroizing::new([0; 4096]);
        let nonsense = |source| Error::Protocol { name: self.name.clone(), source };
        loop {
            let length = match stream.read(chunk.as_mut()) {
                Ok(0) => return Err(Error::Gone(self.name.clone())),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(self.lost(source)),
            };
            let (_, message) = framer.push(&chunk[..length]).map_err(nonsense)?;
            if let Some(message) = message {
                return uapi::parse_answer(&message).map_err(nonsense);
            }
        }
    }

    fn peer_pid(&self, stream: &UnixStream) -> Result<i32, Error> {
        let peer = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials)
            .map_err(|error| self.unreachable(error.into()))?;
        match peer.pid() {
            pid if pid > 0 => Ok(pid),
            _ => Err(self.unreachable(io::Error::other("it runs in another process namespace"))),
        }
    }

    /// A conversation that broke: the process ended, or worse.
    fn lost(&self, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Gone(self.name.clone()),
            _ => self.unreachable(source),
        }
    }

    fn unreachable(&self, source: io::Error) -> Error {
        Error::Talk { name: self.name.clone(), source }
    }
}

//! The local API: `gwctl` and other programs on this machine, over a unix socket.
//!
//! The socket is 0660 and belongs to root and the group `ghostwire`; whoever connects is checked again by the
//! credentials that the kernel tells ([`access`]), since a file's mode can be changed by accident.

pub mod access;
mod service;

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnixListenerStream;

use self::service::Service;
use crate::daemon::Request;
use crate::local::local_service_server::LocalServiceServer;

/// Why there is no local API.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Somebody answers at the socket.
    #[error("another daemon already answers at {}; stop it, or give this one another --socket", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket has its name.
    #[error("{} exists and is not a socket; remove it, or give another --socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The socket, ready to serve. Removed when dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Socket {
    /// Binds the socket, replacing one that nobody answers at.
    pub fn bind(path: &Path) -> Result<Self, ApiError> {
        let failed = |action| {
            let path = path.to_owned();
            move |source| ApiError::Io { action, path, source }
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed("make the directory of"))?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(ApiError::NotASocket(path.to_owned())),
            Ok(_) => {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    return Err(ApiError::InUse(path.to_owned()));
                }
                std::fs::remove_file(path).map_err(failed("remove the stale socket"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at")(error)),
        }
        // Closed to all until owner and mode are right.
        let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        nix::sys::stat::umask(mask);
        let listener = bound.map_err(failed("listen at"))?;
        let socket = Self { path: path.to_owned(), listener: Some(listener) };
        if let Some(group) = access::group() {
            std::os::unix::fs::chown(path, None, Some(group))
                .map_err(failed("give to the group ghostwire"))?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
            .map_err(failed("set the mode of"))?;
        Ok(socket)
    }

    /// Serves until the process ends.
    pub async fn serve(mut self, requests: mpsc::Sender<Request>) -> Result<(), tonic::transport::Error> {
        let Some(listener) = self.listener.take() else { return Ok(()) };
        tonic::transport::Server::builder()
            .add_service(LocalServiceServer::with_interceptor(Service::new(requests), access::check))
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another daemon may have replaced it already; then there is nothing of ours to remove.
        let _ = std::fs::remove_file(&self.path);
    }
}

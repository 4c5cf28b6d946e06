//! One daemon per interface and network namespace.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Held for as long as the daemon runs; the kernel lets go of it however the process ends. Abstract socket names
/// belong to the network namespace, as interfaces do.
#[derive(Debug)]
pub struct InterfaceLock {
    _listener: UnixListener,
}

/// Why the interface is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon has it.
    #[error(
        "another ghostwire-client already runs interface {0} here; stop it, or give this one another --interface"
    )]
    Taken(String),
    /// The system refused.
    #[error("cannot reserve interface {0}: {1}")]
    Io(String, std::io::Error),
}

impl InterfaceLock {
    /// Takes the interface.
    pub fn take(interface: &str) -> Result<Self, LockError> {
        let name = format!("ghostwire-client/{interface}");
        let bound =
            SocketAddr::from_abstract_name(name).and_then(|address| UnixListener::bind_addr(&address));
        match bound {
            Ok(listener) => Ok(Self { _listener: listener }),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                Err(LockError::Taken(interface.to_owned()))
            }
            Err(error) => Err(LockError::Io(interface.to_owned(), error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_has_one_daemon() {
        let name = format!("gwtest{}", std::process::id());
        let first = InterfaceLock::take(&name).unwrap();
        let error = InterfaceLock::take(&name).unwrap_err().to_string();
        assert!(error.contains("--interface"), "{error}");
        drop(first);
        InterfaceLock::take(&name).unwrap();
    }
}

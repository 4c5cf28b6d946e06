//! gRPC channels: to a coordinator over pinned TLS, and to a local daemon over its unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::join_key::Address;
use crate::keys::Fingerprint;
use crate::tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(15);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no channel.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The coordinator was not reached.
    #[error("cannot reach the coordinator at {address}: {reason}")]
    Coordinator {
        /// Where.
        address: Address,
        /// The innermost cause.
        reason: String,
        /// What failed.
        source: tonic::transport::Error,
    },
    /// The local daemon was not reached.
    #[error("cannot reach {path}: {reason}")]
    Socket {
        /// Which socket.
        path: PathBuf,
        /// The innermost cause.
        reason: String,
        /// What the operating system said, when it said something.
        kind: Option<io::ErrorKind>,
        /// What failed.
        source: tonic::transport::Error,
    },
}

/// Connects to a coordinator whose CA has this fingerprint.
pub async fn coordinator(address: &Address, ca: Fingerprint) -> Result<Channel, ConnectError> {
    let connector = TlsConnector::from(Arc::new(tls::client_config(ca)?));
    let target = address.clone();
    let connect = service_fn(move |_: Uri| {
        let (connector, target) = (connector.clone(), target.clone());
        async move {
            let tcp = TcpStream::connect((target.host(), target.port())).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from(target.host().to_owned()).map_err(io::Error::other)?;
            connector.connect(name, tcp).await.map(TokioIo::new)
        }
    });
    endpoint().connect_with_connector(connect).await.map_err(|source| ConnectError::Coordinator {
        address: address.clone(),
        reason: innermost(&source).to_string(),
        source,
    })
}

/// Connects to a daemon on this machine.
pub async fn unix(path: &Path) -> Result<Channel, ConnectError> {
    let target = path.to_owned();
    let connect = service_fn(move |_: Uri| {
        let target = target.clone();
        async move { UnixStream::connect(target).await.map(TokioIo::new) }
    });
    endpoint().connect_with_connector(connect).await.map_err(|source| {
        let cause = innermost(&source);
        ConnectError::Socket {
            path: path.to_owned(),
            reason: cause.to_string(),
            kind: cause.downcast_ref::<io::Error>().map(io::Error::kind),
            source,
        }
    })
}

/// The URI is only the `:authority` of requests; the connectors above know where to connect to.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://ghostwire")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT)
        .keep_alive_while_idle(true)
}

fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

//! Channels to the daemon and to the server.

use std::path::Path;

use ghostwire_proto::MAX_MESSAGE_BYTES;
use ghostwire_proto::channel;
use ghostwire_proto::local::local_service_client::LocalServiceClient;
use ghostwire_proto::v1::admin_service_client::AdminServiceClient;
use tonic::transport::Channel;

use crate::exit::{Failure, Who};

/// The node daemon.
pub type Daemon = LocalServiceClient<Channel>;
/// The coordination server.
pub type Server = AdminServiceClient<Channel>;

/// Reaches the node daemon.
pub async fn daemon(socket: &Path) -> Result<Daemon, Failure> {
    let channel = channel::unix(socket).await.map_err(|error| Failure::of_connect(Who::Daemon, &error))?;
    Ok(Daemon::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// Reaches the coordination server.
pub async fn server(socket: &Path) -> Result<Server, Failure> {
    let channel = channel::unix(socket).await.map_err(|error| Failure::of_connect(Who::Server, &error))?;
    Ok(Server::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

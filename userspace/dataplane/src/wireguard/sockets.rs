//! UDP sockets that outlast a process that gets no processor for a while.
//!
//! The kernel's default receive buffer holds some 250 small datagrams, a quarter of a second at 1,000 per
//! second; a busy machine takes longer than that to give a process its turn.

use std::io;
use std::time::{Duration, Instant};

use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpTransportFactory, UdpTransportFactoryParams};
use nix::sys::socket::{setsockopt, sockopt};

/// Bytes of kernel memory for each direction, as much as other userspace WireGuards ask for.
const BUFFER: usize = 7 << 20;

/// How long the engine's former sockets may hold the port. They are closed by tasks of its own that it does not wait
/// for when it opens new ones on the same port (a new key, or the way back from a port in use).
const CLOSING: Duration = Duration::from_millis(500);
/// How often the port is tried meanwhile.
const TRY_EVERY: Duration = Duration::from_millis(10);

/// Makes the engine's sockets, with deep buffers.
#[derive(Debug, Default)]
pub(super) struct DeepSockets(UdpSocketFactory);

impl DeepSockets {
    async fn bind_when_free(
        &mut self,
        params: &UdpTransportFactoryParams,
    ) -> io::Result<(UdpSocket, UdpSocket)> {
        let deadline = Instant::now() + CLOSING;
        loop {
            match self.0.bind(params).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    tokio::time::sleep(TRY_EVERY).await;
                }
                result => return result,
            }
        }
    }
}

impl UdpTransportFactory for DeepSockets {
    type Send = UdpSocket;
    type Recv = UdpSocket;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(UdpSocket, UdpSocket)> {
        let sockets = self.bind_when_free(params).await?;
        // Past net.core.rmem_max, which needs CAP_NET_ADMIN; the process has it for its TUN device.
        let socket = sockets.1.socket();
        let deep = setsockopt(socket, sockopt::RcvBufForce, &BUFFER)
            .and_then(|()| setsockopt(socket, sockopt::SndBufForce, &BUFFER));
        if let Err(error) = deep {
            tracing::warn!(%error, "the socket keeps its default buffers; bursts may be lost");
        }
        Ok(sockets)
    }
}

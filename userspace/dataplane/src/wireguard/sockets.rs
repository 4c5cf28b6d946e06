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

/// How long our own former socket may take to close. The engine ends the task that holds it without waiting for it.
const CLOSING: Duration = Duration::from_secs(10);

/// How often a port that is still taken is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// Makes the engine's sockets, with deep buffers.
#[derive(Debug, Default)]
pub(super) struct DeepSockets {
    factory: UdpSocketFactory,
    /// The port of the last socket, 0: there was none.
    port: u16,
}

impl DeepSockets {
    /// Opens sockets. A port that was ours a moment ago is free as soon as its former socket is closed; one that is
    /// another program's is an error at once.
    async fn open(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(UdpSocket, UdpSocket)> {
        let deadline = Instant::now() + CLOSING;
        loop {
            match self.factory.bind(params).await {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse
                        && params.port != 0
                        && params.port == self.port
                        && Instant::now() < deadline =>
                {
                    tokio::time::sleep(RETRY).await;
                }
                other => return other,
            }
        }
    }
}

impl UdpTransportFactory for DeepSockets {
    type Send = UdpSocket;
    type Recv = UdpSocket;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(UdpSocket, UdpSocket)> {
        let sockets = self.open(params).await?;
        // Past net.core.rmem_max, which needs CAP_NET_ADMIN; the process has it for its TUN device.
        let socket = sockets.1.socket();
        self.port = socket.local_addr()?.port();
        let deep = setsockopt(socket, sockopt::RcvBufForce, &BUFFER)
            .and_then(|()| setsockopt(socket, sockopt::SndBufForce, &BUFFER));
        if let Err(error) = deep {
            tracing::warn!(%error, "the socket keeps its default buffers; bursts may be lost");
        }
        Ok(sockets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(port: u16) -> UdpTransportFactoryParams {
        UdpTransportFactoryParams { addr: None, port, fwmark: None }
    }

    #[tokio::test]
    async fn a_port_of_ours_is_waited_for_and_one_of_others_is_not() {
        let mut sockets = DeepSockets::default();
        let first = sockets.bind(&on(0)).await.unwrap();
        let port = sockets.port;
        let closing = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(first);
        };
        let same_port = on(port);
        let (again, ()) = tokio::join!(sockets.bind(&same_port), closing);
        assert_eq!(again.unwrap().1.socket().local_addr().unwrap().port(), port);

        let other = tokio::net::UdpSocket::bind("[::]:0").await.unwrap();
        let taken = other.local_addr().unwrap().port();
        let refused = sockets.bind(&on(taken)).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    }
}

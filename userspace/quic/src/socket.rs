//! The UDP port: quinn's socket, but STUN goes to whoever makes connectivity checks.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};

use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime as _, TokioRuntime, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use crate::demux::take_out;

/// Of the socket, each way: some tens of milliseconds of a fast transfer.
const KERNEL_BUFFER: usize = 4 << 20;

/// A STUN message that came to the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stun {
    /// Our address that it was sent to, where the kernel tells.
    pub local: Option<IpAddr>,
    /// Where it came from.
    pub remote: SocketAddr,
    /// The message.
    pub bytes: Vec<u8>,
}

/// Binds the first of these ports that is free (0: any), for IPv4 and IPv6 where the machine has that. `mark` is the
/// firewall mark of what leaves; 0: none.
pub fn bind(ports: &[u16], mark: u32) -> io::Result<UdpSocket> {
    let mut last = io::Error::from(io::ErrorKind::InvalidInput);
    for port in ports {
        let dual = bind_to(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), *port), mark);
        let bound = match dual {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                bind_to(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), *port), mark)
            }
            other => other,
        };
        match bound {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_to(address: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    // Beyond the system's limit where we may; less is slower, not wrong.
    if setsockopt(&socket, sockopt::RcvBufForce, &KERNEL_BUFFER).is_err() {
        socket.set_recv_buffer_size(KERNEL_BUFFER)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &KERNEL_BUFFER).is_err() {
        socket.set_send_buffer_size(KERNEL_BUFFER)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// An address as a socket of both families wants it.
pub(crate) fn widen(ip: IpAddr, is_v6: bool) -> IpAddr {
    match ip {
        IpAddr::V4(v4) if is_v6 => v4.to_ipv6_mapped().into(),
        other => other,
    }
}

/// An address as everybody else wants it.
pub(crate) fn narrow(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Port {
    inner: Arc<dyn AsyncUdpSocket>,
    /// The same socket, for STUN.
    plain: UdpSocket,
    is_v6: bool,
    stun: mpsc::Sender<Stun>,
    /// From which of our addresses connections to a remote leave.
    sources: RwLock<HashMap<SocketAddr, IpAddr>>,
}

impl Port {
    pub(crate) fn new(socket: UdpSocket, stun: mpsc::Sender<Stun>) -> io::Result<Self> {
        let is_v6 = socket.local_addr()?.is_ipv6();
        let plain = socket.try_clone()?;
        let inner = TokioRuntime.wrap_udp_socket(socket)?;
        Ok(Self { inner, plain, is_v6, stun, sources: RwLock::default() })
    }

    pub(crate) fn is_v6(&self) -> bool {
        self.is_v6
    }

    /// Connections to this remote leave from this address of ours. `None`: the kernel chooses.
    pub(crate) fn leave_from(&self, remote: SocketAddr, local: Option<IpAddr>) {
        let mut sources = self.sources.write().unwrap_or_else(PoisonError::into_inner);
        match local {
            Some(local) => drop(sources.insert(narrow(remote), local)),
            None => drop(sources.remove(&narrow(remote))),
        }
    }

    fn source(&self, remote: SocketAddr) -> Option<IpAddr> {
        self.sources.read().unwrap_or_else(PoisonError::into_inner).get(&narrow(remote)).copied()
    }

    /// Sends by a link and from an address of ours.
    pub(crate) fn send_stun(
        &self,
        uplink: u32,
        local: IpAddr,
        remote: SocketAddr,
        bytes: &[u8],
    ) -> io::Result<()> {
        let to = SockaddrStorage::from(SocketAddr::new(widen(remote.ip(), self.is_v6), remote.port()));
        let (v4, v6);
        let source = match widen(local, self.is_v6) {
            IpAddr::V4(local) => {
                let zero = in_addr { s_addr: 0 };
                v4 = in_pktinfo {
                    ipi_ifindex: i32::try_from(uplink).map_err(io::Error::other)?,
                    ipi_spec_dst: in_addr { s_addr: u32::from_ne_bytes(local.octets()) },
                    ipi_addr: zero,
                };
                ControlMessage::Ipv4PacketInfo(&v4)
            }
            IpAddr::V6(local) => {
                v6 = in6_pktinfo { ipi6_addr: in6_addr { s6_addr: local.octets() }, ipi6_ifindex: uplink };
                ControlMessage::Ipv6PacketInfo(&v6)
            }
        };
        let parts = [IoSlice::new(bytes)];
        sendmsg(self.plain.as_raw_fd(), &parts, &[source], MsgFlags::MSG_DONTWAIT, Some(&to))?;
        Ok(())
    }
}

impl AsyncUdpSocket for Port {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let copy = |src_ip| Transmit {
            destination: transmit.destination,
            // What is carried does not learn of marks, and nothing else here slows down.
            ecn: None,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip,
        };
        let chosen = self.source(transmit.destination).map(|ip| widen(ip, self.is_v6));
        match self.inner.try_send(&copy(transmit.src_ip.or(chosen))) {
            // That address is gone. Until we are told of another one, any will do: the server follows (migration).
            Err(error) if error.kind() != io::ErrorKind::WouldBlock && chosen.is_some() => {
                self.inner.try_send(&copy(None))
            }
            other => other,
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (buffer, meta) in bufs.iter_mut().zip(meta).take(count) {
            let (local, remote) = (meta.dst_ip.map(|ip| ip.to_canonical()), narrow(meta.addr));
            let length = meta.len.min(buffer.len());
            meta.len = take_out(buffer.get_mut(..length).unwrap_or_default(), meta.stride, |bytes| {
                // Full: lost, as on any full link.
                let _ = self.stun.try_send(Stun { local, remote, bytes: bytes.to_vec() });
            });
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

//! The controller's sockets. They are ordinary ones on a port of their own; the programs on the uplinks make the world
//! see WireGuard's port instead, both ways.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use ghostwire_packet::payload::Payload;
use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn,
    SockaddrIn6, SockaddrStorage, bind, getsockname, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{SteerError, carried};

/// How many ports are tried until one is free in both families.
const ATTEMPTS: usize = 16;

/// Bytes of kernel memory for what has not been read.
const BUFFER: usize = 1 << 20;

/// How long a datagram may wait to be read: one that came before its remote was admitted has not reached WireGuard.
const WAIT: Duration = Duration::from_secs(1);

/// What a datagram for the controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A STUN message.
    Stun,
    /// A check in WireGuard's dress, see [`carried`].
    Carried,
    /// WireGuard's, from a remote that is not admitted, or was not a second ago.
    Unknown,
}

/// A datagram that came in on WireGuard's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Index of the interface.
    pub uplink: u32,
    /// The address that it was sent to, and WireGuard's port.
    pub local: SocketAddr,
    /// Where it came from.
    pub remote: SocketAddr,
    /// Bytes of payload.
    pub length: usize,
    /// What it is.
    pub kind: Kind,
}

/// Receives and sends datagrams on WireGuard's port.
#[derive(Debug)]
pub struct Controller {
    v4: Socket,
    /// None where the host has no IPv6.
    v6: Option<Socket>,
    port: u16,
    wireguard_port: AtomicU16,
    /// Since when remotes are admitted. An aggregate that holds checks comes here whole, WireGuard's datagrams and all,
    /// which WireGuard has got too.
    admitted: RwLock<HashMap<SocketAddr, Instant>>,
}

#[derive(Debug)]
struct Socket {
    descriptor: OwnedFd,
    /// The same socket, registered with the runtime of the first who waited.
    waiting: OnceLock<AsyncFd<OwnedFd>>,
}

impl Socket {
    fn new(descriptor: OwnedFd) -> Self {
        Self { descriptor, waiting: OnceLock::new() }
    }

    fn waiting(&self) -> io::Result<&AsyncFd<OwnedFd>> {
        if let Some(ready) = self.waiting.get() {
            return Ok(ready);
        }
        let descriptor = self.descriptor.try_clone()?;
        // SAFETY: it owns its descriptor, and nothing replaces or closes it while it is registered.
        let ready = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
        Ok(self.waiting.get_or_init(|| ready))
    }
}

impl Controller {
    /// Opens the sockets, on the port that was used before if it is free.
    pub(super) fn open(before: u16, wireguard_port: u16, fwmark: u32) -> Result<Self, SteerError> {
        let failed = |source: io::Error| SteerError::Socket { action: "open", source };
        let mut wish = before;
        for _ in 0..ATTEMPTS {
            let v4 = match open(AddressFamily::Inet, wish, fwmark) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    wish = 0;
                    continue;
                }
                other => other.map_err(failed)?,
            };
            let port =
                getsockname::<SockaddrIn>(v4.as_raw_fd()).map_err(|errno| failed(errno.into()))?.port();
            let v6 = match open(AddressFamily::Inet6, port, fwmark) {
                Ok(v6) => Some(Socket::new(v6)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    wish = 0;
                    continue;
                }
                Err(error) => {
                    tracing::info!(%error, "the controller has no IPv6 socket");
                    None
                }
            };
            let wireguard_port = AtomicU16::new(wireguard_port);
            let admitted = RwLock::default();
            return Ok(Self { v4: Socket::new(v4), v6, port, wireguard_port, admitted });
        }
        Err(failed(io::Error::from(io::ErrorKind::AddrInUse)))
    }

    /// Our own port, which nobody outside of the host sees.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn set_wireguard_port(&self, port: u16) {
        self.wireguard_port.store(port, Ordering::Relaxed);
    }

    /// What looks like WireGuard's from this remote is none of ours from now on.
    pub(super) fn admit(&self, remote: SocketAddr) {
        let mut admitted = self.admitted.write().unwrap_or_else(PoisonError::into_inner);
        admitted.entry(unscoped(remote)).or_insert_with(Instant::now);
    }

    /// Ends that.
    pub(super) fn shut_out(&self, remote: SocketAddr) {
        let mut admitted = self.admitted.write().unwrap_or_else(PoisonError::into_inner);
        admitted.remove(&unscoped(remote));
    }

    fn is_known(&self, remote: SocketAddr) -> bool {
        let admitted = self.admitted.read().unwrap_or_else(PoisonError::into_inner);
        admitted.get(&unscoped(remote)).is_some_and(|since| since.elapsed() > WAIT)
    }

    /// The next datagram; its payload is at the beginning of the buffer. What does not fit is cut off. Cancel-safe.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        loop {
            match self.try_recv(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            let Some(v6) = &self.v6 else {
                wait(&self.v4).await?;
                continue;
            };
            tokio::select! {
                ready = wait(&self.v4) => ready?,
                ready = wait(v6) => ready?,
            }
        }
    }

    /// A datagram that is already there; `WouldBlock`: there is none.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        for socket in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            loop {
                match self.receive(socket, buffer) {
                    Ok(Some(arrival)) => return Ok(arrival),
                    // Not for us; or an ICMP error about something that we sent.
                    Ok(None) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if is_about_a_remote(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn receive(&self, socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<Arrival>> {
        let mut control = cmsg_space!(libc::in6_pktinfo);
        let (length, remote, place) = {
            let mut slices = [IoSliceMut::new(buffer)];
            let received = recvmsg::<SockaddrStorage>(
                socket.descriptor.as_raw_fd(),
                &mut slices,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            )?;
            let place = received.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    let ip = IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes());
                    Some((u32::try_from(info.ipi_ifindex).unwrap_or(0), ip))
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    Some((info.ipi6_ifindex, IpAddr::from(info.ipi6_addr.s6_addr)))
                }
                _ => None,
            });
            (received.bytes, received.address.and_then(|address| socket_address(&address)), place)
        };
        let (Some(remote), Some((uplink, ip))) = (remote, place) else { return Ok(None) };
        let kind = match carried::kind(buffer.get(..length).unwrap_or_default()) {
            Payload::Stun => Kind::Stun,
            Payload::Carried => Kind::Carried,
            Payload::WireGuard if self.is_known(remote) => return Ok(None),
            Payload::WireGuard => Kind::Unknown,
            Payload::Other => return Ok(None),
        };
        let local = SocketAddr::new(ip, self.wireguard_port.load(Ordering::Relaxed));
        Ok(Some(Arrival { uplink, local, remote, length, kind }))
    }

    /// Sends a datagram from an address of an uplink, by that uplink, as from WireGuard's port. `WouldBlock`: the queue
    /// is full. Other errors are about this datagram: no route, no such address.
    pub fn try_send(&self, uplink: u32, local: IpAddr, remote: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let slices = [IoSlice::new(payload)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
        match (local, remote) {
            (IpAddr::V4(local), SocketAddr::V4(remote)) => {
                let local = libc::in_addr { s_addr: u32::from_ne_bytes(local.octets()) };
                let info = libc::in_pktinfo {
                    ipi_ifindex: uplink.cast_signed(),
                    ipi_spec_dst: local,
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let message = [ControlMessage::Ipv4PacketInfo(&info)];
                let to = SockaddrIn::from(remote);
                sendmsg(self.v4.descriptor.as_raw_fd(), &slices, &message, flags, Some(&to))?;
            }
            (IpAddr::V6(local), SocketAddr::V6(remote)) => {
                let socket = self.v6.as_ref().ok_or_else(unsupported)?;
                let local = libc::in6_addr { s6_addr: local.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: local, ipi6_ifindex: uplink };
                let message = [ControlMessage::Ipv6PacketInfo(&info)];
                let to = SockaddrIn6::from(remote);
                sendmsg(socket.descriptor.as_raw_fd(), &slices, &message, flags, Some(&to))?;
            }
            _ => return Err(unsupported()),
        }
        Ok(())
    }
}

/// Waits until there may be something to read.
async fn wait(socket: &Socket) -> io::Result<()> {
    let mut guard = socket.waiting()?.readable().await?;
    // Whoever waits has found nothing, and looks again before it waits once more: what comes in between is seen then,
    // because readiness that is cleared too early is announced anew with the next datagram only.
    let mut probe = [0_u8; 1];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the buffer is valid for its length.
    let seen =
        unsafe { libc::recv(socket.descriptor.as_raw_fd(), probe.as_mut_ptr().cast(), probe.len(), flags) };
    if seen < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock {
        guard.clear_ready();
    }
    Ok(())
}

/// Whether an error of a socket is one about a datagram that was sent earlier.
fn is_about_a_remote(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EMSGSIZE | libc::EACCES)
    )
}

/// Remotes are admitted by address and port alone.
fn unscoped(remote: SocketAddr) -> SocketAddr {
    SocketAddr::new(remote.ip(), remote.port())
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddrV4::from(*v4).into());
    }
    address.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into())
}

fn open(family: AddressFamily, port: u16, fwmark: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let descriptor = socket(family, SockType::Datagram, flags, None)?;
    if fwmark != 0 {
        setsockopt(&descriptor, sockopt::Mark, &fwmark)?;
    }
    // A deep buffer is good to have; more than the limit takes a right that root has.
    let _shallow = setsockopt(&descriptor, sockopt::RcvBufForce, &BUFFER);
    if family == AddressFamily::Inet {
        setsockopt(&descriptor, sockopt::Ipv4PacketInfo, &true)?;
        bind(descriptor.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port))?;
    } else {
        setsockopt(&descriptor, sockopt::Ipv6V6Only, &true)?;
        setsockopt(&descriptor, sockopt::Ipv6RecvPacketInfo, &true)?;
        let any = SocketAddrV6::new(std::net::Ipv6Addr::UNSPECIFIED, port, 0, 0);
        bind(descriptor.as_raw_fd(), &SockaddrIn6::from(any))?;
    }
    Ok(descriptor)
}

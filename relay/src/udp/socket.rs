//! UDP sockets that tell and set the time to live and the type of service of each datagram.

#![expect(clippy::cast_possible_truncation, reason = "sizes of C structs and of batches fit C's types")]

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::ptr;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;

/// Datagrams in a batch.
pub(super) const BATCH: usize = 32;

/// The longest datagram that is relayed, in bytes: jumbo frames. Longer ones are cut by the kernel and dropped.
const MAX_DATAGRAM: usize = 9216;

/// What sockets ask the kernel for; it grants what `net.core.rmem_max` allows.
const BUFFER_BYTES: usize = 4 << 20;

/// Two control messages of one `int` each take 48 bytes.
const CONTROL_LEN: usize = 64;

/// Opens a socket on exactly this address, on the current tokio runtime.
pub(super) fn open(local: SocketAddr) -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(BUFFER_BYTES)?;
    socket.set_send_buffer_size(BUFFER_BYTES)?;
    let fd = socket.as_fd();
    if local.is_ipv4() {
        set_option(fd, libc::IPPROTO_IP, libc::IP_RECVTTL, 1)?;
        set_option(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        // As kernel WireGuard sends: what does not fit is fragmented, not lost without a word.
        set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    } else {
        socket.set_only_v6(true)?;
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)?;
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    }
    socket.bind(&local.into())?;
    // SAFETY: the socket owns its descriptor, and nobody replaces or closes it while `AsyncFd` owns the socket.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

fn set_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the value is an `int` that lives through the call, as `len` says.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, ptr::from_ref(&value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// A batch of received datagrams.
pub(super) struct Inbox {
    buffers: Vec<[u8; MAX_DATAGRAM]>,
    meta: Vec<Meta>,
}

/// What is known of a datagram besides its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meta {
    /// Who sent it; `None`: it was cut, or came from nowhere.
    pub(super) source: Option<SocketAddr>,
    pub(super) len: usize,
    /// Time to live or hop limit.
    pub(super) hops: u8,
    /// Type of service or traffic class: DSCP and ECN.
    pub(super) tos: u8,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self { buffers: vec![[0; MAX_DATAGRAM]; BATCH], meta: Vec::with_capacity(BATCH) }
    }

    /// The datagrams of the last batch.
    pub(super) fn datagrams(&self) -> impl Iterator<Item = (usize, &Meta, &[u8])> {
        let both = self.meta.iter().zip(&self.buffers).enumerate();
        both.map(|(index, (meta, buffer))| (index, meta, buffer.get(..meta.len).unwrap_or_default()))
    }

    /// One of them.
    pub(super) fn payload(&self, index: usize) -> &[u8] {
        match (self.meta.get(index), self.buffers.get(index)) {
            (Some(meta), Some(buffer)) => buffer.get(..meta.len).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Receives up to a batch without waiting.
    pub(super) fn receive(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: all-zero bytes are valid for these plain C structs.
        let mut names: [libc::sockaddr_storage; BATCH] = unsafe { mem::zeroed() };
        let mut controls = [Control([0; CONTROL_LEN]); BATCH];
        // SAFETY: as above.
        let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        for (index, header) in headers.iter_mut().enumerate() {
            vectors[index].iov_base = self.buffers[index].as_mut_ptr().cast();
            vectors[index].iov_len = MAX_DATAGRAM;
            let header = &mut header.msg_hdr;
            header.msg_name = ptr::from_mut(&mut names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_LEN;
        }
        // SAFETY: each header points to a name, a vector and a control buffer of the lengths it says; all of them
        // live through the call and nothing else uses them.
        let count = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        self.meta.clear();
        for (header, name) in headers.iter().zip(&names).take(count) {
            self.meta.push(meta(header, name));
        }
        Ok(count)
    }
}

fn meta(header: &libc::mmsghdr, name: &libc::sockaddr_storage) -> Meta {
    let cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
    let source = if cut { None } else { socket_addr(name) };
    // Without the control message, nothing is known of the hops: then it must not look as if some were left.
    let mut meta = Meta { source, len: header.msg_len as usize, hops: 0, tos: 0 };
    // SAFETY: the kernel filled the control buffer that the header points to, and it is still there; the macros
    // stay within its length.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header.msg_hdr);
        while !message.is_null() {
            let value = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    meta.hops = low_byte(value.cast::<libc::c_int>().read_unaligned());
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => meta.tos = value.read(),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    meta.tos = low_byte(value.cast::<libc::c_int>().read_unaligned());
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(&raw const header.msg_hdr, message);
        }
    }
    meta
}

fn low_byte(value: libc::c_int) -> u8 {
    let [low, ..] = value.to_le_bytes();
    low
}

fn socket_addr(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which struct it is; the storage is large and aligned enough for each.
            let name = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(name.sin6_port), 0, name.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// A datagram to send: one of an inbox, to somebody else.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    /// Which one of the inbox.
    pub(super) index: usize,
    pub(super) destination: SocketAddr,
    pub(super) hops: u8,
    pub(super) tos: u8,
}

/// Sends up to a batch from one socket without waiting. Gives how many went out; the others are lost, as datagrams
/// are when a queue is full.
pub(super) fn send(fd: BorrowedFd<'_>, inbox: &Inbox, outgoing: &[Outgoing]) -> usize {
    let mut names: Vec<SockAddr> = outgoing.iter().map(|datagram| datagram.destination.into()).collect();
    let mut controls = [Control([0; CONTROL_LEN]); BATCH];
    // SAFETY: all-zero bytes are valid for these plain C structs.
    let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
    let total = outgoing.len().min(BATCH);
    for (index, datagram) in outgoing.iter().enumerate().take(total) {
        let payload = inbox.payload(datagram.index);
        vectors[index].iov_base = payload.as_ptr().cast_mut().cast();
        vectors[index].iov_len = payload.len();
        let header = &mut headers[index].msg_hdr;
        header.msg_namelen = names[index].len();
        header.msg_name = names[index].as_ptr().cast_mut().cast();
        header.msg_iov = &raw mut vectors[index];
        header.msg_iovlen = 1;
        header.msg_control = controls[index].0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_LEN;
        header.msg_controllen = write_control(header, datagram);
    }
    let (mut next, mut lost) = (0, 0);
    while next < total {
        // SAFETY: the headers point to names, payloads and control buffers that live through the call; the kernel
        // only reads them.
        let count = unsafe {
            libc::sendmmsg(
                fd.as_raw_fd(),
                headers[next..].as_mut_ptr(),
                (total - next) as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        match usize::try_from(count) {
            Ok(count) if count > 0 => next += count,
            _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => {
                lost += total - next;
                break;
            }
            // An error is about the first datagram only: no route to it, too long for its way. The others go.
            _ => {
                next += 1;
                lost += 1;
            }
        }
    }
    names.clear();
    total - lost
}

/// Writes hops and type of service; gives the length.
fn write_control(header: &libc::msghdr, datagram: &Outgoing) -> usize {
    let (level, hops, tos) = match datagram.destination {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, libc::IPV6_TCLASS),
    };
    let int = size_of::<libc::c_int>() as libc::c_uint;
    let mut written = 0;
    // SAFETY: the header points to a zeroed control buffer of CONTROL_LEN bytes, and two messages of one `int`
    // fit into it.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        for (kind, value) in [(hops, datagram.hops), (tos, datagram.tos)] {
            if message.is_null() {
                break;
            }
            (*message).cmsg_level = level;
            (*message).cmsg_type = kind;
            (*message).cmsg_len = libc::CMSG_LEN(int) as usize;
            libc::CMSG_DATA(message).cast::<libc::c_int>().write_unaligned(libc::c_int::from(value));
            written += libc::CMSG_SPACE(int) as usize;
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    written
}

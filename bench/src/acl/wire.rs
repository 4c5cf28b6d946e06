//! Real datagrams: written into a TUN device, a layer 3 device like WireGuard's, received there, judged, routed and
//! delivered to a socket whose buffer is full. All of it happens in the system call that writes, so time per call is
//! the cost of the path.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare};
use nix::unistd::Pid;

use super::policies::OWN4;

/// Name of the device.
pub const DEVICE: &str = "gwbench";
/// Datagrams of one slice, short enough that most are not interrupted.
pub const SLICE: u32 = 200;

/// Moves this thread onto one processor.
pub fn stay_on_one_processor() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

/// A network namespace.
pub struct Namespace(File);

impl Namespace {
    /// A new one, in which this thread is afterwards.
    pub fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (root is needed)")?;
        Ok(Self(File::open("/proc/thread-self/ns/net").context("opening the new network namespace")?))
    }

    /// Moves a device of this thread's namespace there.
    pub fn adopt(&self, device: &str) -> Result<()> {
        // `ip` looks for named namespaces, or for those of processes; an open file is reached through ours.
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        let status = Command::new("ip")
            .args(["link", "set", device, "netns", &path])
            .status()
            .context("running ip")?;
        ensure!(status.success(), "moving {device} to another namespace: {status}");
        Ok(())
    }

    /// Moves this thread there.
    pub fn enter(&self) -> Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET).context("entering a network namespace")
    }
}

/// A device, and a datagram that arrives there.
pub struct Tunnel {
    device: File,
    receiver: UdpSocket,
    peer: (IpAddr, u16),
    datagram: Vec<u8>,
}

impl Tunnel {
    /// In the namespace of this thread, for datagrams from a peer to a port of this node.
    pub fn new(peer: Ipv4Addr, port: u16) -> Result<Self> {
        const PEER_PORT: u16 = 40_000;
        let device = tun_device()?;
        for arguments in [format!("address add {OWN4}/16 dev {DEVICE}"), format!("link set {DEVICE} up")] {
            let status = Command::new("ip").args(arguments.split(' ')).status().context("running ip")?;
            ensure!(status.success(), "ip {arguments}: {status}");
        }
        let receiver = UdpSocket::bind((OWN4, port)).context("binding the receiver")?;
        let datagram = datagram((peer, PEER_PORT), (OWN4, port));
        Ok(Self { device, receiver, peer: (peer.into(), PEER_PORT), datagram })
    }

    /// Lets the datagram in, and an answer out.
    pub fn answer(&mut self) -> Result<()> {
        self.device.write_all(&self.datagram)?;
        self.receiver.send_to(&[0], self.peer)?;
        Ok(())
    }

    /// Whether the datagram arrives, which it does until [`Tunnel::slice`] has filled the receiver's buffer.
    pub fn arrives(&mut self) -> Result<bool> {
        self.receiver.set_nonblocking(true)?;
        let mut buffer = [0; 128];
        while self.receiver.recv(&mut buffer).is_ok() {}
        self.device.write_all(&self.datagram)?;
        Ok(self.receiver.recv(&mut buffer).is_ok())
    }

    /// Nanoseconds per datagram.
    pub fn slice(&mut self) -> Result<f64> {
        let started = Instant::now();
        for _ in 0..SLICE {
            self.device.write_all(&self.datagram)?;
        }
        Ok(started.elapsed().as_secs_f64() * 1e9 / f64::from(SLICE))
    }
}

/// A TUN device that takes packets without anything in front (Linux, `tuntap.rst`). It goes with its descriptor.
fn tun_device() -> Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
    // SAFETY: the request lives until after the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    ensure!(result >= 0, "making a TUN device: {}", std::io::Error::last_os_error());
    Ok(file)
}

/// An IPv4 packet with a UDP datagram of 64 bytes.
fn datagram(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 92, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend(src.0.octets());
    packet.extend(dst.0.octets());
    let words = packet.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(src.1.to_be_bytes());
    packet.extend(dst.1.to_be_bytes());
    // No checksum, which IPv4 allows (RFC 768).
    packet.extend([0, 72, 0, 0]);
    packet.extend([0; 64]);
    packet
}

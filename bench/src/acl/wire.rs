//! Real datagrams over the loopback device of a network namespace: sent, looped, judged at ingress, delivered to a
//! socket whose buffer is full. One thread and one processor do all of it, so time per packet is the path's cost.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;

use super::policies::OWN;

/// Packets of one measurement, in slices so short that some are not interrupted.
const SLICES: u32 = 60;
const BATCHES: u32 = 32;
const BATCH: u32 = 64;

/// Moves this thread into a namespace of its own, where every address of the overlay and of the benchmark's subnets
/// is local, and onto one processor.
pub fn enter_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (root is needed)")?;
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    for arguments in
        ["link set lo up", "route add local 100.64.0.0/16 dev lo", "route add local 10.0.0.0/8 dev lo"]
    {
        let status = Command::new("ip").args(arguments.split(' ')).status().context("running ip")?;
        ensure!(status.success(), "ip {arguments}: {status}");
    }
    Ok(())
}

/// A sender and a receiver that nobody reads from.
pub struct Flow {
    sender: UdpSocket,
    _receiver: UdpSocket,
}

impl Flow {
    /// From a peer to a port of this node.
    pub fn new(src: Ipv4Addr, port: u16) -> Result<Self> {
        let receiver = UdpSocket::bind((OWN, port)).context("binding the receiver")?;
        let sender = UdpSocket::bind((src, 40_000)).context("binding the sender")?;
        sender.connect((OWN, port))?;
        Ok(Self { sender, _receiver: receiver })
    }

    /// Nanoseconds per packet in the best slice.
    pub fn measure(&self) -> Result<f64> {
        let mut payload = [0_u8; 64];
        let mut vector = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
        // SAFETY: all zero is a valid mmsghdr; the vector and the payload outlive the calls.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = &raw mut vector;
        message.msg_hdr.msg_iovlen = 1;
        let mut messages = [message; BATCH as usize];
        let mut best = f64::MAX;
        for _ in 0..SLICES {
            let started = Instant::now();
            for _ in 0..BATCHES {
                // SAFETY: an array of BATCH messages.
                let sent =
                    unsafe { libc::sendmmsg(self.sender.as_raw_fd(), messages.as_mut_ptr(), BATCH, 0) };
                ensure!(sent == i32::try_from(BATCH)?, "sendmmsg: {}", std::io::Error::last_os_error());
            }
            best = best.min(started.elapsed().as_secs_f64() * 1e9 / f64::from(BATCHES * BATCH));
        }
        Ok(best)
    }
}

/// Loads the policy into nftables in the form that suits it best: one hashed set of address and port at the ingress
/// hook of the device, which is where our program sits. No rule is walked, whatever the size.
pub fn nftables(pairs: &[(Ipv4Addr, u16)]) -> Result<()> {
    let mut script = String::from(
        "table netdev bench {\n set allowed { type ipv4_addr . inet_service; }\n chain ingress {\n \
         type filter hook ingress device \"lo\" priority 0; policy drop;\n \
         ip saddr . udp dport @allowed accept\n }\n}\n",
    );
    for some in pairs.chunks(5_000) {
        let elements: Vec<String> = some.iter().map(|(addr, port)| format!("{addr} . {port}")).collect();
        writeln!(script, "add element netdev bench allowed {{ {} }}", elements.join(", "))?;
    }
    let mut child =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("running nft")?;
    child.stdin.take().context("nft's input")?.write_all(script.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "nft refused the benchmark's rules: {status}");
    Ok(())
}

/// Removes the rules.
pub fn no_nftables() -> Result<()> {
    let status = Command::new("nft").args(["delete", "table", "netdev", "bench"]).status()?;
    ensure!(status.success(), "nft delete: {status}");
    Ok(())
}

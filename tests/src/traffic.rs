//! Real packets whose losses are counted exactly.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::netns::{Netns, join};

/// TCP and UDP echo servers on one port of a namespace, until dropped.
#[derive(Debug)]
pub struct EchoServer {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl EchoServer {
    /// Listens on `address:port` for both protocols.
    pub fn start(netns: &Netns, address: IpAddr, port: u16) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (listener, udp) = netns.run(move || {
            let at = SocketAddr::new(address, port);
            Ok((
                TcpListener::bind(at).with_context(|| format!("listen on TCP {at}"))?,
                UdpSocket::bind(at).with_context(|| format!("bind UDP {at}"))?,
            ))
        })?;
        listener.set_nonblocking(true)?;
        udp.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (tcp_stop, udp_stop) = (stop.clone(), stop.clone());
        let tcp = std::thread::spawn(move || accept_loop(&listener, &tcp_stop));
        let udp = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !udp_stop.load(Ordering::Relaxed) {
                if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    // A denied reply is the test's business, not the echo server's.
                    drop(udp.send_to(&buffer[..length], from));
                }
            }
            Ok(())
        });
        Ok(Self { stop, threads: vec![tcp, udp] })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn accept_loop(listener: &TcpListener, stop: &Arc<AtomicBool>) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let stop = stop.clone();
                std::thread::spawn(move || echo(stream, &stop));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn echo(mut stream: TcpStream, stop: &AtomicBool) {
    let mut buffer = vec![0; 65536];
    if stream.set_nonblocking(false).is_err()
        || stream.set_read_timeout(Some(Duration::from_millis(50))).is_err()
    {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
            Err(error) if nothing_yet(&error) => {}
            Err(_) => return,
        }
    }
}

/// Whether a socket with a time limit only has nothing to read yet. A child of this process that ends may interrupt any
/// thread's reading: its signal goes to some other thread while the one that waits for it has signals blocked, and
/// reading with a time limit is not started again.
fn nothing_yet(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Opens a TCP connection and exchanges one message; how long that took.
pub fn tcp_probe(netns: &Netns, to: SocketAddr, limit: Duration) -> Result<Duration> {
    netns.run(move || {
        let start = Instant::now();
        let mut stream =
            TcpStream::connect_timeout(&to, limit).with_context(|| format!("connect to {to}"))?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"probe")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).with_context(|| format!("answer from {to}"))?;
        Ok(start.elapsed())
    })
}

/// Sends up to `tries` datagrams until one comes back from an echo server.
pub fn udp_probe(netns: &Netns, to: SocketAddr, tries: u32, wait: Duration) -> Result<()> {
    netns.run(move || {
        let socket = UdpSocket::bind(SocketAddr::new(unspecified(to.ip()), 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(wait))?;
        let mut buffer = [0; 64];
        for _ in 0..tries {
            // EPERM is how a denial on egress looks from here; the next try may be allowed.
            drop(socket.send(b"probe"));
            if matches!(socket.recv(&mut buffer), Ok(5)) {
                return Ok(());
            }
        }
        anyhow::bail!("no answer from udp {to}")
    })
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    }
}

/// A conversation that goes on until stopped: a number is sent, its echo awaited, and so forth.
#[derive(Debug)]
pub struct Conversation {
    stop: Arc<AtomicBool>,
    turns: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Conversation {
    /// Connects to a TCP echo server.
    pub fn tcp(netns: &Netns, to: SocketAddr, limit: Duration) -> Result<Self> {
        let stream = netns.run(move || {
            TcpStream::connect_timeout(&to, limit).with_context(|| format!("connect to {to}"))
        })?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self::run(move |turn, stop| {
            (&stream).write_all(&turn.to_be_bytes())?;
            let mut answer = [0; 8];
            let mut have = 0;
            while have < answer.len() && !stop.load(Ordering::Relaxed) {
                match (&stream).read(&mut answer[have..]) {
                    Ok(0) => anyhow::bail!("connection closed"),
                    Ok(length) => have += length,
                    Err(error) if nothing_yet(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(have == answer.len())
        }))
    }

    /// Talks to a UDP echo server.
    pub fn udp(netns: &Netns, to: SocketAddr) -> Result<Self> {
        let socket = netns.run(move || {
            let socket = UdpSocket::bind(SocketAddr::new(unspecified(to.ip()), 0))?;
            socket.connect(to)?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self::run(move |turn, _| {
            // EPERM: denied on egress. The conversation stalls, as it should.
            drop(socket.send(&turn.to_be_bytes()));
            let mut answer = [0; 8];
            loop {
                match socket.recv(&mut answer) {
                    Ok(_) if answer == turn.to_be_bytes() => return Ok(true),
                    // A late answer to an earlier turn.
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return Ok(false),
                }
            }
        }))
    }

    fn run(mut turn: impl FnMut(u64, &AtomicBool) -> Result<bool> + Send + 'static) -> Self {
        let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (thread_stop, thread_turns) = (stop.clone(), turns.clone());
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !thread_stop.load(Ordering::Relaxed) {
                if turn(number, &thread_stop)? {
                    thread_turns.fetch_add(1, Ordering::Relaxed);
                }
                number += 1;
                std::thread::park_timeout(Duration::from_millis(2));
            }
            Ok(())
        });
        Self { stop, turns, thread }
    }

    /// Completed turns so far.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Whether at least one turn completes within `window`.
    pub fn progresses_within(&self, window: Duration) -> bool {
        let before = self.turns();
        let deadline = Instant::now() + window;
        while Instant::now() < deadline {
            if self.turns() > before || self.thread.is_finished() {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        self.turns() > before
    }

    /// Ends it; fails if the connection broke.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let turns = self.turns.clone();
        join(self.thread)?;
        Ok(turns.load(Ordering::Relaxed))
    }
}

/// What became of a numbered stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamReport {
    /// Datagrams that the sender's kernel took.
    pub sent: u64,
    /// Different numbers that arrived.
    pub received: u64,
    /// Numbers that arrived again.
    pub duplicated: u64,
    /// Numbers that arrived after a higher one.
    pub reordered: u64,
    /// The longest time between two that arrived.
    pub longest_gap: Duration,
}

impl StreamReport {
    /// Numbers that never arrived.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

/// Numbered datagrams at a fixed rate from one namespace to another.
#[derive(Debug)]
pub struct NumberedStream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<StreamReport>>,
    received: Arc<AtomicU64>,
}

impl NumberedStream {
    /// Sends `per_second` datagrams of `size` bytes (at least 8) from `from` to `address:port` inside `to`.
    pub fn start(
        from: &Netns,
        to: &Netns,
        address: IpAddr,
        port: u16,
        per_second: u32,
        size: usize,
    ) -> Result<Self> {
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let target = SocketAddr::new(address, port);
        let sink = to.run(move || {
            let socket = UdpSocket::bind(target).with_context(|| format!("bind UDP {target}"))?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(4 << 20))?;
            Ok(socket)
        })?;
        sink.set_read_timeout(Some(Duration::from_millis(50)))?;
        let source = from.run(move || {
            let socket = UdpSocket::bind(SocketAddr::new(unspecified(address), 0))?;
            socket.connect(target)?;
            Ok(socket)
        })?;
        let sender_stop = stop.clone();
        let sender = std::thread::spawn(move || send_numbers(&source, per_second, size, &sender_stop));
        let (receiver_stop, receiver_count) = (stop.clone(), received.clone());
        let receiver = std::thread::spawn(move || receive_numbers(&sink, &receiver_stop, &receiver_count));
        Ok(Self { stop, sender, receiver, received })
    }

    /// Datagrams that have arrived so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Stops sending, waits for what is in flight, and counts.
    pub fn stop(self) -> Result<StreamReport> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = join(self.sender)?;
        Ok(StreamReport { sent, ..join(self.receiver)? })
    }
}

fn send_numbers(source: &UdpSocket, per_second: u32, size: usize, stop: &AtomicBool) -> Result<u64> {
    let mut datagram = vec![0; size.max(8)];
    let start = Instant::now();
    let mut sent = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let due = start.elapsed().as_micros() * u128::from(per_second) / 1_000_000;
        while u128::from(sent) < due {
            datagram[..8].copy_from_slice(&sent.to_be_bytes());
            source.send(&datagram).context("send a numbered datagram")?;
            sent += 1;
        }
        std::thread::park_timeout(Duration::from_micros(500));
    }
    Ok(sent)
}

fn receive_numbers(sink: &UdpSocket, stop: &AtomicBool, count: &AtomicU64) -> Result<StreamReport> {
    let mut seen = HashSet::new();
    let (mut duplicated, mut reordered, mut highest) = (0, 0, None);
    let mut buffer = vec![0; 65536];
    let mut idle = 0;
    let (mut last, mut longest_gap) = (None::<Instant>, Duration::ZERO);
    loop {
        match sink.recv(&mut buffer) {
            Ok(length) if length >= 8 => {
                idle = 0;
                let now = Instant::now();
                longest_gap = longest_gap.max(last.replace(now).map_or(Duration::ZERO, |last| now - last));
                let mut number = [0; 8];
                number.copy_from_slice(&buffer[..8]);
                let number = u64::from_be_bytes(number);
                if !seen.insert(number) {
                    duplicated += 1;
                } else if highest.is_some_and(|h| number < h) {
                    reordered += 1;
                }
                highest = highest.max(Some(number));
                count.store(seen.len() as u64, Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if nothing_yet(&error) => {
                // Half a second of silence after the end: nothing is in flight any more.
                if stop.load(Ordering::Relaxed) {
                    idle += 1;
                    if idle >= 10 {
                        let (sent, received) = (0, seen.len() as u64);
                        return Ok(StreamReport { sent, received, duplicated, reordered, longest_gap });
                    }
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

//! One client, from handshake to end.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ghostwire_relay_protocol::derp::handshake::{ClientInfo, HandshakeError, ServerInfo, open, seal};
use ghostwire_relay_protocol::derp::{
    Frame, FrameError, GoneReason, HEADER_LEN, Header, MAX_FRAME_LEN, MAX_INFO_LEN, PublicKey, VERSION,
    looks_like_disco,
};
use thiserror::Error;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, ReadHalf, WriteHalf,
};
use tokio::time::{Instant, sleep, timeout};

use super::queue::{Lane, Queue};
use super::registry::ConnectionId;
use super::server::Shared;
use crate::limits::{Bucket, Rate};

/// How long the decision about a client may take.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers that a peer is not here: they are for path discovery, which does not ask more often.
const NOT_HERE: Rate = Rate { per_second: 1, burst: 3 };

/// Why a connection ends.
#[derive(Debug, Error)]
pub(super) enum Ended {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it took too long")]
    Timeout,
    #[error("a frame of {0} bytes")]
    TooLong(u32),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("its key: {0}")]
    Handshake(#[from] HandshakeError),
    #[error("not admitted")]
    NotAdmitted,
    #[error("a frame that servers do not take, or that needs a mesh key")]
    Unexpected,
}

/// A stream after its HTTP request: what was read too far comes first.
pub(super) struct Upgraded<S> {
    pub(super) stream: S,
    pub(super) rest: Vec<u8>,
    pub(super) source: SocketAddr,
}

impl<S: AsyncRead + AsyncWrite + Send + 'static> Upgraded<S> {
    /// Serves the client until one side ends.
    pub(super) async fn serve(self, shared: Arc<Shared>) -> Result<(), Ended> {
        let (reader, mut writer) = tokio::io::split(self.stream);
        let mut reader = Reader { ahead: io::Cursor::new(self.rest), stream: BufReader::new(reader) };
        let handshake = handshake(&mut reader, &mut writer, self.source, &shared);
        let key = timeout(shared.limits.handshake + ADMISSION_TIMEOUT, handshake).await;
        let key = key.map_err(|_| Ended::Timeout)??;
        let queue = Arc::new(Queue::default());
        let id = shared.connect(key, Arc::clone(&queue));
        let client = Client { key, id, queue: Arc::clone(&queue), shared: Arc::clone(&shared) };
        let result = tokio::select! {
            result = client.read(&mut reader) => result,
            result = write(&mut writer, &queue, &shared) => result,
        };
        client.end();
        result
    }
}

/// The client's end, whichever half notices it.
struct Client {
    key: PublicKey,
    id: ConnectionId,
    queue: Arc<Queue>,
    shared: Arc<Shared>,
}

struct Reader<S> {
    ahead: io::Cursor<Vec<u8>>,
    stream: BufReader<ReadHalf<S>>,
}

impl<S: AsyncRead> Reader<S> {
    async fn read_exact(&mut self, out: &mut [u8]) -> io::Result<()> {
        let ahead = io::Read::read(&mut self.ahead, out)?;
        let rest = out.get_mut(ahead..).unwrap_or_default();
        self.stream.read_exact(rest).await.map(drop)
    }

    /// Reads a frame whose payload is no longer than `limit`.
    async fn frame<'a>(&mut self, payload: &'a mut Vec<u8>, limit: usize) -> Result<(u8, &'a [u8]), Ended> {
        let mut head = [0; HEADER_LEN];
        self.read_exact(&mut head).await?;
        let Header { kind, len } = Header::parse(head);
        let wanted =
            usize::try_from(len).ok().filter(|wanted| *wanted <= limit).ok_or(Ended::TooLong(len))?;
        payload.resize(wanted, 0);
        self.read_exact(payload.as_mut_slice()).await?;
        Ok((kind, payload.as_slice()))
    }
}

/// ServerKey, ClientInfo, admission, ServerInfo. Gives the client's key, which it has proven to hold.
async fn handshake<S: AsyncRead + AsyncWrite>(
    reader: &mut Reader<S>,
    writer: &mut WriteHalf<S>,
    source: SocketAddr,
    shared: &Shared,
) -> Result<PublicKey, Ended> {
    let mut frame = Vec::new();
    Frame::ServerKey(shared.secret.public()).write(&mut frame);
    writer.write_all(&frame).await?;
    writer.flush().await?;

    let mut payload = Vec::new();
    let (kind, payload) = reader.frame(&mut payload, MAX_INFO_LEN).await?;
    let Frame::ClientInfo { key, sealed } = Frame::parse(kind, payload)? else {
        return Err(Ended::Unexpected);
    };
    let _: ClientInfo = open(sealed, &shared.secret, key)?;
    let admitted = timeout(ADMISSION_TIMEOUT, shared.admission.admit(key, source)).await;
    if !admitted.unwrap_or(false) {
        return Err(Ended::NotAdmitted);
    }
    let info = ServerInfo {
        version: VERSION,
        bytes_per_second: shared.limits.client.per_second,
        burst_bytes: shared.limits.client.burst,
    };
    let sealed = seal(&info, &shared.secret, key, rand::random())?;
    frame.clear();
    Frame::ServerInfo { sealed: &sealed }.write(&mut frame);
    writer.write_all(&frame).await?;
    writer.flush().await?;
    Ok(key)
}

impl Client {
    async fn read<S: AsyncRead>(&self, reader: &mut Reader<S>) -> Result<(), Ended> {
        let mut buffer = Vec::new();
        let mut not_here = Bucket::default();
        let mut sending = Bucket::default();
        let started = Instant::now();
        loop {
            let (kind, payload) = reader.frame(&mut buffer, MAX_FRAME_LEN).await?;
            // A frame longer than the burst would never pass.
            let cost = ((payload.len() + HEADER_LEN) as u64).min(self.shared.limits.client.burst);
            // Reading on later is what slows a sender down in TCP.
            while !sending.admit(self.shared.limits.client, started.elapsed(), cost) {
                sleep(Duration::from_millis(5)).await;
            }
            match Frame::parse(kind, payload)? {
                Frame::Send { to, packet } => {
                    let disco = looks_like_disco(packet);
                    if !self.relay(to, packet, disco)
                        && disco
                        && not_here.admit(NOT_HERE, started.elapsed(), 1)
                    {
                        self.notify(&Frame::PeerGone { key: to, reason: GoneReason::NotHere });
                    }
                }
                Frame::Ping(data) => self.notify(&Frame::Pong(data)),
                Frame::NotePreferred(_) | Frame::Pong(_) | Frame::KeepAlive | Frame::Unknown(_) => {}
                Frame::Watch
                | Frame::ClosePeer(_)
                | Frame::Forward { .. }
                | Frame::ServerKey(_)
                | Frame::ClientInfo { .. }
                | Frame::ServerInfo { .. }
                | Frame::Recv { .. }
                | Frame::PeerGone { .. }
                | Frame::PeerPresent(_)
                | Frame::Health(_)
                | Frame::Restarting { .. } => return Err(Ended::Unexpected),
            }
        }
    }

    /// Hands a packet to its receiver. `false`: it is not here.
    fn relay(&self, to: PublicKey, packet: &[u8], disco: bool) -> bool {
        let route = {
            let mut registry = self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner);
            registry.route(self.key, self.id, to)
        };
        let Some(queue) = route else { return false };
        let mut frame = Vec::with_capacity(HEADER_LEN + 32 + packet.len());
        Frame::Recv { from: self.key, packet }.write(&mut frame);
        queue.push(if disco { Lane::Disco } else { Lane::Data }, frame);
        true
    }

    fn notify(&self, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        self.queue.push(Lane::Notice, bytes);
    }

    fn end(&self) {
        self.queue.close();
        let told = {
            let mut registry = self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner);
            registry.disconnect(self.key, self.id)
        };
        for queue in told {
            let mut bytes = Vec::new();
            Frame::PeerGone { key: self.key, reason: GoneReason::Disconnected }.write(&mut bytes);
            queue.push(Lane::Notice, bytes);
        }
    }
}

/// Writes what waits, and a sign of life where nothing does.
async fn write<S: AsyncWrite>(
    writer: &mut WriteHalf<S>,
    queue: &Queue,
    shared: &Shared,
) -> Result<(), Ended> {
    let mut out = Vec::new();
    loop {
        out.clear();
        let pause = shared.limits.keep_alive + Duration::from_millis(rand::random_range(0..5000));
        match timeout(pause, queue.take(&mut out)).await {
            Ok(true) => {}
            Ok(false) => return Ok(writer.shutdown().await?),
            Err(_) => Frame::KeepAlive.write(&mut out),
        }
        let written = async {
            writer.write_all(&out).await?;
            writer.flush().await
        };
        timeout(shared.limits.write, written).await.map_err(|_| Ended::Timeout)??;
    }
}

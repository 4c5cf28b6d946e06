//! A TURN client (RFC 8656), as far as it takes to have a channel: Allocate and ChannelBind, without credentials.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use ghostwire_relay_protocol::stun::{Class, Kind, Message, Method, TransactionId, Writer};

const ALLOCATE: u16 = 0x003;
const CHANNEL_BIND: u16 = 0x009;
const CHANNEL_NUMBER: Kind = Kind(0x000C);
const XOR_PEER_ADDRESS: Kind = Kind(0x0012);
const REQUESTED_TRANSPORT: Kind = Kind(0x0019);
const CHANNEL: u16 = 0x4000;

/// Asks a server on `server` to relay what comes from `socket` on a channel to `peer`.
pub fn open_channel(socket: &UdpSocket, server: SocketAddrV4, peer: SocketAddrV4) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    request(socket, server, ALLOCATE, 1, |writer| {
        // UDP.
        writer.attribute(REQUESTED_TRANSPORT, &[17, 0, 0, 0])?;
        Ok(())
    })?;
    request(socket, server, CHANNEL_BIND, 2, |writer| {
        let [high, low] = CHANNEL.to_be_bytes();
        writer.attribute(CHANNEL_NUMBER, &[high, low, 0, 0])?;
        writer.xor_address(XOR_PEER_ADDRESS, SocketAddr::V4(peer))?;
        Ok(())
    })
}

fn request(
    socket: &UdpSocket,
    server: SocketAddrV4,
    method: u16,
    number: u8,
    fill: impl Fn(&mut Writer<'_>) -> Result<()>,
) -> Result<()> {
    let transaction = TransactionId([number; 12]);
    let method = Method::new(method).context("a method")?;
    let mut buffer = [0; 256];
    let mut writer = Writer::new(&mut buffer, Class::Request, method, transaction)?;
    fill(&mut writer)?;
    let bytes = writer.finish();
    // The server takes a moment to start.
    for _ in 0..50 {
        socket.send_to(bytes, server)?;
        let mut answer = [0; 2048];
        let Ok((len, _)) = socket.recv_from(&mut answer) else { continue };
        let Ok(message) = Message::parse(&answer[..len]) else { continue };
        if message.transaction() != transaction {
            continue;
        }
        let code = message.attribute(Kind::ERROR_CODE).and_then(|code| code.error_code());
        ensure!(message.class() == Class::Success, "coturn refuses method {method:?}: error {code:?}");
        return Ok(());
    }
    bail!("coturn does not answer")
}

/// ChannelData (RFC 8656 section 12.4): the payload with four bytes in front.
pub fn channel_data(payload: &[u8]) -> Result<Vec<u8>> {
    let mut message = CHANNEL.to_be_bytes().to_vec();
    message.extend(u16::try_from(payload.len())?.to_be_bytes());
    message.extend(payload);
    Ok(message)
}

//! Two of Tailscale's Rust DERP clients talk through a server: `ghostwire-relay-foreign ADDR:PORT [SECONDS]`. With
//! SECONDS, one of them then says nothing for so long, and has to be connected afterwards.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::time::timeout;
use ts_derp::{DefaultClient, IpUsage, ServerConnInfo, TlsValidationConfig};
use ts_keys::{NodeKeyPair, NodePublicKey};

/// Nothing takes so long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lengths of packets; the client takes no longer ones than the last.
const LENGTHS: [usize; 5] = [0, 1, 148, 1500, 65_000];

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr = arguments.next().context("which server? ADDR:PORT")?.parse()?;
    let silence = arguments.next().map(|seconds| seconds.parse()).transpose()?;

    let (a, b) = (NodeKeyPair::random(), NodeKeyPair::random());
    let at_a = connect(address, &a).await?;
    let at_b = connect(address, &b).await?;
    for len in LENGTHS {
        let packet = vec![0x5A; len];
        at_a.send_one(b.public, &packet).await?;
        expect(&at_b, a.public, &packet).await?;
        at_b.send_one(a.public, &packet).await?;
        expect(&at_a, b.public, &packet).await?;
        println!("{len} bytes, both ways");
    }
    // A is told that B is gone, and goes on.
    drop(at_b);
    at_a.send_one(a.public, b"to myself").await?;
    expect(&at_a, a.public, b"to myself").await?;
    println!("a peer that is gone disturbs nobody");
    if let Some(seconds) = silence {
        if timeout(Duration::from_secs(seconds), at_a.recv_one()).await.is_ok() {
            bail!("something came, or the connection ended, while nobody said anything");
        }
        at_a.send_one(a.public, b"still here").await?;
        expect(&at_a, a.public, b"still here").await?;
        println!("connected after {seconds} s of silence");
    }
    Ok(())
}

async fn connect(address: SocketAddr, key: &NodeKeyPair) -> Result<DefaultClient> {
    let (ipv4, ipv6) = match address.ip() {
        IpAddr::V4(ip) => (IpUsage::FixedAddr(ip), IpUsage::Disable),
        IpAddr::V6(ip) => (IpUsage::Disable, IpUsage::FixedAddr(ip)),
    };
    let server = ServerConnInfo {
        hostname: address.ip().to_string(),
        ipv4,
        ipv6,
        // The relay's certificate may be its own.
        tls_validation_config: TlsValidationConfig::InsecureForTests,
        https_port: address.port(),
        stun_port: None,
        stun_only: false,
        supports_port_80: false,
    };
    let connected = timeout(PATIENCE, DefaultClient::connect(&[server], key)).await;
    Ok(connected.context("the handshake takes too long")??)
}

async fn expect(client: &DefaultClient, from: NodePublicKey, packet: &[u8]) -> Result<()> {
    let (key, received) = timeout(PATIENCE, client.recv_one()).await.context("a packet does not come")??;
    ensure!(key == from, "a packet comes from another one");
    ensure!(received.as_ref() == packet, "a packet has changed");
    Ok(())
}

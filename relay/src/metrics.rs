//! What has been counted, for Prometheus (text exposition format 0.0.4), and whether all is well.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use ghostwire_relay_fastpath::abi::Counter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::server::Watch;

/// How long a scrape may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest request that is read, in bytes.
const MAX_REQUEST_LEN: usize = 8 << 10;

/// Serves `/metrics` and `/healthz` until the runtime ends.
pub async fn listen(address: SocketAddr, watch: Watch) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("cannot listen on TCP {address} for metrics"))?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                // One after the other: few ask, and none for long.
                Ok((stream, _)) => drop(timeout(PATIENCE, answer(stream, &watch)).await),
                // Out of descriptors, most likely: time lets some go.
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(())
}

async fn answer(mut stream: TcpStream, watch: &Watch) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut chunk = [0; 1024];
        let read = stream.read(&mut chunk).await?;
        if read == 0 || request.len() > MAX_REQUEST_LEN {
            return Ok(());
        }
        request.extend_from_slice(chunk.get(..read).unwrap_or_default());
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let path = line.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    let (status, body) = match path {
        b"/metrics" => ("200 OK", text(watch)),
        b"/healthz" if watch.load().draining => ("503 Service Unavailable", "draining\n".to_owned()),
        b"/healthz" => ("200 OK", "ok\n".to_owned()),
        _ => ("404 Not Found", "here are /metrics and /healthz\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// A family of metrics with the same name.
struct Family<'a> {
    out: &'a mut String,
    name: &'static str,
}

impl<'a> Family<'a> {
    fn new(out: &'a mut String, name: &'static str, kind: &str, help: &str) -> Self {
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP ghostwire_relay_{name} {help}\n# TYPE ghostwire_relay_{name} {kind}");
        Self { out, name }
    }

    fn value(&mut self, value: u64) {
        let _ = writeln!(self.out, "ghostwire_relay_{} {value}", self.name);
    }

    fn labelled(&mut self, label: &str, value: &str, number: u64) {
        let _ = writeln!(self.out, "ghostwire_relay_{}{{{label}=\"{value}\"}} {number}", self.name);
    }
}

/// All metrics.
pub fn text(watch: &Watch) -> String {
    let mut out = String::new();
    let load = watch.load();
    let gauges = [
        ("nodes", "Nodes that have a relay port.", load.nodes as u64),
        ("pairs", "Pairs of nodes that carry traffic.", load.pairs as u64),
        ("derp_clients", "Clients of the stream relay.", load.clients as u64),
        (
            "load_permille",
            "Share of the relay's room that is taken, where it is scarcest.",
            load.permille.into(),
        ),
        ("draining", "Whether the relay is about to stop.", load.draining.into()),
    ];
    for (name, help, value) in gauges {
        Family::new(&mut out, name, "gauge", help).value(value);
    }
    kernel(&mut out, watch);
    userspace(&mut out, watch);
    control(&mut out, watch);
    out
}

fn kernel(out: &mut String, watch: &Watch) {
    let Some(counters) = watch.plane().xdp().and_then(|xdp| xdp.counters().ok()) else { return };
    let mut family = Family::new(
        out,
        "xdp_packets_total",
        "counter",
        "Packets for the relay that the XDP program has seen, by what became of them.",
    );
    for (counter, [packets, _]) in Counter::ALL.iter().zip(counters) {
        family.labelled("result", counter.name(), packets);
    }
    let mut family = Family::new(out, "xdp_bytes_total", "counter", "Bytes of these packets' frames.");
    for (counter, [_, bytes]) in Counter::ALL.iter().zip(counters) {
        family.labelled("result", counter.name(), bytes);
    }
}

fn userspace(out: &mut String, watch: &Watch) {
    let counters = watch.plane().counters();
    let mut family = Family::new(
        out,
        "socket_packets_total",
        "counter",
        "Datagrams on relay ports that came to userspace, by what became of them.",
    );
    for (result, counter) in [
        ("forwarded", &counters.forwarded_packets),
        ("not_wireguard", &counters.not_wireguard),
        ("unknown_source", &counters.unknown_source),
        ("hop_limit", &counters.hop_limit),
        ("busy", &counters.busy),
        ("rate_limited", &counters.rate_limited),
        ("handshakes_limited", &counters.handshakes_limited),
        ("truncated", &counters.truncated),
        ("not_sent", &counters.not_sent),
    ] {
        family.labelled("result", result, counter.load(Ordering::Relaxed));
    }
}

fn control(out: &mut String, watch: &Watch) {
    let counters = watch.plane().control_counters();
    let mut family = Family::new(
        out,
        "requests_total",
        "counter",
        "Requests that came to userspace, by what became of them; one can count more than once.",
    );
    for (result, count) in [
        ("stun_answered", counters.stun_answered),
        ("malformed", counters.malformed),
        ("source_limited", counters.source_limited),
        ("challenged", counters.challenged),
        ("stale_challenge", counters.stale_challenges),
        ("crypto_limited", counters.crypto_limited),
        ("token_refused", counters.token_refused),
        ("integrity_refused", counters.integrity_refused),
        ("leg_refused", counters.legs_refused),
        ("out_of_order", counters.out_of_order),
        ("quota_refused", counters.quota_refused),
        ("granted", counters.granted),
        ("refused", counters.refused),
    ] {
        family.labelled("result", result, count);
    }
    let name = "rebound_total";
    Family::new(out, name, "counter", "Legs that moved to another address.").value(counters.rebound);
}

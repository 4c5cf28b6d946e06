//! The service itself: asks the loop, and does what takes time by itself.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use ghostwire_policy::filter::{AddrSet, FilterRule, NodeFilter, PortRange, ProtocolSet};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request as Grpc, Response, Status};

use crate::daemon::{AclDraft, PingTarget, Request, RequestError};
use crate::local;
use crate::naming::{REASONS, direction_word, rule_name};
use crate::plane::Machinery as _;
use crate::plane::kernel::Observed;
use crate::probe::Echo;

/// Replies are waited for this long.
const ECHO_PATIENCE: Duration = Duration::from_secs(2);
/// Most echo requests of one ping.
const MAX_PINGS: u32 = 100_000;

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Service {
    requests: mpsc::Sender<Request>,
}

impl Service {
    pub(super) fn new(requests: mpsc::Sender<Request>) -> Self {
        Self { requests }
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        let ending = || Status::unavailable("the daemon is ending");
        self.requests.send(request(answer)).await.map_err(|_| ending())?;
        answered.await.map_err(|_| ending())
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        let text = error.to_string();
        match error {
            RequestError::Precondition(_) => Self::failed_precondition(text),
            RequestError::Invalid(_) => Self::invalid_argument(text),
            RequestError::NotFound(_) => Self::not_found(text),
            RequestError::Failed(_) => Self::internal(text),
            RequestError::Refused(_) => Self::aborted(text),
            RequestError::Unreachable(_) => Self::deadline_exceeded(text),
        }
    }
}

#[tonic::async_trait]
impl local::local_service_server::LocalService for Service {
    type UpStream = Streamed<local::UpProgress>;
    type PingStream = Streamed<local::PingReply>;
    type WatchAclStream = Streamed<local::AclEvent>;

    async fn up(&self, request: Grpc<local::UpRequest>) -> Result<Response<Self::UpStream>, Status> {
        let (progress, steps) = mpsc::channel(16);
        let request = Request::Up(Box::new(request.into_inner()), progress);
        self.requests.send(request).await.map_err(|_| Status::unavailable("the daemon is ending"))?;
        let steps = futures::StreamExt::map(ReceiverStream::new(steps), |step| step.map_err(Status::from));
        Ok(Response::new(Box::pin(steps)))
    }

    async fn down(&self, _: Grpc<local::DownRequest>) -> Result<Response<local::DownResponse>, Status> {
        self.ask(Request::Down).await??;
        Ok(Response::new(local::DownResponse {}))
    }

    async fn status(&self, _: Grpc<local::StatusRequest>) -> Result<Response<local::StatusResponse>, Status> {
        let draft = self.ask(Request::Status).await?;
        Ok(Response::new(draft.finish(true).await))
    }

    async fn ping(&self, request: Grpc<local::PingRequest>) -> Result<Response<Self::PingStream>, Status> {
        let request = request.into_inner();
        let target = self.ask(|answer| Request::Ping(request.peer, answer)).await??;
        if request.until_direct {
            let _ = self.requests.send(Request::TryNow(target.peer)).await;
        }
        let (replies, stream) = mpsc::channel(16);
        let count = request.count.clamp(1, MAX_PINGS);
        let pause = Duration::from_millis(request.interval_ms.max(10).into());
        let until_direct = request.until_direct;
        let ping = Ping { target, count, pause, until_direct, requests: self.requests.clone() };
        tokio::spawn(ping.run(replies));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn acl(&self, _: Grpc<local::AclRequest>) -> Result<Response<local::AclResponse>, Status> {
        let (worker, draft) = self.ask(Request::Acl).await?;
        let asked = worker.run(|kernel| (kernel.observe(), kernel.enforced())).await;
        let (observed, enforced) = asked.map_err(|error| Status::internal(error.0))?;
        Ok(Response::new(acl_response(&draft, observed.as_ref(), enforced)))
    }

    async fn watch_acl(
        &self,
        request: Grpc<local::WatchAclRequest>,
    ) -> Result<Response<Self::WatchAclStream>, Status> {
        let accepted = request.into_inner().accepted;
        let mut events = self.ask(|answer| Request::Watch(accepted, answer)).await?;
        let (named, stream) = mpsc::channel(64);
        let requests = self.requests.clone();
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = events.recv() => event,
                    () = named.closed() => break,
                };
                match event {
                    Ok(event) if event.action == "pass" && !accepted => {}
                    Ok(event) => {
                        if named.send(Ok((*event).clone())).await.is_err() {
                            break;
                        }
                    }
                    // A slow reader misses some, as it would by the kernel's rate limit.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break,
                }
            }
            if accepted {
                let _ = requests.send(Request::Unwatch).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn set_shadow(
        &self,
        request: Grpc<local::SetShadowRequest>,
    ) -> Result<Response<local::SetShadowResponse>, Status> {
        let shadow = request.into_inner().shadow;
        self.ask(|answer| Request::Shadow(shadow, answer)).await??;
        Ok(Response::new(local::SetShadowResponse {}))
    }

    async fn netcheck(
        &self,
        _: Grpc<local::NetcheckRequest>,
    ) -> Result<Response<local::NetcheckResponse>, Status> {
        Ok(Response::new(self.ask(Request::Netcheck).await??))
    }

    async fn why(&self, request: Grpc<local::WhyRequest>) -> Result<Response<local::WhyResponse>, Status> {
        let peer = request.into_inner().peer;
        Ok(Response::new(self.ask(|answer| Request::Why(peer, answer)).await??))
    }

    async fn set_path(
        &self,
        request: Grpc<local::SetPathRequest>,
    ) -> Result<Response<local::SetPathResponse>, Status> {
        let request = Box::new(request.into_inner());
        self.ask(|answer| Request::SetPath(request, answer)).await??;
        Ok(Response::new(local::SetPathResponse {}))
    }
}

/// Echo requests to one peer.
struct Ping {
    target: PingTarget,
    count: u32,
    pause: Duration,
    until_direct: bool,
    requests: mpsc::Sender<Request>,
}

impl Ping {
    async fn run(self, replies: mpsc::Sender<Result<local::PingReply, Status>>) {
        let target = &self.target;
        if let Some(why) = &target.denied {
            let _ = replies.send(Err(Status::not_found(why.clone()))).await;
            return;
        }
        let echo = match Echo::new(target.address, &target.interface) {
            Ok(echo) => echo,
            Err(error) => {
                let what = format!("cannot send ICMP echo requests through {}: {error}", target.interface);
                let _ = replies.send(Err(Status::internal(what))).await;
                return;
            }
        };
        for sequence in 1..=self.count {
            let began = tokio::time::Instant::now();
            let number = u16::try_from(sequence % 65_536).unwrap_or(0);
            let answer = echo.round_trip(number, ECHO_PATIENCE).await;
            let reply = self.reply(sequence, &answer).await;
            let arrived = self.until_direct && answer.is_ok() && reply.path_class == "direct";
            if replies.send(Ok(reply)).await.is_err() || arrived {
                return;
            }
            if sequence < self.count {
                tokio::select! {
                    () = tokio::time::sleep_until(began + self.pause) => {}
                    () = replies.closed() => return,
                }
            }
        }
    }

    /// With the path that was in use when the answer came.
    async fn reply(&self, sequence: u32, answer: &std::io::Result<Duration>) -> local::PingReply {
        let (way, asked) = oneshot::channel();
        let _ = self.requests.send(Request::Way(self.target.peer, way)).await;
        let way = asked.await.ok().flatten();
        let (latency_ms, error) = match answer {
            Ok(took) => (took.as_secs_f64() * 1_000.0, String::new()),
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                (-1.0, format!("no reply in {} s", ECHO_PATIENCE.as_secs()))
            }
            Err(error) => (-1.0, error.to_string()),
        };
        local::PingReply {
            sequence,
            latency_ms,
            path: way.as_ref().map_or_else(|| "none".to_owned(), |way| way.path.clone()),
            path_class: way.as_ref().map_or("none", |way| way.class).to_owned(),
            why: way.map(|way| way.why).unwrap_or_default(),
            error,
        }
    }
}

fn acl_response(draft: &AclDraft, observed: Option<&Observed>, enforced: Option<u32>) -> local::AclResponse {
    let counters = observed.map(|observed| {
        crate::daemon::directions()
            .into_iter()
            .flat_map(|direction| {
                REASONS.iter().map(move |(reason, word, passed)| {
                    let counter = observed.counters.get(direction, *reason);
                    local::Counter {
                        direction: direction_word(direction).to_owned(),
                        reason: (*word).to_owned(),
                        passed: *passed,
                        packets: counter.packets,
                        bytes: counter.bytes,
                    }
                })
            })
            .collect()
    });
    let filter = draft.filter.as_deref();
    local::AclResponse {
        generation: enforced.unwrap_or(draft.generation),
        shadow: draft.shadow,
        counters: counters.unwrap_or_default(),
        connections: observed.map_or(0, |observed| u32::try_from(observed.connections).unwrap_or(u32::MAX)),
        image_words_used: observed.map_or(0, |observed| observed.image_words as u64),
        rules: filter.map(rules).unwrap_or_default(),
        filter_json: filter.and_then(|filter| serde_json::to_string(filter).ok()).unwrap_or_default(),
    }
}

/// One line for each rule, direction first.
fn rules(filter: &NodeFilter) -> Vec<String> {
    let side = |word: &'static str, rules: &[FilterRule]| {
        rules.iter().map(move |rule| format!("{word} {}", rule_text(rule))).collect::<Vec<_>>()
    };
    let mut lines = side("in ", &filter.inbound);
    lines.extend(side("out", &filter.outbound));
    lines
}

fn rule_text(rule: &FilterRule) -> String {
    format!(
        "{} -> {} {} {}  by {}",
        addresses(&rule.src),
        addresses(&rule.dst),
        protocols(rule.protocols),
        ports(&rule.ports),
        rule_name(rule.origin)
    )
}

fn addresses(set: &AddrSet) -> String {
    if set.v4 == [(0, u32::MAX)] && set.v6 == [(0, u128::MAX)] {
        return "*".to_owned();
    }
    let v4 = set.v4.iter().map(|(first, last)| {
        let (first, last) = (std::net::Ipv4Addr::from(*first), std::net::Ipv4Addr::from(*last));
        range(&first, &last)
    });
    let v6 = set.v6.iter().map(|(first, last)| {
        let (first, last) = (std::net::Ipv6Addr::from(*first), std::net::Ipv6Addr::from(*last));
        range(&first, &last)
    });
    few(&v4.chain(v6).collect::<Vec<_>>(), "address ranges")
}

fn range<A: std::fmt::Display + PartialEq>(first: &A, last: &A) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn ports(ports: &[PortRange]) -> String {
    let all = |range: &PortRange| range.first <= 1 && range.last == u16::MAX;
    if ports.iter().any(all) {
        return "all ports".to_owned();
    }
    let text = few(
        &ports.iter().map(|range| self::range(&range.first, &range.last)).collect::<Vec<_>>(),
        "port ranges",
    );
    format!("ports {text}")
}

fn protocols(set: ProtocolSet) -> String {
    let numbers: Vec<u8> = set.iter().collect();
    if numbers.len() >= 255 {
        return "all protocols".to_owned();
    }
    let names = numbers.iter().map(|number| match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    });
    few(&names.collect::<Vec<_>>(), "protocols")
}

fn few(parts: &[String], what: &str) -> String {
    const SHOWN: usize = 4;
    match parts.len() {
        0 => "nothing".to_owned(),
        1..=SHOWN => parts.join(","),
        all => format!("{},… ({all} {what})", parts[..SHOWN].join(",")),
    }
}

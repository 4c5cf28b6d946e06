//! `gwctl ping`

use ghostwire_proto::local::{PingReply, PingRequest};

use super::Context;
use crate::cli::PingArgs;
use crate::connect;
use crate::exit::{Code, Failure, Outcome};
use crate::output::json;
use crate::output::units::latency;

/// Echo requests if nothing is said.
const COUNT: u32 = 4;
/// And with `--until-direct`.
const UNTIL_DIRECT: u32 = 30;

pub(super) async fn ping(context: &Context, args: &PingArgs) -> Outcome {
    let mut daemon = connect::daemon(&context.global.socket).await?;
    let interval_ms = std::time::Duration::from_secs_f64(args.interval).as_millis();
    let request = PingRequest {
        peer: args.peer.clone(),
        count: args.count.unwrap_or(if args.until_direct { UNTIL_DIRECT } else { COUNT }),
        until_direct: args.until_direct,
        interval_ms: u32::try_from(interval_ms).unwrap_or(u32::MAX),
    };
    let doing = format!("ping {}", args.peer);
    let failed = |status: tonic::Status| Failure::of_status(&doing, &status);
    let mut replies = daemon.ping(request).await.map_err(failed)?.into_inner();
    let mut times = Vec::new();
    let mut sent = 0;
    let mut last = PingReply::default();
    while let Some(reply) = replies.message().await.map_err(failed)? {
        sent += 1;
        if reply.latency_ms >= 0.0 {
            times.push(reply.latency_ms);
        }
        show(context, &args.peer, &reply)?;
        last = reply;
    }
    if !context.output.json {
        context.output.line(summary(sent, &times))?;
    }
    let direct = last.latency_ms >= 0.0 && last.path_class == "direct";
    if args.until_direct && !direct && !context.output.json {
        let why = if last.why.is_empty() { String::new() } else { format!(": {}", last.why) };
        context.output.line(format!("not direct{why}; `gwctl why {}` says more", args.peer))?;
    }
    if times.is_empty() || (args.until_direct && !direct) {
        return Err(Failure::answered(Code::Failed));
    }
    Ok(())
}

fn show(context: &Context, peer: &str, reply: &PingReply) -> Outcome {
    let answered = reply.latency_ms >= 0.0;
    if context.output.json {
        return context.output.record(&json::Ping {
            sequence: reply.sequence,
            latency_ms: answered.then_some(reply.latency_ms),
            path: reply.path.clone(),
            path_class: reply.path_class.clone(),
            error: reply.error.clone(),
        });
    }
    let what = if answered { latency(reply.latency_ms) } else { reply.error.clone() };
    let path = if reply.path == "none" { "no path".to_owned() } else { reply.path.clone() };
    context.output.line(format!("{:>3}  {peer}  {what}  {path}", reply.sequence))
}

fn summary(sent: usize, times: &[f64]) -> String {
    let replies = times.len();
    if times.is_empty() {
        return format!(
            "{sent} sent, no reply: see `gwctl status` for the path and `gwctl acl watch` for drops"
        );
    }
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    let most = times.iter().copied().fold(0.0, f64::max);
    #[expect(clippy::cast_precision_loss, reason = "at most 100,000")]
    let mean = times.iter().sum::<f64>() / replies as f64;
    format!(
        "{sent} sent, {replies} received; shortest {}, mean {}, longest {}",
        latency(least),
        latency(mean),
        latency(most)
    )
}

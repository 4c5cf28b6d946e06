//! Numbers as people read them.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::macros::format_description;

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// `0 B`, `999 B`, `1.5 kB`, `12 MB`: powers of 1,000.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1_000 {
        return format!("{count} B");
    }
    let mut scale = 1_000_u64;
    let mut unit = 0;
    while count / scale >= 1_000 && unit + 1 < UNITS.len() {
        scale *= 1_000;
        unit += 1;
    }
    let tenths = u128::from(count) * 10 / u128::from(scale);
    if tenths < 100 {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    } else {
        format!("{} {}", tenths / 10, UNITS[unit])
    }
}

/// `12 s ago`; `never` for 0.
pub fn ago(then_ms: i64, now_ms: i64) -> String {
    if then_ms == 0 {
        return "never".to_owned();
    }
    match now_ms.saturating_sub(then_ms) {
        past if past < 1_000 => "now".to_owned(),
        past => format!("{} ago", span(past / 1_000)),
    }
}

/// `in 12 min`, `12 min ago`; `never` for 0.
pub fn until(then_ms: i64, now_ms: i64) -> String {
    match then_ms.saturating_sub(now_ms) {
        _ if then_ms == 0 => "never".to_owned(),
        left if left >= 1_000 => format!("in {}", span(left / 1_000)),
        _ => ago(then_ms, now_ms),
    }
}

fn span(seconds: i64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `2026-11-22 17:12:40 UTC`; empty for 0.
pub fn date(unix_ms: i64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    if unix_ms == 0 {
        return String::new();
    }
    OffsetDateTime::from_unix_timestamp(unix_ms / 1_000)
        .ok()
        .and_then(|date| date.format(format).ok())
        .unwrap_or_else(|| unix_ms.to_string())
}

/// `0.42 ms`, `12 ms`; `-` if unknown.
pub fn latency(milliseconds: f64) -> String {
    match milliseconds {
        unknown if unknown < 0.0 => "-".to_owned(),
        small if small < 10.0 => format!("{small:.2} ms"),
        large => format!("{large:.0} ms"),
    }
}

/// `tcp`, `udp`, `icmp`; a number for those without a common name.
pub fn protocol(number: u32) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => format!("protocol {other}"),
    }
}

/// `1 node`, `2 nodes`.
pub fn count(number: u64, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (9_999, "9.9 kB"),
            (10_000, "10 kB"),
            (999_999, "999 kB"),
            (1_500_000, "1.5 MB"),
            (u64::MAX, "18 EB"),
        ];
        for (number, text) in cases {
            assert_eq!(bytes(number), text);
        }
        assert_eq!(ago(0, 5), "never");
        assert_eq!(ago(4_500, 5_000), "now");
        assert_eq!(ago(1_000, 13_000), "12 s ago");
        assert_eq!(ago(1, 7_200_001), "2 h ago");
        assert_eq!(until(3_600_000, 0), "in 1 h");
        assert_eq!(until(1_000, 61_000), "1 min ago");
        // Whatever another machine says its time is.
        assert_eq!(ago(i64::MIN, 5), ago(1, i64::MAX));
        assert_eq!(until(i64::MAX, -5), until(i64::MAX, 0));
        assert_eq!(date(1_795_367_560_000), "2026-11-22 17:12:40 UTC");
        assert_eq!(latency(-1.0), "-");
        assert_eq!(latency(0.421), "0.42 ms");
        assert_eq!(latency(43.7), "44 ms");
        assert_eq!(count(1, "node"), "1 node");
        assert_eq!(count(0, "node"), "0 nodes");
    }
}

//! HTTP/1.1, as much as a relay needs: small requests without bodies.

use ghostwire_relay_protocol::derp::PublicKey;
use thiserror::Error;

/// The longest request that is read, in bytes.
pub const MAX_REQUEST_LEN: usize = 16 << 10;

const MAX_HEADERS: usize = 64;

/// What a browser sees.
const GREETING: &str =
    "This is a GhostWire relay: it carries packets that it cannot read, by DERP and by UDP.\n";

/// The longest challenge of a captive-portal check that is echoed.
const MAX_PORTAL_CHALLENGE: usize = 64;

/// Why a request is not answered but with an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadRequest {
    /// Not HTTP/1.
    #[error("not an HTTP request")]
    Malformed,
    /// Longer than a request to a relay can be.
    #[error("the request is too long")]
    TooLong,
    /// With a body, which no resource here takes.
    #[error("the request has a body")]
    Body,
}

/// What a request wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wants {
    /// To speak DERP from here on; without a response, if the client did not want to wait for one.
    Derp {
        /// Whether the client starts without waiting for the response.
        fast_start: bool,
    },
    /// A page.
    Page(Page),
}

/// A response, as far as it differs from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    status: &'static str,
    body: &'static str,
    /// Further header lines, each with its end.
    headers: String,
    head_only: bool,
    /// Whether the connection goes on.
    pub keep_alive: bool,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it wants.
    pub wants: Wants,
    /// How many bytes it took.
    pub len: usize,
}

/// Reads a request from the bytes that have come so far. `None`: more have to come. `healthy`: whether new
/// clients are welcome.
pub fn parse(bytes: &[u8], healthy: bool) -> Result<Option<Request>, BadRequest> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_REQUEST_LEN => return Err(BadRequest::TooLong),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(BadRequest::Malformed),
    };
    let header = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    if header("transfer-encoding").is_some() || header("content-length").is_some_and(|len| len.trim() != "0")
    {
        return Err(BadRequest::Body);
    }
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err(BadRequest::Malformed);
    };
    let path = path_of(target);
    let has_token = |name, token: &str| {
        let mut tokens = header(name).unwrap_or_default().split(',');
        tokens.any(|value| value.trim().eq_ignore_ascii_case(token))
    };
    let keep_alive = request.version == Some(1) && !has_token("connection", "close");
    let page =
        |status, body| Page { status, body, headers: String::new(), head_only: method == "HEAD", keep_alive };
    let wants = match (method, path) {
        // By any method: some clients use POST.
        (_, "/derp") if has_token("connection", "upgrade") && has_token("upgrade", "derp") => {
            Wants::Derp { fast_start: header("derp-fast-start") == Some("1") }
        }
        ("GET" | "HEAD", "/derp") => {
            let mut page = page("426 Upgrade Required", "DERP requires connection upgrade\n");
            page.headers.push_str("Upgrade: DERP\r\nConnection: close\r\n");
            page.keep_alive = false;
            Wants::Page(page)
        }
        ("GET" | "HEAD", "/derp/probe" | "/derp/latency-check") => {
            let mut page = page("200 OK", "");
            page.headers.push_str("Access-Control-Allow-Origin: *\r\n");
            Wants::Page(page)
        }
        ("GET" | "HEAD", "/generate_204") => {
            let mut page = page("204 No Content", "");
            if let Some(challenge) = header("x-tailscale-challenge").filter(|value| is_harmless(value)) {
                page.headers.push_str("X-Tailscale-Response: response ");
                page.headers.push_str(challenge);
                page.headers.push_str("\r\n");
            }
            Wants::Page(page)
        }
        ("GET" | "HEAD", "/") => Wants::Page(page("200 OK", GREETING)),
        // Not for search engines.
        ("GET" | "HEAD", "/robots.txt") => Wants::Page(page("200 OK", "User-agent: *\nDisallow: /\n")),
        ("GET" | "HEAD", "/healthz") if healthy => Wants::Page(page("200 OK", "ok\n")),
        ("GET" | "HEAD", "/healthz") => Wants::Page(page("503 Service Unavailable", "draining\n")),
        ("GET" | "HEAD", _) => Wants::Page(page("404 Not Found", "not found\n")),
        _ => Wants::Page(page("405 Method Not Allowed", "only GET and HEAD\n")),
    };
    Ok(Some(Request { wants, len }))
}

/// The path in a request's target, which may be a whole URL (RFC 9112 section 3.2.2).
fn path_of(target: &str) -> &str {
    let from_host = ["http://", "https://"].iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    });
    let path = match from_host {
        None => target,
        Some(rest) => rest.find(['/', '?']).and_then(|at| rest.get(at..)).unwrap_or("/"),
    };
    path.split('?').next().unwrap_or_default()
}

/// Only what can stand in a header without meaning anything; clients send a host there, perhaps with its port.
fn is_harmless(challenge: &str) -> bool {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (1..=MAX_PORTAL_CHALLENGE).contains(&challenge.len()) && challenge.bytes().all(harmless)
}

impl Page {
    /// The response's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = format!("HTTP/1.1 {}\r\n{}Cache-Control: no-store\r\n", self.status, self.headers);
        // 204 has no body and therefore no length (RFC 9110 section 8.6).
        if !self.status.starts_with("204") {
            out.push_str("Content-Type: text/plain\r\nContent-Length: ");
            out.push_str(&self.body.len().to_string());
            out.push_str("\r\n");
        }
        out.push_str("\r\n");
        if !self.head_only {
            out.push_str(self.body);
        }
        out.into_bytes()
    }
}

/// The response that turns HTTP into DERP.
pub fn switching_protocols(key: PublicKey) -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: {}\r\n\
         Derp-Public-Key: {key}\r\n\r\n",
        ghostwire_relay_protocol::derp::VERSION
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(request: &str, healthy: bool) -> String {
        match parse(request.as_bytes(), healthy).unwrap().unwrap().wants {
            Wants::Page(page) => String::from_utf8(page.bytes()).unwrap(),
            Wants::Derp { .. } => panic!("an upgrade"),
        }
    }

    #[test]
    fn an_upgrade_is_recognised_however_it_is_written() {
        let request =
            b"GET /derp HTTP/1.1\r\nHost: x\r\nupgrade: derp\r\nCONNECTION: keep-alive, Upgrade\r\n\r\nrest";
        let parsed = parse(request, true).unwrap().unwrap();
        assert_eq!(parsed.wants, Wants::Derp { fast_start: false });
        assert_eq!(&request[parsed.len..], b"rest");
        let fast =
            b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Fast-Start: 1\r\n\r\n";
        assert_eq!(parse(fast, true).unwrap().unwrap().wants, Wants::Derp { fast_start: true });
    }

    #[test]
    fn any_method_and_whole_urls_will_do() {
        for start in ["POST /derp", "POST https://203.0.113.1:443/derp", "GET HTTP://relay/derp?x"] {
            let request = format!(
                "{start} HTTP/1.1\r\nhost: x\r\nupgrade: DERP\r\nconnection: Upgrade\r\ncontent-length: 0\r\n\r\n"
            );
            let wants = parse(request.as_bytes(), true).unwrap().unwrap().wants;
            assert_eq!(wants, Wants::Derp { fast_start: false }, "{start}");
        }
        assert!(page("GET http://relay HTTP/1.1\r\n\r\n", true).starts_with("HTTP/1.1 200 "));
        assert!(page("GET http://relay?/derp HTTP/1.1\r\n\r\n", true).starts_with("HTTP/1.1 404 "));
    }

    #[test]
    fn without_an_upgrade_derp_is_426() {
        assert!(page("GET /derp HTTP/1.1\r\n\r\n", true).starts_with("HTTP/1.1 426 "));
    }

    #[test]
    fn probes_are_answered() {
        for path in ["/derp/probe", "/derp/latency-check?x=1"] {
            let answer = page(&format!("HEAD {path} HTTP/1.1\r\n\r\n"), true);
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("Access-Control-Allow-Origin: *"));
        }
        let answer = page("GET /generate_204 HTTP/1.1\r\nX-Tailscale-Challenge: ts_a.b-1:443\r\n\r\n", true);
        assert!(
            answer.starts_with("HTTP/1.1 204 ")
                && answer.contains("X-Tailscale-Response: response ts_a.b-1:443\r\n")
        );
        let injected = page("GET /generate_204 HTTP/1.1\r\nX-Tailscale-Challenge: a b\r\n\r\n", true);
        assert!(!injected.contains("Response: "));
        assert!(page("GET /healthz HTTP/1.1\r\n\r\n", true).starts_with("HTTP/1.1 200 "));
        assert!(page("GET /healthz HTTP/1.1\r\n\r\n", false).starts_with("HTTP/1.1 503 "));
        assert!(page("GET / HTTP/1.1\r\n\r\n", true).ends_with(GREETING));
        assert!(page("GET /bootstrap-dns HTTP/1.1\r\n\r\n", true).starts_with("HTTP/1.1 404 "));
        assert!(page("GET /nothing HTTP/1.1\r\n\r\n", true).starts_with("HTTP/1.1 404 "));
        assert!(page("PUT /derp HTTP/1.1\r\n\r\n", true).starts_with("HTTP/1.1 405 "));
    }

    #[test]
    fn what_is_not_a_small_request_is_refused() {
        assert_eq!(parse(b"GET /derp HT", true), Ok(None));
        assert_eq!(parse(b"\x16\x03\x01\x00", true), Err(BadRequest::Malformed));
        assert_eq!(parse(b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", true), Err(BadRequest::Body));
        let long = format!("GET /{} ", "x".repeat(MAX_REQUEST_LEN));
        assert_eq!(parse(long.as_bytes(), true), Err(BadRequest::TooLong));
    }

    proptest::proptest! {
        #[test]
        fn reading_requests_is_total(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = parse(&bytes, true);
        }
    }
}

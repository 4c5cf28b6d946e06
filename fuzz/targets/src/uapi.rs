//! The text that configures a userspace WireGuard device, in both directions.

use ghostwire_dataplane::wireguard::uapi::{
    Framer, Request, get_answer, parse_answer, parse_request, set_request,
};

/// A stream of bytes from the socket. True if a message in it can be read.
pub fn run(data: &[u8]) -> bool {
    let (mut framer, mut rest, mut understood) = (Framer::default(), data, false);
    while !rest.is_empty() {
        let Ok((taken, message)) = framer.push(rest) else { return understood };
        assert!(taken <= rest.len() && (taken > 0 || message.is_some()), "the framer does not advance");
        rest = &rest[taken..];
        if let Some(message) = message {
            understood |= request(&message) | answer(&message);
        }
    }
    understood
}

fn request(message: &str) -> bool {
    let Ok(request) = parse_request(message) else { return false };
    if let Request::Set(update) = &request {
        let again =
            framed(&set_request(update)).is_some_and(|text| parse_request(&text).as_ref() == Ok(&request));
        assert!(again, "a request is written as another one");
    }
    true
}

fn answer(message: &str) -> bool {
    let Ok(answer) = parse_answer(message) else { return false };
    let again = framed(&get_answer(&answer.status)).and_then(|text| parse_answer(&text).ok());
    assert!(again.is_some_and(|again| again.status == answer.status), "an answer is written as another one");
    true
}

/// The one message that a writer made.
fn framed(text: &str) -> Option<String> {
    let (taken, message) = Framer::default().push(text.as_bytes()).ok()?;
    assert_eq!(taken, text.len(), "a writer made more than one message");
    message.map(|message| (*message).clone())
}

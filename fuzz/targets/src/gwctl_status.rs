//! Answers of a daemon, which hold what other machines say: shown without control characters and in any width.

use ghostwire_proto::local::StatusResponse;
use gwctl::commands::status;
use gwctl::output::{Output, json};
use prost::Message as _;

/// A [`StatusResponse`]. True if it is one.
pub fn run(data: &[u8]) -> bool {
    let Ok(answer) = StatusResponse::decode(data) else { return false };
    for width in [None, Some(1), Some(80), Some(u16::MAX)] {
        let output = Output { json: false, colour: false, width };
        shown(&status::overview(&output, &answer, 1_795_367_560_000));
        for peer in &answer.peers {
            shown(&status::detail(&output, peer, 1_795_367_560_000));
        }
    }
    assert!(serde_json::to_string(&json::Status::from(&answer)).is_ok());
    true
}

fn shown(text: &str) {
    let control = text.chars().find(|character| character.is_control() && *character != '\n');
    assert_eq!(control, None, "a control character reaches the terminal: {text:?}");
}

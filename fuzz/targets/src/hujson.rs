//! HuJSON against JSON: whatever is JSON is HuJSON with the same value.

use ghostwire_policy::hujson::{self, Node, Value};
use serde_json::Value as Json;

/// A document. True if it is HuJSON.
pub fn run(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let ours = hujson::parse(text);
    if let Ok(json) = serde_json::from_str::<Json>(text) {
        match &ours {
            Ok(ours) => assert!(same(ours, &json), "{ours:?} is not {json:?}"),
            // Of two equal keys JSON's readers keep either; nesting is bounded more narrowly than there.
            Err(error) => assert!(
                error.message.starts_with("duplicate key") || error.message.starts_with("nested deeper"),
                "JSON is refused: {error}"
            ),
        }
    }
    if let Ok(node) = &ours {
        spans(node, text);
    }
    ours.is_ok()
}

fn same(ours: &Node, theirs: &Json) -> bool {
    match (&ours.value, theirs) {
        (Value::Null, Json::Null) => true,
        (Value::Bool(ours), Json::Bool(theirs)) => ours == theirs,
        (Value::Number(ours), Json::Number(theirs)) => {
            serde_json::from_str::<serde_json::Number>(ours).is_ok_and(|ours| ours == *theirs)
        }
        (Value::String(ours), Json::String(theirs)) => ours == theirs,
        (Value::Array(ours), Json::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| same(ours, theirs))
        }
        (Value::Object(ours), Json::Object(theirs)) => {
            ours.len() == theirs.len()
                && ours
                    .iter()
                    .all(|member| theirs.get(&member.key).is_some_and(|theirs| same(&member.node, theirs)))
        }
        _ => false,
    }
}

/// Every value lies where it says.
fn spans(node: &Node, text: &str) {
    assert!(text.get(node.span.start..node.span.end).is_some_and(|text| !text.is_empty()));
    match &node.value {
        Value::Array(items) => items.iter().for_each(|item| spans(item, text)),
        Value::Object(members) => members.iter().for_each(|member| {
            assert!(text.get(member.key_span.start..member.key_span.end).is_some());
            spans(&member.node, text);
        }),
        _ => {}
    }
}

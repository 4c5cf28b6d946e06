//! Policies against networks that are just as made up: what `gwctl policy --topology` reads.

use ghostwire_policy::{Policy, topology};

/// A topology as JSON, a zero byte, a policy. True if both can be read and the one resolves against the other.
pub fn run(data: &[u8]) -> bool {
    let Some(at) = data.iter().position(|byte| *byte == 0) else { return false };
    let (Ok(network), Ok(text)) = (std::str::from_utf8(&data[..at]), std::str::from_utf8(&data[at + 1..]))
    else {
        return false;
    };
    match (topology::from_json(network), Policy::parse(text)) {
        (Ok(topology), Ok(policy)) => crate::judge::policy(&policy, &topology),
        (Err(error), _) => {
            assert!(!error.to_string().is_empty());
            false
        }
        _ => false,
    }
}

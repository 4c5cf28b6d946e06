//! Policies against a network of every kind of node.

use std::sync::LazyLock;

use ghostwire_policy::{Policy, Topology, topology};

/// Users with and without groups, tagged nodes, a router, an exit node.
pub(crate) const NETWORK: &str = r#"{
  "users": ["alice@x.org", "bob.dev@x.org", {"login": "erin@y.org", "groups": ["admin"]}],
  "nodes": [
    {"name": "desk", "user": "alice@x.org", "ipv4": "100.64.0.2", "ipv6": "fd7a:115c:a1e0::2"},
    {"name": "phone", "user": "alice@x.org", "ipv4": "100.64.0.3", "ipv6": "fd7a:115c:a1e0::3"},
    {"name": "dev", "user": "bob.dev@x.org", "ipv4": "100.64.0.4"},
    {"name": "web", "tags": ["tag:a"], "ipv4": "100.64.0.5", "ipv6": "fd7a:115c:a1e0::5"},
    {"name": "router", "tags": ["tag:b"], "ipv4": "100.64.0.6", "ipv6": "fd7a:115c:a1e0::6",
     "routable_ips": ["10.0.0.0/8", "fd00:1::/64"], "approved_routes": ["10.0.0.0/8"]},
    {"name": "exit", "user": "erin@y.org", "ipv4": "100.64.0.7", "ipv6": "fd7a:115c:a1e0::7",
     "routable_ips": ["0.0.0.0/0", "::/0"], "approved_routes": ["0.0.0.0/0", "::/0"]}
  ]
}"#;

static TOPOLOGY: LazyLock<Option<Topology>> = LazyLock::new(|| topology::from_json(NETWORK).ok());

/// The text of a policy. True if it is one.
pub fn run(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    match Policy::parse(text) {
        Ok(policy) => {
            let Some(topology) = TOPOLOGY.as_ref() else { return false };
            crate::judge::policy(&policy, topology);
            true
        }
        Err(errors) => {
            assert!(!errors.errors.is_empty() && !errors.to_string().is_empty());
            for error in &errors.errors {
                assert!(error.line > 0 && error.column > 0 && !error.message.is_empty(), "{error:?}");
            }
            false
        }
    }
}

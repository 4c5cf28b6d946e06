//! The language means what it means elsewhere.
#![expect(clippy::unwrap_used, reason = "the helpers of a test are as much a test as the rest")]

use std::path::Path;

use ghostwire_policy::conformance::{run_case, run_dir};

fn cases() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")
}

#[test]
fn every_case_passes() {
    let mut output = Vec::new();
    let summary = run_dir(&cases(), &mut output).unwrap();
    assert!(summary.is_success(), "{}", String::from_utf8_lossy(&output));
    assert_eq!(summary.passed, 373);
    assert!(output.ends_with(b"373 passed, 0 failed\n"));
}

/// The specimens: a runner that cannot fail proves nothing.
#[test]
fn a_case_with_wrong_expectations_fails() {
    let text = std::fs::read_to_string(cases().join("acl/acl-t01.json")).unwrap();
    run_case(&text).unwrap();
    let policy_opens_more = text.replace("tag:server:22", "tag:server:22,23");
    assert!(run_case(&policy_opens_more).unwrap_err().contains("expected"));
    let policy_opens_less = text.replace("tag:server:22", "tag:server:23");
    assert!(run_case(&policy_opens_less).is_err());
    let mut case: serde_json::Value = serde_json::from_str(&text).unwrap();
    for node in case["expect"].as_object_mut().unwrap().values_mut() {
        node["peers"] = serde_json::json!({});
    }
    assert!(run_case(&case.to_string()).unwrap_err().contains("sees peer"));
    case["expect_error"] = serde_json::json!({"message": "no"});
    assert!(run_case(&case.to_string()).unwrap_err().contains("accepted, but must be refused"));
}

fn case(name: &str) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(cases().join(name)).unwrap()).unwrap()
}

/// What a case leaves open is not left open wider than that.
#[test]
fn an_address_of_renumbered_nodes_has_one_reading_in_the_whole_case() {
    let written = case("policytest/policytest-allpass-grants-only-tag-src-ipv6-literal-dst.json");
    run_case(&written.to_string()).unwrap();
    // One node sees the other, and that one has no rule: no reading explains both.
    let mut mixed = written.clone();
    let addresses = serde_json::json!({"beedrill": ["100.64.0.16/32", "fd7a:115c:a1e0::10/128"]});
    mixed["expect"]["weedle"]["peers"] = addresses;
    assert!(run_case(&mixed.to_string()).is_err());
    // Nodes with addresses of their own: an address in the policy is the node's.
    let mut original = written;
    original["nodes"]["venusaur"]["ipv6"] = "fd7a:115c:a1e0::f537:b479".into();
    assert!(run_case(&original.to_string()).unwrap_err().contains("expected nothing, got tcp:22"));
}

#[test]
fn a_pending_route_counts_only_where_the_policy_approves_it() {
    let mut case = case("acl/acl-k03.json");
    run_case(&case.to_string()).unwrap();
    case["policy"] = case["policy"].as_str().unwrap().replace("10.33.0.0/16", "10.34.0.0/16").into();
    assert!(run_case(&case.to_string()).unwrap_err().contains("10.33.0.0/16"));
}

#[test]
fn a_subnet_has_one_primary_router_in_the_whole_case() {
    let mut written = case("routes/routes-a5-host-alias-to-subnet.json");
    run_case(&written.to_string()).unwrap();
    // Another node is shown the other router as the primary one.
    let peers = written["expect"]["caterpie"]["peers"].as_object_mut().unwrap();
    let moved = serde_json::json!("192.168.1.0/24");
    for (name, prefixes) in peers {
        let prefixes = prefixes.as_array_mut().unwrap();
        prefixes.retain(|prefix| *prefix != moved);
        if name == "butterfree" {
            prefixes.push(moved.clone());
        }
    }
    assert!(run_case(&written.to_string()).is_err());
}

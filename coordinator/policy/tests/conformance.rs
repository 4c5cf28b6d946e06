//! The language means what it means elsewhere.

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

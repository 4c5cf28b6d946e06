//! Any input yields a policy or an error, never a panic.

use ghostwire_policy::{Policy, hujson};
use proptest::prelude::*;

const SEED: &str = r#"{
  // groups
  "groups": {"group:admin": ["alice@company.com", "*.dev@company.com"],},
  "hosts": {"web": "10.0.0.1", "net": "10.0.0.0/8"},
  "tagOwners": {"tag:server": ["group:admin"], "tag:b": ["tag:server"]},
  /* rules */
  "acls": [{"action": "accept", "proto": "tcp", "src": ["group:admin", "*"], "dst": ["tag:server:22,80-90", "*:*", "[fd7a::1]/128:80"]}],
  "grants": [{"src": ["autogroup:member"], "dst": ["autogroup:self", "autogroup:internet"], "ip": ["tcp:443", "*"], "via": ["tag:b"]}],
  "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:server"]}, "exitNode": ["group:admin"]},
  "tests": [{"src": "alice@company.com", "accept": ["tag:server:22"], "deny": ["web:23"]}],
}"#;

#[test]
fn the_seed_is_a_policy() {
    Policy::parse(SEED).unwrap();
}

#[test]
fn nesting_is_bounded() {
    for open in ["[", "{\"a\":", "[{\"a\":"] {
        let error = hujson::parse(&open.repeat(200_000)).unwrap_err();
        assert!(error.message.contains("nested deeper"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_text_does_not_panic(text in "\\PC{0,200}") {
        let _ = Policy::parse(&text);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Policy::parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn json_like_text_does_not_panic(text in "[\\[\\]{}:,\"'/*\\\\ua0-9.eE+tfn \n-]{0,80}") {
        let _ = Policy::parse(&text);
    }

    #[test]
    fn mutated_policies_do_not_panic(
        at in 0..SEED.len(), length in 0_usize..12, insert in "[\\[\\]{}:,\"/*@a-z0-9\\\\ -]{0,6}",
    ) {
        let end = (at + length).min(SEED.len());
        let text = format!("{}{insert}{}", &SEED[..at], &SEED[end..]);
        if let Err(errors) = Policy::parse(&text) {
            prop_assert!(!errors.errors.is_empty());
            for error in &errors.errors {
                prop_assert!(error.line > 0 && error.column > 0 && !error.message.is_empty(), "{:?}", error);
            }
        }
    }

    #[test]
    fn words_do_not_panic(word in "\\PC{0,40}", ports in "[0-9,*: -]{0,12}") {
        let quoted = serde_json::to_string(&format!("{word}:{ports}")).unwrap();
        let word = serde_json::to_string(&word).unwrap();
        let _ = Policy::parse(&format!(
            r#"{{"groups": {{"group:g": [{word}]}}, "hosts": {{{word}: {word}}}, "tagOwners": {{{word}: [{word}]}},
                "acls": [{{"action": {word}, "src": [{word}], "dst": [{quoted}], "proto": {word}}}],
                "grants": [{{"src": [{word}], "dst": [{word}], "ip": [{word}, {quoted}], "via": [{word}]}}],
                "tests": [{{"src": {word}, "accept": [{quoted}]}}]}}"#
        ));
    }
}

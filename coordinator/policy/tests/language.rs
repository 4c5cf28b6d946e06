//! What a user of the language relies on, beyond the conformance cases.
#![expect(clippy::unwrap_used, reason = "the helpers of a test are as much a test as the rest")]

use std::net::IpAddr;

use ghostwire_policy::topology::{self, User};
use ghostwire_policy::{Policy, ResolvedPolicy, Topology};

/// The example of the specification.
const EXAMPLE: &str = r#"{
  // Define user groups
  "groups": {
    "group:admin": ["alice@company.com", "bob@company.com"],
    "group:developers": ["*.dev@company.com"],
    "group:interns": ["*.intern@company.com"]
  },

  // Tag ownership
  "tagOwners": {
    "tag:server": ["group:admin"],
    "tag:database": ["group:admin"],
    "tag:development": ["group:developers", "group:admin"]
  },

  // Access rules
  "acls": [
    // Admins can access everything
    {
      "action": "accept",
      "src": ["group:admin"],
      "dst": ["*:*"]
    },

    // Developers can access development resources
    {
      "action": "accept",
      "src": ["group:developers"],
      "dst": ["tag:development:*"]
    },

    // Everyone can access web services
    {
      "action": "accept",
      "src": ["*"],
      "dst": ["*:80", "*:443"]
    }
  ]
}"#;

fn network() -> Topology {
    topology::from_json(
        r#"{
          "users": ["alice@company.com", "carol.dev@company.com", "dave.intern@company.com",
                    {"login": "erin@company.com", "groups": ["admin"]}],
          "nodes": [
            {"name": "desk", "user": "alice@company.com", "ipv4": "100.64.0.2", "ipv6": "fd7a:115c:a1e0::2"},
            {"name": "laptop", "user": "carol.dev@company.com", "ipv4": "100.64.0.3", "ipv6": "fd7a:115c:a1e0::3"},
            {"name": "tablet", "user": "dave.intern@company.com", "ipv4": "100.64.0.4", "ipv6": "fd7a:115c:a1e0::4"},
            {"name": "build", "tags": ["tag:development"], "ipv4": "100.64.0.5", "ipv6": "fd7a:115c:a1e0::5"},
            {"name": "router", "tags": ["tag:server"], "ipv4": "100.64.0.6", "ipv6": "fd7a:115c:a1e0::6",
             "routable_ips": ["10.0.0.0/8"], "approved_routes": ["10.0.0.0/8"]},
            {"name": "phone", "user": "erin@company.com", "ipv4": "100.64.0.7", "ipv6": "fd7a:115c:a1e0::7"},
            {"name": "exit", "tags": ["tag:exit"], "ipv4": "100.64.0.8", "ipv6": "fd7a:115c:a1e0::8",
             "approved_routes": ["0.0.0.0/0", "::/0"]}
          ]
        }"#,
    )
    .unwrap()
}

fn resolve(text: &str) -> ResolvedPolicy {
    Policy::parse(text).unwrap().resolve(&network()).unwrap()
}

fn address(resolved: &ResolvedPolicy, name: &str) -> IpAddr {
    resolved.find_address(name, false).unwrap()
}

fn allows(resolved: &ResolvedPolicy, src: &str, dst: &str, port: u16) -> bool {
    resolved.explain(address(resolved, src), address(resolved, dst), 6, port).allowed
}

fn node(resolved: &ResolvedPolicy, name: &str) -> usize {
    resolved.topology().nodes.iter().position(|node| node.name == name).unwrap()
}

#[test]
fn the_specifications_example_works_as_written() {
    let resolved = resolve(EXAMPLE);
    assert!(allows(&resolved, "desk", "build", 22));
    assert!(allows(&resolved, "laptop", "build", 22), "*.dev@company.com is a developer");
    assert!(!allows(&resolved, "tablet", "build", 22));
    assert!(allows(&resolved, "tablet", "build", 443));
    assert!(
        allows(&resolved, "phone", "build", 22),
        "the identity provider says that erin is in group:admin"
    );
    let carol = User { login: "carol.dev@company.com".into(), groups: Vec::new() };
    assert!(resolved.policy().may_own_tag(&carol, "tag:development"));
    assert!(!resolved.policy().may_own_tag(&carol, "tag:server"));
}

#[test]
fn an_explanation_names_the_rule_or_what_is_missing() {
    let resolved = resolve(EXAMPLE);
    let (tablet, build) = (address(&resolved, "tablet"), address(&resolved, "build"));
    let allowed = resolved.explain(tablet, build, 6, 443);
    assert_eq!((allowed.allowed_by[0].origin.index, allowed.allowed_by[0].origin.line), (2, 33));
    assert_eq!(
        allowed.allowed_by[0].text,
        r#"{ "action": "accept", "src": ["*"], "dst": ["*:80", "*:443"] }"#
    );
    assert!(allowed.to_string().starts_with("ALLOWED  100.64.0.4 (tablet, dave.intern@company.com)"));
    let denied = resolved.explain(tablet, build, 6, 22);
    assert!(!denied.allowed);
    assert_eq!(denied.near[0].missing.len(), 1);
    let text = denied.to_string();
    assert!(text.contains("its sources do not include 100.64.0.4"), "{text}");
    assert!(text.contains("its ports do not include 22"), "{text}");
    let nobody = resolved.explain(tablet, "100.64.9.9".parse().unwrap(), 6, 443);
    assert!(!nobody.allowed && nobody.obstacles[0].contains("no node has the address"));
    let json = serde_json::to_string(&denied).unwrap();
    assert_eq!(serde_json::from_str::<ghostwire_policy::explain::Explanation>(&json).unwrap(), denied);
}

#[test]
fn explanations_and_filters_agree() {
    let resolved = resolve(EXAMPLE);
    let nodes = &resolved.topology().nodes;
    for (from, src) in nodes.iter().enumerate() {
        for (to, dst) in nodes.iter().enumerate().filter(|&(to, _)| to != from) {
            for family in 0..2 {
                for (protocol, port) in [(6, 22), (6, 80), (17, 443), (1, 0), (58, 0), (47, 0)] {
                    let (src, dst) = (src.addresses[family], dst.addresses[family]);
                    let flow = ghostwire_policy::filter::Flow { src, dst, protocol, dst_port: port };
                    let explained = resolved.explain(src, dst, protocol, port).allowed;
                    assert_eq!(
                        resolved.node_filter(to).inbound_verdict(&flow).is_allowed(),
                        explained,
                        "{flow:?}"
                    );
                    assert_eq!(
                        resolved.node_filter(from).outbound_verdict(&flow).is_allowed(),
                        explained,
                        "{flow:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn subnets_are_reached_through_their_router_only_and_the_internet_through_exit_nodes() {
    let text = r#"{"tagOwners": {"tag:server": [], "tag:exit": []},
        "hosts": {"office": "10.1.0.0/16"},
        "acls": [{"action": "accept", "src": ["alice@company.com"], "dst": ["office:22"]},
                 {"action": "accept", "src": ["carol.dev@company.com"], "dst": ["autogroup:internet:*"]}]}"#;
    let resolved = resolve(text);
    let (desk, laptop) = (node(&resolved, "desk"), node(&resolved, "laptop"));
    let (router, exit) = (node(&resolved, "router"), node(&resolved, "exit"));
    assert_eq!(resolved.visible_peers(desk), [router]);
    assert_eq!(resolved.visible_peers(laptop), [exit]);
    let prefixes = |viewer, peer| {
        let prefixes = resolved.peer_allowed_prefixes(viewer, peer);
        prefixes.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(prefixes(desk, router).contains(&"10.0.0.0/8".to_owned()));
    assert!(prefixes(laptop, exit).contains(&"::/0".to_owned()));
    let inbound = resolved.node_filter(router).inbound;
    assert_eq!(inbound[0].dst.to_string(), "10.1.0.0/16");
    assert!(resolved.explain(address(&resolved, "desk"), "10.1.2.3".parse().unwrap(), 6, 22).allowed);
    assert!(!resolved.explain(address(&resolved, "desk"), "10.2.2.3".parse().unwrap(), 6, 22).allowed);
    let internet = &resolved.node_filter(exit).inbound[0].dst;
    assert!(
        internet.contains("1.1.1.1".parse().unwrap()) && internet.contains("2606:4700::1".parse().unwrap())
    );
    assert!(
        !internet.contains("192.168.1.1".parse().unwrap())
            && !internet.contains("100.64.0.2".parse().unwrap())
    );
}

#[test]
fn via_admits_through_routers_with_the_tag_only() {
    let policy = |tag: &str| {
        format!(
            r#"{{"tagOwners": {{"tag:server": [], "tag:exit": []}},
            "grants": [{{"src": ["alice@company.com"], "dst": ["10.0.0.0/8"], "ip": ["*"], "via": ["{tag}"]}}]}}"#
        )
    };
    let resolved = resolve(&policy("tag:server"));
    let router = node(&resolved, "router");
    assert_eq!(resolved.node_filter(router).inbound.len(), 1);
    let resolved = resolve(&policy("tag:exit"));
    assert!(resolved.node_filter(router).inbound.is_empty());
    assert!(resolved.visible_peers(node(&resolved, "desk")).is_empty());
}

#[test]
fn autogroup_self_is_the_same_users_untagged_nodes() {
    let mut network = network();
    network.nodes[1].user = Some("alice@company.com".into());
    let text =
        r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}"#;
    let resolved = Policy::parse(text).unwrap().resolve(&network).unwrap();
    assert!(allows(&resolved, "desk", "laptop", 22) && allows(&resolved, "laptop", "desk", 22));
    assert!(!allows(&resolved, "desk", "tablet", 22) && !allows(&resolved, "desk", "build", 22));
    assert_eq!(resolved.visible_peers(0), [1]);
    assert!(resolved.visible_peers(2).is_empty());
}

#[test]
fn tags_are_owned_over_any_number_of_steps_and_cycles_end() {
    let policy = Policy::parse(
        r#"{"tagOwners": {"tag:a": ["tag:b"], "tag:b": ["tag:c"], "tag:c": ["tag:a", "user:*@company.com"], "tag:d": []}}"#,
    )
    .unwrap();
    let user = |login: &str| User { login: login.into(), groups: Vec::new() };
    assert!(policy.may_own_tag(&user("x@company.com"), "tag:a"));
    assert!(!policy.may_own_tag(&user("x@other.com"), "tag:a"));
    assert!(!policy.may_own_tag(&user("x@company.com"), "tag:d"));
    assert!(policy.tag_owns_tag("tag:c", "tag:a") && !policy.tag_owns_tag("tag:d", "tag:a"));
}

#[test]
fn routes_are_approved_by_prefix_and_exit_nodes_apart() {
    let resolved = resolve(
        r#"{"tagOwners": {"tag:server": [], "tag:exit": []},
            "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:server"], "0.0.0.0/0": ["tag:server"]}, "exitNode": ["tag:exit"]}}"#,
    );
    let (router, exit) = (node(&resolved, "router"), node(&resolved, "exit"));
    let net = |text: &str| text.parse().unwrap();
    assert!(resolved.approves_route(router, net("10.0.0.0/8")));
    assert!(resolved.approves_route(router, net("10.33.0.0/16")));
    assert!(!resolved.approves_route(router, net("fd00::/64")));
    assert!(!resolved.approves_route(router, net("0.0.0.0/0")), "only exitNode approves exit nodes");
    assert!(resolved.approves_route(exit, net("0.0.0.0/0")));
    assert!(!resolved.approves_route(exit, net("10.0.0.0/8")));
}

#[test]
fn without_rules_everything_is_allowed_and_with_empty_rules_nothing() {
    for (text, wanted) in [("{}", true), (r#"{"acls": []}"#, false), (r#"{"grants": []}"#, false)] {
        let resolved = resolve(text);
        assert_eq!(allows(&resolved, "tablet", "build", 22), wanted, "{text}");
        assert_eq!(resolved.visible_peers(0).len(), if wanted { 6 } else { 0 });
    }
    assert!(
        Policy::allow_all()
            .resolve(&network())
            .unwrap()
            .explain("100.64.0.2".parse().unwrap(), "100.64.0.3".parse().unwrap(), 47, 0)
            .allowed
    );
}

/// Message, line and column of the first error, and whether the hint contains something.
fn refused(text: &str, message: &str, at: (u32, u32), hint: &str) {
    let errors = Policy::parse(text).unwrap_err();
    let error = &errors.errors[0];
    assert!(error.message.contains(message), "{errors}");
    assert_eq!((error.line, error.column), at, "{errors}");
    assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{errors}");
}

#[test]
fn errors_point_at_the_text_and_say_what_to_do() {
    refused("{\n  \"alcs\": []\n}", "unknown field: \"alcs\"", (2, 3), "did you mean \"acls\"?");
    refused("{\"acls\": [],\n \"ACLs\": []}", "duplicate key", (2, 2), "case");
    refused("{\"hosts\": {},\n \"hosts\": {}}", "duplicate key \"hosts\"", (2, 2), "line 1");
    refused(
        "{\"groups\": {\"group:a\": [\"group:b\"]}}",
        "group members cannot be recursive",
        (1, 25),
        "logins",
    );
    refused("{\"groups\": {\"group:a\": [\"alice\"]}}", "must contain @", (1, 25), "full logins");
    refused("{\"tagOwners\": {\"tag:1\": []}}", "must start with a letter", (1, 16), "letter");
    refused(
        "{\"acls\": [{\"action\": \"accept\", \"src\": [\"*.dev@x.org\"], \"dst\": [\"*:*\"]}]}",
        "patterns of logins",
        (1, 40),
        "group",
    );
    refused(
        "{\"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:*\"], \"srcPosture\": [\"posture:x\"]}]}",
        "postures are not supported",
        (1, 76),
        "every device",
    );
    refused("{\"acls\": [}", "expected a value", (1, 11), "");
    refused("{'acls': []}", "double quotes", (1, 2), "");
    refused("[]", "a policy must be an object", (1, 1), "");
    refused("{\"ipsets\": {}}", "unknown field", (1, 2), "fields here are");
}

#[test]
fn all_errors_are_reported_at_once() {
    let errors = Policy::parse(
        r#"{"acls": [
            {"action": "deny", "src": ["tag:x"], "dst": ["*:ssh"]},
            {"action": "accept", "src": ["group:y"], "dst": ["nowhere:80"], "proto": "tpc"},
        ], "nonsense": 1}"#,
    )
    .unwrap_err();
    let text = errors.to_string();
    assert_eq!(errors.errors.len(), 7, "{text}");
    assert!(errors.errors.is_sorted_by_key(|error| (error.line, error.column)));
    assert!(text.contains("did you mean \"tcp\"?"), "{text}");
}

#[test]
fn sections_without_meaning_here_are_accepted_with_a_warning() {
    let policy =
        Policy::parse(r#"{"ssh": [], "nodeAttrs": [], "randomizeClientPort": true, "acls": []}"#).unwrap();
    assert_eq!(policy.warnings().len(), 3);
    assert!(Policy::parse(r#"{"ssh": {}}"#).is_err());
}

#[test]
fn tests_of_a_policy_tell_what_they_expected() {
    let text = r#"{"tagOwners": {"tag:development": []},
        "acls": [{"action": "accept", "proto": "tcp", "src": ["alice@company.com"], "dst": ["tag:development:22"]}],
        "tests": [
            {"src": "alice@company.com", "accept": ["tag:development:22"], "deny": ["tag:development:23"]},
            {"src": "autogroup:member", "accept": ["tag:development:22"]},
            {"src": "alice@company.com", "proto": "udp", "accept": ["tag:development:22"]},
            {"src": "autogroup:member", "deny": ["tag:development:22"]},
        ]}"#;
    let failures = Policy::parse(text).unwrap().run_tests(&network());
    let lines: Vec<u32> = failures.iter().map(|failure| failure.line).collect();
    assert_eq!(lines, [5, 6, 7], "{failures:?}");
    assert!(
        failures[0].to_string().contains("expected ALLOWED, got DENIED for 100.64.0.3-100.64.0.4"),
        "{failures:?}"
    );
    assert!(failures[1].to_string().contains("(udp): expected ALLOWED, got DENIED"), "{failures:?}");
    assert!(failures[2].to_string().contains("expected DENIED, got ALLOWED"), "{failures:?}");
}

//! The policy's own `tests`: what must be allowed, what must be denied.
//!
//! A test that expects access passes if every address of its source reaches the destination; one that
//! expects denial fails as soon as one address of its source does. Names that stand for nothing fail.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::alias::{Alias, AutoGroup};
use crate::error::PolicyErrors;
use crate::filter::AddrSet;
use crate::policy::{PolicyTest, TestTarget};
use crate::resolve::{ResolvedPolicy, ResolvedRule, index};
use crate::schema::FAILED;
use crate::service::{TCP, UDP};

/// A test of the policy that did not come out as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestFailure {
    /// Index in `tests`.
    pub index: usize,
    /// Line of the test in the policy text.
    pub line: u32,
    /// What was expected and what happened.
    pub message: String,
}

impl fmt::Display for TestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{FAILED}: tests[{}] (line {}): {}", self.index, self.line, self.message)
    }
}

impl TestFailure {
    pub(crate) fn unresolved(errors: &PolicyErrors) -> Self {
        Self { index: 0, line: 0, message: errors.to_string() }
    }
}

impl ResolvedPolicy {
    /// Runs the policy's own tests; empty: all passed.
    pub fn run_tests(&self) -> Vec<TestFailure> {
        let mut failures = Vec::new();
        for test in &self.policy.tests {
            for message in self.run_test(test) {
                failures.push(TestFailure { index: test.index, line: test.line, message });
            }
        }
        failures
    }

    fn run_test(&self, test: &PolicyTest) -> Vec<String> {
        let src = match self.test_source(&test.src) {
            Ok(src) => src,
            Err(message) => return vec![format!("source \"{}\": {message}", test.src)],
        };
        let suffix = test
            .protocol
            .map_or_else(String::new, |protocol| format!(" ({})", crate::service::protocol_name(protocol)));
        let mut failures = Vec::new();
        for (targets, expected) in [(&test.accept, true), (&test.deny, false)] {
            for target in targets {
                let outcome = self.test_flow(&src, test.protocol, target);
                let line = |what: &str| format!("{} -> {}{suffix}: {what}", test.src, target.text);
                match outcome {
                    Ok(Reach::All) if expected => {}
                    Ok(Reach::None) if !expected => {}
                    Ok(Reach::Some(who)) if expected => {
                        failures.push(line(&format!("expected ALLOWED, got DENIED for {who}")));
                    }
                    Ok(Reach::None) => failures.push(line("expected ALLOWED, got DENIED")),
                    Ok(Reach::All | Reach::Some(_)) => failures.push(line("expected DENIED, got ALLOWED")),
                    Err(message) => failures.push(line(&message)),
                }
            }
        }
        failures
    }

    fn test_source(&self, text: &str) -> Result<AddrSet, String> {
        let alias = Alias::parse(text).map_err(|error| error.message)?;
        let addrs = self.test_addresses(&alias, true)?;
        if addrs.is_empty() {
            return Err("resolved to no addresses".to_owned());
        }
        Ok(addrs)
    }

    /// The addresses of a name in a test, which must be known.
    fn test_addresses(&self, alias: &Alias, as_source: bool) -> Result<AddrSet, String> {
        let known = match alias {
            Alias::User(login) => self.people.user(login).is_some(),
            Alias::Group(group) => self.policy.groups.contains_key(group),
            Alias::Tag(tag) => self.policy.defines_tag(tag),
            Alias::Host(host) => self.policy.hosts.contains_key(host),
            Alias::Auto(AutoGroup::Own) => {
                return Err("autogroup:self is not valid in a test; name the user".to_owned());
            }
            Alias::Auto(AutoGroup::Internet | AutoGroup::Admin) => false,
            Alias::Any | Alias::UserDomain(_) | Alias::Net(_) | Alias::Auto(_) => true,
        };
        if !known {
            return Err(format!("\"{alias}\" is not known"));
        }
        Ok(self.addresses(alias, as_source))
    }

    fn test_flow(&self, src: &AddrSet, protocol: Option<u8>, target: &TestTarget) -> Result<Reach, String> {
        let dst = self.test_addresses(&target.dst, false)?;
        if dst.is_empty() {
            return Err("destination resolved to no addresses".to_owned());
        }
        let admits = |rule: &ResolvedRule| {
            rule.services.iter().any(|service| {
                let protocols = service.protocols;
                let fits = match protocol {
                    Some(protocol) => protocols.contains(protocol),
                    None => protocols.contains(TCP) || protocols.contains(UDP),
                };
                fits && service.ports.iter().any(|range| range.contains(target.port))
            })
        };
        let mut missing = src.clone();
        for rule in &self.rules {
            if admits(rule) && self.sides[index(rule.dst)].addrs.overlaps(&dst) {
                missing = missing.difference(&self.sides[index(rule.src)].addrs);
            }
        }
        if !missing.is_empty() {
            missing = self.without_own(&missing, &dst, &admits);
        }
        Ok(if missing.is_empty() {
            Reach::All
        } else if missing == *src {
            Reach::None
        } else {
            Reach::Some(missing.to_string())
        })
    }

    /// Takes away the sources that `autogroup:self` lets reach the destination.
    fn without_own(&self, src: &AddrSet, dst: &AddrSet, admits: &dyn Fn(&ResolvedRule) -> bool) -> AddrSet {
        let mut missing = src.clone();
        for rule in self.own_rules.iter().filter(|rule| admits(rule)) {
            for family in self.people.families() {
                if family.overlaps(dst) {
                    let reaching = self.sides[index(rule.src)].addrs.intersection(family);
                    missing = missing.difference(&reaching);
                }
            }
        }
        missing
    }
}

/// How much of a source reaches a destination.
enum Reach {
    All,
    /// Not these.
    Some(String),
    None,
}

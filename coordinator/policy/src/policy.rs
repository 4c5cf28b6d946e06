//! A policy that has been read and checked, but not yet resolved against users and nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use crate::alias::{Alias, AutoGroup, GroupMember};
use crate::error::{PolicyError, PolicyErrors, Span};
use crate::filter::RuleOrigin;
use crate::schema;
use crate::service::Service;
use crate::topology::User;

/// A checked policy.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) source: Arc<str>,
    pub(crate) groups: BTreeMap<String, Vec<GroupMember>>,
    pub(crate) hosts: BTreeMap<String, IpNet>,
    pub(crate) tag_owners: BTreeMap<String, Vec<Alias>>,
    pub(crate) rules: Arc<[Rule]>,
    /// Neither `acls` nor `grants` in the text: everything is allowed.
    pub(crate) unrestricted: bool,
    pub(crate) route_approvers: Vec<(IpNet, Vec<Alias>)>,
    pub(crate) exit_approvers: Vec<Alias>,
    pub(crate) tests: Vec<PolicyTest>,
    pub(crate) warnings: Vec<PolicyError>,
}

/// One entry of `acls` or `grants`.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) origin: RuleOrigin,
    pub(crate) span: Span,
    pub(crate) src: Vec<Alias>,
    pub(crate) targets: Vec<Target>,
    /// Only routers with one of these tags carry the traffic.
    pub(crate) via: Vec<String>,
}

/// Destinations that are reached by the same services. No services: an application grant, which makes peers
/// visible and admits no packet.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) dst: Vec<Alias>,
    pub(crate) services: Vec<Service>,
}

/// One entry of `tests`.
#[derive(Clone, Debug)]
pub(crate) struct PolicyTest {
    pub(crate) index: usize,
    pub(crate) line: u32,
    pub(crate) src: String,
    pub(crate) protocol: Option<u8>,
    pub(crate) accept: Vec<TestTarget>,
    pub(crate) deny: Vec<TestTarget>,
}

/// A destination of a test: as written, and read.
#[derive(Clone, Debug)]
pub(crate) struct TestTarget {
    pub(crate) text: String,
    pub(crate) dst: Alias,
    pub(crate) port: u16,
}

impl Policy {
    /// Reads and checks a policy text. Reports every error that can be found in one go.
    pub fn parse(text: &str) -> Result<Self, PolicyErrors> {
        schema::read(text)
    }

    /// The policy of a new network: everything may talk to everything.
    pub fn allow_all() -> Self {
        Self {
            source: "{}".into(),
            groups: BTreeMap::new(),
            hosts: BTreeMap::new(),
            tag_owners: BTreeMap::new(),
            rules: Arc::default(),
            unrestricted: true,
            route_approvers: Vec::new(),
            exit_approvers: Vec::new(),
            tests: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// The text that it was read from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What is accepted but has no effect or probably is not what was meant.
    pub fn warnings(&self) -> &[PolicyError] {
        &self.warnings
    }

    /// Number of rules in `acls` and `grants`.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// Number of entries in `tests`.
    pub fn test_count(&self) -> usize {
        self.tests.len()
    }

    /// The tags that `tagOwners` defines.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.tag_owners.keys().map(String::as_str)
    }

    /// Whether the tag is defined.
    pub fn defines_tag(&self, tag: &str) -> bool {
        self.tag_owners.contains_key(tag)
    }

    /// The text of a rule on one line, without the comments between its lines; empty if there is no such rule.
    pub fn rule_text(&self, origin: RuleOrigin) -> String {
        const LONGEST: usize = 240;
        // In the order of their origins: those of `acls`, then those of `grants`.
        let found = self.rules.binary_search_by_key(&origin, |rule| rule.origin);
        let Some(rule) = found.ok().and_then(|at| self.rules.get(at)) else { return String::new() };
        let source = self.source.get(rule.span.start..rule.span.end).unwrap_or_default();
        let lines = source.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
        let text = lines.collect::<Vec<_>>().join(" ");
        if text.chars().count() <= LONGEST {
            return text;
        }
        text.chars().take(LONGEST).chain(" …".chars()).collect()
    }

    /// Whether the user may give the tag to a node: named in `tagOwners` as login, group or domain, or owning
    /// a tag that owns it, over any number of steps. Administrators are not asked.
    pub fn may_own_tag(&self, user: &User, tag: &str) -> bool {
        let mut seen = BTreeSet::new();
        let mut queue = vec![tag];
        while let Some(tag) = queue.pop() {
            if !seen.insert(tag) {
                continue; // a cycle adds no owner
            }
            for owner in self.tag_owners.get(tag).into_iter().flatten() {
                match owner {
                    Alias::Tag(owner) => queue.push(owner),
                    owner if self.names_user(owner, user) => return true,
                    _ => {}
                }
            }
        }
        false
    }

    /// Whether a node that carries the first tag may take on the second (`tagOwners` lists tags, transitively).
    pub fn tag_owns_tag(&self, owner: &str, tag: &str) -> bool {
        let mut seen = BTreeSet::new();
        let mut queue = vec![tag];
        while let Some(tag) = queue.pop() {
            if !seen.insert(tag) {
                continue;
            }
            for candidate in self.tag_owners.get(tag).into_iter().flatten() {
                if let Alias::Tag(candidate) = candidate {
                    if candidate == owner {
                        return true;
                    }
                    queue.push(candidate);
                }
            }
        }
        false
    }

    /// Whether the alias names the user as a person.
    pub(crate) fn names_user(&self, alias: &Alias, user: &User) -> bool {
        match alias {
            Alias::User(login) => *login == user.login,
            Alias::UserDomain(domain) => in_domain(&user.login, domain),
            Alias::Group(group) => self.group_has(group, user),
            Alias::Auto(AutoGroup::Member) => true,
            _ => false,
        }
    }

    /// Whether the policy, or the identity provider, puts the user into the group.
    pub(crate) fn group_has(&self, group: &str, user: &User) -> bool {
        let name = group.strip_prefix("group:").unwrap_or(group);
        self.groups.get(group).is_some_and(|members| {
            members.iter().any(|member| member.matches(&user.login))
                || user.groups.iter().any(|own| own == name)
        })
    }
}

/// Whether the login is of the domain.
pub(crate) fn in_domain(login: &str, domain: &str) -> bool {
    login.rsplit_once('@').is_some_and(|(_, own)| own == domain)
}

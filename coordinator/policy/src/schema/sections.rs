//! What rules refer to: groups, hosts, tag owners; and route approvers.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::Reader;
use crate::alias::{Alias, AutoGroup, GroupMember, WordError, is_tag_name, parse_net};
use crate::error::Span;
use crate::hujson::Node;
use crate::policy::Policy;

type Groups = BTreeMap<String, Vec<GroupMember>>;

impl Reader<'_> {
    pub(super) fn groups(&mut self, node: &Node) -> Groups {
        let mut groups = BTreeMap::new();
        for member in self.object(node, "groups").unwrap_or_default() {
            let path = format!("groups[\"{}\"]", member.key);
            if member.key.strip_prefix("group:").is_none_or(str::is_empty) {
                let hint = Some(format!("did you mean \"group:{}\"?", member.key));
                let message = format!("group must start with 'group:', got: \"{}\"", member.key);
                self.out.error(member.key_span, &path, message, hint);
            }
            let mut members = Vec::new();
            for (text, span, item_path) in self.strings(&member.node, &path) {
                match GroupMember::parse(text) {
                    Ok(member) => members.push(member),
                    Err(WordError { message, hint }) => {
                        self.out.error(span, &item_path, format!("{path}: {message}"), hint);
                    }
                }
            }
            groups.insert(member.key.clone(), members);
        }
        groups
    }

    pub(super) fn hosts(&mut self, node: &Node) -> BTreeMap<String, IpNet> {
        let mut hosts = BTreeMap::new();
        for member in self.object(node, "hosts").unwrap_or_default() {
            let path = format!("hosts[\"{}\"]", member.key);
            let name = member.key.as_str();
            if name.is_empty() || name.contains(['@', ':', '*', '/']) || parse_net(name).is_some() {
                let hint = "names of hosts have no @, :, * or /, and are not addresses".to_owned();
                self.out.error(member.key_span, &path, format!("invalid hostname \"{name}\""), Some(hint));
                continue;
            }
            let Some(text) = self.string(&member.node, &path) else { continue };
            if let Some(net) = parse_net(text.trim()) {
                hosts.insert(member.key.clone(), net);
            } else {
                let message =
                    format!("hostname contains invalid IP address: hostname \"{name}\" address \"{text}\"");
                let hint = "write an address or a prefix, such as 192.168.1.0/24".to_owned();
                self.out.error(member.node.span, &path, message, Some(hint));
            }
        }
        hosts
    }

    pub(super) fn tag_owners(&mut self, node: &Node, groups: &Groups) -> BTreeMap<String, Vec<Alias>> {
        let members = self.object(node, "tagOwners").unwrap_or_default();
        let tags: BTreeMap<String, Vec<Alias>> =
            members.iter().map(|member| (member.key.clone(), Vec::new())).collect();
        let mut owners = tags.clone();
        for member in members {
            let path = format!("tagOwners[\"{}\"]", member.key);
            if !is_tag_name(&member.key) {
                let message = if member.key.starts_with("tag:") {
                    format!("{path}: tag names must start with a letter, after 'tag:'")
                } else {
                    format!("{path}: tag must start with 'tag:'")
                };
                let hint = "tag:, a letter, then letters, digits and hyphens".to_owned();
                self.out.error(member.key_span, &path, message, Some(hint));
            }
            let list = self.owners(&member.node, &path, groups, &tags, true);
            owners.insert(member.key.clone(), list);
        }
        owners
    }

    pub(super) fn auto_approvers(&mut self, node: &Node, policy: &mut Policy) {
        for (field, member) in self.fields(node, "autoApprovers", &["routes", "exitNode"]) {
            if field == "exitNode" {
                let path = "autoApprovers.exitNode";
                policy.exit_approvers =
                    self.owners(&member.node, path, &policy.groups, &policy.tag_owners, false);
                continue;
            }
            for route in self.object(&member.node, "autoApprovers.routes").unwrap_or_default() {
                let path = format!("autoApprovers.routes[\"{}\"]", route.key);
                let approvers = self.owners(&route.node, &path, &policy.groups, &policy.tag_owners, false);
                if let Some(net) = parse_net(route.key.trim()) {
                    policy.route_approvers.push((net, approvers));
                } else {
                    let message = format!("invalid prefix \"{}\"", route.key);
                    self.out.error(route.key_span, &path, message, None);
                }
            }
        }
    }

    /// A list of people and tags: owners of a tag, or approvers of a route.
    fn owners(
        &mut self,
        node: &Node,
        path: &str,
        groups: &Groups,
        tags: &BTreeMap<String, Vec<Alias>>,
        tag_owner: bool,
    ) -> Vec<Alias> {
        let mut owners = Vec::new();
        for (text, span, path) in self.strings(node, path) {
            let alias = match Alias::parse(text) {
                Ok(alias) => alias,
                Err(WordError { message, hint }) => {
                    self.out.error(span, &path, message, hint);
                    continue;
                }
            };
            let fits = match &alias {
                Alias::User(_) | Alias::UserDomain(_) | Alias::Auto(AutoGroup::Member) => true,
                Alias::Group(group) => self.known_group(group, groups, span, &path),
                Alias::Tag(tag) => self.known_tag(tag, tags, "", span, &path),
                Alias::Auto(AutoGroup::Admin) => tag_owner,
                Alias::Auto(AutoGroup::Tagged) => !tag_owner,
                _ => false,
            };
            if fits {
                owners.push(alias);
            } else if !matches!(alias, Alias::Group(_) | Alias::Tag(_)) {
                let what = if tag_owner { "owner" } else { "auto approver" };
                let hint = format!("an {what} is a login, a group, a tag or autogroup:member");
                self.out.error(span, &path, format!("invalid {what} \"{text}\""), Some(hint));
            }
        }
        owners
    }

    pub(super) fn known_group(&mut self, group: &str, groups: &Groups, span: Span, path: &str) -> bool {
        let known = groups.contains_key(group);
        if !known {
            let hint = self
                .out
                .did_you_mean(group, groups.keys().map(String::as_str))
                .unwrap_or_else(|| "define it in \"groups\"".to_owned());
            self.out.error(span, path, format!("group not defined in policy: \"{group}\""), Some(hint));
        }
        known
    }

    /// `prefix` says which side of a rule is meant, as `src=` or `dst="tag:x": `.
    pub(super) fn known_tag(
        &mut self,
        tag: &str,
        tags: &BTreeMap<String, Vec<Alias>>,
        prefix: &str,
        span: Span,
        path: &str,
    ) -> bool {
        let known = tags.contains_key(tag);
        if !known {
            let hint = self.out.did_you_mean(tag, tags.keys().map(String::as_str)).unwrap_or_else(|| {
                "define it in \"tagOwners\"; [] lets only administrators give it".to_owned()
            });
            self.out.error(span, path, format!("{prefix}tag not found: \"{tag}\""), Some(hint));
        }
        known
    }
}

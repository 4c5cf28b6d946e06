//! `acls` and `grants`.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use super::Reader;
use crate::alias::{Alias, AutoGroup, WordError};
use crate::error::Span;
use crate::filter::{PortRange, RuleOrigin, Section};
use crate::hujson::{Member, Node, Value};
use crate::policy::{Policy, Rule, Target};
use crate::service::{Service, parse_ports, parse_protocol};

const ACL_FIELDS: [&str; 7] = ["action", "proto", "src", "dst", "users", "ports", "srcPosture"];
const GRANT_FIELDS: [&str; 6] = ["src", "dst", "ip", "app", "via", "srcPosture"];

const OWN_NEEDS_USERS: &str = "autogroup:self can only be used with users, groups, or supported autogroups";

/// Capabilities of Tailscale's own domain that a policy may grant.
const GRANTABLE: [&str; 5] = [
    "tailscale.com/cap/drive",
    "tailscale.com/cap/kubernetes",
    "tailscale.com/cap/relay",
    "tailscale.com/cap/tsidp",
    "tailscale.com/cap/webui",
];

type Fields<'n> = [(&'static str, &'n Member)];

fn field<'n>(fields: &Fields<'n>, name: &str) -> Option<&'n Node> {
    fields.iter().find(|(field, _)| *field == name).map(|(_, member)| &member.node)
}

impl Reader<'_> {
    pub(super) fn acls(&mut self, node: &Node, policy: &Policy) -> Vec<Rule> {
        let items = self.array(node, "acls");
        items.iter().enumerate().map(|(index, item)| self.acl(item, index, policy)).collect()
    }

    fn origin(&self, section: Section, index: usize, node: &Node) -> RuleOrigin {
        let line = self.out.lines.line(node.span.start);
        RuleOrigin { section, index: u32::try_from(index).unwrap_or(u32::MAX), line }
    }

    fn acl(&mut self, node: &Node, index: usize, policy: &Policy) -> Rule {
        let path = format!("acls[{index}]");
        let fields = self.fields(node, &path, &ACL_FIELDS);
        self.action(field(&fields, "action"), node, &path);
        self.posture(field(&fields, "srcPosture"), &path);
        let protocol =
            field(&fields, "proto").and_then(|proto| self.protocol(proto, &format!("{path}.proto")));
        let src_node = self.one_of(&fields, ["src", "users"], node, &path);
        let dst_node = self.one_of(&fields, ["dst", "ports"], node, &path);
        let src = src_node.map(|src| self.sources(src, &format!("{path}.src"), policy)).unwrap_or_default();
        let mut wanted: BTreeMap<Alias, Vec<PortRange>> = BTreeMap::new();
        if let Some(dst) = dst_node {
            for (text, span, path) in self.strings(dst, &format!("{path}.dst")) {
                if let Some((alias, service)) = self.destination(text, protocol, policy, span, &path) {
                    wanted.entry(alias).or_default().extend_from_slice(&service.ports);
                }
            }
            let own = wanted.contains_key(&Alias::Auto(AutoGroup::Own));
            if own && !src.iter().all(|alias| *alias == Alias::Any || names_people(alias)) {
                self.own_needs_users(dst.span, &path);
            }
        }
        let targets = targets_by_ports(wanted, protocol);
        Rule {
            origin: self.origin(Section::Acls, index, node),
            span: node.span,
            src,
            targets,
            via: Vec::new(),
        }
    }

    fn own_needs_users(&mut self, span: Span, path: &str) {
        let hint = "sources of autogroup:self are logins, groups and autogroup:member".to_owned();
        self.out.error(span, path, OWN_NEEDS_USERS, Some(hint));
    }

    fn action(&mut self, action: Option<&Node>, rule: &Node, path: &str) {
        let path = format!("{path}.action");
        let hint = "rules only admit: write \"action\": \"accept\"; what no rule admits is denied".to_owned();
        match action {
            None => self.out.error(rule.span, &path, "action=\"\" is not supported", Some(hint)),
            Some(node) => {
                if let Some(action) = self.string(node, &path)
                    && action != "accept"
                {
                    let message = format!("action=\"{action}\" is not supported");
                    self.out.error(node.span, &path, message, Some(hint));
                }
            }
        }
    }

    /// To ignore a condition would admit more than was meant.
    fn posture(&mut self, posture: Option<&Node>, path: &str) {
        if let Some(node) = posture
            && !matches!(&node.value, Value::Null)
            && !matches!(&node.value, Value::Array(items) if items.is_empty())
        {
            let hint = "remove it only if the rule may hold for every device of its sources".to_owned();
            let path = format!("{path}.srcPosture");
            self.out.error(node.span, &path, "device postures are not supported", Some(hint));
        }
    }

    fn protocol(&mut self, node: &Node, path: &str) -> Option<u8> {
        let text = match &node.value {
            Value::Number(number) => number,
            Value::Null => return None,
            _ => self.string(node, path)?,
        };
        if text.trim().is_empty() {
            return None;
        }
        match parse_protocol(text) {
            Ok(protocol) => Some(protocol),
            Err(WordError { message, hint }) => {
                self.out.error(node.span, path, message, hint);
                None
            }
        }
    }

    /// The field, or its name of old.
    fn one_of<'n>(
        &mut self,
        fields: &Fields<'n>,
        names: [&str; 2],
        rule: &Node,
        path: &str,
    ) -> Option<&'n Node> {
        let found = names.map(|name| field(fields, name));
        match found {
            [Some(_), Some(old)] => {
                let message = format!("\"{}\" and \"{}\" are the same field", names[0], names[1]);
                self.out.error(old.span, path, message, None);
                None
            }
            [_, Some(old)] => Some(old),
            [_, None] => self.required(fields, names[0], rule, path),
        }
    }

    fn required<'n>(&mut self, fields: &Fields<'n>, name: &str, rule: &Node, path: &str) -> Option<&'n Node> {
        let found = field(fields, name);
        if found.is_none() {
            self.out.error(rule.span, path, format!("{path} has no \"{name}\""), None);
        }
        found
    }

    fn sources(&mut self, node: &Node, path: &str, policy: &Policy) -> Vec<Alias> {
        let mut sources = Vec::new();
        for (text, span, path) in self.strings(node, path) {
            match Alias::parse(text) {
                Ok(alias) => {
                    if self.source_fits(&alias, policy, span, &path) {
                        sources.push(alias);
                    }
                }
                Err(WordError { message, hint }) => {
                    self.out.error(span, &path, format!("src=\"{text}\": {message}"), hint);
                }
            }
        }
        sources
    }

    fn source_fits(&mut self, alias: &Alias, policy: &Policy, span: Span, path: &str) -> bool {
        match alias {
            Alias::Group(group) => self.known_group(group, &policy.groups, span, path),
            Alias::Tag(tag) => self.known_tag(tag, &policy.tag_owners, "src=", span, path),
            Alias::Host(host) => self.known_host(host, policy, span, path),
            Alias::Auto(AutoGroup::Own) => {
                self.out.error(span, path, "\"autogroup:self\" not valid on the src side of a rule", None);
                false
            }
            Alias::Auto(AutoGroup::Internet) => {
                let message = "autogroup:internet can only be used in ACL destinations";
                let hint = "every address as a source is autogroup:danger-all".to_owned();
                self.out.error(
                    span,
                    path,
                    format!("\"autogroup:internet\" not valid on the src side of a rule: {message}"),
                    Some(hint),
                );
                false
            }
            Alias::Auto(AutoGroup::Admin) => self.no_roles(span, path),
            _ => true,
        }
    }

    fn no_roles(&mut self, span: Span, path: &str) -> bool {
        let hint = "users have no roles here: name a group".to_owned();
        self.out.error(span, path, "autogroups of roles are not supported in rules", Some(hint));
        false
    }

    fn known_host(&mut self, host: &str, policy: &Policy, span: Span, path: &str) -> bool {
        let known = policy.hosts.contains_key(host);
        if !known {
            let names = policy.hosts.keys().map(String::as_str);
            let hint = self.out.did_you_mean(host, names).unwrap_or_else(|| {
                "define it in \"hosts\"; users are written as full logins, groups as group:x, tags as tag:x".to_owned()
            });
            self.out.error(span, path, format!("host not defined in policy: \"{host}\""), Some(hint));
        }
        known
    }

    /// `host:ports` of an ACL, split at the last colon.
    fn destination(
        &mut self,
        text: &str,
        protocol: Option<u8>,
        policy: &Policy,
        span: Span,
        path: &str,
    ) -> Option<(Alias, Service)> {
        let read =
            read_destination(text).and_then(|(alias, ports)| Ok((alias, Service::new(protocol, ports)?)));
        match read {
            Ok((alias, service)) => {
                self.destination_fits(&alias, policy, span, path).then_some((alias, service))
            }
            Err(WordError { message, hint }) => {
                self.out.error(span, path, format!("dst=\"{text}\": {message}"), hint);
                None
            }
        }
    }

    fn destination_fits(&mut self, alias: &Alias, policy: &Policy, span: Span, path: &str) -> bool {
        match alias {
            Alias::Group(group) => self.known_group(group, &policy.groups, span, path),
            Alias::Tag(tag) => {
                let prefix = format!("dst=\"{tag}\": ");
                self.known_tag(tag, &policy.tag_owners, &prefix, span, path)
            }
            Alias::Host(host) => self.known_host(host, policy, span, path),
            Alias::Auto(AutoGroup::DangerAll) => {
                let hint = "every address as a destination is *".to_owned();
                self.out.error(span, path, "cannot use autogroup:danger-all as a dst", Some(hint));
                false
            }
            Alias::Auto(AutoGroup::Admin) => self.no_roles(span, path),
            _ => true,
        }
    }

    pub(super) fn grants(&mut self, node: &Node, policy: &Policy) -> Vec<Rule> {
        let items = self.array(node, "grants");
        items.iter().enumerate().map(|(index, item)| self.grant(item, index, policy)).collect()
    }

    fn grant(&mut self, node: &Node, index: usize, policy: &Policy) -> Rule {
        let path = format!("grants[{index}]");
        let fields = self.fields(node, &path, &GRANT_FIELDS);
        self.posture(field(&fields, "srcPosture"), &path);
        let src_node = self.required(&fields, "src", node, &path);
        let src = src_node.map(|src| self.sources(src, &format!("{path}.src"), policy)).unwrap_or_default();
        let dst_node = self.required(&fields, "dst", node, &path);
        let dst = dst_node.map(|dst| self.grant_destinations(dst, &path, policy)).unwrap_or_default();
        let mut services = Vec::new();
        if let Some(ip) = field(&fields, "ip") {
            for (text, span, path) in self.strings(ip, &format!("{path}.ip")) {
                match Service::parse(text) {
                    Ok(service) => services.push(service),
                    Err(WordError { message, hint }) => {
                        self.out.error(span, &path, format!("ip=\"{text}\": {message}"), hint);
                    }
                }
            }
        }
        let app = field(&fields, "app").map_or(0, |app| self.capabilities(app, &format!("{path}.app")));
        let has_ip = field(&fields, "ip").is_some_and(|ip| !self.array(ip, &path).is_empty());
        if app == 0 && !has_ip {
            let hint = "\"ip\": [\"*\"] admits all TCP, UDP and ICMP".to_owned();
            self.out.error(node.span, &path, "ip and app can not both be empty", Some(hint));
        }
        let span = dst_node.map_or(node.span, |dst| dst.span);
        if app > 0 && dst.contains(&Alias::Auto(AutoGroup::Internet)) {
            self.out.error(span, &path, "cannot use app grants with autogroup:internet", None);
        }
        if dst.contains(&Alias::Auto(AutoGroup::Own)) && !src.iter().all(names_people) {
            self.own_needs_users(span, &path);
        }
        let via = field(&fields, "via").map(|via| self.via(via, &path, policy)).unwrap_or_default();
        let targets = vec![Target { dst, services }];
        Rule { origin: self.origin(Section::Grants, index, node), span: node.span, src, targets, via }
    }

    fn grant_destinations(&mut self, node: &Node, path: &str, policy: &Policy) -> Vec<Alias> {
        let mut destinations = Vec::new();
        for (text, span, path) in self.strings(node, &format!("{path}.dst")) {
            match Alias::parse(text) {
                Ok(Alias::Net(net)) if net.prefix_len() == 0 => {
                    let message = format!(
                        "dst \"{net}\": to allow all IP addresses, use \"*\" or \"autogroup:internet\""
                    );
                    self.out.error(span, &path, message, None);
                }
                Ok(alias) => {
                    if self.destination_fits(&alias, policy, span, &path) {
                        destinations.push(alias);
                    }
                }
                Err(WordError { message, hint }) => {
                    let with_ports = read_destination(text).is_ok();
                    let hint = if with_ports {
                        Some("ports of a grant stand in \"ip\", not in \"dst\"".to_owned())
                    } else {
                        hint
                    };
                    self.out.error(span, &path, format!("dst=\"{text}\": {message}"), hint);
                }
            }
        }
        destinations
    }

    /// Checks the names of application capabilities; returns how many there are.
    fn capabilities(&mut self, node: &Node, path: &str) -> usize {
        let members = self.object(node, path).unwrap_or_default();
        for member in members {
            let name = member.key.as_str();
            let message = if name.contains("://") || !name.contains('/') {
                "capability name must have the form {domain}/{path}"
            } else if name.starts_with("tailscale.com/") && !GRANTABLE.contains(&name) {
                "capability name must not be in the tailscale.com domain"
            } else {
                continue;
            };
            self.out.error(member.key_span, path, message, Some("such as example.com/cap/admin".to_owned()));
        }
        members.len()
    }

    fn via(&mut self, node: &Node, path: &str, policy: &Policy) -> Vec<String> {
        let mut tags = Vec::new();
        for (text, span, path) in self.strings(node, &format!("{path}.via")) {
            match Alias::parse(text) {
                Ok(Alias::Tag(tag)) if policy.tag_owners.contains_key(&tag) => tags.push(tag),
                Ok(Alias::Tag(tag)) => {
                    let hint = self.out.did_you_mean(&tag, policy.tags());
                    self.out.error(span, &path, format!("tag \"{tag}\" not found"), hint);
                }
                _ => {
                    let hint = "name the tag of the routers that shall carry the traffic".to_owned();
                    self.out.error(span, &path, "via can only be a tag", Some(hint));
                }
            }
        }
        tags
    }
}

/// Whether the alias is about people, as sources of `autogroup:self` must be.
fn names_people(alias: &Alias) -> bool {
    matches!(alias, Alias::User(_) | Alias::UserDomain(_) | Alias::Group(_) | Alias::Auto(AutoGroup::Member))
}

/// Destinations with equal ports share a target.
fn targets_by_ports(wanted: BTreeMap<Alias, Vec<PortRange>>, protocol: Option<u8>) -> Vec<Target> {
    let mut targets: BTreeMap<Service, Vec<Alias>> = BTreeMap::new();
    for (alias, ports) in wanted {
        // Each destination was read with this protocol, so the union of its ports fits it too.
        if let Ok(service) = Service::new(protocol, ports) {
            targets.entry(service).or_default().push(alias);
        }
    }
    targets.into_iter().map(|(service, dst)| Target { dst, services: vec![service] }).collect()
}

/// Reads `host:ports`; an IPv6 address may stand in brackets, `[fd7a::1]/128:80`.
pub(super) fn read_destination(text: &str) -> Result<(Alias, Vec<PortRange>), WordError> {
    let (host, ports) = split_destination(text)?;
    // Ports first: in `autogroup:self` without ports, "self" is what stands in their place.
    let ports = parse_ports(ports)?;
    Ok((Alias::parse(&unbracket(host)?)?, ports))
}

/// Splits at the last colon.
fn split_destination(text: &str) -> Result<(&str, &str), WordError> {
    let text = text.trim();
    let missing = || {
        let hint = format!("add the ports: \"{text}:*\" for all of them");
        Err(WordError::hint("hostport must contain a colon", hint))
    };
    let Some((host, ports)) = text.rsplit_once(':') else { return missing() };
    if host.is_empty() || ports.is_empty() || ports.contains(']') {
        return missing();
    }
    Ok((host, ports))
}

/// Takes the brackets off an IPv6 address with or without a prefix length.
fn unbracket(host: &str) -> Result<std::borrow::Cow<'_, str>, WordError> {
    let Some(rest) = host.strip_prefix('[') else { return Ok(host.into()) };
    let bad = || WordError::new(format!("square brackets are only valid around IPv6 addresses: \"{host}\""));
    let (addr, length) = rest.split_once(']').ok_or_else(bad)?;
    addr.parse::<Ipv6Addr>().map_err(|_| bad())?;
    if length.is_empty() {
        return Ok(addr.into());
    }
    if !length.starts_with('/') {
        return Err(bad());
    }
    Ok(format!("{addr}{length}").into())
}

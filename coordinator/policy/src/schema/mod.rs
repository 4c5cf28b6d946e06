//! Values with positions → [`Policy`]. Goes on after an error, so that all are reported at once.

mod rules;
mod sections;
mod tests;

use std::sync::Arc;

pub(crate) use tests::FAILED;

use crate::error::{Collector, PolicyErrors, Span};
use crate::hujson::{self, Member, Node, Value};
use crate::policy::Policy;

/// Fields of the document.
const FIELDS: [&str; 12] = [
    "groups",
    "hosts",
    "tagOwners",
    "acls",
    "grants",
    "autoApprovers",
    "tests",
    "nodeAttrs",
    "ssh",
    "sshTests",
    "postures",
    "randomizeClientPort",
];

/// Reads and checks a policy text.
pub(crate) fn read(text: &str) -> Result<Policy, PolicyErrors> {
    let document = hujson::parse(text)?;
    let mut reader = Reader { out: Collector::new(text) };
    let mut policy = Policy { source: Arc::from(text), ..Policy::allow_all() };
    reader.document(&document, &mut policy);
    policy.warnings = reader.out.finish()?;
    Ok(policy)
}

struct Reader<'a> {
    out: Collector<'a>,
}

impl Reader<'_> {
    fn document(&mut self, document: &Node, policy: &mut Policy) {
        let fields = self.fields(document, "", &FIELDS);
        let get = |name: &str| fields.iter().find(|(field, _)| *field == name).map(|&(_, member)| member);
        // What rules refer to comes first, so that references can be checked.
        if let Some(member) = get("groups") {
            policy.groups = self.groups(&member.node);
        }
        if let Some(member) = get("hosts") {
            policy.hosts = self.hosts(&member.node);
        }
        if let Some(member) = get("tagOwners") {
            policy.tag_owners = self.tag_owners(&member.node, &policy.groups);
        }
        let acls = get("acls").filter(|member| member.node.value != Value::Null);
        let grants = get("grants").filter(|member| member.node.value != Value::Null);
        policy.unrestricted = acls.is_none() && grants.is_none();
        let mut rules = acls.map(|member| self.acls(&member.node, policy)).unwrap_or_default();
        rules.extend(grants.map(|member| self.grants(&member.node, policy)).unwrap_or_default());
        policy.rules = rules.into();
        if let Some(member) = get("autoApprovers") {
            self.auto_approvers(&member.node, policy);
        }
        if let Some(member) = get("tests") {
            policy.tests = self.tests(&member.node, policy);
        }
        self.foreign_sections(&fields);
    }

    /// Sections of Tailscale's language that mean nothing here.
    fn foreign_sections(&mut self, fields: &[(&'static str, &Member)]) {
        for &(name, member) in fields {
            let what = match name {
                "nodeAttrs" => "node attributes are not used by GhostWire",
                "ssh" | "sshTests" => "GhostWire runs no SSH server of its own",
                "randomizeClientPort" => "the port is set on the node",
                "postures" => "device postures are not known; rules that need them (srcPosture) are refused",
                _ => continue,
            };
            let fits = match name {
                "randomizeClientPort" => matches!(member.node.value, Value::Bool(_) | Value::Null),
                "postures" => matches!(member.node.value, Value::Object(_) | Value::Null),
                _ => matches!(member.node.value, Value::Array(_) | Value::Null),
            };
            if fits {
                self.out.warn(member.key_span, name, format!("\"{name}\" has no effect: {what}"), None);
            } else {
                let kind = member.node.value.kind();
                self.out.error(member.node.span, name, format!("\"{name}\" cannot be {kind}"), None);
            }
        }
    }

    /// The members of an object by their proper names; unknown ones are errors. Names are compared without
    /// regard to case.
    fn fields<'n>(
        &mut self,
        node: &'n Node,
        path: &str,
        known: &[&'static str],
    ) -> Vec<(&'static str, &'n Member)> {
        let Some(members) = self.object(node, path) else { return Vec::new() };
        let mut fields: Vec<(&'static str, &'n Member)> = Vec::with_capacity(members.len());
        for member in members {
            let Some(&name) = known.iter().find(|name| name.eq_ignore_ascii_case(&member.key)) else {
                let hint = self
                    .out
                    .did_you_mean(&member.key, known.iter().copied())
                    .unwrap_or_else(|| format!("fields here are {}", known.join(", ")));
                let message = format!("unknown field: \"{}\"", member.key);
                self.out.error(member.key_span, &join(path, &member.key), message, Some(hint));
                continue;
            };
            if fields.iter().any(|&(field, _)| field == name) {
                let message = format!("duplicate key \"{}\"", member.key);
                let hint = "names of fields are compared without regard to case".to_owned();
                self.out.error(member.key_span, &join(path, &member.key), message, Some(hint));
                continue;
            }
            fields.push((name, member));
        }
        fields
    }

    fn object<'n>(&mut self, node: &'n Node, path: &str) -> Option<&'n [Member]> {
        match &node.value {
            Value::Object(members) => Some(members),
            Value::Null if !path.is_empty() => Some(&[]),
            other => {
                self.wrong_kind(node.span, path, "an object", other);
                None
            }
        }
    }

    fn array<'n>(&mut self, node: &'n Node, path: &str) -> &'n [Node] {
        match &node.value {
            Value::Array(items) => items,
            Value::Null => &[],
            other => {
                self.wrong_kind(node.span, path, "an array", other);
                &[]
            }
        }
    }

    fn string<'n>(&mut self, node: &'n Node, path: &str) -> Option<&'n str> {
        match &node.value {
            Value::String(text) => Some(text),
            other => {
                self.wrong_kind(node.span, path, "a string", other);
                None
            }
        }
    }

    /// The strings of an array, with their places and paths.
    fn strings<'n>(&mut self, node: &'n Node, path: &str) -> Vec<(&'n str, Span, String)> {
        let items = self.array(node, path);
        let mut strings = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if let Some(text) = self.string(item, &path) {
                strings.push((text, item.span, path));
            }
        }
        strings
    }

    fn wrong_kind(&mut self, span: Span, path: &str, wanted: &str, found: &Value) {
        let what = if path.is_empty() { "a policy" } else { path };
        self.out.error(span, path, format!("{what} must be {wanted}, not {}", found.kind()), None);
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

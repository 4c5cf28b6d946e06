//! `tests`: checked for form here, run by [`crate::policy_tests`].

use super::Reader;
use super::rules::read_destination;
use crate::alias::{Alias, AutoGroup, WordError};
use crate::hujson::{Node, Value};
use crate::policy::{Policy, PolicyTest, TestTarget};
use crate::service::{has_ports, parse_protocol};

const FIELDS: [&str; 6] = ["src", "proto", "accept", "deny", "allow", "srcPostureAttrs"];

/// Every message about a test begins with this.
pub(crate) const FAILED: &str = "test(s) failed";

impl Reader<'_> {
    pub(super) fn tests(&mut self, node: &Node, policy: &Policy) -> Vec<PolicyTest> {
        let items = self.array(node, "tests");
        items.iter().enumerate().map(|(index, item)| self.test(item, index, policy)).collect()
    }

    fn test(&mut self, node: &Node, index: usize, policy: &Policy) -> PolicyTest {
        let path = format!("tests[{index}]");
        let line = self.out.lines.line(node.span.start);
        let mut test = PolicyTest {
            index,
            line,
            src: String::new(),
            protocol: None,
            accept: Vec::new(),
            deny: Vec::new(),
        };
        let mut assertions = 0;
        for (name, member) in self.fields(node, &path, &FIELDS) {
            let path = format!("{path}.{name}");
            match name {
                "src" => {
                    let src = self.string(&member.node, &path).unwrap_or_default();
                    src.trim().clone_into(&mut test.src);
                }
                "proto" => test.protocol = self.test_protocol(&member.node, &path),
                "srcPostureAttrs" => {
                    self.out.warn(member.key_span, &path, "device postures are not known here", None);
                }
                _ => {
                    assertions += self.array(&member.node, &path).len();
                    let targets = self.test_targets(&member.node, &path, policy);
                    if name == "deny" { &mut test.deny } else { &mut test.accept }.extend(targets);
                }
            }
        }
        if test.src.is_empty() {
            let hint = "name one user, group, tag, host or address".to_owned();
            self.out.error(node.span, &path, format!("{FAILED}: {path} has no \"src\""), Some(hint));
        }
        if assertions == 0 {
            let message = format!("{FAILED}: {path} must have at least one of \"accept\" or \"deny\"");
            self.out.error(node.span, &path, message, None);
        }
        test
    }

    fn test_protocol(&mut self, node: &Node, path: &str) -> Option<u8> {
        let text = match &node.value {
            Value::Number(number) => number,
            _ => self.string(node, path)?,
        };
        if text.trim().is_empty() {
            return None;
        }
        let message = match parse_protocol(text) {
            Ok(protocol) if has_ports(protocol) => return Some(protocol),
            Ok(_) => format!("{FAILED}: protocol of a test must be tcp, udp or sctp, not \"{text}\""),
            Err(error) => format!("{FAILED}: {}", error.message),
        };
        self.out.error(node.span, path, message, None);
        None
    }

    fn test_targets(&mut self, node: &Node, path: &str, policy: &Policy) -> Vec<TestTarget> {
        let mut targets = Vec::new();
        for (text, span, path) in self.strings(node, path) {
            match read_target(text, policy) {
                Ok(target) => targets.push(target),
                Err(WordError { message, hint }) => {
                    self.out.error(span, &path, format!("{FAILED}: \"{text}\": {message}"), hint);
                }
            }
        }
        targets
    }
}

/// One host, one port.
fn read_target(text: &str, policy: &Policy) -> Result<TestTarget, WordError> {
    let (dst, ports) = read_destination(text)?;
    let [ports] = ports.as_slice() else {
        return Err(WordError::new("a test is about a single port"));
    };
    if ports.first != ports.last {
        return Err(WordError::new("a test is about a single port"));
    }
    let single = |net: &ipnet::IpNet| net.prefix_len() == net.max_prefix_len();
    let one_host = match &dst {
        Alias::Net(net) => single(net) && !text.contains('/'),
        Alias::Host(host) => policy.hosts.get(host).is_none_or(single),
        _ => true,
    };
    if !one_host {
        return Err(WordError::new("a test is about a single host, not a prefix"));
    }
    if dst == Alias::Auto(AutoGroup::Internet) {
        return Err(WordError::new("autogroup:internet is not valid as the destination of a test"));
    }
    Ok(TestTarget { text: text.trim().to_owned(), dst, port: ports.first })
}

//! The words that name sources and destinations.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::did_you_mean;

/// A name for some addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Alias {
    /// `*`: as a source the overlay and the approved subnets, as a destination everything.
    Any,
    /// A login: the user's untagged nodes.
    User(String),
    /// `user:*@domain`: untagged nodes of the users of a domain.
    UserDomain(String),
    /// `group:name`: untagged nodes of its members.
    Group(String),
    /// `tag:name`: the nodes that carry it.
    Tag(String),
    /// An entry of `hosts`.
    Host(String),
    /// An address or prefix as written.
    Net(IpNet),
    /// `autogroup:name`.
    Auto(AutoGroup),
}

/// A group that the system fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AutoGroup {
    /// Untagged nodes of any user.
    Member,
    /// Tagged nodes.
    Tagged,
    /// The source user's own untagged nodes; destinations only.
    Own,
    /// Everything outside private address space, through exit nodes; destinations only.
    Internet,
    /// Every address there is; sources only.
    DangerAll,
    /// Administrators; tag owners only.
    Admin,
}

impl AutoGroup {
    /// As written in a policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::Member => "autogroup:member",
            Self::Tagged => "autogroup:tagged",
            Self::Own => "autogroup:self",
            Self::Internet => "autogroup:internet",
            Self::DangerAll => "autogroup:danger-all",
            Self::Admin => "autogroup:admin",
        }
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::User(name) | Self::Group(name) | Self::Tag(name) | Self::Host(name) => f.write_str(name),
            Self::UserDomain(domain) => write!(f, "user:*@{domain}"),
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => write!(f, "{}", net.addr()),
            Self::Net(net) => write!(f, "{net}"),
            Self::Auto(group) => f.write_str(group.name()),
        }
    }
}

/// What is wrong with a word, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WordError {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl WordError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    pub(crate) fn hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()) }
    }
}

/// An address or a prefix; host bits of a prefix are dropped.
pub fn parse_net(text: &str) -> Option<IpNet> {
    if let Ok(addr) = text.parse::<IpAddr>() {
        return Some(IpNet::from(addr));
    }
    text.parse::<IpNet>().ok().map(|net| net.trunc())
}

impl Alias {
    /// Reads one word; surrounding blanks do not matter.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        let text = text.trim();
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some(net) = parse_net(text) {
            return Ok(Self::Net(net));
        }
        if let Some(name) = text.strip_prefix("autogroup:") {
            return parse_autogroup(name).map(Self::Auto);
        }
        if let Some(pattern) = text.strip_prefix("user:") {
            return match pattern.strip_prefix("*@") {
                Some(domain) if is_domain(domain) => Ok(Self::UserDomain(domain.to_owned())),
                _ => Err(WordError::hint(
                    format!("invalid user pattern \"{text}\""),
                    "only user:*@domain is a pattern; a single user is written as the login alone",
                )),
            };
        }
        if text.starts_with("group:") {
            return Ok(Self::Group(text.to_owned()));
        }
        if text.starts_with("tag:") {
            return Ok(Self::Tag(text.to_owned()));
        }
        if text.starts_with("ipset:") {
            return Err(WordError::hint(
                format!("\"{text}\": IP sets are not supported"),
                "use an entry of \"hosts\", or write the prefixes",
            ));
        }
        if text.contains('@') {
            if text.contains('*') {
                return Err(WordError::hint(
                    format!("\"{text}\": patterns of logins are allowed in \"groups\" only"),
                    "put the pattern into a group and name the group here",
                ));
            }
            return Ok(Self::User(text.to_owned()));
        }
        if text.is_empty() {
            return Err(WordError::new("an empty name"));
        }
        if text.contains('/') {
            return Err(WordError::new(format!("invalid prefix \"{text}\"")));
        }
        if text.contains(':') {
            let hint = "names are *, a login, group:x, tag:x, autogroup:x, an entry of \"hosts\", an address or a prefix";
            return Err(WordError::hint(format!("invalid name \"{text}\""), hint));
        }
        Ok(Self::Host(text.to_owned()))
    }
}

fn is_domain(domain: &str) -> bool {
    !domain.is_empty() && !domain.contains(['*', '@', ' ', ':'])
}

fn parse_autogroup(name: &str) -> Result<AutoGroup, WordError> {
    Ok(match name {
        "member" | "members" => AutoGroup::Member,
        "tagged" => AutoGroup::Tagged,
        "self" => AutoGroup::Own,
        "internet" => AutoGroup::Internet,
        "danger-all" => AutoGroup::DangerAll,
        "admin" | "owner" | "it-admin" | "network-admin" | "billing-admin" | "auditor" => AutoGroup::Admin,
        _ => {
            let known = ["member", "tagged", "self", "internet", "danger-all", "admin"];
            let hint =
                did_you_mean(name, known).unwrap_or_else(|| format!("autogroups are {}", known.join(", ")));
            return Err(WordError::hint(format!("unknown autogroup \"autogroup:{name}\""), hint));
        }
    })
}

/// Whether a tag's name is well formed: `tag:`, a letter, then letters, digits and hyphens.
pub(crate) fn is_tag_name(tag: &str) -> bool {
    tag.strip_prefix("tag:").is_some_and(|name| {
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    })
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupMember {
    /// One login.
    Login(String),
    /// Logins that a pattern matches: `*` stands for any characters but `@`.
    Pattern(String),
}

impl GroupMember {
    /// Reads one entry of a group.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        let text = text.trim();
        if text.starts_with("group:") {
            return Err(WordError::hint(
                format!("\"{text}\": group members cannot be recursive"),
                "list the logins themselves",
            ));
        }
        if text.starts_with("user:*@") {
            let hint = format!("write \"{}\"", text.trim_start_matches("user:"));
            return Err(WordError::hint(format!("invalid group member \"{text}\""), hint));
        }
        if text.starts_with("tag:") || text.starts_with("autogroup:") || !text.contains('@') {
            return Err(WordError::hint(
                format!("invalid group member \"{text}\": username must contain @"),
                "members are full logins such as alice@example.com, or patterns such as *@example.com",
            ));
        }
        if !text.contains('*') {
            return Ok(Self::Login(text.to_owned()));
        }
        let (_, domain) = text.rsplit_once('@').unwrap_or_default();
        if !is_domain(domain) {
            return Err(WordError::hint(
                format!("invalid pattern \"{text}\""),
                "* may stand left of the @ only: *.dev@example.com, *@example.com",
            ));
        }
        Ok(Self::Pattern(text.to_owned()))
    }

    /// Whether the login is meant.
    pub fn matches(&self, login: &str) -> bool {
        match self {
            Self::Login(member) => member == login,
            Self::Pattern(pattern) => {
                let (Some((local_pattern, domain_pattern)), Some((local, domain))) =
                    (pattern.rsplit_once('@'), login.rsplit_once('@'))
                else {
                    return false;
                };
                domain == domain_pattern && !local.contains('@') && glob(local_pattern, local)
            }
        }
    }
}

/// `*` matches any run of characters. Linear in practice: only the last `*` is ever retried.
fn glob(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_left_of_the_at_only() {
        let pattern = GroupMember::parse("*.dev@company.com").unwrap();
        assert!(pattern.matches("alice.dev@company.com"));
        assert!(pattern.matches(".dev@company.com"));
        assert!(!pattern.matches("alice@company.com"));
        assert!(!pattern.matches("alice.dev@company.com.evil.org"));
        assert!(!pattern.matches("alice.dev@evil@company.com"));
        assert!(GroupMember::parse("*@company.com").unwrap().matches("x@company.com"));
        assert!(GroupMember::parse("alice@*").is_err());
        assert!(GroupMember::parse("*").is_err());
        assert!(glob("a*b*c", "aXXbYc") && !glob("a*b*c", "acb") && !glob("ab", "abc") && !glob("a*a", "a"));
    }

    #[test]
    fn words_are_told_apart() {
        assert_eq!(Alias::parse(" tag:server ").unwrap(), Alias::Tag("tag:server".into()));
        assert_eq!(Alias::parse("user:*@x.org").unwrap(), Alias::UserDomain("x.org".into()));
        assert_eq!(Alias::parse("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert!(Alias::parse("10.0.0.0/33").is_err());
        assert!(Alias::parse("user:b*b@x.org").is_err());
        assert!(Alias::parse("*.dev@x.org").unwrap_err().hint.unwrap().contains("group"));
        assert!(Alias::parse("autogroup:membr").unwrap_err().hint.unwrap().contains("member"));
    }
}

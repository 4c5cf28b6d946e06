//! Names of nodes: one DNS label each, unique in the network.

const MAX_LABEL: usize = 63;

/// A DNS label made of what a machine calls itself: its first label in lower case, other characters as hyphens.
pub fn sanitise(hostname: &str) -> String {
    let first = hostname.trim().split('.').find(|label| !label.is_empty()).unwrap_or_default();
    let mut label = String::new();
    for character in first.chars() {
        if label.len() == MAX_LABEL {
            break;
        }
        if character.is_ascii_alphanumeric() {
            label.push(character.to_ascii_lowercase());
        } else if !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
    }
    let label = label.trim_end_matches('-');
    if label.is_empty() { "node".to_owned() } else { label.to_owned() }
}

/// Whether an administrator can give this name as it is.
pub fn is_label(name: &str) -> bool {
    sanitise(name) == name
}

/// `wanted`, or `wanted-2`, `wanted-3` and so on: the first that is not taken. `wanted` is a label.
pub fn unique(wanted: &str, mut taken: impl FnMut(&str) -> bool) -> String {
    if !taken(wanted) {
        return wanted.to_owned();
    }
    let mut number = 2u32;
    loop {
        let suffix = format!("-{number}");
        let stem = wanted[..wanted.len().min(MAX_LABEL - suffix.len())].trim_end_matches('-');
        let candidate = format!("{stem}{suffix}");
        if !taken(&candidate) {
            return candidate;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hostnames_become_labels() {
        for (hostname, label) in [
            ("web", "web"),
            ("Web.Example.COM", "web"),
            ("  alice's laptop ", "alice-s-laptop"),
            ("__x__", "x"),
            ("日本", "node"),
            ("", "node"),
            ("...", "node"),
            ("a--b", "a-b"),
        ] {
            assert_eq!(sanitise(hostname), label, "{hostname:?}");
        }
        assert_eq!(sanitise(&"a".repeat(300)).len(), MAX_LABEL);
    }

    #[test]
    fn taken_names_are_numbered() {
        let taken = ["web", "web-2"];
        assert_eq!(unique("web", |name| taken.contains(&name)), "web-3");
        assert_eq!(unique("db", |name| taken.contains(&name)), "db");
        let long = "a".repeat(MAX_LABEL);
        let numbered = unique(&long, |name| name == long);
        assert_eq!(numbered.len(), MAX_LABEL);
        assert!(numbered.ends_with("-2"));
    }

    proptest! {
        #[test]
        fn any_text_becomes_a_label(text in ".{0,100}") {
            let label = sanitise(&text);
            prop_assert!(!label.is_empty() && label.len() <= MAX_LABEL);
            prop_assert!(!label.starts_with('-') && !label.ends_with('-'));
            prop_assert!(label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            prop_assert!(is_label(&label));
        }
    }
}

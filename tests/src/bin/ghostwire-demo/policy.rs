//! SPEC.md's example policy, and the edit that the demonstration makes.

/// The policy at the start.
pub(crate) const START: &str = r#"{
  // Define user groups
  "groups": {
    "group:admin": ["alice@company.com", "bob@company.com"],
    "group:developers": ["*.dev@company.com"],
    "group:interns": ["*.intern@company.com"],
  },

  // Tag ownership
  "tagOwners": {
    "tag:server": ["group:admin"],
    "tag:database": ["group:admin"],
    "tag:development": ["group:developers", "group:admin"],
  },

  // Access rules
  "acls": [
    // Admins can access everything
    { "action": "accept", "src": ["group:admin"], "dst": ["*:*"] },

    // Developers can access development resources
    { "action": "accept", "src": ["group:developers"], "dst": ["tag:development:*"] },

    // Everyone can access web services
    { "action": "accept", "src": ["*"], "dst": ["*:80", "*:443"] },
  ],
}
"#;

/// The line that the edit changes.
pub(crate) const OLD_LINE: &str =
    r#"{ "action": "accept", "src": ["group:developers"], "dst": ["tag:development:*"] },"#;

/// What it becomes: opens the database to interns, and cuts the developers off.
pub(crate) const NEW_LINE: &str =
    r#"{ "action": "accept", "src": ["group:interns"], "dst": ["tag:development:5432"] },"#;

/// The policy after the edit.
pub(crate) fn edited() -> String {
    START.replace(OLD_LINE, NEW_LINE)
}

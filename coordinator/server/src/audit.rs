//! The audit log: who changed what, when. Written in the transaction that makes the change.

use crate::model::UnixMs;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: UnixMs,
    /// Who: `system`, `uid:1000`, `key:<auth key id>`, `node:<name>`.
    pub actor: String,
    /// What, such as `node.enroll`.
    pub action: &'static str,
    /// To what.
    pub target: String,
    /// More, for people.
    pub detail: String,
}

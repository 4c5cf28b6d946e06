//! `Debug` for generated messages that carry a secret: everything but the secret.

use std::fmt;

use crate::local::UpRequest;
use crate::v1::{CreateAuthKeyResponse, Credentials, EnrollRequest, RelayHello};

/// Printed in place of a secret.
pub(crate) const REDACTED: &str = "[redacted]";

fn redacted(secret: &str) -> &'static str {
    if secret.is_empty() { "" } else { REDACTED }
}

impl fmt::Debug for EnrollRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrollRequest")
            .field("proof", &self.proof)
            .field("node_key", &self.node_key)
            .field("auth_key", &redacted(&self.auth_key))
            .field("hostname", &self.hostname)
            .field("requested_tags", &self.requested_tags)
            .field("os", &self.os)
            .field("version", &self.version)
            .finish()
    }
}

impl fmt::Debug for CreateAuthKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateAuthKeyResponse")
            .field("key", &self.key)
            .field("join_key", &redacted(&self.join_key))
            .finish()
    }
}

impl fmt::Debug for RelayHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayHello")
            .field("auth_key", &redacted(&self.auth_key))
            .field("relay", &self.relay)
            .field("version", &self.version)
            .finish()
    }
}

impl fmt::Debug for UpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpRequest")
            .field("join_key", &redacted(&self.join_key))
            .field("hostname", &self.hostname)
            .field("advertise_routes", &self.advertise_routes)
            .field("static_endpoints", &self.static_endpoints)
            .finish()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("fragment", &self.fragment)
            .field("password", &redacted(&self.password))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let enroll = EnrollRequest { auth_key: "hunter2".to_owned(), ..Default::default() };
        let created = CreateAuthKeyResponse { join_key: "hunter2".to_owned(), ..Default::default() };
        let up = UpRequest { join_key: "hunter2".to_owned(), ..Default::default() };
        let relay = RelayHello { auth_key: "hunter2".to_owned(), ..Default::default() };
        let credentials = Credentials { password: "hunter2".to_owned(), ..Default::default() };
        let texts = [
            format!("{enroll:?}"),
            format!("{created:?}"),
            format!("{up:?}"),
            format!("{relay:?}"),
            format!("{credentials:?}"),
        ];
        for text in texts {
            assert!(!text.contains("hunter2"), "{text}");
            assert!(text.contains(REDACTED), "{text}");
        }
    }
}

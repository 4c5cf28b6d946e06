//! How a command ends.

use std::fmt;

use ghostwire_proto::channel::ConnectError;
use serde_json::json;
use tonic::Code as Grpc;

/// Exit codes, as `gwctl --help` lists them. 2 is clap's, for a wrong command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// It failed.
    Failed = 1,
    /// The daemon or the server cannot be reached.
    Unreachable = 3,
    /// Not permitted.
    NotPermitted = 4,
    /// Not found, or the policy says no.
    NotFound = 5,
}

/// Why a command failed: what, why, and what to do.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The process's exit code.
    pub code: Code,
    /// What failed, on what and why.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The command has already printed all that there is to say.
    pub quiet: bool,
}

/// What commands return.
pub type Outcome = Result<(), Failure>;

impl Failure {
    /// With a hint.
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: Some(hint.into()), quiet: false }
    }

    /// A plain failure.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { code: Code::Failed, message: message.into(), hint: None, quiet: false }
    }

    /// The answer is no, and has been printed.
    pub fn answered(code: Code) -> Self {
        Self { code, message: String::new(), hint: None, quiet: true }
    }

    /// For `--json`.
    pub fn to_json(&self) -> serde_json::Value {
        json!({ "error": { "code": self.code as u8, "message": self.message, "hint": self.hint } })
    }

    /// What a daemon or a server answered instead of doing it.
    pub fn of_status(doing: &str, status: &tonic::Status) -> Self {
        let code = match status.code() {
            Grpc::Unavailable => Code::Unreachable,
            Grpc::PermissionDenied | Grpc::Unauthenticated => Code::NotPermitted,
            Grpc::NotFound => Code::NotFound,
            _ => Code::Failed,
        };
        let why = match (status.code(), status.message()) {
            (Grpc::Unavailable, _) => "it stopped answering".to_owned(),
            (code, "") => code.description().to_owned(),
            (_, message) => message.to_owned(),
        };
        let hint = match status.code() {
            Grpc::Unimplemented => {
                Some("daemon and gwctl are of different versions: see `gwctl version`".to_owned())
            }
            _ => None,
        };
        Self { code, message: format!("cannot {doing}: {why}"), hint, quiet: false }
    }

    /// Nobody answers at a socket.
    pub fn of_connect(who: Who, error: &ConnectError) -> Self {
        use std::io::ErrorKind;
        let kind = match error {
            ConnectError::Socket { kind, .. } => *kind,
            _ => None,
        };
        let message = format!("{} cannot be reached: {error}", who.name());
        match kind {
            Some(ErrorKind::PermissionDenied) => {
                Self::new(Code::NotPermitted, message, who.permission_hint())
            }
            _ => Self::new(Code::Unreachable, message, who.start_hint()),
        }
    }
}

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// `ghostwire-client`.
    Daemon,
    /// `ghostwire-server`.
    Server,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Daemon => "the node daemon (ghostwire-client)",
            Self::Server => "the coordination server (ghostwire-server)",
        }
    }

    fn start_hint(self) -> &'static str {
        match self {
            Self::Daemon => "start it with `gwctl up`, or give its socket with --socket",
            Self::Server => {
                "run this on the server's machine, start it with `ghostwire-server run`, or give its socket with \
                 --server-socket"
            }
        }
    }

    fn permission_hint(self) -> &'static str {
        match self {
            Self::Daemon => "run gwctl as root, or join the group ghostwire: `usermod -aG ghostwire $USER`",
            Self::Server => "run gwctl as root, or as the user that runs ghostwire-server",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::output::plain(&self.message))
    }
}

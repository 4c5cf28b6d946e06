//! What can go wrong with programs and their maps.

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use aya::programs::ProgramError;

/// An error of the kernel's eBPF, or of what is around it.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// No BPF filesystem, and none could be mounted.
    #[error(
        "cannot mount a BPF filesystem at {path}: {source}; run as root, or mount it: mount -t bpf bpf {path}"
    )]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The pin folder is not on a BPF filesystem.
    #[error("{path} is not on a BPF filesystem; choose a folder below /sys/fs/bpf")]
    NotBpffs {
        /// The folder.
        path: PathBuf,
    },
    /// A file operation on a pin or its folder failed.
    #[error("cannot {action} {path}: {source}")]
    Pin {
        /// What was tried.
        action: &'static str,
        /// The pin or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The interface does not exist.
    #[error("no network interface {interface}: {source}")]
    NoInterface {
        /// Its name.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused to load the programs.
    #[error(
        "the kernel refused the eBPF programs: {0}; they need Linux 6.1 with CONFIG_BPF_SYSCALL and root"
    )]
    Load(#[source] Box<aya::EbpfError>),
    /// A program could not be loaded, attached or run.
    #[error("eBPF program: {0}")]
    Program(#[source] Box<ProgramError>),
    /// A map operation failed.
    #[error("eBPF map: {0}")]
    Map(#[source] Box<MapError>),
    /// A link could not be opened, replaced or pinned.
    #[error("eBPF link on {interface}: {message}")]
    Link {
        /// The interface.
        interface: String,
        /// What failed and why.
        message: String,
    },
    /// The pinned links serve another interface. Taking them would leave that one without.
    #[error(
        "{path} holds the program of another interface (number {holder}), here or in another network \
         namespace; give each daemon a --bpf-dir of its own"
    )]
    PinInUse {
        /// The pin.
        path: PathBuf,
        /// Index of the other interface, in its namespace.
        holder: u32,
    },
    /// Netlink refused to change the clsact qdisc or a filter.
    #[error("cannot {action} on {interface}: {source}")]
    Qdisc {
        /// What was tried.
        action: &'static str,
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// The embedded object lacks something; a fault of the build.
    #[error("the embedded eBPF object has no {what}; rebuild ghostwire")]
    Object {
        /// Its name.
        what: &'static str,
    },
    /// A system call failed.
    #[error("{call}: {source}")]
    System {
        /// Which.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl From<aya::EbpfError> for BpfError {
    fn from(error: aya::EbpfError) -> Self {
        Self::Load(Box::new(error))
    }
}

impl From<ProgramError> for BpfError {
    fn from(error: ProgramError) -> Self {
        Self::Program(Box::new(error))
    }
}

impl From<MapError> for BpfError {
    fn from(error: MapError) -> Self {
        Self::Map(Box::new(error))
    }
}

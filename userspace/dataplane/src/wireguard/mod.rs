//! WireGuard devices, whichever part of the system runs them.
//!
//! [`Device::open`] adopts the interface that an earlier run left, or makes one: in the kernel if it
//! has WireGuard, else in a process of its own that owns a TUN device ([`run_userspace`]), so that
//! packets keep flowing when the daemon is killed or upgraded. [`Device::apply`] compares what the
//! device is with what it is to be (`model`) and changes only the difference: sessions of peers that
//! do not change go on. Userspace devices are configured over a unix socket in the WireGuard
//! configuration protocol (`uapi`), kernel ones over generic netlink (`kernel`).
//!
//! A kernel device is found in the network namespace of the calling thread: stay in the one that it was
//! opened in.
//!
//! Calls block: microseconds for the kernel, at most [`ANSWER_TIMEOUT`] for a userspace process that
//! hangs, and up to [`START_TIMEOUT`] while one starts.

mod device;
mod kernel;
mod key;
mod model;
mod portions;
mod process;
mod server;
mod sockets;
mod tunnel;
pub mod uapi;
mod userspace;

pub use device::{Backend, Choice, Device, Opened, Options};
pub use key::{InvalidKey, PresharedKey, PrivateKey, PublicKey};
pub use model::{DeviceConfig, DeviceStatus, PeerConfig, PeerStatus, PeerUpdate, Update, difference};
pub use server::run_userspace;
pub use uapi::ProtocolError;
pub use userspace::{
    ANSWER_TIMEOUT, Helper, START_TIMEOUT, SUBCOMMAND, UserspaceDevice, adopt, spawn_userspace,
};

use std::{io, path::PathBuf, process::ExitStatus};

use crate::netlink::{self, LinkName};

/// Why something could not be done to a WireGuard device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The interface could not be looked up, made, or changed.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// An interface of this name exists and does not carry our mark.
    #[error(
        "interface {name} already exists and was not made by GhostWire (kind: {kind}): choose another name with \
         --interface, or delete it with `ip link delete {name}`"
    )]
    NameTaken {
        /// The name.
        name: LinkName,
        /// What kind of interface it is.
        kind: String,
    },
    /// The interface that the device was opened on is no longer there.
    #[error("interface {0} is gone: something deleted it, or its userspace process ended")]
    Gone(LinkName),
    /// The kernel was asked for and has no WireGuard.
    #[error(
        "this kernel has no WireGuard: load its module (`modprobe wireguard`), or use --wireguard userspace"
    )]
    NoKernelSupport,
    /// The kernel refused a change or a question.
    #[error("cannot {action} of kernel WireGuard interface {name}")]
    Kernel {
        /// What was asked for.
        action: &'static str,
        /// Of which interface.
        name: LinkName,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// A file or directory of a userspace device could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process serves this device.
    #[error("another process already runs userspace WireGuard for {name} (it holds {})", lock.display())]
    AlreadyRunning {
        /// Which device.
        name: LinkName,
        /// The lock that it holds.
        lock: PathBuf,
    },
    /// The process of a userspace device could not be started.
    #[error("cannot start {}", program.display())]
    Start {
        /// Which program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The process of a userspace device ended before it was ready.
    #[error("userspace WireGuard for {name} ended before it was ready ({status}): its log says why")]
    Died {
        /// Which device.
        name: LinkName,
        /// How it ended.
        status: ExitStatus,
    },
    /// The process of a userspace device is not ready in time.
    #[error("userspace WireGuard for {name} is not ready after {} s: its log says why", START_TIMEOUT.as_secs())]
    NotReady {
        /// Which device.
        name: LinkName,
    },
    /// The process of a userspace device does not end.
    #[error("the userspace WireGuard process {pid} of {name} does not end")]
    NotStopping {
        /// Which device.
        name: LinkName,
        /// Which process.
        pid: i32,
    },
    /// The process of a userspace device cannot be talked to.
    #[error("cannot talk to userspace WireGuard for {name}")]
    Talk {
        /// Which device.
        name: LinkName,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The process of a userspace device answers nonsense.
    #[error("userspace WireGuard for {name} answers nonsense")]
    Protocol {
        /// Which device.
        name: LinkName,
        /// Which nonsense.
        #[source]
        source: ProtocolError,
    },
    /// The process of a userspace device refused a change.
    #[error("userspace WireGuard for {name} refused the change")]
    Refused {
        /// Which device.
        name: LinkName,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// The TUN device or the WireGuard engine on it failed.
    #[error("userspace WireGuard on {name} failed: {reason}")]
    Engine {
        /// Which device.
        name: LinkName,
        /// What happened.
        reason: String,
    },
    /// A privilege could not be given up.
    #[error("cannot give up privileges ({action})")]
    Privileges {
        /// Which step.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

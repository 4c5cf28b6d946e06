//! Durable state behind a trait. What was written survives a power cut once it is finished, and not before; what
//! belongs together is there whole or not at all.

use std::sync::Arc;

use thiserror::Error;

use crate::audit::AuditEntry;
use crate::model::{AuthKeyRecord, Network, Node, NodeId, PolicyInForce, UnixMs, User};
use crate::view::FilterDigest;

mod migrations;
mod rows;
pub mod sqlite;

/// One row to write.
#[derive(Clone, Debug)]
pub enum Change {
    /// Adds or replaces.
    PutUser(Arc<User>),
    /// With its auth keys.
    DeleteUser(String),
    /// Adds or replaces.
    PutAuthKey(Arc<AuthKeyRecord>),
    /// Adds or replaces, with its routes.
    PutNode(Arc<Node>),
    /// Deletes, remembers the machine, gives the number back.
    DeleteNode {
        /// The node.
        node: Arc<Node>,
        /// When.
        at: UnixMs,
    },
    /// The id that the next node gets.
    NextNode(u64),
    /// Puts a policy in force and keeps it as a version.
    PutPolicy(Arc<PolicyInForce>),
    /// A node's filter changed.
    PutGeneration {
        /// Whose.
        node: NodeId,
        /// Its new generation.
        generation: u32,
        /// What it is.
        digest: FilterDigest,
    },
    /// Writes down what happened.
    Audit(AuditEntry),
}

/// A policy that was in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyVersion {
    /// Counts up from 1.
    pub version: u32,
    /// The text.
    pub text: String,
    /// When.
    pub created: UnixMs,
    /// Who.
    pub author: String,
}

/// All that is loaded at start.
#[derive(Debug)]
pub struct Stored {
    /// The network.
    pub network: Network,
    /// Filter generations.
    pub generations: Vec<(NodeId, u32, FilterDigest)>,
    /// How many times this state was started, this time included.
    pub boots: u32,
}

/// Why state was not read or written.
#[derive(Clone, Debug, Error)]
pub enum StorageError {
    /// No room.
    #[error("the disk is full: {0}")]
    Full(String),
    /// Not writable.
    #[error("the database cannot be written: {0}")]
    ReadOnly(String),
    /// Rows that no version of this program wrote.
    #[error("the database holds something unexpected in {what}: {detail}")]
    Corrupt {
        /// Table and row.
        what: String,
        /// What is wrong.
        detail: String,
    },
    /// Made by a newer version of this program.
    #[error(
        "the database has schema {found}; this program knows up to {known}: use a newer ghostwire-server"
    )]
    TooNew {
        /// In the file.
        found: u32,
        /// In this program.
        known: u32,
    },
    /// Anything else.
    #[error("the database failed: {0}")]
    Database(#[source] Arc<rusqlite::Error>),
}

/// Where state lives.
pub trait Storage: Send {
    /// Reads everything; makes a new network from `seed` if there is none.
    fn load(&mut self, seed: Seed) -> Result<Stored, StorageError>;

    /// Writes all of `changes` or none. They join what was written before, if that is not finished yet.
    fn write(&mut self, changes: &[Change]) -> Result<(), StorageError>;

    /// Makes durable what was written since the last time, or forgets all of it.
    fn finish(&mut self) -> Result<(), StorageError>;

    /// Whether something waits to be finished. False after a [`Self::write`] that failed so badly that it took with
    /// it what was written before.
    fn is_open(&self) -> bool;

    /// Writes all of `changes` or none, durably.
    fn commit(&mut self, changes: &[Change]) -> Result<(), StorageError> {
        self.write(changes)?;
        self.finish()
    }

    /// A policy that was in force.
    fn policy_version(&self, version: u32) -> Result<Option<PolicyVersion>, StorageError>;

    /// All policies that were in force, newest first, without their text.
    fn policy_versions(&self) -> Result<Vec<PolicyVersion>, StorageError>;
}

/// What a new network starts from.
#[derive(Clone, Debug)]
pub struct Seed {
    /// Random.
    pub epoch: String,
    /// Random bits of the IPv6 prefix.
    pub ula: [u8; 5],
    /// The first policy.
    pub policy: String,
    /// Time.
    pub now: UnixMs,
}

//! State in SQLite: write-ahead log, every commit synced to disk before it returns. Writes that come together share a
//! transaction, each in a savepoint of its own, and so one sync.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, TransactionBehavior, params};

use super::rows::{self, from_sql_time};
use super::{Change, PolicyVersion, Seed, Storage, StorageError, Stored, migrations};

/// A write that waits longer for another process's lock fails. Nobody but this process writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A SQLite database file.
#[derive(Debug)]
pub struct Sqlite {
    connection: Connection,
    /// The open transaction failed and could not be rolled back: nothing of it may ever be committed.
    tainted: bool,
}

impl Sqlite {
    /// Opens or makes the database and brings its schema up to date.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self::prepare(Connection::open_with_flags(path, flags).map_err(storage_error)?)
    }

    /// A database that ends with the process.
    pub fn in_memory() -> Result<Self, StorageError> {
        Self::prepare(Connection::open_in_memory().map_err(storage_error)?)
    }

    fn prepare(mut connection: Connection) -> Result<Self, StorageError> {
        connection.busy_timeout(BUSY_TIMEOUT).map_err(storage_error)?;
        for (pragma, value) in [
            ("journal_mode", "WAL"),
            // In WAL mode only FULL syncs the log at every commit: an acknowledged write survives a power cut.
            ("synchronous", "FULL"),
            ("foreign_keys", "ON"),
            ("trusted_schema", "OFF"),
        ] {
            connection
                .pragma_update_and_check(None, pragma, value, |_| Ok(()))
                .or_else(|error| match error {
                    rusqlite::Error::QueryReturnedNoRows => Ok(()),
                    error => Err(error),
                })
                .map_err(storage_error)?;
        }
        migrations::run(&mut connection)?;
        Ok(Self { connection, tainted: false })
    }

    fn execute(&self, sql: &str) -> Result<(), StorageError> {
        self.connection.execute_batch(sql).map_err(storage_error)
    }

    fn write_in_savepoint(&self, changes: &[Change]) -> Result<(), StorageError> {
        self.execute("SAVEPOINT changes")?;
        changes.iter().try_for_each(|change| rows::write(&self.connection, change)).map_err(storage_error)?;
        self.execute("RELEASE changes")
    }

    /// Forgets the open transaction; taints the connection as long as that does not work.
    fn roll_back(&mut self) -> Result<(), StorageError> {
        let rolled_back = if self.connection.is_autocommit() { Ok(()) } else { self.execute("ROLLBACK") };
        self.tainted = !self.connection.is_autocommit();
        rolled_back
    }

    fn version_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<PolicyVersion> {
        Ok(PolicyVersion {
            version: row.get(0)?,
            text: row.get(1)?,
            author: row.get(2)?,
            created: row.get(3)?,
        })
    }
}

impl Storage for Sqlite {
    fn load(&mut self, seed: Seed) -> Result<Stored, StorageError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(storage_error)?;
        rows::seed(&transaction, &seed)?;
        transaction
            .execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'boots'", [])
            .map_err(storage_error)?;
        // Nobody is connected to a coordinator that has just started.
        transaction.execute("UPDATE nodes SET online = FALSE WHERE online", []).map_err(storage_error)?;
        let stored = rows::load(&transaction)?;
        transaction.commit().map_err(storage_error)?;
        Ok(stored)
    }

    fn write(&mut self, changes: &[Change]) -> Result<(), StorageError> {
        if self.tainted {
            self.roll_back()?;
        }
        let begins = !self.is_open();
        if begins {
            self.execute("BEGIN IMMEDIATE")?;
        }
        let written = self.write_in_savepoint(changes);
        if written.is_err() {
            // Some failures (a full disk, I/O, memory) have ended the whole transaction already.
            let undo = self.is_open() && !begins;
            if !undo || self.execute("ROLLBACK TO changes; RELEASE changes").is_err() {
                let _ = self.roll_back();
            }
        }
        written
    }

    fn finish(&mut self) -> Result<(), StorageError> {
        if self.tainted {
            return self.roll_back();
        }
        if !self.is_open() {
            return Ok(());
        }
        let committed = self.execute("COMMIT");
        // A commit that fails leaves the transaction open.
        if committed.is_err() && self.is_open() {
            let _ = self.roll_back();
        }
        committed
    }

    fn is_open(&self) -> bool {
        !self.tainted && !self.connection.is_autocommit()
    }

    fn policy_version(&self, version: u32) -> Result<Option<PolicyVersion>, StorageError> {
        let sql = format!(
            "SELECT version, content, author, {} FROM acl_policy_versions WHERE version = ?1",
            from_sql_time("created_at")
        );
        self.connection.query_row(&sql, params![version], Self::version_row).optional().map_err(storage_error)
    }

    fn policy_versions(&self) -> Result<Vec<PolicyVersion>, StorageError> {
        let sql = format!(
            "SELECT version, '', author, {} FROM acl_policy_versions ORDER BY version DESC",
            from_sql_time("created_at")
        );
        let mut statement = self.connection.prepare_cached(&sql).map_err(storage_error)?;
        let rows = statement.query_map([], Self::version_row).map_err(storage_error)?;
        rows.collect::<Result<_, _>>().map_err(storage_error)
    }
}

/// Gives the common failures of a disk their names.
pub(super) fn storage_error(error: rusqlite::Error) -> StorageError {
    let text = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StorageError::Full(text),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::SystemIoFailure) => {
            StorageError::ReadOnly(text)
        }
        _ => StorageError::Database(Arc::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn what_was_committed_is_loaded_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let (committed, changes) = testing::busy_network();
        {
            let mut storage = Sqlite::open(&path).unwrap();
            storage.load(testing::seed()).unwrap();
            storage.commit(&changes).unwrap();
        }
        let mut storage = Sqlite::open(&path).unwrap();
        let stored = storage.load(testing::seed()).unwrap();
        assert_eq!(stored.boots, 2);
        let loaded = stored.network;
        assert_eq!(loaded.users, committed.users);
        assert_eq!(loaded.keys, committed.keys);
        assert_eq!(loaded.nodes, committed.nodes);
        assert_eq!(loaded.by_machine, committed.by_machine);
        assert_eq!(loaded.removed, committed.removed);
        assert_eq!(loaded.next_node, committed.next_node);
        assert_eq!(loaded.policy.text, committed.policy.text);
        assert_eq!(loaded.policy.version, committed.policy.version);
        let (mut a, mut b) = ((*loaded.ipam).clone(), (*committed.ipam).clone());
        assert_eq!(a.allocate(), b.allocate());
        let versions = storage.policy_versions().unwrap();
        assert_eq!(versions.iter().map(|v| v.version).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(storage.policy_version(1).unwrap().unwrap().author, "system");
    }

    #[test]
    fn a_commit_is_all_or_nothing() {
        let mut storage = Sqlite::in_memory().unwrap();
        storage.load(testing::seed()).unwrap();
        let (network, mut changes) = testing::busy_network();
        // A node for which there is no row to refer to makes the last change fail.
        changes.push(Change::PutGeneration {
            node: crate::model::NodeId(999),
            generation: 1,
            digest: crate::view::FilterDigest([0; 32]),
        });
        assert!(storage.commit(&changes).is_err());
        assert!(!network.users.is_empty());
        assert!(storage.load(testing::seed()).unwrap().network.users.is_empty());
    }

    #[test]
    fn what_fails_takes_nothing_with_it_that_was_written_before_or_after() {
        let mut storage = Sqlite::in_memory().unwrap();
        storage.load(testing::seed()).unwrap();
        let (network, changes) = testing::busy_network();
        let failing = Change::PutGeneration {
            node: crate::model::NodeId(999),
            generation: 1,
            digest: crate::view::FilterDigest([0; 32]),
        };
        let (first, second) = changes.split_at(changes.len() / 2);
        storage.write(first).unwrap();
        // Half of it would fit; all of it goes.
        let user = Arc::new(crate::model::User {
            id: "u9".to_owned(),
            ..(**network.users.values().next().unwrap()).clone()
        });
        assert!(storage.write(&[Change::PutUser(user), failing]).is_err());
        assert!(storage.is_open(), "what was written before waits");
        storage.write(second).unwrap();
        storage.finish().unwrap();
        assert!(!storage.is_open());
        let loaded = storage.load(testing::seed()).unwrap().network;
        assert_eq!(loaded.users, network.users);
        assert_eq!(loaded.nodes, network.nodes);
    }

    #[test]
    fn what_is_not_finished_is_not_there_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let mut storage = Sqlite::open(&path).unwrap();
        storage.load(testing::seed()).unwrap();
        storage.write(&testing::busy_network().1).unwrap();
        drop(storage);
        assert!(Sqlite::open(&path).unwrap().load(testing::seed()).unwrap().network.users.is_empty());
    }

    #[test]
    fn a_database_of_a_newer_program_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        Sqlite::open(&path).unwrap().connection.pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Sqlite::open(&path), Err(StorageError::TooNew { found: 99, .. })));
    }

    #[test]
    fn a_file_that_is_no_database_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        std::fs::write(&path, [b'x'; 4096]).unwrap();
        assert!(matches!(Sqlite::open(&path), Err(StorageError::Database(_))));
    }
}

//! The schema, step by step. A released step never changes; new ones are appended.

use rusqlite::{Connection, TransactionBehavior};

use super::StorageError;
use super::sqlite::storage_error;

const STEPS: [&str; 2] = [
    // 1: the tables of the specification, and what else is needed.
    "CREATE TABLE meta (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;
    CREATE TABLE users (
        id TEXT PRIMARY KEY,
        email TEXT UNIQUE NOT NULL,
        name TEXT NOT NULL,
        role TEXT NOT NULL DEFAULT 'user',
        provider TEXT NOT NULL,
        provider_id TEXT NOT NULL,
        created_at DATETIME DEFAULT CURRENT_TIMESTAMP
    );
    CREATE TABLE auth_keys (
        id TEXT PRIMARY KEY,
        secret_hash BLOB NOT NULL,
        user_id TEXT REFERENCES users(id) ON DELETE CASCADE,
        reusable BOOLEAN NOT NULL,
        ephemeral BOOLEAN NOT NULL,
        tags TEXT NOT NULL,
        uses INTEGER NOT NULL DEFAULT 0,
        created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
        expires_at DATETIME,
        revoked_at DATETIME
    );
    CREATE TABLE nodes (
        id TEXT PRIMARY KEY,
        name TEXT UNIQUE NOT NULL,
        public_key TEXT UNIQUE NOT NULL,
        ip_address TEXT UNIQUE NOT NULL,
        user_id TEXT NOT NULL,
        machine_key TEXT UNIQUE NOT NULL,
        node_key TEXT NOT NULL,
        last_seen DATETIME,
        online BOOLEAN DEFAULT FALSE,
        created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
        ipv6_address TEXT UNIQUE NOT NULL,
        host INTEGER UNIQUE NOT NULL,
        hostname TEXT NOT NULL,
        renamed BOOLEAN NOT NULL,
        tags TEXT NOT NULL,
        endpoints TEXT NOT NULL,
        ephemeral BOOLEAN NOT NULL,
        auth_key_id TEXT NOT NULL,
        version TEXT NOT NULL,
        os TEXT NOT NULL
    );
    CREATE TABLE routes (
        id TEXT PRIMARY KEY,
        destination TEXT NOT NULL,
        advertiser_id TEXT NOT NULL,
        enabled BOOLEAN DEFAULT TRUE,
        primary_route BOOLEAN DEFAULT FALSE,
        created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
        advertised BOOLEAN NOT NULL,
        approved_by_admin BOOLEAN NOT NULL,
        FOREIGN KEY (advertiser_id) REFERENCES nodes(id) ON DELETE CASCADE
    );
    CREATE INDEX routes_by_advertiser ON routes (advertiser_id);
    CREATE TABLE acl_policies (
        id TEXT PRIMARY KEY,
        name TEXT UNIQUE NOT NULL,
        content TEXT NOT NULL,
        version INTEGER NOT NULL DEFAULT 1,
        created_at DATETIME DEFAULT CURRENT_TIMESTAMP
    );
    CREATE TABLE acl_policy_versions (
        version INTEGER PRIMARY KEY,
        content TEXT NOT NULL,
        author TEXT NOT NULL,
        created_at DATETIME DEFAULT CURRENT_TIMESTAMP
    );
    CREATE TABLE filter_generations (
        node_id TEXT PRIMARY KEY REFERENCES nodes(id) ON DELETE CASCADE,
        generation INTEGER NOT NULL,
        digest BLOB NOT NULL
    );
    CREATE TABLE freed_addresses (
        host INTEGER PRIMARY KEY,
        freed_at DATETIME NOT NULL
    );
    CREATE TABLE removed_machines (
        machine_key TEXT PRIMARY KEY,
        removed_at DATETIME NOT NULL
    );
    CREATE TABLE audit_log (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at DATETIME NOT NULL,
        actor TEXT NOT NULL,
        action TEXT NOT NULL,
        target TEXT NOT NULL,
        detail TEXT NOT NULL
    );",
    // 2: auth keys for relays.
    "ALTER TABLE auth_keys ADD COLUMN relay BOOLEAN NOT NULL DEFAULT FALSE;",
];

/// Brings the schema up to date.
pub(super) fn run(connection: &mut Connection) -> Result<(), StorageError> {
    let found: u32 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(storage_error)?;
    let known = u32::try_from(STEPS.len()).unwrap_or(u32::MAX);
    if found > known {
        return Err(StorageError::TooNew { found, known });
    }
    for (step, version) in STEPS.iter().zip(1u32..).skip(found as usize) {
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(storage_error)?;
        transaction.execute_batch(step).map_err(storage_error)?;
        transaction.pragma_update(None, "user_version", version).map_err(storage_error)?;
        transaction.commit().map_err(storage_error)?;
    }
    Ok(())
}

//! Rows to values and values to rows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use ghostwire_policy::Policy;
use ghostwire_proto::address::NodeEndpoint;
use ghostwire_proto::auth_key::SecretHash;
use ghostwire_proto::keys::MachineKey;
use ipnet::IpNet;
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

use super::sqlite::storage_error;
use super::{Change, Seed, StorageError, Stored};
use crate::ipam::{HostPart, Ipam, overlay_ranges};
use crate::model::{AuthKeyRecord, Network, Node, NodeId, PolicyInForce, User};
use crate::view::FilterDigest;

/// Name and id of the one policy.
const POLICY: &str = "default";
/// A deleted machine that has not called for so long is forgotten.
const REMOVED_DAYS: u32 = 90;

/// SQL for a time column from milliseconds.
fn to_sql_time(parameter: &str) -> String {
    format!("strftime('%Y-%m-%d %H:%M:%f', {parameter} / 1000.0, 'unixepoch')")
}

/// SQL for milliseconds from a time column.
pub(super) fn from_sql_time(column: &str) -> String {
    format!("CAST(ROUND(unixepoch({column}, 'subsec') * 1000) AS INTEGER)")
}

/// An endpoint as it is stored.
#[derive(Serialize, Deserialize)]
struct StoredEndpoint {
    address: std::net::SocketAddr,
    fixed: bool,
}

/// Fills an empty database.
pub(super) fn seed(connection: &Connection, seed: &Seed) -> Result<(), StorageError> {
    let seeded: bool = connection
        .query_row("SELECT EXISTS (SELECT 1 FROM meta WHERE key = 'epoch')", [], |row| row.get(0))
        .map_err(storage_error)?;
    if seeded {
        return Ok(());
    }
    let ula = hex::encode(seed.ula);
    let rows = [("epoch", seed.epoch.as_str()), ("ula", ula.as_str()), ("boots", "0"), ("next_node", "1")];
    for (key, value) in rows {
        connection
            .execute("INSERT INTO meta (key, value) VALUES (?1, ?2)", params![key, value])
            .map_err(storage_error)?;
    }
    write_policy(connection, 1, &seed.policy, "system", seed.now).map_err(storage_error)
}

/// Reads everything.
pub(super) fn load(connection: &Connection) -> Result<Stored, StorageError> {
    let mut network = Network::new(meta(connection, "epoch")?, overlay(connection)?, policy(connection)?);
    network.users = Arc::new(users(connection)?);
    network.keys = Arc::new(keys(connection)?);
    network.nodes = Arc::new(nodes(connection)?);
    network.by_machine = Arc::new(network.nodes.values().map(|node| (node.machine_key, node.id)).collect());
    network.removed = Arc::new(removed(connection)?);
    network.ipam = Arc::new(ipam(connection, &network)?);
    network.next_node = number(connection, "next_node")?;
    Ok(Stored { generations: generations(connection)?, boots: number(connection, "boots")?, network })
}

fn corrupt(what: impl Into<String>, detail: impl Into<String>) -> StorageError {
    StorageError::Corrupt { what: what.into(), detail: detail.into() }
}

fn meta(connection: &Connection, key: &str) -> Result<String, StorageError> {
    connection
        .query_row("SELECT value FROM meta WHERE key = ?1", params![key], |row| row.get(0))
        .map_err(storage_error)
}

fn number<T: std::str::FromStr>(connection: &Connection, key: &str) -> Result<T, StorageError> {
    let text = meta(connection, key)?;
    text.parse().map_err(|_| corrupt(format!("meta.{key}"), "not a number"))
}

fn overlay(connection: &Connection) -> Result<ghostwire_proto::address::OverlayRanges, StorageError> {
    let mut ula = [0; 5];
    hex::decode_to_slice(meta(connection, "ula")?, &mut ula)
        .map_err(|error| corrupt("meta.ula", error.to_string()))?;
    Ok(overlay_ranges(ula))
}

fn policy(connection: &Connection) -> Result<PolicyInForce, StorageError> {
    let sql = format!(
        "SELECT v.version, v.content, v.author, {} FROM acl_policies p
         JOIN acl_policy_versions v ON v.version = p.version WHERE p.name = ?1",
        from_sql_time("v.created_at")
    );
    let (version, text, author, created) = connection
        .query_row(&sql, params![POLICY], |row| {
            Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?, row.get(3)?))
        })
        .map_err(storage_error)?;
    let policy = Policy::parse(&text).map_err(|errors| corrupt("acl_policies", errors.to_string()))?;
    Ok(PolicyInForce { version, author, created, text, policy })
}

/// Runs a query and gives each row's value a chance to be wrong.
fn collect<T, C: FromIterator<T>>(
    connection: &Connection,
    sql: &str,
    mut read: impl FnMut(&Row<'_>) -> rusqlite::Result<Result<T, StorageError>>,
) -> Result<C, StorageError> {
    let mut statement = connection.prepare(sql).map_err(storage_error)?;
    let rows = statement.query_map([], |row| read(row)).map_err(storage_error)?;
    rows.map(|row| row.map_err(storage_error)?).collect()
}

fn users(connection: &Connection) -> Result<BTreeMap<String, Arc<User>>, StorageError> {
    let sql = format!("SELECT id, email, name, role, {} FROM users", from_sql_time("created_at"));
    collect(connection, &sql, |row| {
        let user = User {
            id: row.get(0)?,
            email: row.get(1)?,
            name: row.get(2)?,
            role: row.get(3)?,
            created: row.get(4)?,
        };
        Ok(Ok((user.id.clone(), Arc::new(user))))
    })
}

fn keys(connection: &Connection) -> Result<BTreeMap<String, Arc<AuthKeyRecord>>, StorageError> {
    let sql = format!(
        "SELECT id, secret_hash, user_id, reusable, ephemeral, tags, uses, {}, {}, {}, relay FROM auth_keys",
        from_sql_time("created_at"),
        from_sql_time("expires_at"),
        from_sql_time("revoked_at"),
    );
    collect(connection, &sql, |row| {
        let id: String = row.get(0)?;
        let (tags, secret) = (row.get::<_, String>(5)?, row.get::<_, Vec<u8>>(1)?);
        let what = || format!("auth_keys {id}");
        let Ok(secret) = <[u8; 32]>::try_from(secret) else {
            return Ok(Err(corrupt(what(), "length of the hash")));
        };
        let tags = match serde_json::from_str(&tags) {
            Ok(tags) => tags,
            Err(error) => return Ok(Err(corrupt(what(), error.to_string()))),
        };
        let key = AuthKeyRecord {
            secret: SecretHash::new(secret),
            user: row.get(2)?,
            reusable: row.get(3)?,
            ephemeral: row.get(4)?,
            tags,
            uses: row.get(6)?,
            created: row.get(7)?,
            expires: row.get(8)?,
            revoked: row.get(9)?,
            relay: row.get(10)?,
            id,
        };
        Ok(Ok((key.id.clone(), Arc::new(key))))
    })
}

/// A row of `routes`.
struct StoredRoute {
    destination: String,
    advertised: bool,
    approved_by_admin: bool,
    enabled: bool,
}

/// Routes by the id of their advertiser.
type Routes = HashMap<String, Vec<StoredRoute>>;

fn nodes(connection: &Connection) -> Result<BTreeMap<NodeId, Arc<Node>>, StorageError> {
    let sql =
        "SELECT advertiser_id, destination, advertised, approved_by_admin, enabled FROM routes ORDER BY id";
    let mut routes = Routes::new();
    let rows: Vec<(String, StoredRoute)> = collect(connection, sql, |row| {
        let route = StoredRoute {
            destination: row.get(1)?,
            advertised: row.get(2)?,
            approved_by_admin: row.get(3)?,
            enabled: row.get(4)?,
        };
        Ok(Ok((row.get(0)?, route)))
    })?;
    for (node, route) in rows {
        routes.entry(node).or_default().push(route);
    }
    let sql = format!(
        "SELECT id, name, hostname, renamed, machine_key, node_key, host, user_id, tags, endpoints, ephemeral,
         auth_key_id, version, os, {}, {} FROM nodes",
        from_sql_time("created_at"),
        from_sql_time("last_seen"),
    );
    collect(connection, &sql, |row| Ok(node(row, &routes)?.map(|node| (node.id, Arc::new(node)))))
}

fn node(row: &Row<'_>, routes: &Routes) -> rusqlite::Result<Result<Node, StorageError>> {
    let id: String = row.get(0)?;
    let (machine_key, node_key) = (row.get::<_, String>(4)?, row.get::<_, String>(5)?);
    let (host, user) = (row.get::<_, u16>(6)?, row.get::<_, String>(7)?);
    let (tags, endpoints) = (row.get::<_, String>(8)?, row.get::<_, String>(9)?);
    let routes = routes.get(&id).map(Vec::as_slice).unwrap_or_default();
    let what = format!("nodes {id}");
    let (name, hostname, renamed, ephemeral) = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(10)?);
    let (auth_key, version, os) = (row.get(11)?, row.get(12)?, row.get(13)?);
    let (created, last_seen) = (row.get(14)?, row.get(15)?);
    let parse = || -> Result<Node, Box<dyn std::error::Error>> {
        let endpoints: Vec<StoredEndpoint> = serde_json::from_str(&endpoints)?;
        let listed = |pick: fn(&StoredRoute) -> bool| -> Result<Vec<IpNet>, Box<dyn std::error::Error>> {
            let mut nets = Vec::new();
            for route in routes.iter().filter(|route| pick(route)) {
                nets.push(route.destination.parse()?);
            }
            nets.sort_unstable();
            Ok(nets)
        };
        Ok(Node {
            id: NodeId(id.parse()?),
            name,
            hostname,
            renamed,
            machine_key: machine_key.parse()?,
            node_key: node_key.parse()?,
            host: HostPart::new(host).ok_or("host out of range")?,
            user: Some(user).filter(|user| !user.is_empty()),
            tags: serde_json::from_str(&tags)?,
            ephemeral,
            auth_key,
            created,
            last_seen,
            online: false,
            endpoints: endpoints
                .into_iter()
                .map(|e| NodeEndpoint { address: e.address, fixed: e.fixed })
                .collect(),
            advertised: listed(|route| route.advertised)?,
            approved_by_admin: listed(|route| route.approved_by_admin)?,
            approved: listed(|route| route.enabled)?,
            version,
            os,
            enforced_generation: 0,
            problems: Vec::new(),
        })
    };
    Ok(parse().map_err(|error| corrupt(what, error.to_string())))
}

fn removed(connection: &Connection) -> Result<HashSet<MachineKey>, StorageError> {
    collect(connection, "SELECT machine_key FROM removed_machines", |row| {
        let text: String = row.get(0)?;
        Ok(text
            .parse()
            .map_err(|error: ghostwire_proto::keys::KeyError| corrupt("removed_machines", error.to_string())))
    })
}

fn ipam(connection: &Connection, network: &Network) -> Result<Ipam, StorageError> {
    let mut ipam = Ipam::default();
    for node in network.nodes.values() {
        ipam.take(node.host);
    }
    let freed: Vec<HostPart> =
        collect(connection, "SELECT host FROM freed_addresses ORDER BY freed_at, host", |row| {
            Ok(HostPart::new(row.get(0)?).ok_or_else(|| corrupt("freed_addresses", "out of range")))
        })?;
    for host in freed {
        ipam.rest(host);
    }
    Ok(ipam)
}

fn generations(connection: &Connection) -> Result<Vec<(NodeId, u32, FilterDigest)>, StorageError> {
    collect(connection, "SELECT node_id, generation, digest FROM filter_generations", |row| {
        let (id, generation, digest) = (row.get::<_, String>(0)?, row.get(1)?, row.get::<_, Vec<u8>>(2)?);
        Ok(match (id.parse(), digest.try_into()) {
            (Ok(id), Ok(digest)) => Ok((NodeId(id), generation, FilterDigest(digest))),
            _ => Err(corrupt(format!("filter_generations {id}"), "id or digest")),
        })
    })
}

/// Writes one change.
pub(super) fn write(connection: &Connection, change: &Change) -> rusqlite::Result<()> {
    match change {
        Change::PutUser(user) => write_user(connection, user),
        Change::DeleteUser(id) => {
            connection.prepare_cached("DELETE FROM users WHERE id = ?1")?.execute(params![id]).map(drop)
        }
        Change::PutAuthKey(key) => write_key(connection, key),
        Change::PutNode(node) => write_node(connection, node),
        Change::DeleteNode { node, at } => delete_node(connection, node, *at),
        Change::NextNode(next) => connection
            .prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'next_node'")?
            .execute(params![next.to_string()])
            .map(drop),
        Change::PutPolicy(policy) => {
            write_policy(connection, policy.version, &policy.text, &policy.author, policy.created)
        }
        Change::PutGeneration { node, generation, digest } => connection
            .prepare_cached(
                "INSERT INTO filter_generations (node_id, generation, digest) VALUES (?1, ?2, ?3)
                 ON CONFLICT (node_id) DO UPDATE SET generation = excluded.generation, digest = excluded.digest",
            )?
            .execute(params![node.to_string(), generation, digest.0])
            .map(drop),
        Change::Audit(entry) => connection
            .prepare_cached(&format!(
                "INSERT INTO audit_log (at, actor, action, target, detail) VALUES ({}, ?2, ?3, ?4, ?5)",
                to_sql_time("?1")
            ))?
            .execute(params![entry.at, entry.actor, entry.action, entry.target, entry.detail])
            .map(drop),
    }
}

fn write_user(connection: &Connection, user: &User) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT INTO users (id, email, name, role, provider, provider_id, created_at)
         VALUES (?1, ?2, ?3, ?4, 'local', ?2, {})
         ON CONFLICT (id) DO UPDATE SET email = excluded.email, name = excluded.name, role = excluded.role",
        to_sql_time("?5")
    );
    connection
        .prepare_cached(&sql)?
        .execute(params![user.id, user.email, user.name, user.role, user.created])
        .map(drop)
}

fn write_key(connection: &Connection, key: &AuthKeyRecord) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT INTO auth_keys (id, secret_hash, user_id, reusable, ephemeral, tags, uses, created_at, expires_at,
         revoked_at, relay) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, {}, {}, {}, ?11)
         ON CONFLICT (id) DO UPDATE SET uses = excluded.uses, revoked_at = excluded.revoked_at",
        to_sql_time("?8"),
        to_sql_time("?9"),
        to_sql_time("?10"),
    );
    connection
        .prepare_cached(&sql)?
        .execute(params![
            key.id,
            key.secret.as_bytes(),
            key.user,
            key.reusable,
            key.ephemeral,
            list(&key.tags),
            key.uses,
            key.created,
            key.expires,
            key.revoked,
            key.relay,
        ])
        .map(drop)
}

/// Strings as JSON.
fn list(items: &[String]) -> String {
    serde_json::Value::from(items).to_string()
}

fn write_node(connection: &Connection, node: &Node) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT INTO nodes (id, name, public_key, ip_address, user_id, machine_key, node_key, last_seen, online,
         created_at, ipv6_address, host, hostname, renamed, tags, endpoints, ephemeral, auth_key_id, version, os)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, {}, ?9, {}, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, public_key = excluded.public_key,
         user_id = excluded.user_id, node_key = excluded.node_key, last_seen = excluded.last_seen,
         online = excluded.online, hostname = excluded.hostname, renamed = excluded.renamed, tags = excluded.tags,
         endpoints = excluded.endpoints, ephemeral = excluded.ephemeral, auth_key_id = excluded.auth_key_id,
         version = excluded.version, os = excluded.os",
        to_sql_time("?8"),
        to_sql_time("?10"),
    );
    let overlay = stored_overlay(connection)?;
    let endpoints: Vec<StoredEndpoint> =
        node.endpoints.iter().map(|e| StoredEndpoint { address: e.address, fixed: e.fixed }).collect();
    let id = node.id.to_string();
    connection.prepare_cached(&sql)?.execute(params![
        id,
        node.name,
        public_key(node),
        node.host.v4(&overlay).to_string(),
        node.user.as_deref().unwrap_or_default(),
        node.machine_key.to_string(),
        node.node_key.to_string(),
        node.last_seen,
        node.online,
        node.created,
        node.host.v6(&overlay).to_string(),
        node.host.get(),
        node.hostname,
        node.renamed,
        list(&node.tags),
        serde_json::to_string(&endpoints).unwrap_or_else(|_| "[]".to_owned()),
        node.ephemeral,
        node.auth_key,
        node.version,
        node.os,
    ])?;
    connection
        .prepare_cached("DELETE FROM freed_addresses WHERE host = ?1")?
        .execute(params![node.host.get()])?;
    connection
        .prepare_cached("DELETE FROM removed_machines WHERE machine_key = ?1")?
        .execute(params![node.machine_key.to_string()])?;
    write_routes(connection, &id, node)
}

/// WireGuard's own notation.
fn public_key(node: &Node) -> String {
    ghostwire_proto::keys::wireguard_text(&node.node_key)
}

fn stored_overlay(connection: &Connection) -> rusqlite::Result<ghostwire_proto::address::OverlayRanges> {
    let text: String = connection
        .prepare_cached("SELECT value FROM meta WHERE key = 'ula'")?
        .query_row([], |row| row.get(0))?;
    let mut ula = [0; 5];
    hex::decode_to_slice(text, &mut ula).map_err(|_| rusqlite::Error::InvalidQuery)?;
    Ok(overlay_ranges(ula))
}

fn write_routes(connection: &Connection, id: &str, node: &Node) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM routes WHERE advertiser_id = ?1")?.execute(params![id])?;
    let mut all: Vec<&IpNet> = node.advertised.iter().chain(&node.approved_by_admin).collect();
    all.sort_unstable();
    all.dedup();
    let mut insert = connection.prepare_cached(
        "INSERT INTO routes (id, destination, advertiser_id, enabled, advertised, approved_by_admin)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for net in all {
        insert.execute(params![
            format!("{id}/{net}"),
            net.to_string(),
            id,
            node.approved.contains(net),
            node.advertised.contains(net),
            node.approved_by_admin.contains(net),
        ])?;
    }
    Ok(())
}

fn delete_node(connection: &Connection, node: &Node, at: i64) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM nodes WHERE id = ?1")?.execute(params![node.id.to_string()])?;
    connection
        .prepare_cached(&format!(
            "INSERT OR REPLACE INTO freed_addresses (host, freed_at) VALUES (?1, {})",
            to_sql_time("?2")
        ))?
        .execute(params![node.host.get(), at])?;
    connection
        .prepare_cached(&format!(
            "INSERT OR REPLACE INTO removed_machines (machine_key, removed_at) VALUES (?1, {})",
            to_sql_time("?2")
        ))?
        .execute(params![node.machine_key.to_string(), at])?;
    connection
        .prepare_cached(&format!(
            "DELETE FROM removed_machines WHERE removed_at < strftime('%Y-%m-%d %H:%M:%f', ?1 / 1000.0, 'unixepoch',
             '-{REMOVED_DAYS} days')"
        ))?
        .execute(params![at])
        .map(drop)
}

fn write_policy(
    connection: &Connection,
    version: u32,
    text: &str,
    author: &str,
    created: i64,
) -> rusqlite::Result<()> {
    let time = to_sql_time("?4");
    connection
        .prepare_cached(&format!(
            "INSERT INTO acl_policy_versions (version, content, author, created_at) VALUES (?1, ?2, ?3, {time})"
        ))?
        .execute(params![version, text, author, created])?;
    connection
        .prepare_cached(&format!(
            "INSERT INTO acl_policies (id, name, version, content, created_at) VALUES (?1, ?1, ?2, ?3, {time})
             ON CONFLICT (id) DO UPDATE SET content = excluded.content, version = excluded.version,
             created_at = excluded.created_at"
        ))?
        .execute(params![POLICY, version, text, created])
        .map(drop)
}

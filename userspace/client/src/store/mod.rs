//! The state directory: what a node remembers.
//!
//! Four files, each sealed ([`sealed`]), readable by its owner only, replaced whole by `rename(2)` after
//! `fsync(2)`: at every moment a file is the old one or the new one. Damage by other hands is an error that
//! names the file; a half-read state does not exist.
//!
//! | file | content | if damaged |
//! |---|---|---|
//! | `identity` | keys, the network ([`Identity`]) | the daemon refuses to start |
//! | `settings` | what the user asked for ([`Settings`]) | the daemon refuses to start |
//! | `map` | the last network map | the coordinator sends it again |
//! | `peers` | our credentials for peers and their last signals ([`Acquaintance`]) | the coordinator brings new ones |

pub mod acquaintance;
pub mod identity;
pub mod sealed;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

pub use acquaintance::Acquaintance;
pub use identity::{Identity, Membership, Secret, Settings};
use prost::Message as _;
use sealed::{Damage, Kind};

use crate::pb;

/// A map of 10,000 nodes has about 4 MB; more than this is not ours.
const MAX_FILE: u64 = 64 << 20;

/// What can go wrong with the state directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another daemon works in it.
    #[error(
        "another ghostwire-client{} already uses the state directory {}; stop it, or give this one another --state-dir",
        holder(*.pid), .dir.display()
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// Its process, if it left its number.
        pid: Option<u32>,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}{}", .path.display(), remedy(.source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not as we wrote it.
    #[error("the state file {} is damaged: {damage}. {}", .path.display(), what_then(*.kind))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        kind: Kind,
        /// What is wrong with it.
        damage: Damage,
    },
    /// The seal is right, the content is not; another version wrote it.
    #[error("the state file {} cannot be understood: {why}. {}", .path.display(), what_then(*.kind))]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        kind: Kind,
        /// What is wrong with it.
        why: String,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room on that file system, the daemon tries again by itself"
        }
        io::ErrorKind::PermissionDenied => "; run ghostwire-client as root",
        io::ErrorKind::ReadOnlyFilesystem => "; give a writable directory with --state-dir",
        _ => "",
    }
}

fn what_then(kind: Kind) -> &'static str {
    match kind {
        Kind::Identity => {
            "It holds this machine's keys: restore it from a backup, or remove it and enrol again with `gwctl up JOIN_KEY`"
        }
        Kind::Settings => "Remove it, then say again what you want with `gwctl up`",
        Kind::Map => "The coordinator will send a new map",
        Kind::Peers => "Peers will be found again with the coordinator's help",
    }
}

/// The state directory, locked for this process.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// Held, not used: the lock goes with the descriptor, however the process ends.
    _lock: File,
    /// Number of the last write of the acquaintances.
    acquaintances_written: Mutex<u64>,
}

impl Store {
    /// Makes the directory if there is none, and takes it for this process.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { action, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("make the state directory", dir))?;
        let path = dir.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = (&lock).take(32).read_to_string(&mut text);
                return Err(StoreError::Locked { dir: dir.to_owned(), pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(source)) => {
                return Err(StoreError::Io { action: "lock", path, source });
            }
        }
        // Only for the message above: a full disk must not keep the daemon from starting.
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        Ok(Self { dir: dir.to_owned(), _lock: lock, acquaintances_written: Mutex::new(0) })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The keys of this machine; made and kept on the first call.
    pub fn identity(&self) -> Result<Identity, StoreError> {
        if let Some(identity) = self.load_json(Kind::Identity)? {
            return Ok(identity);
        }
        let identity = Identity::generate();
        self.save_identity(&identity)?;
        Ok(identity)
    }

    /// Keeps keys and membership.
    pub fn save_identity(&self, identity: &Identity) -> Result<(), StoreError> {
        self.save_json(Kind::Identity, identity)
    }

    /// What the user asked for last.
    pub fn settings(&self) -> Result<Settings, StoreError> {
        Ok(self.load_json(Kind::Settings)?.unwrap_or_default())
    }

    /// Keeps what the user asks for.
    pub fn save_settings(&self, settings: &Settings) -> Result<(), StoreError> {
        self.save_json(Kind::Settings, settings)
    }

    /// The last map.
    pub fn map(&self) -> Result<Option<pb::Snapshot>, StoreError> {
        let Some(bytes) = self.read(Kind::Map)? else { return Ok(None) };
        match pb::Snapshot::decode(self.unsealed(Kind::Map, &bytes)?) {
            Ok(map) => Ok(Some(map)),
            Err(error) => Err(self.content(Kind::Map, error.to_string())),
        }
    }

    /// Keeps the map.
    pub fn save_map(&self, map: &pb::Snapshot) -> Result<(), StoreError> {
        self.write(Kind::Map, &map.encode_to_vec())
    }

    /// What peers and we have told each other.
    pub fn acquaintances(&self) -> Result<Vec<Acquaintance>, StoreError> {
        Ok(self.load_json(Kind::Peers)?.unwrap_or_default())
    }

    /// Keeps that. Of writes at the same time the one with the highest number stays.
    pub fn save_acquaintances(&self, number: u64, acquaintances: &[Acquaintance]) -> Result<(), StoreError> {
        let mut written = self.acquaintances_written.lock().unwrap_or_else(PoisonError::into_inner);
        if number <= *written {
            return Ok(());
        }
        self.save_json(Kind::Peers, &acquaintances)?;
        *written = number;
        Ok(())
    }

    /// The node belongs to no network any more: its map goes, and what it knows of peers.
    pub fn forget_map(&self) -> Result<(), StoreError> {
        for path in [self.path(Kind::Map), self.path(Kind::Peers)] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::Io { action: "remove", path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn path(&self, kind: Kind) -> PathBuf {
        self.dir.join(match kind {
            Kind::Identity => "identity",
            Kind::Settings => "settings",
            Kind::Map => "map",
            Kind::Peers => "peers",
        })
    }

    fn content(&self, kind: Kind, why: String) -> StoreError {
        StoreError::Content { path: self.path(kind), kind, why }
    }

    fn load_json<T: serde::de::DeserializeOwned>(&self, kind: Kind) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.read(kind)? else { return Ok(None) };
        match serde_json::from_slice(self.unsealed(kind, &bytes)?) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(self.content(kind, error.to_string())),
        }
    }

    fn save_json<T: serde::Serialize>(&self, kind: Kind, value: &T) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(value).map_err(|error| self.content(kind, error.to_string()))?;
        self.write(kind, &bytes)
    }

    fn unsealed<'b>(&self, kind: Kind, bytes: &'b [u8]) -> Result<&'b [u8], StoreError> {
        sealed::open(kind, bytes).map_err(|damage| StoreError::Damaged {
            path: self.path(kind),
            kind,
            damage,
        })
    }

    fn read(&self, kind: Kind) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(kind);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { action: "read", path, source }),
        }
    }

    fn write(&self, kind: Kind, payload: &[u8]) -> Result<(), StoreError> {
        let path = self.path(kind);
        let fresh = path.with_extension("new");
        let written = write_new(&fresh, &sealed::seal(kind, payload))
            .and_then(|()| fs::rename(&fresh, &path))
            .and_then(|()| File::open(&self.dir)?.sync_all());
        written.map_err(|source| {
            let _ = fs::remove_file(&fresh);
            StoreError::Io { action: "write", path, source }
        })
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Left over from a crash; `create_new` below must not follow what somebody else put there.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn map() -> pb::Snapshot {
        pb::Snapshot { epoch: "e".into(), revision: 7, ..pb::Snapshot::default() }
    }

    #[test]
    fn remembers_across_restarts_and_only_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut identity = store.identity().unwrap();
        identity.membership =
            Some(Membership { coordinators: vec!["c:8080".into()], ca_fingerprint: [9; 32] });
        store.save_identity(&identity).unwrap();
        let settings = Settings {
            up: true,
            static_endpoints: vec!["192.0.2.1:51820".parse().unwrap()],
            advertise_routes: vec!["10.1.0.0/16".parse().unwrap()],
            ..Settings::default()
        };
        store.save_settings(&settings).unwrap();
        store.save_map(&map()).unwrap();
        drop(store);

        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.identity().unwrap(), identity);
        assert_eq!(store.settings().unwrap(), settings);
        assert_eq!(store.map().unwrap(), Some(map()));
        for name in ["identity", "settings", "map", "lock"] {
            let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        store.forget_map().unwrap();
        store.forget_map().unwrap();
        assert_eq!(store.map().unwrap(), None);
    }

    #[test]
    fn acquaintances_are_kept_for_their_owner_and_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let known = |id| Acquaintance {
            id,
            key: [7; 32],
            fragment: "fragment".into(),
            password: "hunter2".repeat(4),
            signal: vec![1, 2, 3],
        };
        assert!(!format!("{:?}", known(1)).contains("hunter2"));
        store.save_acquaintances(2, &[known(2)]).unwrap();
        store.save_acquaintances(1, &[known(1)]).unwrap();
        assert_eq!(store.acquaintances().unwrap(), [known(2)], "an older write comes late");
        let path = dir.path().join("peers");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = store.acquaintances().unwrap_err().to_string();
        assert!(error.contains("peers") && !error.contains("hunter2"), "{error}");
        store.forget_map().unwrap();
        assert_eq!(store.acquaintances().unwrap(), []);
    }

    #[test]
    fn a_second_daemon_is_told_who_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(dir.path()).unwrap();
        let error = Store::open(dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::Locked { pid: Some(pid), .. } if pid == std::process::id()));
        assert!(error.to_string().contains("--state-dir"), "{error}");
    }

    #[test]
    fn every_damaged_byte_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.identity().unwrap();
        let path = dir.path().join("identity");
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] = !bytes[at];
            fs::write(&path, &bytes).unwrap();
            let error = store.identity().unwrap_err().to_string();
            assert!(error.contains("identity") && error.contains("gwctl up"), "{error}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(store.identity().is_err(), "cut at {at}");
        }
        assert_eq!(fs::read(&path).unwrap().len(), whole.len() - 1, "reading never repairs or replaces");
    }

    #[test]
    fn a_failed_write_leaves_the_old_state() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save_map(&map()).unwrap();
        // A directory in the way of the new file: fails for root too, as a full disk would.
        fs::create_dir(dir.path().join("map.new")).unwrap();
        let error = store.save_map(&pb::Snapshot::default()).unwrap_err();
        assert!(error.to_string().contains("cannot write"), "{error}");
        assert_eq!(store.map().unwrap(), Some(map()));
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_state() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save_map(&map()).unwrap();
        fs::write(dir.path().join("map.new"), b"half a ma").unwrap();
        assert_eq!(store.map().unwrap(), Some(map()));
        store.save_map(&pb::Snapshot::default()).unwrap();
        assert_eq!(store.map().unwrap(), Some(pb::Snapshot::default()));
    }
}

//! The server's directory: private to it, and one server at a time.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};

const LOCK: &str = "lock";
const DATABASE: &str = "state.db";

/// The directory, locked for this process until it is dropped or the process ends in whatever way.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Makes the directory if needed, and locks it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let whole = || {
            format!(
                "cannot use the state directory {}; it must be on a file system with room that can be written, or \
                 choose another with --state-dir",
                path.display()
            )
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(whole)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o700)).with_context(whole)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK))
            .with_context(whole)?;
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
                "another ghostwire-server uses the state directory {}; stop it first, or choose another directory \
                 with --state-dir",
                path.display()
            ),
            Err((_, errno)) => Err(errno).with_context(whole),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the database is. Made with mode 0600 before SQLite opens it.
    pub fn database(&self) -> anyhow::Result<PathBuf> {
        let path = self.path.join(DATABASE);
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open the database {}", path.display()))?;
        Ok(path)
    }
}

/// Writes a file with mode 0600 so that it is there whole or not at all, also after a power cut.
pub fn write_secret(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(failed)?;
    file.write_all(contents).with_context(failed)?;
    file.sync_all().with_context(failed)?;
    std::fs::rename(&temporary, path).with_context(failed)?;
    if let Some(parent) = path.parent() {
        File::open(parent).and_then(|parent| parent.sync_all()).with_context(failed)?;
    }
    Ok(())
}

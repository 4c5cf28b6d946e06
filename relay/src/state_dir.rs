//! The relay's directory: private to it, and one relay at a time.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use zeroize::Zeroizing;

const LOCK: &str = "lock";

/// The directory, locked for this process until it is dropped or the process ends in whatever way.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Option<Flock<File>>,
}

impl StateDir {
    /// Makes the directory if needed, and locks it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let whole = || format!("cannot use the state directory {}", path.display());
        DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(whole)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o700)).with_context(whole)?;
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).mode(0o600).open(path.join(LOCK));
        match Flock::lock(lock.with_context(whole)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { path: path.to_owned(), _lock: Some(lock) }),
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "another ghostwire-relay uses the state directory {}; stop it first, or choose another directory \
                 with --state-dir",
                path.display()
            ),
            Err((_, errno)) => Err(errno).with_context(whole),
        }
    }

    /// The directory as another process has it, to read from; made if it is not there. Not locked.
    pub fn beside(path: &Path) -> anyhow::Result<Self> {
        match Self::open(path) {
            Ok(locked) => Ok(locked),
            Err(_) if path.is_dir() => Ok(Self { path: path.to_owned(), _lock: None }),
            Err(error) => Err(error),
        }
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Random bytes that are made once and stay: a key, or a name. In hexadecimal, so that they can be moved.
    pub fn random<const N: usize>(&self, name: &str) -> anyhow::Result<Zeroizing<[u8; N]>> {
        let path = self.file(name);
        let damaged = || {
            format!("{} is damaged; restore it from a backup, or remove it to get a new one", path.display())
        };
        let mut bytes = Zeroizing::new([0; N]);
        match std::fs::read_to_string(&path).map(Zeroizing::new) {
            Ok(text) => hex::decode_to_slice(text.trim(), bytes.as_mut_slice()).with_context(damaged)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                rand::fill(bytes.as_mut_slice());
                write_secret(&path, Zeroizing::new(hex::encode(bytes.as_slice())).as_bytes())?;
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
        Ok(bytes)
    }
}

/// Writes a file with mode 0600 so that it is there whole or not at all, also after a power cut.
pub fn write_secret(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file =
        options.create(true).truncate(true).write(true).mode(0o600).open(&temporary).with_context(failed)?;
    file.write_all(contents).with_context(failed)?;
    file.sync_all().with_context(failed)?;
    std::fs::rename(&temporary, path).with_context(failed)?;
    if let Some(parent) = path.parent() {
        File::open(parent).and_then(|parent| parent.sync_all()).with_context(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_are_private() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("relay");
        let first = {
            let directory = StateDir::open(&path).unwrap();
            assert!(StateDir::open(&path).is_err(), "a second relay");
            directory.random::<32>("relay.key").unwrap()
        };
        let directory = StateDir::open(&path).unwrap();
        assert_eq!(*directory.random::<32>("relay.key").unwrap(), *first);
        let mode = std::fs::metadata(directory.file("relay.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(directory.file("relay.key"), "short").unwrap();
        assert!(directory.random::<32>("relay.key").is_err());
    }
}

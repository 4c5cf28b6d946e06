//! The file that [`crate::sessions::journal`] is kept in.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::sessions::journal::{RECORD_LEN, Record};

/// The file is written anew when so many records have been appended, at least.
const COMPACT_AFTER: usize = 16_384;

/// An open journal. It outlives this process, not the machine: after a restart of the machine the pair table that it
/// belongs to is gone, so nothing waits for the disk.
#[derive(Debug)]
pub(super) struct JournalFile {
    path: PathBuf,
    file: File,
    appended: usize,
    limit: usize,
}

impl JournalFile {
    /// What an earlier process has left; nothing, if there is nothing.
    pub(super) fn left(path: &Path) -> Vec<u8> {
        std::fs::read(path).unwrap_or_default()
    }

    /// Starts a journal with these records, in place of an older one.
    pub(super) fn start(path: &Path, records: impl Iterator<Item = Record>) -> io::Result<Self> {
        let new = path.with_extension("new");
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        let mut bytes = Vec::new();
        let mut count = 0;
        for record in records {
            bytes.extend_from_slice(&record.to_bytes());
            count += 1;
        }
        file.write_all(&bytes)?;
        std::fs::rename(&new, path)?;
        Ok(Self { path: path.to_owned(), file, appended: 0, limit: COMPACT_AFTER.max(2 * count) })
    }

    /// Appends a record. `true`: the journal has become long, and [`JournalFile::start`] would shorten it.
    pub(super) fn append(&mut self, record: &Record) -> io::Result<bool> {
        let bytes: [u8; RECORD_LEN] = record.to_bytes();
        self.file.write_all(&bytes)?;
        self.appended += 1;
        Ok(self.appended >= self.limit)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

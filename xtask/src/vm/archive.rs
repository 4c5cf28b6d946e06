//! An initramfs image: the "newc" cpio format, written entry by entry.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The contents of an image by path (without the leading slash), parents first.
#[derive(Debug, Default)]
pub(super) struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    Directory,
    Symlink(String),
    Text {
        text: String,
        executable: bool,
    },
    HostFile {
        path: PathBuf,
        executable: bool,
    },
    /// A character device: major, minor.
    Device(u32, u32),
}

impl Archive {
    /// Adds a directory and its parents.
    pub(super) fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        self.parents(path);
        if !path.is_empty() {
            self.entries.entry(path.to_owned()).or_insert(Entry::Directory);
        }
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        self.insert(path, Entry::Symlink(target.to_owned()));
    }

    /// Adds a file with the given text.
    pub(super) fn text(&mut self, path: &str, text: impl Into<String>, executable: bool) {
        self.insert(path, Entry::Text { text: text.into(), executable });
    }

    /// Adds a file of the host.
    pub(super) fn file(&mut self, path: &str, host: impl Into<PathBuf>, executable: bool) {
        self.insert(path, Entry::HostFile { path: host.into(), executable });
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.insert(path, Entry::Device(major, minor));
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/');
        self.parents(path);
        self.entries.insert(path.to_owned(), entry);
    }

    fn parents(&mut self, path: &str) {
        for (slash, _) in path.match_indices('/') {
            self.entries.entry(path[..slash].to_owned()).or_insert(Entry::Directory);
        }
    }

    /// Writes the image and returns its size in bytes.
    pub(super) fn write_to(&self, image: &Path) -> Result<u64> {
        let file = fs::File::create(image).with_context(|| format!("cannot create {}", image.display()))?;
        let mut writer = Writer { out: io::BufWriter::with_capacity(1 << 20, file), written: 0, inode: 0 };
        for (path, entry) in &self.entries {
            writer
                .entry(path, entry)
                .with_context(|| format!("cannot put {path} into {}", image.display()))?;
        }
        writer.finish().with_context(|| format!("cannot write {}", image.display()))
    }
}

struct Writer<W> {
    out: W,
    written: u64,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl<W: Write> Writer<W> {
    fn entry(&mut self, path: &str, entry: &Entry) -> io::Result<()> {
        let permissions = |executable: bool| REGULAR | if executable { 0o755 } else { 0o644 };
        match entry {
            Entry::Directory => self.header(path, DIRECTORY | 0o755, 0, (0, 0)),
            Entry::Device(major, minor) => self.header(path, CHARACTER_DEVICE | 0o600, 0, (*major, *minor)),
            Entry::Symlink(target) => self.whole(path, SYMLINK | 0o777, target.as_bytes()),
            Entry::Text { text, executable } => self.whole(path, permissions(*executable), text.as_bytes()),
            Entry::HostFile { path: host, executable } => {
                let content = fs::read(host).map_err(|error| {
                    io::Error::new(error.kind(), format!("cannot read {}: {error}", host.display()))
                })?;
                self.whole(path, permissions(*executable), &content)
            }
        }
    }

    fn whole(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "a cpio entry holds less than 4 GiB"))?;
        self.header(path, mode, size, (0, 0))?;
        self.bytes(content)?;
        self.pad()
    }

    fn header(&mut self, path: &str, mode: u32, size: u32, device: (u32, u32)) -> io::Result<()> {
        self.inode += 1;
        let links = 1;
        let name_size = path.len() + 1;
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            self.inode, 0, 0, 0, 0, 0, device.0, device.1, 0
        );
        self.bytes(header.as_bytes())?;
        self.bytes(path.as_bytes())?;
        self.bytes(&[0])?;
        self.pad()
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        while !self.written.is_multiple_of(4) {
            self.bytes(&[0])?;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<u64> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, 0, (0, 0))?;
        self.out.flush()?;
        Ok(self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_lists_parents_before_children_and_is_aligned() {
        let mut archive = Archive::default();
        archive.text("/a/b/script", "echo\n", true);
        archive.symlink("bin", "usr/bin");
        assert_eq!(archive.entries.keys().collect::<Vec<_>>(), ["a", "a/b", "a/b/script", "bin"]);
        let image = std::env::temp_dir().join(format!("xtask-archive-{}", std::process::id()));
        let size = archive.write_to(&image).unwrap();
        let bytes = fs::read(&image).unwrap();
        fs::remove_file(&image).unwrap();
        assert_eq!(bytes.len() as u64, size);
        assert_eq!(size % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        // Mode of the script: a regular file that may be executed.
        let start = bytes.windows(11).position(|window| window == b"a/b/script\0").unwrap() - 110;
        assert_eq!(&bytes[start + 14..start + 22], b"000081ed");
    }
}

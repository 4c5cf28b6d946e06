//! Which Debian this host is and where its archive is, read from the host's own apt sources: other
//! suites are fetched from the same place, whatever mirror that is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The host's release and one source entry for its main archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Archive {
    /// The host's release, such as `bookworm`.
    pub(super) codename: String,
    entry: Entry,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// The lines of a deb822 stanza without its suites and components.
    Stanza(Vec<String>),
    /// `deb [options] uri` of a one-line source.
    Line(String),
}

impl Archive {
    /// Reads the host's release and sources.
    pub(super) fn of_host() -> Result<Self> {
        let codename = release_codename(&fs::read_to_string("/etc/os-release").unwrap_or_default());
        let Some(codename) = codename else {
            bail!(
                "this is not a Debian host (no VERSION_CODENAME in /etc/os-release): kernels and QEMU for the virtual \
                 machines come from Debian's archive\n  what to do: run on Debian 12, or use `cargo xtask test --quick`"
            );
        };
        let entry = source_files().into_iter().find_map(|file| {
            let text = fs::read_to_string(&file).ok()?;
            if file.extension().is_some_and(|extension| extension == "sources") {
                stanza_for(&text, &codename)
            } else {
                line_for(&text, &codename)
            }
        });
        match entry {
            Some(entry) => Ok(Self { codename, entry }),
            None => bail!(
                "no apt source offers the suite {codename}\n  what to do: add Debian's {codename} to \
                 /etc/apt/sources.list.d/debian.sources"
            ),
        }
    }

    /// A source file for another suite of the same archive: its extension and its text.
    pub(super) fn source_for(&self, suite: &str) -> (&'static str, String) {
        match &self.entry {
            Entry::Stanza(lines) => {
                ("sources", format!("{}\nSuites: {suite}\nComponents: main\n", lines.join("\n")))
            }
            Entry::Line(start) => ("list", format!("{start} {suite} main\n")),
        }
    }
}

fn release_codename(os_release: &str) -> Option<String> {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_start_matches('=').trim_matches('"').to_owned())
    };
    value("ID").filter(|id| id == "debian").and_then(|_| value("VERSION_CODENAME"))
}

fn source_files() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let directory = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    let mut further: Vec<_> = directory.filter_map(|entry| Some(entry.ok()?.path())).collect();
    further.retain(|path: &PathBuf| {
        path.extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|it| it == "sources" || it == "list")
    });
    further.sort_by_key(|path| (!is_debians_own(path), path.clone()));
    files.append(&mut further);
    files
}

fn is_debians_own(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem == "debian")
}

fn stanza_for(text: &str, codename: &str) -> Option<Entry> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).map(str::trim_end).collect();
    let stanzas = lines.split(|line| line.is_empty());
    let field = |stanza: &[&str], name: &str| {
        let value = stanza.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    let offers = |stanza: &&[&str]| {
        let has =
            |name, word: &str| field(stanza, name).is_some_and(|words| words.iter().any(|it| it == word));
        has("Types", "deb") && has("Suites", codename) && has("Components", "main")
    };
    let stanza = stanzas.into_iter().find(offers)?;
    let kept = stanza.iter().filter(|line| !line.starts_with("Suites:") && !line.starts_with("Components:"));
    Some(Entry::Stanza(kept.map(|line| (*line).to_owned()).collect()))
}

fn line_for(text: &str, codename: &str) -> Option<Entry> {
    text.lines().find_map(|line| {
        let line = line.trim();
        if !line.starts_with("deb ") {
            return None;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let suite = words.iter().position(|word| *word == codename)?;
        let main = words[suite + 1..].contains(&"main");
        main.then(|| Entry::Line(words[..suite].join(" ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: &str = "Types: deb\n# a remark\nURIs: http://mirror.example/security\nSuites: twelve-security\n\
                           Components: main\n\nTypes: deb deb-src\nURIs: http://mirror.example/debian\n\
                           Suites: twelve twelve-updates\nComponents: main contrib\nSigned-By: /k.gpg\n";

    #[test]
    fn another_suite_comes_from_the_same_archive_as_the_hosts_own() {
        let entry = stanza_for(SOURCES, "twelve").unwrap();
        let archive = Archive { codename: "twelve".into(), entry };
        let (extension, text) = archive.source_for("twelve-backports");
        assert_eq!(extension, "sources");
        assert_eq!(
            text,
            "Types: deb deb-src\nURIs: http://mirror.example/debian\nSigned-By: /k.gpg\nSuites: twelve-backports\n\
             Components: main\n"
        );
    }

    #[test]
    fn one_line_sources_are_understood_with_their_options() {
        let text = "# deb x\ndeb [signed-by=/k.gpg] http://m.example/debian twelve main contrib\n";
        let archive = Archive { codename: "twelve".into(), entry: line_for(text, "twelve").unwrap() };
        assert_eq!(archive.source_for("sid").1, "deb [signed-by=/k.gpg] http://m.example/debian sid main\n");
    }

    #[test]
    fn only_debian_has_a_codename_for_us() {
        assert_eq!(release_codename("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm"));
        assert_eq!(release_codename("VERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\n"), None);
    }
}

//! Every seed, and every input that ever broke a target, in the ordinary test run.
#![expect(clippy::unwrap_used, reason = "the helpers of a test are as much a test as the rest")]

use std::fs;
use std::path::{Path, PathBuf};

use ghostwire_fuzz_targets::TARGETS;

/// The files of a target in `fuzz/FOLDER/TARGET`; none if there is no such folder.
fn files(folder: &str, target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder).join(target);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn seeds_get_past_the_parser_and_break_nothing() {
    for (name, run) in TARGETS {
        let seeds = files("seeds", name);
        let understood = seeds.iter().filter(|seed| run(&fs::read(seed).unwrap())).count();
        assert!(understood > 0, "no seed of {name} is understood any more: run make-seeds");
    }
}

#[test]
fn what_broke_a_target_once_breaks_it_no_more() {
    for (name, run) in TARGETS {
        for file in files("regressions", name) {
            println!("{name}: {}", file.display());
            run(&fs::read(file).unwrap());
        }
    }
}

/// What the fuzzer would find first.
#[test]
fn every_target_survives_cut_and_garbled_seeds() {
    for (name, run) in TARGETS {
        for seed in files("seeds", name) {
            let whole = fs::read(&seed).unwrap();
            let step = whole.len() / 8 + 1;
            for at in (0..whole.len()).step_by(step) {
                run(&whole[..at]);
                let mut garbled = whole.clone();
                garbled[at] ^= 0x55;
                run(&garbled);
            }
        }
    }
}

#[test]
fn every_target_has_a_binary_and_every_folder_a_target() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let names = |folder: &str| -> Vec<String> {
        let Ok(entries) = fs::read_dir(fuzz.join(folder)) else { return Vec::new() };
        entries
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect()
    };
    let mut binaries = names("fuzz_targets");
    binaries.sort();
    assert_eq!(binaries, TARGETS.map(|(name, _)| name));
    for folder in ["seeds", "regressions"] {
        for name in names(folder) {
            assert!(binaries.contains(&name), "{folder}/{name} belongs to no target");
        }
    }
}

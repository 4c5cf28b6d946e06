//! Builds eBPF programs from source and leaves the object where a crate embeds it. Build scripts call [`object`].
//!
//! Two routes, because the BPF target's `core` comes in two forms: a rustup nightly with the `rust-src`
//! component builds it (`-Zbuild-std=core`), if `bpf-linker` can read what it compiles; Debian's `rustc-web`
//! packages bring it prebuilt. Either way `bpf-linker` links, with BTF. Nothing is downloaded but the crates named in
//! the programs' own `Cargo.lock`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const TARGET: &str = "bpfel-unknown-none";

/// What is built.
#[derive(Clone, Copy, Debug)]
pub struct Object {
    /// Name of the binary.
    pub name: &'static str,
    /// Folder of its package, from the workspace's root.
    pub package: &'static str,
    /// Folders of the packages that it is made of besides, from the workspace's root.
    pub parts: &'static [&'static str],
    /// Environment variable by which the crate that is built finds the object's file.
    pub variable: &'static str,
}

/// A compiler that can produce BPF.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    build_std: bool,
}

/// Builds an object, for the crate whose build script this is; `root` is the way from there to the workspace's root.
pub fn object(object: &Object, root: &str) -> ExitCode {
    match build(object, root) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: cannot build the eBPF programs: {message}");
            ExitCode::FAILURE
        }
    }
}

fn build(object: &Object, root: &str) -> Result<(), String> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join(root);
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let programs = root.join(object.package);
    watch(&root, object);

    let toolchain = toolchain()?;
    let linker = linker()?;
    let target_dir = out_dir.join("ebpf");
    let mut command = Command::new(&toolchain.cargo);
    for (name, _) in env::vars_os() {
        if is_from_the_outer_build(&name) {
            command.env_remove(name);
        }
    }
    command
        .current_dir(&programs)
        .args(["build", "--release", "--locked", "--quiet", "--bin", object.name, "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", "-Clink-arg=--btf -Cdebuginfo=2");
    if toolchain.build_std {
        command.arg("-Zbuild-std=core");
    } else {
        // By name and not "1": that would make aya's build scripts ask for -Zbuild-std.
        command.env("RUSTC_BOOTSTRAP", "aya_ebpf");
    }
    let output = command.output().map_err(|error| format!("{}: {error}", toolchain.cargo.display()))?;
    if !output.status.success() {
        return Err(format!(
            "{command:?} failed ({}):\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let built = target_dir.join(TARGET).join("release").join(object.name);
    let file = out_dir.join(object.name).with_extension("o");
    fs::copy(&built, &file).map_err(|error| format!("copying {}: {error}", built.display()))?;
    println!("cargo::rustc-env={}={}", object.variable, file.display());
    Ok(())
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set; this is to be run by cargo"))
}

/// Names everything that the object depends on. A folder is watched with all that is in it.
fn watch(root: &Path, object: &Object) {
    let mut paths = vec![root.join("Cargo.toml"), root.join(object.package).join("Cargo.lock")];
    for part in object.parts.iter().chain([&object.package]) {
        paths.extend([root.join(part).join("Cargo.toml"), root.join(part).join("src")]);
    }
    for path in paths {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    for name in ["GHOSTWIRE_BPF_LINKER", "GHOSTWIRE_CACHE"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
}

/// Beginnings of names of variables that tell of the outer build, and whole names.
const PREFIXES: [&str; 10] = [
    "CARGO_BUILD_",
    "CARGO_CFG_",
    "CARGO_ENCODED_",
    "CARGO_FEATURE_",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_PROFILE_",
    "CARGO_TARGET_",
    "RUSTC",
    "RUSTDOC",
];
const NAMES: [&str; 17] = [
    "CARGO",
    "CARGO_INCREMENTAL",
    "CARGO_MAKEFLAGS",
    "CARGO_PRIMARY_PACKAGE",
    "CLIPPY_ARGS",
    "CLIPPY_CONF_DIR",
    "DEBUG",
    "HOST",
    "MAKEFLAGS",
    "MFLAGS",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
    "TARGET",
];

/// Whether a variable tells of the build that runs this script: its flags, target and wrappers would be taken
/// for the inner build's. Where crates come from (CARGO_HOME, registries, network settings) is kept.
fn is_from_the_outer_build(name: &std::ffi::OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&name)
}

fn toolchain() -> Result<Toolchain, String> {
    if let Some(nightly) = nightly_with_source() {
        return Ok(Toolchain {
            cargo: nightly.join("bin/cargo"),
            rustc: nightly.join("bin/rustc"),
            build_std: true,
        });
    }
    let (cargo, rustc) = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
    if cargo.is_file() && rustc.is_file() && has_prebuilt_core(&rustc) {
        return Ok(Toolchain { cargo, rustc, build_std: false });
    }
    Err(format!(
        "no compiler for BPF found: neither a rustup nightly with the rust-src component and LLVM {LINKER_LLVM} or older \
         nor Debian's rustc-web with libstd-rust-web-dev-bpf. Run `cargo xtask setup`."
    ))
}

/// The LLVM that bpf-linker is built with (`cargo xtask setup` does that). It reads bitcode of its own version and of
/// older ones, not of newer.
const LINKER_LLVM: u32 = 22;

/// A rustup toolchain that can build `core` itself, and whose bitcode bpf-linker can read; the newest of them.
fn nightly_with_source() -> Option<PathBuf> {
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".rustup")))?;
    let mut toolchains: Vec<PathBuf> = fs::read_dir(rustup.join("toolchains"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nightly")))
        .filter(|path| path.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file())
        .filter(|path| path.join("bin/cargo").is_file())
        .collect();
    toolchains.sort();
    while let Some(toolchain) = toolchains.pop() {
        match llvm_of(&toolchain.join("bin/rustc")) {
            Some(version) if version <= LINKER_LLVM => return Some(toolchain),
            found => {
                let found =
                    found.map_or_else(|| "an unknown LLVM".to_owned(), |version| format!("LLVM {version}"));
                println!(
                    "cargo::warning={} is not used for the eBPF programs: it has {found}, and bpf-linker can read up to \
                     LLVM {LINKER_LLVM}",
                    toolchain.display()
                );
            }
        }
    }
    None
}

/// Major version of a compiler's LLVM.
fn llvm_of(rustc: &Path) -> Option<u32> {
    let output = Command::new(rustc).args(["--version", "--verbose"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.trim().parse().ok()
}

fn has_prebuilt_core(rustc: &Path) -> bool {
    let Ok(output) = Command::new(rustc).args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN").output()
    else {
        return false;
    };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir()
}

fn linker() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("GHOSTWIRE_BPF_LINKER").map(PathBuf::from) {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("GHOSTWIRE_BPF_LINKER names {}, which is not a file", path.display()))
        };
    }
    let cache = env::var_os("GHOSTWIRE_CACHE")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/ghostwire")));
    let cached = cache.map(|cache| cache.join("bpf-linker/bin/bpf-linker"));
    let in_path = env::var_os("PATH")
        .into_iter()
        .flat_map(|path| env::split_paths(&path).map(|folder| folder.join("bpf-linker")).collect::<Vec<_>>());
    cached
        .into_iter()
        .chain(in_path)
        .find(|path| path.is_file())
        .ok_or_else(|| "bpf-linker not found. Run `cargo xtask setup`.".to_owned())
}

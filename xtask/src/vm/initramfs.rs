//! What a test machine holds: the host's own networking tools with their libraries, a static busybox for
//! the rest, dash as the shell (busybox's own would prefer its applets to the real tools), the kernel
//! modules of networking, and what the jobs bring along.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::archive::Archive;
use super::{Content, Job, closure};
use crate::command::quote;
use crate::setup::Kernel;
use crate::workspace;

const INIT: &str = include_str!("init.sh");

/// The tools that come from the host. The first two are required; a missing other one is left out.
const TOOLS: &[&str] = &[
    "busybox", "dash", "ip", "tc", "ss", "bridge", "nft", "wg", "ping", "iperf3", "tcpdump", "bpftool",
    "kmod", "sysctl", "nsenter", "unshare", "setpriv", "ps", "bash", "timeout", "ethtool", "ncat", "socat",
    "strace",
];

/// Modules that are loaded on demand in the machine; what they depend on comes along.
const MODULES: &[&str] = &[
    // devices
    "wireguard",
    "veth",
    "tun",
    "dummy",
    "ifb",
    "bridge",
    "br_netfilter",
    "macvlan",
    "vxlan",
    "vrf",
    "8021q",
    "netkit",
    // traffic control
    "sch_ingress",
    "sch_netem",
    "sch_htb",
    "sch_tbf",
    "sch_fq",
    "sch_fq_codel",
    "sch_prio",
    "cls_bpf",
    "cls_u32",
    "cls_matchall",
    "cls_flower",
    "act_mirred",
    "act_gact",
    "act_bpf",
    "act_police",
    "tcp_bbr",
    // firewalling and address translation
    "nf_tables",
    "nfnetlink",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_chain_nat",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_counter",
    "nft_limit",
    "nft_log",
    "nft_fib",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_redir",
    "nft_hash",
    "nft_numgen",
    "nft_set_pipapo",
    "nft_set_hash",
    "nft_objref",
    "nft_meta_bridge",
    "nf_log_syslog",
    // what ss asks, file systems, packet sockets, the crypto that WireGuard's self-test likes
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    "raw_diag",
    "af_packet",
    "af_packet_diag",
    "overlay",
    "xdp_diag",
    "chacha20_x86_64",
    "poly1305_x86_64",
    "curve25519_x86_64",
    "libchacha20poly1305",
    "unix",
    "ipv6",
];

/// Builds the image for one run into `image` and returns its size.
pub(super) fn build(
    kernel: &Kernel,
    content: &[Content],
    jobs: &[Job],
    mark: &str,
    image: &Path,
) -> Result<u64> {
    let mut archive = Archive::default();
    skeleton(&mut archive);
    let mut programs = tools(&mut archive)?;
    programs.extend(bring(&mut archive, content)?);
    for library in closure::libraries(&programs)? {
        archive.file(&merged(&library.to_string_lossy()), &library, true);
    }
    modules(&mut archive, kernel)?;
    archive.text("init", INIT, true);
    archive.text("gw/jobs", script(jobs, mark), false);
    archive.write_to(image)
}

fn skeleton(archive: &mut Archive) {
    for directory in [
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "root",
        "etc",
        "var/lib",
        "var/log",
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "usr/lib/busybox",
    ] {
        archive.directory(directory);
    }
    for directory in ["bin", "sbin", "lib", "lib64"] {
        archive.symlink(directory, &format!("usr/{directory}"));
    }
    archive.symlink("var/run", "../run");
    archive.symlink("etc/mtab", "../proc/self/mounts");
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    archive.text(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        false,
    );
    archive.text("etc/group", "root:x:0:\nnogroup:x:65534:\n", false);
    archive.text("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", false);
    archive.text(
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\n",
        false,
    );
    for file in ["/etc/protocols", "/etc/services"] {
        if Path::new(file).is_file() {
            archive.file(file, file, false);
        }
    }
}

/// A path with /bin, /sbin and /lib merged into /usr, as they are in the machine.
fn merged(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let root = path.split('/').next().unwrap_or_default();
    if matches!(root, "bin" | "sbin" | "lib" | "lib64") { format!("usr/{path}") } else { path.to_owned() }
}

fn tools(archive: &mut Archive) -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    for name in TOOLS {
        match workspace::find_program(name) {
            Some(host) => {
                let directory =
                    if host.to_string_lossy().contains("/sbin/") { "usr/sbin" } else { "usr/bin" };
                archive.file(&format!("{directory}/{name}"), &host, true);
                programs.push(host);
            }
            None if *name == "busybox" || *name == "dash" => {
                anyhow::bail!("{name} is missing on this host\n  what to do: cargo xtask setup")
            }
            None => {}
        }
    }
    archive.symlink("usr/bin/sh", "dash");
    for name in ["modprobe", "lsmod", "insmod", "rmmod", "modinfo"] {
        archive.symlink(&format!("usr/sbin/{name}"), "../bin/kmod");
    }
    // Delay distributions of netem.
    for directory in ["/usr/lib/tc", "/lib/x86_64-linux-gnu/tc"] {
        tree(archive, Path::new(directory), directory)?;
    }
    Ok(programs)
}

/// Adds what the jobs need and returns the programs among it.
fn bring(archive: &mut Archive, content: &[Content]) -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    for item in content {
        match item {
            Content::Program { host, guest } => {
                archive.file(&merged(guest), host, true);
                programs.push(host.clone());
            }
            Content::File { host, guest } if host.is_dir() => tree(archive, host, guest)?,
            Content::File { host, guest } => archive.file(&merged(guest), host, false),
        }
    }
    Ok(programs)
}

/// Adds a directory of the host with all files in it; one that does not exist is empty. Build
/// directories and hidden entries stay out.
fn tree(archive: &mut Archive, host: &Path, guest: &str) -> Result<()> {
    if !host.is_dir() {
        return Ok(());
    }
    let guest = merged(guest);
    archive.directory(&guest);
    for entry in fs::read_dir(host).with_context(|| format!("cannot list {}", host.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", host.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let (path, inside) = (entry.path(), format!("{guest}/{name}"));
        if name == "target" || name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            tree(archive, &path, &inside)?;
        } else if path.is_file() {
            archive.file(&inside, path, false);
        }
    }
    Ok(())
}

fn modules(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    let tree = kernel.root.join("lib/modules").join(&kernel.release);
    let home = format!("usr/lib/modules/{}", kernel.release);
    for file in closure::modules(kernel, MODULES)? {
        let below = file
            .to_string_lossy()
            .split_once(&format!("/{}/", kernel.release))
            .map(|(_, rest)| rest.to_owned());
        let below = below
            .with_context(|| format!("modprobe named {}, outside of the kernel's tree", file.display()))?;
        archive.file(&format!("{home}/{below}"), &file, false);
    }
    // The full indexes: what is not in the image is reported as missing, as on any incomplete system.
    for entry in fs::read_dir(&tree).with_context(|| format!("cannot list {}", tree.display()))? {
        let name = entry.with_context(|| format!("cannot list {}", tree.display()))?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("modules.") {
            archive.file(&format!("{home}/{name}"), tree.join(&*name), false);
        }
    }
    Ok(())
}

/// The jobs as the shell text that init reads. Each has its own subshell.
fn script(jobs: &[Job], mark: &str) -> String {
    let job = |(number, job): (usize, &Job)| {
        let variables =
            job.environment.iter().map(|(name, value)| format!("{}={}", quote(name), quote(value)));
        let limit = job.limit.iter().map(|limit| format!("timeout --kill-after=10 {}", limit.as_secs()));
        let command = job.command.iter().map(|word| quote(word));
        let words: Vec<String> = variables.chain(limit).chain(command).collect();
        format!(
            "begin {number}\n(cd {} && exec env {}) </dev/null >/dev/ttyS1 2>&1\nend {number} $?\n",
            quote(&job.directory),
            words.join(" ")
        )
    };
    let jobs: String = jobs.iter().enumerate().map(job).collect();
    format!("GW_MARK={}\n{jobs}", quote(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_paths_are_merged_into_usr() {
        assert_eq!(merged("/lib64/ld-linux-x86-64.so.2"), "usr/lib64/ld-linux-x86-64.so.2");
        assert_eq!(merged("/usr/lib/x"), "usr/lib/x");
        assert_eq!(merged("/libexec/x"), "libexec/x");
    }

    #[test]
    fn jobs_are_quoted_and_numbered() {
        let job = Job {
            label: "say".into(),
            command: vec!["echo".into(), "it's".into()],
            directory: "/tmp".into(),
            environment: vec![("A".into(), "b c".into())],
            limit: Some(std::time::Duration::from_secs(9)),
        };
        let text = script(&[job], "@x");
        assert!(text.starts_with("GW_MARK=@x\nbegin 0\n"));
        assert!(
            text.contains(r"(cd /tmp && exec env A='b c' timeout --kill-after=10 9 echo 'it'\''s')"),
            "{text}"
        );
        assert!(text.ends_with("end 0 $?\n"));
    }
}

//! Network namespaces for tests: nameless, so that the kernel removes them with the last user.

use std::{
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _},
    process::{Command, Output},
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace that lives as long as this guard, and as the processes in it.
pub(crate) struct Netns(File);

impl Netns {
    /// A new namespace with nothing but its loopback, up.
    pub(crate) fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .unwrap_or_else(|error| panic!("cannot make a network namespace, not root? {error}"));
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let netns = Self(file.join().unwrap());
        netns.ip("link set lo up");
        netns
    }

    /// Runs `work` on a thread in the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a program in the namespace; the arguments are separated by spaces.
    pub(crate) fn output(&self, command: &str) -> Output {
        let mut words = command.split_whitespace();
        let program = words.next().unwrap();
        self.run(|| Command::new(program).args(words).output())
            .unwrap_or_else(|error| panic!("{program} does not run: {error}"))
    }

    /// Runs a program in the namespace that has to succeed, and returns its output.
    pub(crate) fn command(&self, command: &str) -> String {
        let output = self.output(command);
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "`{command}` failed: {text}");
        text
    }

    /// Runs `ip`.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.command(&format!("ip {arguments}"))
    }

    /// How other processes refer to it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Connects two namespaces by a pair of virtual Ethernet interfaces, both called `name`.
    pub(crate) fn connect(&self, other: &Self, name: &str, here: &str, there: &str) {
        let path = other.path();
        self.ip(&format!("link add {name} type veth peer name {name} netns {path}"));
        for (side, address) in [(self, here), (other, there)] {
            let flag = if address.contains(':') { "nodad" } else { "" };
            side.ip(&format!("address add {address} dev {name} {flag}"));
            side.ip(&format!("link set {name} up"));
        }
    }
}

/// Waits until `done`, long enough for emulated machines.
#[track_caller]
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
}

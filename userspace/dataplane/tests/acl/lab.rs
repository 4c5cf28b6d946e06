//! A place to try the access control programs in: a network namespace with a device, a pin folder that is
//! removed whatever happens, and packets by `BPF_PROG_TEST_RUN`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use aya::programs::TestRunOptions;
use ghostwire_dataplane::acl::{Acl, Attach, Counters, Options};
use ghostwire_ebpf_abi::event::{Direction, Reason};

use crate::netns::Netns;

/// `BPF_PROG_TEST_RUN` takes an Ethernet header off the packet, and gives it back to the program.
pub(crate) const ETHERNET: usize = 14;

/// What the programs return.
pub(crate) const PASS: u32 = u32::MAX;
pub(crate) const DROP: u32 = 2;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace and a pin folder.
pub(crate) struct Lab {
    pub(crate) netns: Netns,
    dir: PathBuf,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("/sys/fs/bpf/ghostwire-test-{}-{number}", std::process::id()));
        Self { netns: Netns::new(), dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Loads and attaches to the namespace's loopback, for packets with an Ethernet header.
    pub(crate) fn open(&self) -> Acl {
        self.open_with(&Options { connections4: 8192, connections6: 8192, ..for_test_run() })
    }

    pub(crate) fn open_with(&self, options: &Options) -> Acl {
        self.netns
            .run(|| Acl::open_or_create("lo", &self.dir, options))
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let removed = self.netns.run(|| Acl::remove("lo", &self.dir));
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

pub(crate) fn for_test_run() -> Options {
    Options { attach: Attach::Auto, l3_offset: 14, ..Options::default() }
}

/// Runs a packet, which starts at its IP header, through a program.
pub(crate) fn run(acl: &Acl, direction: Direction, packet: &[u8]) -> u32 {
    let mut frame = vec![0; ETHERNET];
    // An EtherType for experiments: the programs go by the IP version, and for IP the kernel refuses frames
    // that are shorter than a header, which are just what a parser is to be tried with.
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame.extend_from_slice(packet);
    let mut options = TestRunOptions::new();
    options.data_in = Some(&frame);
    acl.test_run(direction, options).unwrap().return_value
}

/// [`run`], and the reason that was counted.
pub(crate) fn judge(acl: &Acl, direction: Direction, packet: &[u8]) -> (u32, Reason) {
    let before = acl.counters().unwrap();
    let action = run(acl, direction, packet);
    (action, counted(&before, &acl.counters().unwrap(), direction))
}

/// The reason that was counted between two readings.
pub(crate) fn counted(before: &Counters, after: &Counters, direction: Direction) -> Reason {
    let counted: Vec<Reason> = Reason::ALL
        .into_iter()
        .filter(|reason| after.get(direction, *reason).packets != before.get(direction, *reason).packets)
        .collect();
    assert_eq!(counted.len(), 1, "one packet counts once, not as {counted:?}");
    counted[0]
}

/// An IPv4 UDP datagram.
pub(crate) fn udp(src: [u8; 4], dst: [u8; 4], src_port: u16, dst_port: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 48, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(src);
    packet.extend(dst);
    packet.extend(src_port.to_be_bytes());
    packet.extend(dst_port.to_be_bytes());
    packet.extend([0, 28, 0, 0]);
    packet.extend([0; 20]);
    packet
}

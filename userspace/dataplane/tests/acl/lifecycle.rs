//! Loading, adopting, replacing and removing.

use ghostwire_dataplane::acl::Origin;
use ghostwire_ebpf_abi::event::{Direction, Reason};

use crate::lab::{DROP, Lab, judge};

/// An IPv4 UDP datagram.
fn datagram() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 100, 64, 0, 3, 100, 64, 0, 2];
    packet.extend([0x12, 0x34, 0, 53, 0, 8, 0, 0]);
    packet
}

#[test]
fn without_a_policy_everything_is_dropped() {
    let lab = Lab::new();
    let acl = lab.open();
    assert_eq!(*acl.origin(), Origin::Created);
    assert_eq!(acl.generation().unwrap(), None);
    for direction in [Direction::Ingress, Direction::Egress] {
        assert_eq!(judge(&acl, direction, &datagram()), (DROP, Reason::NoImage));
    }
}

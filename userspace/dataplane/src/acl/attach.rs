//! The two programs on the WireGuard device.

use std::path::Path;

use aya::Ebpf;
use ghostwire_ebpf_abi::event::Direction;

use super::{AclError, object};
use crate::bpf::attach::{Place, interface_index, remove_qdisc};
use crate::bpf::object::program;
use crate::bpf::{Attach, Attachment, BpfError, Pins, bpffs};

/// Handle of our clsact filters: fixed, so that a restarted daemon finds them.
const HANDLE: u16 = 0x4757;

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

const fn pin_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn places<'a>(interface: &'a str, index: u32, dir: &Path) -> [Place<'a>; 2] {
    DIRECTIONS.map(|side| Place {
        interface,
        index,
        side,
        pin: dir.join(pin_name(side)),
        marker: dir.join("clsact"),
        handle: HANDLE,
    })
}

/// Attaches both programs, replacing those of an earlier process atomically, however it had attached them. Returns how,
/// and the programs' numbers.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    interface: &str,
    dir: &Path,
    wanted: Attach,
    pins: &Pins,
) -> Result<(Attachment, [u32; 2]), AclError> {
    let index = interface_index(interface)?;
    let attachment = Attachment::choose(wanted, pins);
    let mut programs = [0; 2];
    let places = places(interface, index, dir);
    for (place, number) in places.iter().zip(&mut programs) {
        let program = program(ebpf, object::program_name(place.side))?;
        place.attach(program, attachment)?;
        *number = program.info()?.id();
    }
    for place in &places {
        place.remove_other(attachment)?;
    }
    if attachment == Attachment::Tcx {
        remove_qdisc(interface, index, &dir.join("clsact"))?;
    }
    if are_attached(interface, attachment, programs)? {
        Ok((attachment, programs))
    } else {
        let message = "the kernel does not list the programs after attaching them".to_owned();
        Err(BpfError::Link { interface: interface.to_owned(), message }.into())
    }
}

/// Whether programs are where we attached them. No: somebody has detached one, or the interface is another one.
pub(super) fn are_attached(
    interface: &str,
    attachment: Attachment,
    programs: [u32; 2],
) -> Result<bool, AclError> {
    let Ok(index) = interface_index(interface) else { return Ok(false) };
    for (place, program) in places(interface, index, Path::new("")).iter().zip(programs) {
        if !place.holds(attachment, program)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Fails if the links pinned in a folder serve another interface than this one, here or in another network namespace:
/// then links and maps are not ours to take.
pub(super) fn refuse_others(interface: &str, dir: &Path) -> Result<(), AclError> {
    let index = interface_index(interface)?;
    for place in places(interface, index, dir) {
        place.refuse_others()?;
    }
    Ok(())
}

/// Detaches both programs, however they are attached, and removes their folder. What is not there is no error. What is
/// pinned for another interface is left to it.
pub(super) fn detach(interface: &str, dir: &Path) -> Result<(), AclError> {
    let index = interface_index(interface).ok();
    let mut ours = true;
    for place in places(interface, index.unwrap_or(0), dir) {
        ours &= place.remove_link(index)?;
        // An interface that is gone has taken its filters along.
        if index.is_some() {
            place.remove_filter()?;
        }
    }
    if let Some(index) = index {
        remove_qdisc(interface, index, &dir.join("clsact"))?;
    }
    if ours {
        bpffs::remove(dir)?;
    }
    Ok(())
}

//! Attaching the programs: tcx links where the kernel has them (6.6), else clsact filters.

use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, TcError};
use ghostwire_ebpf_abi::event::Direction;

use super::{AclError, bpffs, kernel, object, qdisc};

/// How to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// tcx from Linux 6.6 on, clsact before.
    Auto,
    /// clsact on any kernel.
    Clsact,
}

/// How the programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Pinned tcx links.
    Tcx,
    /// Filters of the clsact qdisc, which outlive the process by themselves.
    Clsact,
}

/// Priority and handle of our clsact filters: fixed, so that a restarted daemon finds them.
const PRIORITY: u16 = 0x4757;
const HANDLE: TcHandle = TcHandle::new(0, 0x4757);

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

const fn side(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

const fn pin_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// Attaches both programs, replacing those of an earlier process atomically.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    interface: &str,
    dir: &Path,
    wanted: Attach,
) -> Result<Attachment, AclError> {
    let index = interface_index(interface)?;
    let tcx = wanted == Attach::Auto && kernel::at_least(6, 6);
    if !tcx {
        prepare_clsact(interface, index, dir)?;
    }
    for direction in DIRECTIONS {
        let name = object::program_name(direction);
        let program = ebpf.program_mut(name).ok_or(AclError::Object { what: name })?;
        let program: &mut SchedClassifier = program.try_into()?;
        if tcx {
            attach_tcx(program, interface, index, direction, dir)?;
        } else {
            attach_clsact(program, interface, direction)?;
        }
    }
    Ok(if tcx { Attachment::Tcx } else { Attachment::Clsact })
}

fn interface_index(interface: &str) -> Result<u32, AclError> {
    nix::net::if_::if_nametoindex(interface)
        .map_err(|errno| AclError::NoInterface { interface: interface.to_owned(), source: errno.into() })
}

fn link_error(interface: &str, error: &dyn std::fmt::Display) -> AclError {
    AclError::Link { interface: interface.to_owned(), message: error.to_string() }
}

fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &str,
    index: u32,
    direction: Direction,
    dir: &Path,
) -> Result<(), AclError> {
    let pin = dir.join(pin_name(direction));
    if let Some(link) = pinned_link(interface, index, &pin)? {
        let id = program.attach_to_link(link)?;
        // The pin keeps the link; our descriptor is not needed.
        drop(program.take_link(id)?);
        return Ok(());
    }
    bpffs::unpin(&pin)?;
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(interface, side(direction), order)?;
    let link: FdLink = taken(program, id)?.try_into().map_err(|error| link_error(interface, &error))?;
    link.pin(&pin).map_err(|error| link_error(interface, &error))?;
    Ok(())
}

fn taken(program: &mut SchedClassifier, id: SchedClassifierLinkId) -> Result<SchedClassifierLink, AclError> {
    Ok(program.take_link(id)?)
}

/// The link of an earlier process, if it is still attached to this interface and not to one that is gone.
fn pinned_link(interface: &str, index: u32, pin: &Path) -> Result<Option<SchedClassifierLink>, AclError> {
    if !pin.exists() {
        return Ok(None);
    }
    if kernel::tcx_link_interface(&kernel::open_pin(pin)?)? != index {
        return Ok(None);
    }
    let link: FdLink = PinnedLink::from_pin(pin).map_err(|error| link_error(interface, &error))?.into();
    link.try_into().map(Some).map_err(|error| link_error(interface, &error))
}

/// Adds the clsact qdisc and remembers that it was us.
fn prepare_clsact(interface: &str, index: u32, dir: &Path) -> Result<(), AclError> {
    if qdisc::add_clsact(interface, index)? {
        let marker = dir.join(MARKER);
        if !marker.exists() {
            std::fs::create_dir(&marker).map_err(|source| AclError::Pin {
                action: "create the folder",
                path: marker,
                source,
            })?;
        }
    }
    Ok(())
}

/// Folder that says that the clsact qdisc is of our making; the BPF filesystem has no plain files.
const MARKER: &str = "clsact";

fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &str,
    direction: Direction,
) -> Result<(), AclError> {
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let attached = program.attach_with_options(interface, side(direction), TcAttachOptions::Netlink(options));
    let id = match attached {
        Ok(id) => id,
        // Ours, of an earlier process: the filter is changed in place, which is one pointer for the packets.
        Err(ProgramError::TcError(TcError::NetlinkError(error)))
            if error.raw_os_error() == Some(libc::EEXIST) =>
        {
            let link = SchedClassifierLink::attached(interface, side(direction), PRIORITY, HANDLE, None)
                .map_err(|error| link_error(interface, &error))?;
            program.attach_to_link(link)?
        }
        Err(error) => return Err(error.into()),
    };
    // Dropping the link would remove the filter, which is to outlive us.
    let _stays = std::mem::ManuallyDrop::new(taken(program, id)?);
    Ok(())
}

/// Detaches both programs, however they are attached. What is not there is no error.
pub(super) fn detach(interface: &str, dir: &Path) -> Result<(), AclError> {
    for direction in DIRECTIONS {
        let pin = dir.join(pin_name(direction));
        if pin.exists() {
            kernel::detach_link(&kernel::open_pin(&pin)?)?;
            bpffs::unpin(&pin)?;
        }
    }
    let ours = dir.join(MARKER).exists();
    // An interface that is gone has taken its filters along.
    let Ok(index) = interface_index(interface) else { return Ok(()) };
    for direction in DIRECTIONS {
        qdisc::remove_filter(interface, index, direction, PRIORITY, HANDLE.into())?;
    }
    if ours && !qdisc::has_filters(interface, index)? {
        qdisc::remove_clsact(interface, index)?;
    }
    Ok(())
}

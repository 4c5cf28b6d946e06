//! Attaching the programs: tcx links where the kernel has them (6.6) and pins last, else clsact filters.
//!
//! A link goes with its last descriptor or pin, and leaves the device open; a filter belongs to the device. So links are
//! only for where a pin is sure to outlive this process.

use std::fs;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, TcError};
use aya_obj::generated::bpf_attach_type;
use ghostwire_ebpf_abi::event::Direction;

use super::bpffs::Pins;
use super::kernel::TcxLink;
use super::{AclError, bpffs, kernel, object, qdisc};

/// How to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// tcx from Linux 6.6 on where pins last; else clsact.
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

const fn tcx_side(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => bpf_attach_type::BPF_TCX_INGRESS as u32,
        Direction::Egress => bpf_attach_type::BPF_TCX_EGRESS as u32,
    }
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
    let tcx = wanted == Attach::Auto && *pins == Pins::Lasting && kernel::at_least(6, 6);
    if !tcx {
        prepare_clsact(interface, index, dir)?;
    }
    for direction in DIRECTIONS {
        let program = program(ebpf, direction)?;
        if tcx {
            attach_tcx(program, interface, direction, dir)?;
        } else {
            attach_clsact(program, interface, direction)?;
        }
    }
    // What an earlier process attached in the other way would go on enforcing its own policy.
    if tcx {
        remove_filters(interface, index, dir)?;
    } else {
        remove_links(Some(index), dir)?;
    }
    let attachment = if tcx { Attachment::Tcx } else { Attachment::Clsact };
    let mut programs = [0; 2];
    for (number, direction) in programs.iter_mut().zip(DIRECTIONS) {
        *number = program(ebpf, direction)?.info()?.id();
    }
    if are_attached(interface, attachment, programs)? {
        Ok((attachment, programs))
    } else {
        Err(link_error(interface, &"the kernel does not list the programs after attaching them"))
    }
}

fn program(ebpf: &mut Ebpf, direction: Direction) -> Result<&mut SchedClassifier, AclError> {
    let name = object::program_name(direction);
    let program = ebpf.program_mut(name).ok_or(AclError::Object { what: name })?;
    Ok(program.try_into()?)
}

/// Whether programs are where we attached them. No: somebody has detached one, or the interface is another one.
pub(super) fn are_attached(
    interface: &str,
    attachment: Attachment,
    programs: [u32; 2],
) -> Result<bool, AclError> {
    let Ok(index) = interface_index(interface) else { return Ok(false) };
    for (program, direction) in programs.into_iter().zip(DIRECTIONS) {
        let found = match attachment {
            Attachment::Tcx => kernel::tcx_programs(index, tcx_side(direction))?.contains(&program),
            Attachment::Clsact => {
                qdisc::filter_program(interface, index, direction, PRIORITY, HANDLE.into())? == Some(program)
            }
        };
        if !found {
            return Ok(false);
        }
    }
    Ok(true)
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
    direction: Direction,
    dir: &Path,
) -> Result<(), AclError> {
    let pin = dir.join(pin_name(direction));
    if let Some(link) = pinned_link(interface, &pin)? {
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

/// Fails if the links pinned in a folder serve another interface than this one, here or in another network namespace:
/// then links and maps are not ours to take.
pub(super) fn refuse_others(interface: &str, dir: &Path) -> Result<(), AclError> {
    let index = interface_index(interface)?;
    for direction in DIRECTIONS {
        let pin = dir.join(pin_name(direction));
        if pin.exists() {
            let held = kernel::tcx_link(&kernel::open_pin(&pin)?)?;
            if held.interface != 0 && !is_on(held, Some(index), direction)? {
                return Err(AclError::PinInUse { path: pin, holder: held.interface });
            }
        }
    }
    Ok(())
}

/// The link of an earlier process, unless its interface is gone or somebody has detached it.
fn pinned_link(interface: &str, pin: &Path) -> Result<Option<SchedClassifierLink>, AclError> {
    if !pin.exists() || kernel::tcx_link(&kernel::open_pin(pin)?)?.interface == 0 {
        return Ok(None);
    }
    let link: FdLink = PinnedLink::from_pin(pin).map_err(|error| link_error(interface, &error))?.into();
    link.try_into().map(Some).map_err(|error| link_error(interface, &error))
}

/// Whether a link holds its program on this interface. Indices alone do not tell: each network namespace counts its own.
fn is_on(held: TcxLink, index: Option<u32>, direction: Direction) -> Result<bool, AclError> {
    match index {
        Some(index) if index == held.interface => {
            Ok(kernel::tcx_programs(index, tcx_side(direction))?.contains(&held.program))
        }
        _ => Ok(false),
    }
}

/// Adds the clsact qdisc and remembers that it was us.
fn prepare_clsact(interface: &str, index: u32, dir: &Path) -> Result<(), AclError> {
    if qdisc::add_clsact(interface, index)? {
        let marker = dir.join(MARKER);
        if !marker.exists() {
            fs::create_dir(&marker).map_err(|source| AclError::Pin {
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

/// Detaches both programs, however they are attached. What is not there is no error. False: the pins serve another
/// interface, and are left to it.
pub(super) fn detach(interface: &str, dir: &Path) -> Result<bool, AclError> {
    let index = interface_index(interface).ok();
    let ours = remove_links(index, dir)?;
    // An interface that is gone has taken its filters along.
    if let Some(index) = index {
        remove_filters(interface, index, dir)?;
    }
    Ok(ours)
}

/// Detaches what is pinned, unless it is on another interface than this one: then false.
fn remove_links(index: Option<u32>, dir: &Path) -> Result<bool, AclError> {
    let mut ours = true;
    for direction in DIRECTIONS {
        let pin = dir.join(pin_name(direction));
        if !pin.exists() {
            continue;
        }
        let link = kernel::open_pin(&pin)?;
        let held = kernel::tcx_link(&link)?;
        if held.interface == 0 || is_on(held, index, direction)? {
            kernel::detach_link(&link)?;
            bpffs::unpin(&pin)?;
        } else {
            ours = false;
        }
    }
    Ok(ours)
}

/// Removes our filters, and the qdisc if it is of our making and nobody else uses it.
fn remove_filters(interface: &str, index: u32, dir: &Path) -> Result<(), AclError> {
    for direction in DIRECTIONS {
        qdisc::remove_filter(interface, index, direction, PRIORITY, HANDLE.into())?;
    }
    let marker = dir.join(MARKER);
    if !marker.exists() {
        return Ok(());
    }
    if !qdisc::has_filters(interface, index)? {
        qdisc::remove_clsact(interface, index)?;
    }
    fs::remove_dir(&marker).map_err(|source| AclError::Pin { action: "remove", path: marker, source })
}

//! Attaching a program: a tcx link where the kernel has them (6.6) and pins last, else a clsact filter.
//!
//! A link goes with its last descriptor or pin, and leaves the device open; a filter belongs to the device. So links are
//! only for where a pin is sure to outlive this process.

use std::fs;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, TcError};
use aya_obj::generated::bpf_attach_type;
use ghostwire_ebpf_abi::event::Direction;

use super::bpffs::Pins;
use super::kernel::TcxLink;
use super::{BpfError, bpffs, kernel, qdisc};

/// How to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// tcx from Linux 6.6 on where pins last; else clsact.
    Auto,
    /// clsact on any kernel.
    Clsact,
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Pinned tcx links.
    Tcx,
    /// Filters of the clsact qdisc, which outlive the process by themselves.
    Clsact,
}

impl Attachment {
    /// What a wish comes to here.
    pub(crate) fn choose(wanted: Attach, pins: &Pins) -> Self {
        if wanted == Attach::Auto && *pins == Pins::Lasting && kernel::at_least(6, 6) {
            Self::Tcx
        } else {
            Self::Clsact
        }
    }
}

/// Priority of our clsact filters: fixed, so that a restarted daemon finds them.
const PRIORITY: u16 = 0x4757;

/// One side of one interface, and where its link is pinned.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) interface: &'a str,
    pub(crate) index: u32,
    pub(crate) side: Direction,
    pub(crate) pin: PathBuf,
    /// Folder that says that the clsact qdisc is of our making; the BPF filesystem has no plain files.
    pub(crate) marker: PathBuf,
    /// Distinguishes our clsact filter from those of other daemons on the interface. Not 0.
    pub(crate) handle: u16,
}

impl Place<'_> {
    fn handle(&self) -> TcHandle {
        TcHandle::new(0, self.handle)
    }

    fn aya_side(&self) -> TcAttachType {
        match self.side {
            Direction::Ingress => TcAttachType::Ingress,
            Direction::Egress => TcAttachType::Egress,
        }
    }

    fn tcx_side(&self) -> u32 {
        match self.side {
            Direction::Ingress => bpf_attach_type::BPF_TCX_INGRESS as u32,
            Direction::Egress => bpf_attach_type::BPF_TCX_EGRESS as u32,
        }
    }

    fn error(&self, error: &dyn std::fmt::Display) -> BpfError {
        BpfError::Link { interface: self.interface.to_owned(), message: error.to_string() }
    }

    /// Attaches a program, replacing that of an earlier process atomically. One that is attached in the other way stays:
    /// [`Self::remove_other`].
    pub(crate) fn attach(
        &self,
        program: &mut SchedClassifier,
        attachment: Attachment,
    ) -> Result<(), BpfError> {
        match attachment {
            Attachment::Tcx => self.attach_tcx(program),
            Attachment::Clsact => {
                self.prepare_clsact()?;
                self.attach_clsact(program)
            }
        }
    }

    /// Removes what an earlier process attached in the other way: it would go on as that process left it.
    pub(crate) fn remove_other(&self, attachment: Attachment) -> Result<(), BpfError> {
        match attachment {
            Attachment::Tcx => self.remove_filter(),
            Attachment::Clsact => self.remove_link(Some(self.index)).map(drop),
        }
    }

    fn attach_tcx(&self, program: &mut SchedClassifier) -> Result<(), BpfError> {
        if let Some(link) = self.pinned_link()? {
            let id = program.attach_to_link(link)?;
            // The pin keeps the link; our descriptor is not needed.
            drop(program.take_link(id)?);
            return Ok(());
        }
        bpffs::unpin(&self.pin)?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(self.interface, self.aya_side(), order)?;
        let link: FdLink = program.take_link(id)?.try_into().map_err(|error| self.error(&error))?;
        link.pin(&self.pin).map_err(|error| self.error(&error))?;
        Ok(())
    }

    /// The link of an earlier process, unless its interface is gone or somebody has detached it.
    fn pinned_link(&self) -> Result<Option<SchedClassifierLink>, BpfError> {
        if !self.pin.exists() || kernel::tcx_link(&kernel::open_pin(&self.pin)?)?.interface == 0 {
            return Ok(None);
        }
        let link: FdLink = PinnedLink::from_pin(&self.pin).map_err(|error| self.error(&error))?.into();
        link.try_into().map(Some).map_err(|error| self.error(&error))
    }

    /// Adds the clsact qdisc and remembers that it was us.
    fn prepare_clsact(&self) -> Result<(), BpfError> {
        if qdisc::add_clsact(self.interface, self.index)? && !self.marker.exists() {
            fs::create_dir(&self.marker).map_err(|source| BpfError::Pin {
                action: "create the folder",
                path: self.marker.clone(),
                source,
            })?;
        }
        Ok(())
    }

    fn attach_clsact(&self, program: &mut SchedClassifier) -> Result<(), BpfError> {
        let options = NlOptions { priority: PRIORITY, handle: self.handle(), classid: None };
        let attached =
            program.attach_with_options(self.interface, self.aya_side(), TcAttachOptions::Netlink(options));
        let id = match attached {
            Ok(id) => id,
            // Ours, of an earlier process: the filter is changed in place, which is one pointer for the packets.
            Err(ProgramError::TcError(TcError::NetlinkError(error)))
                if error.raw_os_error() == Some(libc::EEXIST) =>
            {
                let link = SchedClassifierLink::attached(
                    self.interface,
                    self.aya_side(),
                    PRIORITY,
                    self.handle(),
                    None,
                )
                .map_err(|error| self.error(&error))?;
                program.attach_to_link(link)?
            }
            Err(error) => return Err(error.into()),
        };
        // Dropping the link would remove the filter, which is to outlive us.
        let _stays = std::mem::ManuallyDrop::new(program.take_link(id)?);
        Ok(())
    }

    /// Whether a program is where it was attached. No: somebody has detached it, or the interface is another one.
    pub(crate) fn holds(&self, attachment: Attachment, program: u32) -> Result<bool, BpfError> {
        Ok(match attachment {
            Attachment::Tcx => kernel::tcx_programs(self.index, self.tcx_side())?.contains(&program),
            Attachment::Clsact => {
                let found = qdisc::filter_program(
                    self.interface,
                    self.index,
                    self.side,
                    PRIORITY,
                    self.handle().into(),
                )?;
                found == Some(program)
            }
        })
    }

    /// Whether our filter is here, whatever program it runs.
    pub(crate) fn has_filter(&self) -> Result<bool, BpfError> {
        let (index, handle) = (self.index, self.handle().into());
        Ok(qdisc::filter_program(self.interface, index, self.side, PRIORITY, handle)?.is_some())
    }

    /// Fails if the link that is pinned here serves another interface, here or in another network namespace: then links
    /// and maps are not ours to take.
    pub(crate) fn refuse_others(&self) -> Result<(), BpfError> {
        if self.pin.exists() {
            let held = kernel::tcx_link(&kernel::open_pin(&self.pin)?)?;
            if held.interface != 0 && !self.is_on(held, Some(self.index))? {
                return Err(BpfError::PinInUse { path: self.pin.clone(), holder: held.interface });
            }
        }
        Ok(())
    }

    /// Whether a link holds its program on this interface. Indices alone do not tell: each network namespace counts its
    /// own.
    fn is_on(&self, held: TcxLink, index: Option<u32>) -> Result<bool, BpfError> {
        match index {
            Some(index) if index == held.interface => {
                Ok(kernel::tcx_programs(index, self.tcx_side())?.contains(&held.program))
            }
            _ => Ok(false),
        }
    }

    /// Detaches what is pinned here, unless it is on another interface than this one: then false. `None`: the interface
    /// is gone.
    pub(crate) fn remove_link(&self, index: Option<u32>) -> Result<bool, BpfError> {
        if !self.pin.exists() {
            return Ok(true);
        }
        let link = kernel::open_pin(&self.pin)?;
        let held = kernel::tcx_link(&link)?;
        if held.interface != 0 && !self.is_on(held, index)? {
            return Ok(false);
        }
        kernel::detach_link(&link)?;
        bpffs::unpin(&self.pin)?;
        Ok(true)
    }

    /// Removes our filter. That there is none is no error.
    pub(crate) fn remove_filter(&self) -> Result<(), BpfError> {
        qdisc::remove_filter(self.interface, self.index, self.side, PRIORITY, self.handle().into())
    }
}

/// Removes the clsact qdisc if it is of our making and nobody uses it any more.
pub(crate) fn remove_qdisc(interface: &str, index: u32, marker: &Path) -> Result<(), BpfError> {
    if !marker.exists() {
        return Ok(());
    }
    if !qdisc::has_filters(interface, index)? {
        qdisc::remove_clsact(interface, index)?;
    }
    fs::remove_dir(marker).map_err(|source| BpfError::Pin {
        action: "remove",
        path: marker.to_owned(),
        source,
    })
}

/// Number of the interface with a name.
pub(crate) fn interface_index(interface: &str) -> Result<u32, BpfError> {
    nix::net::if_::if_nametoindex(interface)
        .map_err(|errno| BpfError::NoInterface { interface: interface.to_owned(), source: errno.into() })
}

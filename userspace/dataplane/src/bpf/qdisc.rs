//! The clsact qdisc and its filters over netlink: what the eBPF library does not offer.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use ghostwire_ebpf_abi::event::Direction;

use super::BpfError;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_DUMP: u16 = 0x300;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ID: u16 = 11;
const NLA_TYPE_MASK: u16 = 0x3fff;
const ETH_P_ALL: u16 = 3;
const HEADER: usize = 16;
const TC_MESSAGE: usize = 20;

/// `struct tcmsg`.
#[derive(Clone, Copy)]
struct TcMessage {
    ifindex: u32,
    handle: u32,
    parent: u32,
    info: u32,
}

const fn parent(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => 0xffff_fff2,
        Direction::Egress => 0xffff_fff3,
    }
}

/// Adds the qdisc. False: it was there already.
pub(crate) fn add_clsact(interface: &str, index: u32) -> Result<bool, BpfError> {
    let message = TcMessage { ifindex: index, handle: CLSACT_HANDLE, parent: TC_H_CLSACT, info: 0 };
    match request(RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, message, Some(b"clsact\0")) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(source) => {
            Err(BpfError::Qdisc { action: "add the clsact qdisc", interface: interface.to_owned(), source })
        }
    }
}

/// Removes the qdisc; that there is none is no error.
pub(crate) fn remove_clsact(interface: &str, index: u32) -> Result<(), BpfError> {
    let message = TcMessage { ifindex: index, handle: CLSACT_HANDLE, parent: TC_H_CLSACT, info: 0 };
    let result = request(RTM_DELQDISC, NLM_F_ACK, message, None);
    absent_is_fine(result, "remove the clsact qdisc", interface)
}

/// Removes one filter; that there is none, or no qdisc, is no error.
pub(crate) fn remove_filter(
    interface: &str,
    index: u32,
    direction: Direction,
    priority: u16,
    handle: u32,
) -> Result<(), BpfError> {
    let all_protocols = u32::from(ETH_P_ALL.to_be());
    let info = u32::from(priority) << 16 | all_protocols;
    let message = TcMessage { ifindex: index, handle, parent: parent(direction), info };
    absent_is_fine(request(RTM_DELTFILTER, NLM_F_ACK, message, Some(b"bpf\0")), "remove a filter", interface)
}

/// Number of the program that one filter runs. `None`: there is no such filter, or no qdisc.
pub(crate) fn filter_program(
    interface: &str,
    index: u32,
    direction: Direction,
    priority: u16,
    handle: u32,
) -> Result<Option<u32>, BpfError> {
    let info = u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be());
    let message = TcMessage { ifindex: index, handle, parent: parent(direction), info };
    match request(RTM_GETTFILTER, NLM_F_ACK, message, Some(b"bpf\0")) {
        Ok(answer) => Ok(answer.program),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {
            Ok(None)
        }
        Err(source) => {
            Err(BpfError::Qdisc { action: "look up a filter", interface: interface.to_owned(), source })
        }
    }
}

/// Whether anybody's filter is left on either side.
pub(crate) fn has_filters(interface: &str, index: u32) -> Result<bool, BpfError> {
    for direction in [Direction::Ingress, Direction::Egress] {
        let message = TcMessage { ifindex: index, handle: 0, parent: parent(direction), info: 0 };
        match request(RTM_GETTFILTER, NLM_F_DUMP, message, None) {
            Ok(found) if found.filters > 0 => return Ok(true),
            Ok(_) => {}
            // The interface is gone, and with it its filters.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
            Err(source) => {
                let interface = interface.to_owned();
                return Err(BpfError::Qdisc { action: "list the filters", interface, source });
            }
        }
    }
    Ok(false)
}

fn absent_is_fine(result: io::Result<Answer>, action: &'static str, interface: &str) -> Result<(), BpfError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {
            Ok(())
        }
        Err(source) => Err(BpfError::Qdisc { action, interface: interface.to_owned(), source }),
    }
}

/// What the kernel answered.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    /// Filters that it told of.
    filters: usize,
    /// Number of the program of the last of them, if it runs one.
    program: Option<u32>,
}

/// Sends one message and reads the answer: an acknowledgement, or filters and then an end.
fn request(kind: u16, flags: u16, message: TcMessage, tca_kind: Option<&[u8]>) -> io::Result<Answer> {
    let socket = socket()?;
    let bytes = encode(kind, flags | NLM_F_REQUEST, message, tca_kind);
    // SAFETY: the buffer is valid for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = Answer::default();
    let mut buffer = vec![0_u8; 32 * 1024];
    loop {
        // SAFETY: as above.
        let received = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        if read(buffer.get(..received).unwrap_or_default(), &mut answer)? {
            return Ok(answer);
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is ours if it is one.
    unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

fn encode(kind: u16, flags: u16, message: TcMessage, tca_kind: Option<&[u8]>) -> Vec<u8> {
    let mut body = vec![0_u8; 4];
    for number in [message.ifindex, message.handle, message.parent, message.info] {
        body.extend(number.to_ne_bytes());
    }
    if let Some(name) = tca_kind {
        let length = u16::try_from(4 + name.len()).unwrap_or(u16::MAX);
        body.extend(length.to_ne_bytes());
        body.extend(TCA_KIND.to_ne_bytes());
        body.extend(name);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(body);
    bytes
}

/// Reads a datagram of messages. True: the answer is complete.
fn read(mut bytes: &[u8], answer: &mut Answer) -> io::Result<bool> {
    let truncated = || io::Error::new(io::ErrorKind::InvalidData, "truncated netlink message");
    while !bytes.is_empty() {
        let length = u32::from_ne_bytes(field(bytes, 0).ok_or_else(truncated)?) as usize;
        let kind = u16::from_ne_bytes(field(bytes, 4).ok_or_else(truncated)?);
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = i32::from_ne_bytes(field(bytes, HEADER).ok_or_else(truncated)?);
                return if errno == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-errno)) };
            }
            RTM_NEWTFILTER => {
                answer.filters += 1;
                let attributes = bytes.get(HEADER + TC_MESSAGE..length).unwrap_or_default();
                let id =
                    attribute(attributes, TCA_OPTIONS).and_then(|options| attribute(options, TCA_BPF_ID));
                answer.program = id.and_then(|id| field(id, 0)).map(u32::from_ne_bytes);
            }
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4).max(HEADER)..).unwrap_or_default();
    }
    Ok(false)
}

/// The payload of the first attribute of a type.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(field(bytes, 0)?));
        let kind = u16::from_ne_bytes(field(bytes, 2)?) & NLA_TYPE_MASK;
        if kind == wanted {
            return bytes.get(4..length);
        }
        bytes = bytes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + payload.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// A filter that runs program 77, as the kernel tells of it.
    fn filter() -> Vec<u8> {
        let options = [nested(7, b"acl\0"), nested(TCA_BPF_ID, &77_u32.to_ne_bytes())].concat();
        let attributes = [nested(TCA_KIND, b"bpf\0"), nested(TCA_OPTIONS | 0x8000, &options)].concat();
        let mut bytes = u32::try_from(HEADER + TC_MESSAGE + attributes.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(RTM_NEWTFILTER.to_ne_bytes());
        bytes.extend([0; 10 + TC_MESSAGE]);
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn the_program_of_a_filter_is_found() {
        let mut answer = Answer::default();
        assert!(!read(&filter(), &mut answer).unwrap());
        assert_eq!(answer, Answer { filters: 1, program: Some(77) });
    }

    #[test]
    fn a_truncated_answer_names_no_program() {
        let whole = filter();
        for length in 1..whole.len() {
            let mut answer = Answer::default();
            // An error or an answer that is not complete; never a panic, never a program out of nothing.
            let complete = read(&whole[..length], &mut answer);
            assert!(!matches!(complete, Ok(true)) && answer.program.is_none(), "{length}");
        }
    }
}

//! One request socket: send, collect the answer, name the failure.

use std::{
    io::{self, Cursor},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use neli::{
    FromBytesWithInput, Size, ToBytes,
    consts::{
        nl::{NlmF, Nlmsg, NlmsgerrAttr},
        rtnl::{RtaType, Rtm},
        socket::NlFamily,
    },
    err::SocketError,
    nl::{NlPayload, Nlmsghdr, NlmsghdrBuilder},
    rtnl::{Rtattr, RtattrBuilder},
    socket::synchronous::NlSocketHandle,
    types::{Buffer, RtBuffer},
    utils::Groups,
};

use super::Error;

/// A listing is read again this often if the kernel says that it changed meanwhile.
const LISTING_ATTEMPTS: usize = 8;

/// A request socket to the routing part of the kernel, in the network namespace of the thread that
/// opened it.
pub struct Netlink {
    /// Held for a whole exchange: two threads must not read each other's answers.
    socket: Mutex<NlSocketHandle>,
    sequence: AtomicU32,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Netlink").finish_non_exhaustive()
    }
}

/// How one attempt at an exchange ended, short of success.
enum Failure {
    Refused { errno: i32, explanation: Option<String> },
    Broken(String),
    Interrupted,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let socket = NlSocketHandle::connect(NlFamily::Route, None, Groups::empty())
            .map_err(|error| Error::Open(io_error(error)))?;
        // Words instead of numbers in errors; kernels without it still work.
        drop(socket.enable_ext_ack(true));
        Ok(Self { socket: Mutex::new(socket), sequence: AtomicU32::new(1) })
    }

    /// Sends a change and waits for its acknowledgement.
    pub(super) fn change<P>(
        &self,
        kind: Rtm,
        flags: NlmF,
        payload: P,
        action: impl FnOnce() -> String,
    ) -> Result<(), Error>
    where
        P: Size + ToBytes + std::fmt::Debug,
    {
        match self.exchange(kind, flags | NlmF::ACK, payload) {
            Ok(_) => Ok(()),
            Err(failure) => Err(failure.during(action())),
        }
    }

    /// Asks for one object or a listing; every answer is parsed as `R`.
    pub(super) fn query<P, R>(
        &self,
        kind: Rtm,
        flags: NlmF,
        payload: &P,
        action: impl FnOnce() -> String,
    ) -> Result<Vec<R>, Error>
    where
        P: Size + ToBytes + std::fmt::Debug + Clone,
        R: FromBytesWithInput<Input = usize>,
    {
        let mut attempts = 0;
        let answers = loop {
            match self.exchange(kind, flags, payload.clone()) {
                Ok(answers) => break answers,
                Err(Failure::Interrupted) if attempts < LISTING_ATTEMPTS => attempts += 1,
                Err(failure) => return Err(failure.during(action())),
            }
        };
        let parsed: Result<Vec<R>, _> = answers
            .iter()
            .map(|answer| {
                let bytes = answer.as_ref();
                R::from_bytes_with_input(&mut Cursor::new(bytes), bytes.len())
            })
            .collect();
        parsed.map_err(|error| Error::Exchange { action: action(), reason: error.to_string() })
    }

    fn exchange<P>(&self, kind: Rtm, flags: NlmF, payload: P) -> Result<Vec<Buffer>, Failure>
    where
        P: Size + ToBytes + std::fmt::Debug,
    {
        // Relaxed: the number only has to differ from that of earlier requests of this socket.
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let message = NlmsghdrBuilder::default()
            .nl_type(kind)
            .nl_flags(flags | NlmF::REQUEST)
            .nl_seq(sequence)
            .nl_payload(NlPayload::Payload(payload))
            .build()
            .map_err(|error| Failure::Broken(error.to_string()))?;
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.send(&message).map_err(|error| Failure::Broken(error.to_string()))?;
        collect(&socket, sequence)
    }
}

/// Reads until the end of the answer to request `sequence`.
fn collect(socket: &NlSocketHandle, sequence: u32) -> Result<Vec<Buffer>, Failure> {
    let mut answers = Vec::new();
    let mut interrupted = false;
    loop {
        let (messages, _) =
            socket.recv::<u16, Buffer>().map_err(|error| Failure::Broken(error.to_string()))?;
        for message in messages {
            let message: Nlmsghdr<u16, Buffer> =
                message.map_err(|error| Failure::Broken(error.to_string()))?;
            // What is left of an exchange that broke down.
            if *message.nl_seq() != sequence {
                continue;
            }
            interrupted |= message.nl_flags().contains(NlmF::DUMP_INTR);
            let done = *message.nl_type() == u16::from(Nlmsg::Done);
            match message.nl_payload() {
                NlPayload::Payload(payload) if !done => answers.push(payload.clone()),
                NlPayload::Err(refusal) => {
                    return Err(Failure::Refused {
                        errno: refusal.error().saturating_neg(),
                        explanation: words(refusal.ext_ack()),
                    });
                }
                NlPayload::DumpExtAck(end) if *end.error() < 0 => {
                    return Err(Failure::Refused {
                        errno: end.error().saturating_neg(),
                        explanation: words(end.ext_ack()),
                    });
                }
                NlPayload::Ack(_) | NlPayload::DumpExtAck(_) | NlPayload::Empty | NlPayload::Payload(_) => {
                    return if interrupted { Err(Failure::Interrupted) } else { Ok(answers) };
                }
            }
        }
    }
}

/// The text of an extended acknowledgement.
fn words(attributes: &neli::types::GenlBuffer<NlmsgerrAttr, Buffer>) -> Option<String> {
    let text = attributes
        .iter()
        .find(|attribute| *attribute.nla_type().nla_type() == NlmsgerrAttr::Msg)
        .map(|attribute| string(attribute.nla_payload().as_ref()))?;
    (!text.is_empty()).then_some(text)
}

impl Failure {
    fn during(self, action: String) -> Error {
        match self {
            Self::Refused { errno, explanation } => {
                Error::Refused { action, explanation, source: io::Error::from_raw_os_error(errno) }
            }
            Self::Broken(reason) => Error::Exchange { action, reason },
            Self::Interrupted => Error::Unstable(action),
        }
    }
}

/// The I/O error inside a socket error, or one with its text.
pub(super) fn io_error(error: SocketError) -> io::Error {
    match error {
        SocketError::Io(inner) => inner
            .raw_os_error()
            .map_or_else(|| io::Error::new(inner.kind(), inner.to_string()), io::Error::from_raw_os_error),
        other => io::Error::other(other.to_string()),
    }
}

/// One attribute with raw bytes in it.
pub(super) fn attribute<T: RtaType + Size>(kind: T, bytes: &[u8]) -> Option<Rtattr<T, Buffer>> {
    RtattrBuilder::default().rta_type(kind).rta_payload(Buffer::from(bytes)).build().ok()
}

/// The attributes of a request. An attribute fails to build only if it is left empty in the code.
pub(super) fn attributes<T, const N: usize>(list: [Option<Rtattr<T, Buffer>>; N]) -> RtBuffer<T, Buffer> {
    list.into_iter().flatten().collect()
}

/// The bytes of the first attribute of this kind.
pub(super) fn find<T: RtaType + PartialEq>(attributes: &RtBuffer<T, Buffer>, kind: T) -> Option<&[u8]> {
    attributes
        .iter()
        .find(|attribute| *attribute.rta_type() == kind)
        .map(|attribute| attribute.rta_payload().as_ref())
}

/// A native-endian number of exactly four bytes.
pub(super) fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// A string up to its NUL, if it has one.
pub(super) fn string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An address of four or sixteen bytes.
pub(super) fn ip(bytes: &[u8]) -> Option<std::net::IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(Into::into)
}

/// The bytes of an address in network order.
pub(super) fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

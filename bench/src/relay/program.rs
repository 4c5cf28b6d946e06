//! Programs: a generator that goes through a list of sources, the MAC swap that is the limit, and a sink that counts.

use std::io;
use std::mem;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr;

use anyhow::{Context as _, Result, ensure};

use super::lab::RELAY_IP;
use crate::instruction::{
    ADD, ADD_IMMEDIATE, EXIT, JUMP_IF_LESS_IMMEDIATE, JUMP_IF_NOT_GREATER, LOAD_ADDRESS, LOAD_U16, LOAD_U32,
    LOAD_U64, MOVE, MOVE_IMMEDIATE, SHIFT_LEFT_IMMEDIATE, SHIFT_RIGHT_IMMEDIATE, STORE_IMMEDIATE_U16,
    STORE_IMMEDIATE_U32, STORE_U16, STORE_U32, STORE_U64, instruction,
};

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

const MAP_TYPE_ARRAY: u32 = 2;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const DRIVER_MODE: u32 = 4;
const LIVE_FRAMES: u32 = 2;

/// Frames that the kernel hands over at once.
const BATCH: u32 = 64;

const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;

/// Calls `bpf` with attributes that hold no pointers but to what the caller keeps alive.
fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are of the length that is passed; the functions below see to the pointers in them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}

fn open<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: a new descriptor, ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An array map of one element.
struct Memory {
    map: OwnedFd,
    bytes: usize,
}

impl Memory {
    fn new(bytes: usize) -> Result<Self> {
        #[repr(C)]
        struct Attributes {
            kind: u32,
            key: u32,
            value: u32,
            entries: u32,
            rest: [u64; 8],
        }
        let value = u32::try_from(bytes)?;
        let mut attributes = Attributes { kind: MAP_TYPE_ARRAY, key: 4, value, entries: 1, rest: [0; 8] };
        let map = open(MAP_CREATE, &mut attributes).context("making a map (root is needed)")?;
        Ok(Self { map, bytes })
    }

    fn element(&self, command: libc::c_long, value: *mut u8) -> Result<()> {
        #[repr(C)]
        struct Attributes {
            map: u32,
            padding: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let key = 0_u32;
        let mut attributes = Attributes {
            map: self.map.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: ptr::from_ref(&key).expose_provenance() as u64,
            value: value.expose_provenance() as u64,
            flags: 0,
        };
        call(command, &mut attributes).context("reading or writing a map")?;
        Ok(())
    }

    fn write(&self, mut bytes: Vec<u8>) -> Result<()> {
        bytes.resize(self.bytes, 0);
        self.element(MAP_UPDATE, bytes.as_mut_ptr())
    }

    /// The first word of a map of eight bytes.
    fn word(&self) -> Result<u64> {
        ensure!(self.bytes == 8, "a map of one word");
        let mut word = [0; 8];
        self.element(MAP_LOOKUP, word.as_mut_ptr())?;
        Ok(u64::from_ne_bytes(word))
    }
}

/// Address of a map's value, in two instructions.
fn value_address(register: u8, map: &Memory) -> [u64; 2] {
    const PSEUDO_MAP_VALUE: u8 = 2;
    let fd = map.map.as_raw_fd();
    [instruction(LOAD_ADDRESS, register, PSEUDO_MAP_VALUE, 0, fd), 0]
}

fn load(code: &[u64]) -> Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        flags: [u32; 2],
        name: [u8; 16],
        interface: u32,
        attach: u32,
    }
    let license = c"GPL";
    let mut log = vec![0_u8; 1 << 16];
    let mut attributes = Attributes {
        kind: PROG_TYPE_XDP,
        instructions: u32::try_from(code.len())?,
        code: code.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: 1,
        log_size: 1 << 16,
        log: log.as_mut_ptr().expose_provenance() as u64,
        flags: [0; 2],
        name: [0; 16],
        interface: 0,
        // As the relay's program is loaded: a link only changes to a program of the same kind.
        attach: ATTACH_XDP,
    };
    open(PROG_LOAD, &mut attributes).with_context(|| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
        format!("loading a program of the benchmark's own:\n{}", String::from_utf8_lossy(&log[..end]))
    })
}

/// `return action`.
fn constant(action: i32) -> [u64; 2] {
    [instruction(MOVE_IMMEDIATE, 0, 0, 0, action), instruction(EXIT, 0, 0, 0, 0)]
}

/// Passes everything to the kernel.
pub fn pass() -> Result<OwnedFd> {
    load(&constant(XDP_PASS))
}

/// Swaps the Ethernet addresses and sends the frame back: nothing that a relay does can cost less.
pub fn mac_swap() -> Result<OwnedFd> {
    let mut code = bounds(14);
    code.extend([
        instruction(LOAD_U32, 3, 2, 0, 0),
        instruction(LOAD_U16, 4, 2, 4, 0),
        instruction(LOAD_U32, 5, 2, 6, 0),
        instruction(LOAD_U16, 0, 2, 10, 0),
        instruction(STORE_U32, 2, 5, 0, 0),
        instruction(STORE_U16, 2, 0, 4, 0),
        instruction(STORE_U32, 2, 3, 6, 0),
        instruction(STORE_U16, 2, 4, 10, 0),
    ]);
    code.extend(constant(XDP_TX));
    load(&code)
}

/// Register 2 is the frame's start, at least so many bytes before its end; else the program ends and drops.
fn bounds(bytes: i32) -> Vec<u64> {
    let mut code = vec![
        instruction(LOAD_U32, 2, 1, 0, 0),
        instruction(LOAD_U32, 3, 1, 4, 0),
        instruction(MOVE, 4, 2, 0, 0),
        instruction(ADD_IMMEDIATE, 4, 0, 0, bytes),
        // Over the end if the frame is long enough.
        instruction(JUMP_IF_NOT_GREATER, 4, 3, 2, 0),
    ];
    code.extend(constant(XDP_DROP));
    code
}

/// Counts frames and drops them.
pub struct Sink {
    count: Memory,
    program: OwnedFd,
}

impl Sink {
    /// Loads it.
    pub fn new() -> Result<Self> {
        let count = Memory::new(8)?;
        let mut code = value_address(2, &count).to_vec();
        code.extend([
            instruction(LOAD_U64, 3, 2, 0, 0),
            instruction(ADD_IMMEDIATE, 3, 0, 0, 1),
            instruction(STORE_U64, 2, 3, 0, 0),
        ]);
        code.extend(constant(XDP_DROP));
        let program = load(&code)?;
        Ok(Self { count, program })
    }

    /// The program.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// How many frames there have been.
    pub fn count(&self) -> Result<u64> {
        self.count.word()
    }
}

/// Addresses and ports that a frame is given: source address, source port and destination port, as they lie in the
/// headers of IPv4 and UDP.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Source address.
    pub source: [u8; 4],
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub port: u16,
}

/// Sends frames from one flow after the other.
pub struct Generator {
    program: OwnedFd,
    _flows: Memory,
}

impl Generator {
    /// A generator of these flows.
    pub fn new(flows: &[Flow]) -> Result<Self> {
        let memory = Memory::new(8 + flows.len() * 8)?;
        let mut bytes = vec![0; 8];
        for flow in flows {
            bytes.extend(flow.source);
            bytes.extend(flow.source_port.to_be_bytes());
            bytes.extend(flow.port.to_be_bytes());
        }
        memory.write(bytes)?;
        let count = i32::try_from(flows.len())?;
        let mut code = bounds(42);
        code.extend(value_address(5, &memory));
        code.extend([
            // The next flow, and round again.
            instruction(LOAD_U64, 3, 5, 0, 0),
            instruction(ADD_IMMEDIATE, 3, 0, 0, 1),
            instruction(JUMP_IF_LESS_IMMEDIATE, 3, 0, 1, count),
            instruction(MOVE_IMMEDIATE, 3, 0, 0, 0),
            instruction(STORE_U64, 5, 3, 0, 0),
            instruction(SHIFT_LEFT_IMMEDIATE, 3, 0, 0, 3),
            instruction(ADD, 5, 3, 0, 0),
            instruction(LOAD_U64, 4, 5, 8, 0),
            instruction(STORE_U32, 2, 4, 26, 0),
            instruction(SHIFT_RIGHT_IMMEDIATE, 4, 0, 0, 32),
            instruction(STORE_U32, 2, 4, 34, 0),
            // Pages come back as the relay has left them: time to live and destination have to be restored.
            instruction(STORE_IMMEDIATE_U16, 2, 0, 22, i32::from(u16::from_ne_bytes([64, 17]))),
            instruction(STORE_IMMEDIATE_U32, 2, 0, 30, i32::from_ne_bytes(RELAY_IP.octets())),
        ]);
        code.extend(constant(XDP_TX));
        Ok(Self { program: load(&code)?, _flows: memory })
    }

    /// Sends `count` frames like this one out of an interface of this thread's namespace. Returns when all have been
    /// handed to the interface.
    pub fn send(&self, frame: &[u8], interface: u32, count: u32) -> Result<()> {
        #[repr(C)]
        struct Context {
            data: u32,
            data_end: u32,
            data_meta: u32,
            ingress: u32,
            queue: u32,
            egress: u32,
        }
        #[repr(C)]
        struct Attributes {
            program: u32,
            verdict: u32,
            size_in: u32,
            size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            nanoseconds: u32,
            context_size_in: u32,
            context_size_out: u32,
            context_in: u64,
            context_out: u64,
            flags: u32,
            cpu: u32,
            batch: u32,
            padding: u32,
        }
        let size = u32::try_from(frame.len())?;
        let context =
            Context { data: 0, data_end: size, data_meta: 0, ingress: interface, queue: 0, egress: 0 };
        let mut attributes = Attributes {
            program: self.program.as_raw_fd().cast_unsigned(),
            verdict: 0,
            size_in: size,
            size_out: 0,
            data_in: frame.as_ptr().expose_provenance() as u64,
            data_out: 0,
            repeat: count,
            nanoseconds: 0,
            context_size_in: u32::try_from(mem::size_of::<Context>())?,
            context_size_out: 0,
            context_in: ptr::from_ref(&context).expose_provenance() as u64,
            context_out: 0,
            flags: LIVE_FRAMES,
            cpu: 0,
            batch: BATCH,
            padding: 0,
        };
        call(PROG_TEST_RUN, &mut attributes).context("sending live frames (Linux 5.18)")?;
        Ok(())
    }
}

/// A program at an interface, in the driver's mode, for as long as this lives.
pub struct Link(OwnedFd);

impl Link {
    /// Attaches to an interface of this thread's namespace.
    pub fn new(program: BorrowedFd<'_>, interface: u32) -> Result<Self> {
        #[repr(C)]
        struct Attributes {
            program: u32,
            interface: u32,
            attach: u32,
            flags: u32,
            rest: [u64; 4],
        }
        let program = program.as_raw_fd().cast_unsigned();
        let mut attributes =
            Attributes { program, interface, attach: ATTACH_XDP, flags: DRIVER_MODE, rest: [0; 4] };
        open(LINK_CREATE, &mut attributes).map(Self).context("attaching an XDP program in the driver's mode")
    }

    /// Puts another program in its place.
    pub fn replace(&self, program: BorrowedFd<'_>) -> Result<()> {
        #[repr(C)]
        struct Attributes {
            link: u32,
            program: u32,
            flags: u32,
            old: u32,
        }
        let (link, program) = (self.0.as_raw_fd().cast_unsigned(), program.as_raw_fd().cast_unsigned());
        let mut attributes = Attributes { link, program, flags: 0, old: 0 };
        call(LINK_UPDATE, &mut attributes).context("replacing an XDP program")?;
        Ok(())
    }
}

//! Programs that do one thing that every packet needs, and then pass: what that alone costs.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::Result;
use ghostwire_ebpf_abi::image::{self, header};

use super::bpf;
use crate::instruction::{
    ADD, ADD_IMMEDIATE, CALL, EXIT, JUMP_IF_ABOVE, JUMP_IF_ZERO, LOAD_ADDRESS, LOAD_U32, LOAD_U64, MOVE,
    MOVE_IMMEDIATE, STORE_IMMEDIATE_U32, STORE_U64, instruction,
};

/// What the steps are, in the order of [`load`].
pub const STEPS: [&str; 5] = [
    "find the packet's headers",
    "fetch the image, look-up in look-up",
    "fetch the image, read two classes and a verdict",
    "count the packet and its bytes",
    "all of that",
];

/// A classifier that does nothing but pass.
pub fn empty() -> Result<OwnedFd> {
    bpf::load(&PASS)
}

/// Programs that do one step each, on the maps that are pinned in a folder.
pub fn load(maps: &Path) -> Result<Vec<OwnedFd>> {
    let (image, counters) = (bpf::open_pin(&maps.join("IMAGE"))?, bpf::open_pin(&maps.join("COUNTERS"))?);
    let (image, counters) = (image.as_fd(), counters.as_fd());
    let all = [&bounds()[..], &count(counters), &fetch(image, &JUDGED)].concat();
    [bounds().to_vec(), fetch(image, &[]), fetch(image, &JUDGED), count(counters), all]
        .iter()
        .map(|body| bpf::load(&[body.as_slice(), &PASS].concat()))
        .collect()
}

/// Words that a verdict needs, each in a cache line of its own: classes of a peer and of a port, and some bits.
const JUDGED: [u32; 3] = [image::REMOTE4 + 2_500, image::UDP + 5_300, image::MATRICES + 500];

const PSEUDO_MAP: u8 = 1;
const MAP_LOOKUP: i32 = 1;
const FRAME: u8 = 10;

/// `return TC_ACT_UNSPEC`
const PASS: [u64; 2] = [instruction(MOVE_IMMEDIATE, 0, 0, 0, -1), instruction(EXIT, 0, 0, 0, 0)];

/// Whether an Ethernet header and forty bytes more are in the linear part, and how long the packet is.
fn bounds() -> [u64; 5] {
    const LENGTH: i16 = 0;
    const DATA: i16 = 76;
    const DATA_END: i16 = 80;
    [
        instruction(LOAD_U32, 2, 1, DATA, 0),
        instruction(LOAD_U32, 3, 1, DATA_END, 0),
        instruction(LOAD_U32, 4, 1, LENGTH, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, 54),
        instruction(JUMP_IF_ABOVE, 2, 3, 0, 0),
    ]
}

/// Puts the key 0 where [`look_up`] wants it.
const KEY: u64 = instruction(STORE_IMMEDIATE_U32, FRAME, 0, -4, 0);

/// Looks up key 0 in the map whose address is in register 1; jumps if there is none.
fn look_up(beyond: i16) -> [u64; 4] {
    [
        instruction(MOVE, 2, FRAME, 0, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, -4),
        instruction(CALL, 0, 0, 0, MAP_LOOKUP),
        instruction(JUMP_IF_ZERO, 0, 0, beyond, 0),
    ]
}

fn map(map: BorrowedFd<'_>) -> [u64; 2] {
    [instruction(LOAD_ADDRESS, 1, PSEUDO_MAP, 0, map.as_raw_fd()), 0]
}

/// Fetches the image and reads a word of its header, and further words.
fn fetch(image: BorrowedFd<'_>, words: &[u32]) -> Vec<u64> {
    #[expect(clippy::cast_possible_truncation, reason = "the header is 512 bytes long")]
    const WORD: i16 = header::SHORT_OWN4 as i16 * 8;
    let (mut reads, mut at) = (vec![instruction(LOAD_U64, 1, 0, WORD, 0)], 0);
    for &word in words {
        let offset = i32::try_from(word * 8).unwrap_or_default();
        reads.extend([instruction(ADD_IMMEDIATE, 0, 0, 0, offset - at), instruction(LOAD_U64, 1, 0, 0, 0)]);
        at = offset;
    }
    let beyond = i16::try_from(reads.len()).unwrap_or_default();
    let mut code = vec![KEY];
    code.extend(map(image));
    code.extend(look_up(beyond + 5));
    code.push(instruction(MOVE, 1, 0, 0, 0));
    code.extend(look_up(beyond));
    code.extend(reads);
    code
}

/// Adds a packet and its length to the counters of this CPU.
fn count(counters: BorrowedFd<'_>) -> Vec<u64> {
    let mut code = vec![instruction(LOAD_U32, 6, 1, 0, 0), KEY];
    code.extend(map(counters));
    code.extend(look_up(6));
    code.extend([
        instruction(LOAD_U64, 1, 0, 0, 0),
        instruction(ADD_IMMEDIATE, 1, 0, 0, 1),
        instruction(STORE_U64, 0, 1, 0, 0),
        instruction(LOAD_U64, 1, 0, 8, 0),
        instruction(ADD, 1, 6, 0, 0),
        instruction(STORE_U64, 0, 1, 8, 0),
    ]);
    code
}

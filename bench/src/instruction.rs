//! Instructions for the BPF machine, for programs too small for a compiler.

/// One instruction, as `linux/bpf.h` has it.
pub(crate) const fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (offset.cast_unsigned() as u64) << 16
        | (immediate.cast_unsigned() as u64) << 32
}

pub(crate) const LOAD_U16: u8 = 0x69;
pub(crate) const LOAD_U32: u8 = 0x61;
pub(crate) const LOAD_U64: u8 = 0x79;
pub(crate) const STORE_U16: u8 = 0x6b;
pub(crate) const STORE_U32: u8 = 0x63;
pub(crate) const STORE_U64: u8 = 0x7b;
pub(crate) const STORE_IMMEDIATE_U16: u8 = 0x6a;
pub(crate) const STORE_IMMEDIATE_U32: u8 = 0x62;
pub(crate) const MOVE: u8 = 0xbf;
pub(crate) const MOVE_IMMEDIATE: u8 = 0xb7;
pub(crate) const ADD: u8 = 0x0f;
pub(crate) const ADD_IMMEDIATE: u8 = 0x07;
pub(crate) const SHIFT_LEFT_IMMEDIATE: u8 = 0x67;
pub(crate) const SHIFT_RIGHT_IMMEDIATE: u8 = 0x77;
pub(crate) const JUMP_IF_LESS_IMMEDIATE: u8 = 0xa5;
pub(crate) const JUMP_IF_NOT_GREATER: u8 = 0xbd;
pub(crate) const LOAD_ADDRESS: u8 = 0x18;
pub(crate) const EXIT: u8 = 0x95;
pub(crate) const JUMP_IF_ZERO: u8 = 0x15;
pub(crate) const JUMP_IF_ABOVE: u8 = 0x2d;
pub(crate) const CALL: u8 = 0x85;

//! Header parsing, rewriting and checksums, shared by the eBPF programs and the host.
#![no_std]

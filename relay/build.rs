//! Builds the relay's XDP program.

use std::process::ExitCode;

use ghostwire_ebpf_build::{Object, object};

fn main() -> ExitCode {
    let program = Object {
        name: "ghostwire-relay-ebpf",
        package: "ebpf/relay",
        parts: &["relay/fastpath"],
        variable: "GHOSTWIRE_RELAY_EBPF_OBJECT",
    };
    object(&program, "..")
}

//! Builds the eBPF programs of a node.

use std::process::ExitCode;

use ghostwire_ebpf_build::{Object, object};

fn main() -> ExitCode {
    let binaries =
        [("ghostwire-ebpf", "GHOSTWIRE_EBPF_OBJECT"), ("ghostwire-steer", "GHOSTWIRE_STEER_OBJECT")];
    for (name, variable) in binaries {
        let programs =
            Object { name, package: "ebpf/programs", parts: &["ebpf/abi", "ebpf/packet"], variable };
        let built = object(&programs, "../..");
        if built != ExitCode::SUCCESS {
            return built;
        }
    }
    ExitCode::SUCCESS
}

//! Compiles `proto/*.proto` without protoc.

use std::error::Error;

/// Messages that carry a secret; `src/redact.rs` prints them without it.
const SECRETIVE: [&str; 5] = [
    ".ghostwire.v1.EnrollRequest",
    ".ghostwire.v1.CreateAuthKeyResponse",
    ".ghostwire.v1.RelayHello",
    ".ghostwire.v1.Credentials",
    ".ghostwire.local.v1.UpRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["network.proto", "signal.proto", "node.proto", "relay.proto", "admin.proto", "local.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().skip_debug(SECRETIVE).compile_fds(descriptors)?;
    Ok(())
}

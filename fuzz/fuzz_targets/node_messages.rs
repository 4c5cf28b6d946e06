//! See `ghostwire_fuzz_targets::node_messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ghostwire_fuzz_targets::node_messages::run(data);
});

//! See `ghostwire_fuzz_targets::join_key`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ghostwire_fuzz_targets::join_key::run(data);
});

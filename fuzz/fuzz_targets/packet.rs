//! See `ghostwire_fuzz_targets::packet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ghostwire_fuzz_targets::packet::run(data);
});

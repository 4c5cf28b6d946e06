//! See `ghostwire_fuzz_targets::network`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ghostwire_fuzz_targets::network::run(data);
});

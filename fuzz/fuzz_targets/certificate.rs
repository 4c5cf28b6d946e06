//! See `ghostwire_fuzz_targets::certificate`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ghostwire_fuzz_targets::certificate::run(data);
});

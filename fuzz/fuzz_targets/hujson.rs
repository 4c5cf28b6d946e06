//! See `ghostwire_fuzz_targets::hujson`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ghostwire_fuzz_targets::hujson::run(data);
});

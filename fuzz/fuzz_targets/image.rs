//! See `ghostwire_fuzz_targets::image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ghostwire_fuzz_targets::image::run(data);
});

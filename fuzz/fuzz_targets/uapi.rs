//! See `ghostwire_fuzz_targets::uapi`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ghostwire_fuzz_targets::uapi::run(data);
});

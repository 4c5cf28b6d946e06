//! See `ghostwire_fuzz_targets::state_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ghostwire_fuzz_targets::state_file::run(data);
});

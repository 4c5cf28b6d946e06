//! See `ghostwire_fuzz_targets::echo`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ghostwire_fuzz_targets::echo::run(data);
});

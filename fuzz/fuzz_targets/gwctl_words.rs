//! See `ghostwire_fuzz_targets::gwctl_words`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ghostwire_fuzz_targets::gwctl_words::run(data);
});

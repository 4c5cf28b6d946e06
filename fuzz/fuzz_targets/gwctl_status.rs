//! See `ghostwire_fuzz_targets::gwctl_status`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ghostwire_fuzz_targets::gwctl_status::run(data);
});

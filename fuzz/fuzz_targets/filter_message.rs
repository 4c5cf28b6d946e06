//! See `ghostwire_fuzz_targets::filter_message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ghostwire_fuzz_targets::filter_message::run(data);
});

#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| aquatint_fuzz::hub(data));

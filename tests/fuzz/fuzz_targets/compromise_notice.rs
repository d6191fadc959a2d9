#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lockbox_tests::fuzzing::compromise_notice(bytes));

//! Bytes that say they are a layer: nothing is written outside the directory they are for.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pod_daemon::image::fuzzing::layer(bytes));

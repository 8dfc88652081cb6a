//! A container's log as it is stored, read in pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pod_daemon::api::fuzzing::log(bytes));

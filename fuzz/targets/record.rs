//! What a pod has left on disk about how far it had come.
#![no_main]

libfuzzer_sys::fuzz_target!(|json: &[u8]| pod_daemon::pod::fuzzing::record(json));

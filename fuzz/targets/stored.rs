//! What the daemon keeps on disk for its next start: pods, config maps, totals, how probes were
//! attached.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pod_daemon::node::fuzzing::stored(bytes));

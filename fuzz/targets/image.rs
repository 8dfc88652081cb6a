//! Bytes that say they are an image: an archive, or one of the documents in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pod_daemon::image::fuzzing::metadata(bytes));

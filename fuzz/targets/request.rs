//! A request to the API, like `POST /api/v1/namespaces/default/pods`, and from the second line on
//! its body.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pod_daemon::api::fuzzing::request(bytes));

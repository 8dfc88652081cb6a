//! Text that says it is a seccomp profile, or credentials for registries.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pod_daemon::{image::parse_docker_config, sandbox::seccomp};

fuzz_target!(|text: &str| {
    drop(seccomp::check(text));
    drop(parse_docker_config(text));
});

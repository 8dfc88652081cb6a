//! Daemons that end without having been asked, and those that should not start.

use std::process::Command;

use pod_tests::{Daemon, binary, manifest::pod, program, seconds};

#[test]
fn a_second_daemon_is_refused() {
    let daemon = Daemon::start(&[]);
    let second =
        program::run(Command::new(binary("pod-daemon")).args(daemon.options()), seconds(20));
    assert_ne!(second.code, 0);
    assert!(second.stderr.contains("another daemon runs"), "{second:?}");
    daemon.stop();
}

#[test]
fn a_daemon_that_stops_ends_its_pods() {
    let daemon = Daemon::start(&["--stop-seconds=1"]);
    daemon.run(pod("running").container("app", "pause"));
    let stubborn = pod("stubborn").with("terminationGracePeriodSeconds", 600);
    daemon.run(stubborn.container("app", "ignore-term , print ready , pause"));
    daemon.wait_ready("running");
    daemon.wait_logged("stubborn", "", "ready");
    daemon.stop();
}

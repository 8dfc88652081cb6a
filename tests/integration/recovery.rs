//! Daemons that end without having been asked, and those that should not start.

use std::process::Command;

use pod_tests::{
    Daemon, binary,
    manifest::{mounts, pod},
    program, seconds, state,
};
use serde_json::json;

#[test]
fn a_killed_daemon_leaves_nothing_after_the_next_start() {
    let mut daemon = Daemon::start(&[]);
    daemon.run(pod("left").volume("data", "emptyDir", json!({})).container_with(
        "app",
        "fork 3 , write /data/file 10 , print ready , pause",
        mounts(&[("data", "/data")]),
    ));
    daemon.run(
        pod("shared").with("shareProcessNamespace", true).container("app", "print ready , pause"),
    );
    daemon.wait_logged("left", "", "ready");
    daemon.wait_logged("shared", "", "ready");
    daemon.kill();
    daemon.restart();
    assert!(state::processes_below(daemon.cgroups()).is_empty(), "processes survive");
    assert!(daemon.pod("left").is_null());
    assert!(daemon.log().contains("the daemon was killed"), "{}", daemon.log());
    daemon.assert_no_files();
    assert!(!state::State::capture().links.iter().any(|link| link.starts_with("veth")));
    // And the same pod can run again.
    daemon.run(pod("left").container("app", "print again , pause"));
    daemon.wait_logged("left", "", "again");
    daemon.stop();
}

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

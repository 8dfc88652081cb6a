//! Daemons that end without having been asked, and those that should not start.

use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pod_tests::{Daemon, binary, manifest::pod, program, seconds};
use serde_json::Value;

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

#[test]
fn a_pod_whose_end_cannot_be_noted_ends() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("stubborn").container("app", "ignore-term , print ready , pause"));
    daemon.wait_logged("stubborn", "", "ready");
    let directory = daemon.files_of(&daemon.pod("stubborn"));
    // As a disk that it has filled up refuses.
    let remount = |flags| {
        mount(Some(&directory), &directory, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>)
    };
    remount(MsFlags::empty()).unwrap();
    remount(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY).unwrap();
    let path = "/api/v1/namespaces/default/pods/stubborn?gracePeriodSeconds=3";
    let answer = daemon.api("DELETE", path, None);
    umount2(&directory, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    daemon.wait_for("stubborn", "gone", Value::is_null);
    assert!(daemon.log().contains("after a power cut"), "{}", daemon.log());
    daemon.stop();
}

//! Volumes, and the files that every container has.

use std::fs;

use pod_tests::{
    Daemon,
    manifest::{config_map, mounts, pod},
};
use serde_json::json;

#[test]
fn containers_of_a_pod_share_an_empty_directory() {
    let daemon = Daemon::start(&[]);
    let pair = pod("pair")
        .volume("shared", "emptyDir", json!({}))
        .container_with("one", "write /here/file 123 , exit 0", mounts(&[("shared", "/here")]))
        .container_with(
            "two",
            "wait-for /there/file , sleep-ms 100 , look /there/file , exit 0",
            mounts(&[("shared", "/there")]),
        );
    daemon.run(pair);
    daemon.wait_over("pair");
    assert_eq!(daemon.logs("pair", "container=two"), "look /there/file: 123 bytes\n");
    daemon.stop();
}

#[test]
fn a_config_map_becomes_files() {
    let daemon = Daemon::start(&[]);
    daemon.apply(&config_map("settings", json!({"colour": "green", "size": "large"})));
    let reader =
        pod("reader").volume("config", "configMap", json!({"name": "settings"})).container_with(
            "app",
            "list /etc/app , cat /etc/app/colour , print , touch /etc/app/other , exit 0",
            mounts(&[("config", "/etc/app")]),
        );
    let output = daemon.output_of(reader, "reader");
    assert!(output.contains("colour") && output.contains("size"), "{output}");
    assert!(output.contains("\ngreen\n"), "{output}");
    assert!(output.contains("touch /etc/app/other: EROFS"), "{output}");
    daemon.stop();
}

#[test]
fn a_read_only_host_path_can_be_read_only() {
    let daemon = Daemon::start(&[]);
    let folder = daemon.folder().join("host");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "12345").unwrap();
    let reader = pod("reader")
        .volume("host", "hostPath", json!({"path": folder, "type": "Directory"}))
        .container_with(
            "app",
            "look /host/file , touch /host/new , touch /writable/new , exit 0",
            json!({"volumeMounts": [
                {"name": "host", "mountPath": "/host", "readOnly": true},
                {"name": "host", "mountPath": "/writable"},
            ]}),
        );
    let output = daemon.output_of(reader, "reader");
    assert_eq!(
        output,
        "look /host/file: 5 bytes\ntouch /host/new: EROFS\ntouch /writable/new: ok\n"
    );
    assert!(folder.join("new").exists());
    daemon.stop();
}

#[test]
fn every_container_has_the_files_that_name_it() {
    let daemon = Daemon::start(&[]);
    let named = pod("named").with("hostname", "chosen").container(
        "app",
        "hostname , cat /etc/hostname , cat /etc/hosts , look /etc/resolv.conf , exit 0",
    );
    let output = daemon.output_of(named, "named");
    assert!(output.starts_with("chosen\nchosen\n"), "{output}");
    assert!(
        output.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next().is_some_and(|first| first.starts_with("10.77."))
                && words.any(|word| word == "chosen")
        }),
        "{output}"
    );
    assert!(output.contains("127.0.0.1\tlocalhost"), "{output}");
    assert!(output.contains("look /etc/resolv.conf: ") && !output.contains("ENOENT"), "{output}");
    daemon.stop();
}

//! What containers have on the node's disk.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use pod_tests::{Daemon, eventually, manifest::pod, seconds};

/// Bytes that everything below a directory takes up, as `du` says.
fn used(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let each = entries.map(|entry| {
        let metadata = entry.metadata().unwrap();
        let below = if metadata.is_dir() { used(&entry.path()) } else { 0 };
        metadata.blocks() * 512 + below
    });
    each.sum()
}

#[test]
fn what_containers_write_is_measured() {
    let daemon = Daemon::start(&["--disk-usage-seconds=1"]);
    let writer = "write /file 1048576 , write /folder 5000 , log 5000 , print ready , pause";
    daemon.run(pod("writer").container("app", writer).container("idle", "pause"));
    daemon.wait_logged("writer", "container=app", "ready");
    let writer = daemon.pod("writer");
    let uid = writer["metadata"]["uid"].as_str().unwrap();
    let files = daemon.files_of(&writer).join("containers");
    let logs = daemon.folder().join("logs").join(format!("default_writer_{uid}"));

    eventually("the measurement is right", seconds(10), || {
        let metrics = daemon.metrics();
        let agrees = |container: &str| {
            let labels = [("pod", "writer"), ("container", container)];
            let value = |name: &str| metrics.find(name, &labels);
            let rootfs = value("podscope_container_rootfs_used_bytes");
            let log = value("podscope_container_log_used_bytes");
            let [rootfs_there, log_there] =
                [&files, &logs].map(|folder| used(&folder.join(container)) as f64);
            println!("{container}: {rootfs:?} of {rootfs_there}, {log:?} of {log_there}");
            rootfs == Some(rootfs_there) && log == Some(log_there)
        };
        (agrees("app") && agrees("idle")).then_some(())
    });
    let labels = [("pod", "writer"), ("container", "app")];
    let metrics = daemon.metrics();
    assert!(metrics.one("podscope_container_rootfs_used_bytes", &labels) >= 1_048_576.0);
    assert!(metrics.one("podscope_container_log_used_bytes", &labels) >= 50_000.0);
    daemon.stop();
}

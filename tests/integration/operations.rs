//! Every operation on files is counted for its volume, however many layers are below.

use std::fs;

use pod_tests::{
    Daemon, Metrics, eventually,
    manifest::{mounts, pod},
    seconds, skip,
};
use serde_json::json;

/// What a table of expectations says of one volume: successes and errors by operation.
type Expected<'a> = (&'a str, &'a [(&'a str, f64)], &'a [(&'a str, f64)]);

/// Whether the probes hang on the kernel's functions.
fn is_fexit(metrics: &Metrics) -> bool {
    let labels = [("probe", "file_unlink"), ("mode", "fexit")];
    metrics.find("podscope_probe_info", &labels).is_some()
}

/// The pod that does nothing: what its start does counts for `other`.
const NOTHING: &str = "nothing";

/// What differs from the expectation, for one metric of one volume: operations that are not named must
/// not have happened.
fn difference(
    metrics: &Metrics,
    name: &str,
    (pod, volume): (&str, &str),
    expected: &[(&str, f64)],
) -> Option<String> {
    let labels = [("pod", pod), ("volume", volume)];
    let mut found: Vec<(&str, f64)> = metrics
        .series(name, &labels)
        .map(|sample| {
            let operation = sample.labels["operation"].as_str();
            let usual = [("pod", NOTHING), ("volume", volume), ("operation", operation)];
            (operation, sample.value - metrics.sum(name, &usual))
        })
        .filter(|(_, count)| *count != 0.0)
        .collect();
    let mut expected = expected.to_vec();
    found.sort_by(|a, b| a.0.cmp(b.0));
    expected.sort_by(|a, b| a.0.cmp(b.0));
    (found != expected).then(|| format!("{name} of {volume}: {found:?} and not {expected:?}"))
}

/// Compares; every success must have been timed, too.
#[track_caller]
fn check(metrics: &Metrics, pod: &str, expected: &[Expected<'_>]) {
    let mut wrong = Vec::new();
    for (volume, successes, errors) in expected {
        for (name, expected) in [
            ("podscope_file_operations_total", *successes),
            ("podscope_file_operation_duration_seconds_count", successes),
            ("podscope_file_errors_total", errors),
        ] {
            wrong.extend(difference(metrics, name, (pod, volume), expected));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", metrics.about("podscope_events_lost"));
}

#[test]
fn every_operation_on_files_is_counted_exactly() {
    let daemon = Daemon::start(&[]);
    let steps = "write /data/a 100 , fsync /data/a , fdatasync /data/a , rename /data/a /data/b , \
                 unlink /data/b , fail-open /data/none , fail-read /data/c , \
                 fail-unlink /data/none , fail-rename /data/none /data/d , exit 0";
    for (name, steps) in [(NOTHING, "exit 0"), ("all", steps)] {
        let one = pod(name).volume("data", "emptyDir", json!({}));
        daemon.run(one.container_with("app", steps, mounts(&[("data", "/data")])));
        daemon.wait_over(name);
    }
    let over = daemon.wait_over("all");
    assert_eq!(over["status"]["phase"], "Succeeded", "{}", daemon.logs("all", ""));
    let metrics = daemon.metrics();
    println!("{}", metrics.about("podscope_probe_coverage"));
    if let Some(missed) = metrics.missed() {
        daemon.stop();
        return skip(&missed);
    }
    let done = [("open", 4.0), ("create", 2.0), ("write", 1.0), ("fsync", 2.0)];
    let names = [("rename", 1.0), ("unlink", 1.0)];
    let all: Vec<_> = done.iter().chain(&names).copied().collect();
    if is_fexit(&metrics) {
        let errors = [("read", 1.0), ("unlink", 1.0), ("rename", 1.0)];
        check(&metrics, "all", &[("data", &all, &errors), ("other", &[], &[("open", 1.0)])]);
    } else {
        let errors = [("open", 1.0), ("unlink", 1.0), ("rename", 1.0)];
        check(&metrics, "all", &[("data", &done, &[("read", 1.0)]), ("other", &names, &errors)]);
    }
    daemon.stop();
}

#[test]
fn what_a_stacked_file_system_does_below_is_not_counted() {
    let daemon = Daemon::start(&[]);
    let steps =
        "write /a 900 , fsync /a , copy-range /a /b 600 , rename /a /c , unlink /c , exit 0";
    daemon.run(pod(NOTHING).container("app", "exit 0"));
    daemon.wait_over(NOTHING);
    daemon.run(pod("stack").container("app", steps));
    let over = daemon.wait_over("stack");
    assert_eq!(over["status"]["phase"], "Succeeded", "{}", daemon.logs("stack", ""));
    let metrics = daemon.metrics();
    if let Some(missed) = metrics.missed() {
        daemon.stop();
        return skip(&missed);
    }
    let done = [("open", 4.0), ("create", 2.0), ("write", 2.0), ("read", 1.0), ("fsync", 1.0)];
    let names = [("rename", 1.0), ("unlink", 1.0)];
    let all: Vec<_> = done.iter().chain(&names).copied().collect();
    check(&metrics, "stack", &[("rootfs", &all, &[]), ("other", &[], &[])]);
    daemon.stop();
}

#[test]
fn two_volumes_on_one_directory_stay_two() {
    let daemon = Daemon::start(&[]);
    let folder = daemon.folder().join("shared");
    fs::create_dir(&folder).unwrap();
    let twins = pod("twins")
        .volume("one", "hostPath", json!({"path": folder}))
        .volume("two", "hostPath", json!({"path": folder}))
        .container_with(
            "app",
            "write /one/file 100 , read /two/file 60 , exit 0",
            mounts(&[("one", "/one"), ("two", "/two")]),
        );
    daemon.run(twins);
    daemon.wait_over("twins");
    let metrics = daemon.metrics();
    if let Some(missed) = metrics.missed() {
        daemon.stop();
        return skip(&missed);
    }
    check(
        &metrics,
        "twins",
        &[
            ("one", &[("open", 1.0), ("create", 1.0), ("write", 1.0)], &[]),
            ("two", &[("open", 1.0), ("read", 1.0)], &[]),
        ],
    );
    daemon.stop();
}

#[test]
fn names_count_for_the_directory_that_they_are_in() {
    let daemon = Daemon::start(&[]);
    let folder = daemon.folder().join("names");
    for name in ["one", "two/folder"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    for name in ["two/folder/a", "two/folder/b", "two/c", "two/d"] {
        fs::write(folder.join(name), "").unwrap();
    }
    // Paths begin in the first volume, and what is removed as a whole is removed name by name.
    let names = "write a 1 , rename a b , unlink b , fail-unlink a , fail-rename a b , \
                 write /x 1 , rename /x /y , unlink /y , remove-all /two/folder";
    let paths = "unlink ../two/c , unlink /two/d , fail-unlink ./a";
    for (name, steps) in
        [(NOTHING, "exit 0".to_owned()), ("names", format!("{names} , {paths} , exit 0"))]
    {
        let mut container = mounts(&[("one", "/one"), ("two", "/two")]);
        container["workingDir"] = json!("/one");
        let one = pod(name).volume("one", "hostPath", json!({"path": folder.join("one")})).volume(
            "two",
            "hostPath",
            json!({"path": folder.join("two")}),
        );
        daemon.run(one.container_with("app", &steps, container));
        daemon.wait_over(name);
    }
    let over = daemon.wait_over("names");
    assert_eq!(over["status"]["phase"], "Succeeded", "{}", daemon.logs("names", ""));
    let metrics = daemon.metrics();
    if let Some(missed) = metrics.missed() {
        daemon.stop();
        return skip(&missed);
    }
    let file = [("open", 1.0), ("create", 1.0), ("write", 1.0), ("rename", 1.0), ("unlink", 1.0)];
    check(&metrics, "names", &[("rootfs", &file, &[])]);
    if is_fexit(&metrics) {
        let errors = [("unlink", 2.0), ("rename", 1.0)];
        let two = [("open", 1.0), ("unlink", 4.0)];
        check(&metrics, "names", &[("one", &file, &errors), ("two", &two, &[])]);
        check(&metrics, "names", &[("other", &[], &[])]);
    } else {
        // By way of directories a path may lead anywhere.
        let errors = [("unlink", 1.0), ("rename", 1.0)];
        let (two, rest) = ([("open", 1.0), ("unlink", 2.0)], [("unlink", 2.0)]);
        check(&metrics, "names", &[("one", &file, &errors), ("two", &two, &[])]);
        check(&metrics, "names", &[("other", &rest, &[("unlink", 1.0)])]);
    }
    daemon.stop();
}

#[test]
fn durations_are_what_the_workload_measures() {
    let daemon = Daemon::start(&[]);
    // A megabyte each, so that copying takes longer than the way into the kernel and back.
    let count = if pod_tests::in_vm() { 30 } else { 300 };
    let steps = format!("write /data/a 1000000 , time-reads /data/a {count} 1000000 , exit 0");
    let timed = pod("timed").volume("data", "emptyDir", json!({}));
    let output = daemon
        .output_of(timed.container_with("app", &steps, mounts(&[("data", "/data")])), "timed");
    let taken = output.trim().strip_prefix("reads took ").unwrap().split_once(' ').unwrap();
    let (taken, cpu) = (taken.0.parse::<f64>().unwrap(), taken.1.parse::<f64>().unwrap());
    let metrics = daemon.metrics();
    if let Some(missed) = metrics.missed() {
        daemon.stop();
        return skip(&missed);
    }
    let labels = [("pod", "timed"), ("volume", "data"), ("operation", "read")];
    let of = |part: &str| {
        metrics.one(&format!("podscope_file_operation_duration_seconds_{part}"), &labels)
    };
    let sum = of("sum");
    println!("{sum} s of {taken} s, {cpu} s of them on a CPU");
    assert_eq!(of("count"), f64::from(count));
    // Whoever has to wait for a CPU does so at the end of a call, which is behind it.
    assert!(sum <= taken && sum >= cpu / 2.0, "{sum} s of {taken} s, {cpu} s on a CPU");
    daemon.stop();
}

#[test]
fn requests_of_block_devices_are_what_the_cgroup_says() {
    const DISK: &str = "/disk";
    let daemon = Daemon::start(&[]);
    if !pod_tests::in_vm() || !std::path::Path::new(DISK).exists() {
        daemon.stop();
        return skip("no disk of the test's own");
    }
    let folder = std::path::Path::new(DISK).join(format!("block-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    // Past the page cache, and through it with what the kernel writes back for the container.
    let steps =
        "write-direct /disk/direct 20 , write /disk/cached 300000 , fsync /disk/cached , pause";
    let writer = pod("writer").volume("disk", "hostPath", json!({"path": folder})).container_with(
        "app",
        steps,
        mounts(&[("disk", "/disk")]),
    );
    daemon.run(writer);
    daemon.wait_ready("writer");
    let labels = [("pod", "writer"), ("operation", "write")];
    if daemon.metrics().find("podscope_io_bytes_total", &labels).is_none() {
        skip("no io controller");
    } else {
        eventually("the device and the cgroup agree", seconds(60), || {
            let metrics = daemon.metrics();
            let [block, cgroup] = ["podscope_block_bytes_total", "podscope_io_bytes_total"]
                .map(|name| metrics.sum(name, &labels));
            println!("{block} bytes and {cgroup}");
            (block >= 300_000.0 && (block - cgroup).abs() < 1.0).then_some(())
        });
        let metrics = daemon.metrics();
        let count = |name: &str| metrics.one(name, &labels);
        assert_eq!(
            count("podscope_block_operation_duration_seconds_count"),
            count("podscope_block_operations_total")
        );
        assert_eq!(count("podscope_block_errors_total"), 0.0);
    }
    daemon.delete("writer");
    fs::remove_dir_all(&folder).unwrap();
    daemon.stop();
}

#[test]
fn volumes_are_as_large_as_their_file_systems() {
    let daemon = Daemon::start(&[]);
    let folder = daemon.folder().join("sizes");
    fs::create_dir(&folder).unwrap();
    let sizes = pod("sizes")
        .volume("disk", "hostPath", json!({"path": folder}))
        .volume("memory", "emptyDir", json!({"medium": "Memory", "sizeLimit": "1Mi"}))
        .container_with(
            "app",
            "write /memory/file 300000 , pause",
            mounts(&[("disk", "/disk"), ("memory", "/memory")]),
        );
    daemon.run(sizes);
    daemon.wait_ready("sizes");
    let of =
        |name: &str, volume| daemon.metrics().one(name, &[("pod", "sizes"), ("volume", volume)]);
    assert_eq!(of("podscope_volume_capacity_bytes", "memory"), 1_048_576.0);
    eventually("the file is written", seconds(10), || {
        let used = of("podscope_volume_used_bytes", "memory");
        (300_000.0..310_000.0).contains(&used).then_some(())
    });
    assert!(of("podscope_volume_inodes_used", "memory") >= 2.0);
    let disk = nix::sys::statvfs::statvfs(&folder).unwrap();
    #[expect(clippy::cast_precision_loss, reason = "both have the same")]
    let bytes = (disk.blocks() * disk.fragment_size()) as f64;
    assert_eq!(of("podscope_volume_capacity_bytes", "disk"), bytes);
    assert_eq!(of("podscope_volume_capacity_bytes", "rootfs"), bytes);
    daemon.delete("sizes");
    daemon.stop();
}

#[test]
fn what_goes_by_io_uring_is_counted_exactly() {
    let daemon = Daemon::start(&[]);
    let free = |steps: &str| {
        let more = json!({
            "securityContext": {"seccompProfile": {"type": "Unconfined"}},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        });
        pod("ring").volume("data", "emptyDir", json!({})).container_with("app", steps, more)
    };
    let off = [("probe", "file_io_uring"), ("mode", "off")];
    if daemon.metrics().find("podscope_probe_info", &off).is_some() {
        skip(&daemon.metrics().about("podscope_probe_info{probe=\"file_io_uring\""));
        daemon.stop();
        return;
    }
    let output = daemon.output_of(free("has-uring , exit 0"), "ring");
    daemon.delete("ring");
    if output != "uring: true\n" {
        skip("io_uring is not allowed");
        daemon.stop();
        return;
    }
    let steps = "uring-write /data/a 7000 , uring-fsync /data/a , uring-read /data/a 5000 , exit 0";
    daemon.run(free(steps));
    let over = daemon.wait_over("ring");
    assert_eq!(over["status"]["phase"], "Succeeded", "{}", daemon.logs("ring", ""));
    let metrics = daemon.metrics();
    let data = [("pod", "ring"), ("volume", "data")];
    assert_eq!(metrics.one("podscope_file_read_bytes_total", &data), 5000.0);
    assert_eq!(metrics.one("podscope_file_written_bytes_total", &data), 7000.0);
    // A kernel thread may have read them.
    let unknown = [("pod", "ring"), ("volume", "data"), ("result", "unknown")];
    assert_eq!(metrics.one("podscope_file_cache_read_bytes_total", &unknown), 5000.0);
    let done = [("open", 3.0), ("create", 1.0), ("write", 1.0), ("fsync", 1.0), ("read", 1.0)];
    let name = "podscope_file_operations_total";
    assert_eq!(difference(&metrics, name, ("ring", "data"), &done), None);
    daemon.stop();
}

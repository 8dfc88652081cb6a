//! What the file probes cost in fexit mode, next to a program that does next to nothing on the same
//! hook. Told, not judged: a machine's speed is no property of the code.

use std::{fs, fs::File, os::unix::fs::FileExt as _, thread};

use pod_tests::{
    Daemon, Metrics,
    manifest::{mounts, pod},
    seconds, skip,
};
use serde_json::json;

/// Reads that the test itself makes.
const READS: u32 = 20_000;

/// Runs of a program, and nanoseconds per run, between two scrapes.
fn cost(before: &Metrics, after: &Metrics, program: &str) -> (f64, f64) {
    let labels = [("program", program)];
    let difference = |name: &str| after.one(name, &labels) - before.one(name, &labels);
    let runs = difference("podscope_bpf_program_runs_total");
    (runs, difference("podscope_bpf_program_seconds_total") / runs * 1e9)
}

/// Prints the probe's cost and the floor's, and their ratio.
fn tell(what: &str, before: &Metrics, after: &Metrics) {
    let (runs, probe) = cost(before, after, "file_read");
    let (floor_runs, floor) = cost(before, after, "floor");
    assert!(runs >= 1000.0 && floor_runs >= 1000.0, "{what}: {runs} and {floor_runs} runs");
    println!(
        "COST file_read {what}: {probe:.0} ns, floor {floor:.0} ns, ratio {:.2}",
        probe / floor
    );
}

#[test]
fn the_file_probes_are_compared_with_a_minimal_program() {
    let daemon = Daemon::start(&["--probe-floor", "on"]);
    let mode = [("probe", "floor"), ("mode", "fexit")];
    if daemon.metrics().find("podscope_probe_info", &mode).is_none() {
        skip("this kernel refuses fexit programs");
        daemon.stop();
        return;
    }
    let path = daemon.folder().join("file");
    fs::write(&path, vec![b'x'; 4096]).unwrap();

    let file = File::open(&path).unwrap();
    let mut buffer = [0; 4096];
    let before = daemon.metrics();
    for _ in 0..READS {
        file.read_at(&mut buffer, 0).unwrap();
    }
    tell("outside pods", &before, &daemon.metrics());

    let reader = pod("reader").volume("data", "emptyDir", json!({})).container_with(
        "app",
        "write /data/file 4096 , pread /data/file 4096 , repeat",
        mounts(&[("data", "/data")]),
    );
    daemon.run(reader);
    daemon.wait_ready("reader");
    let before = daemon.metrics();
    thread::sleep(seconds(2));
    tell("in a pod", &before, &daemon.metrics());
    daemon.delete("reader");
    daemon.stop();
}

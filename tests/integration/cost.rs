//! What the file probes cost, next to a program that does next to nothing on the same hook. Told, not
//! judged: a machine's speed is no property of the code.

use std::{fs, fs::File, os::unix::fs::FileExt as _, thread};

use pod_tests::{Daemon, Metrics, manifest::reader, seconds, skip};

/// Reads that the test itself makes.
const READS: u32 = 20_000;

/// The programs that run at a read, and the one to compare them with.
const FEXIT: ([&str; 2], &str) = (["b_read", "file_read"], "floor");
const SYSCALL: ([&str; 2], &str) = (["file_enter", "file_syscall"], "sys_floor");

/// Nanoseconds per run of a program, between two scrapes.
fn cost(before: &Metrics, after: &Metrics, program: &str) -> f64 {
    let labels = [("program", program)];
    let difference = |name: &str| after.one(name, &labels) - before.one(name, &labels);
    let runs = difference("podscope_bpf_program_runs_total");
    assert!(runs >= 1000.0, "{program}: {runs} runs");
    difference("podscope_bpf_program_seconds_total") / runs * 1e9
}

#[test]
fn the_file_probes_are_compared_with_a_minimal_program() {
    let daemon = Daemon::start(&["--probe-floor=on", "--probe-timing=always"]);
    let has = |mode| {
        let labels = [("probe", "floor"), ("mode", mode)];
        daemon.metrics().find("podscope_probe_info", &labels).is_some()
    };
    let ([enter, exit], floor) = if has("fexit") {
        FEXIT
    } else if has("syscall") {
        SYSCALL
    } else {
        skip("this kernel refuses the floor program");
        daemon.stop();
        return;
    };
    let tell = |what: &str, before: &Metrics, after: &Metrics| {
        let of = |program| cost(before, after, program);
        let (enter_ns, exit_ns, floor_ns) = (of(enter), of(exit), of(floor));
        println!(
            "COST {what}: {enter} {enter_ns:.0} ns, {exit} {exit_ns:.0} ns, {floor} {floor_ns:.0} ns, \
             ratio {:.2}, above the floors {:.0} ns",
            (enter_ns + exit_ns) / floor_ns,
            enter_ns + exit_ns - 2.0 * floor_ns
        );
    };
    let path = daemon.folder().join("file");
    fs::write(&path, vec![b'x'; 4096]).unwrap();

    let file = File::open(&path).unwrap();
    let mut buffer = [0; 4096];
    let before = daemon.metrics();
    for _ in 0..READS {
        file.read_at(&mut buffer, 0).unwrap();
    }
    tell("outside pods", &before, &daemon.metrics());

    daemon.run(reader("reader"));
    daemon.wait_ready("reader");
    let before = daemon.metrics();
    thread::sleep(seconds(2));
    tell("in a pod", &before, &daemon.metrics());
    daemon.delete("reader");
    daemon.stop();
}

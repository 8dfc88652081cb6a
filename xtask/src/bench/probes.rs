//! What the probes cost: by the kernel's own account for each program, and to the workload.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{
    StartDaemon,
    pods::{Pods, pod},
    rootfs,
    sheet::Sheet,
};
use crate::{metrics::Metrics, process::exec, stop};

/// Loads, how often, what one of it is called, and the programs that it is meant to run.
const LOADS: [(&str, u32, &str, &[&str]); 4] = [
    ("exec", 500, "fork, exec and wait", &["exec", "fork", "exit"]),
    ("file", 200_000, "write and read of 4 KiB", &[]),
    ("tcp", 30_000, "4 KiB there and back", &["net_ingress", "net_egress"]),
    ("syscall", 300_000, "read of one byte of /dev/zero", &[]),
];

/// Each is measured so often, and the best counts: all else is somebody else's work.
const ROUNDS: usize = 3;

/// Where the load runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Outside,
    Inside,
}

/// Nanoseconds of one operation: without a daemon, outside pods, inside a pod.
type Cost = [f64; 3];

pub(super) fn run(start_daemon: &StartDaemon<'_>) -> anyhow::Result<Value> {
    let scratch = tempfile::tempdir().context("make a directory for the loads")?;
    let rootfs = rootfs::make(scratch.path())?;
    let out = scratch.path().join("out");
    fs::create_dir(&out).context("make a directory for the loads")?;

    let mut costs = [[f64::INFINITY; 3]; LOADS.len()];
    let mut runs = Vec::new();
    for round in 1..=ROUNDS {
        println!("bench: probes, round {round} of {ROUNDS}");
        for (load, cost) in LOADS.iter().zip(&mut costs) {
            cost[0] = cost[0].min(outside(load, &rootfs, &out)?);
        }
        // Measuring each run of a program costs as much as the program.
        for measures in [false, true] {
            // Its probes are there as long as it is.
            let daemon = start_daemon(if measures { &["--probe-timing=always"] } else { &[] })?;
            let mut pods = Pods::connect(&daemon)?;
            for (load, cost) in LOADS.iter().zip(&mut costs) {
                for (column, place) in [(1, Place::Outside), (2, Place::Inside)] {
                    stop::check()?;
                    let before = daemon.scrape()?;
                    let nanos = match place {
                        Place::Outside => outside(load, &rootfs, &out)?,
                        Place::Inside => inside(load, &rootfs, &out, &mut pods)?,
                    };
                    if measures {
                        runs.extend(programs(load, place, &before, &daemon.scrape()?));
                    } else {
                        cost[column] = cost[column].min(nanos);
                    }
                }
            }
            daemon.stop()?;
        }
    }
    let traced = with_bpftrace(&rootfs, &out)?;
    Ok(report(&costs, traced, &runs))
}

/// Counts what the file probes count of this load, by cgroup.
const ONE_LINER: &str = "tracepoint:syscalls:sys_exit_pread64,tracepoint:syscalls:sys_exit_pwrite64 \
                         /args->ret >= 0/ { @ops[cgroup] = count(); @bytes[cgroup] = sum(args->ret); }";

/// Nanoseconds of an operation of the `file` load while bpftrace counts it.
fn with_bpftrace(rootfs: &Path, out: &Path) -> anyhow::Result<f64> {
    println!("bench: probes, beside bpftrace");
    // The tracing filesystem need not be mounted here.
    let script = "mount -t tracefs tracefs /sys/kernel/tracing && exec bpftrace -e \"$0\"";
    let mut bpftrace = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, ONE_LINER])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start bpftrace")?;
    // It says when it begins to attach, and not when it is done.
    thread::sleep(Duration::from_secs(3));
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        best = best.min(outside(&LOADS[1], rootfs, out)?);
    }
    let ended = bpftrace.try_wait().context("look at bpftrace")?;
    ensure!(ended.is_none(), "bpftrace ended early");
    bpftrace.kill().context("end bpftrace")?;
    bpftrace.wait().context("wait for bpftrace")?;
    Ok(best)
}

/// What the kernel says that a program's run took, during one load.
struct Run {
    load: &'static str,
    place: Place,
    program: String,
    nanos: f64,
    runs: f64,
}

fn programs(
    &(load, count, ..): &(&'static str, u32, &str, &[&str]),
    place: Place,
    before: &Metrics,
    after: &Metrics,
) -> Vec<Run> {
    after
        .matching("podscope_bpf_program_runs_total", &[])
        .filter_map(|sample| {
            let program = sample.label("program");
            let of = [("program", program)];
            let grown = |name: &str| after.sum(name, &of) - before.sum(name, &of);
            let runs = grown("podscope_bpf_program_runs_total");
            let seconds = grown("podscope_bpf_program_seconds_total");
            // Fewer are not this load's, but those of what else runs here.
            (runs >= f64::from(count) / 2.0).then(|| Run {
                load,
                place,
                program: program.to_owned(),
                nanos: seconds / runs * 1e9,
                runs,
            })
        })
        .collect()
}

fn outside(
    &(load, count, ..): &(&str, u32, &str, &[&str]),
    rootfs: &Path,
    out: &Path,
) -> anyhow::Result<f64> {
    let bin = rootfs.join("bin");
    let mut command = Command::new(bin.join("load"));
    exec(command.arg(load).arg(count.to_string()).arg(out).arg(bin.join("true")))?;
    read_result(out, load, count)
}

fn inside(
    &(load, count, ..): &(&str, u32, &str, &[&str]),
    rootfs: &Path,
    out: &Path,
    pods: &mut Pods,
) -> anyhow::Result<f64> {
    let times = count.to_string();
    let command = ["/bin/load", load, &times, "/out", "/bin/true"];
    pods.create(&pod("load", rootfs, &command, "Never", out))?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !out.join(load).exists() {
        stop::check()?;
        ensure!(Instant::now() < deadline, "the load in a pod does not end");
        thread::sleep(Duration::from_millis(20));
    }
    pods.wait_for("load", "Succeeded")?;
    pods.delete("load")?;
    read_result(out, load, count)
}

/// Nanoseconds of one operation.
fn read_result(out: &Path, load: &str, count: u32) -> anyhow::Result<f64> {
    let file = out.join(load);
    let nanos = fs::read_to_string(&file).context("read a load's result")?;
    fs::remove_file(&file).context("remove a load's result")?;
    Ok(nanos.parse::<f64>().context("read a load's result")? / f64::from(count))
}

fn report(costs: &[Cost; LOADS.len()], traced: f64, runs: &[Run]) -> Value {
    let columns = ["one operation", "no daemon", "outside pods", "inside a pod"];
    let mut sheet = Sheet::new("probes: the whole cost", columns);
    for ((load, _, what, _), cost) in LOADS.iter().zip(costs) {
        let shown = |nanos: f64| format!("{nanos:.0} ns (x {:.2})", nanos / cost[0]);
        sheet.row([
            format!("{load}: {what}"),
            format!("{:.0} ns", cost[0]),
            shown(cost[1]),
            shown(cost[2]),
        ]);
        let value = json!({ "none_ns": cost[0], "outside_ns": cost[1], "inside_ns": cost[2] });
        sheet.note(load, value);
    }
    let [none, ..] = costs[1];
    sheet.row([
        "file: beside bpftrace, which counts the same".to_owned(),
        format!("{none:.0} ns"),
        format!("{traced:.0} ns (x {:.2})", traced / none),
        String::new(),
    ]);
    sheet.note("file_bpftrace_ns", traced);
    sheet.row([const { String::new() }; 4]);
    sheet.row(["program".to_owned(), "load".to_owned(), "place".to_owned(), "per run".to_owned()]);

    let best = |load: &str, place: Place, program: &str| {
        runs.iter()
            .filter(|run| run.load == load && run.place == place && run.program == program)
            .map(|run| run.nanos)
            .fold(f64::INFINITY, f64::min)
    };
    let mut seen = Vec::new();
    for run in runs {
        let key = (run.load, run.place, &run.program);
        if seen.contains(&key) {
            continue;
        }
        seen.push(key);
        let nanos = best(run.load, run.place, &run.program);
        let place = if run.place == Place::Inside { "inside" } else { "outside" };
        sheet.row([
            run.program.clone(),
            run.load.to_owned(),
            place.to_owned(),
            format!("{nanos:.0} ns"),
        ]);
        let key = format!("{}_{}_{place}", run.program, run.load);
        sheet.note(&key, json!({ "ns": nanos, "runs": run.runs }));
    }
    let mut target = |what: &str, load: &str, place, program: &str, most: f64| {
        let nanos = best(load, place, program);
        if nanos.is_finite() {
            sheet.target(what, nanos, most, " ns");
        }
    };
    target("net_ingress, packet of a pod", "tcp", Place::Inside, "net_ingress", 120.0);
    target("net_egress, packet of a pod", "tcp", Place::Inside, "net_egress", 120.0);
    target("exec, event of a pod", "exec", Place::Inside, "exec", 3000.0);
    target("file_syscall, operation of a pod", "file", Place::Inside, "file_syscall", 150.0);
    target("file_syscall, call outside pods", "file", Place::Outside, "file_syscall", 60.0);
    target(
        "file_syscall, other call outside pods",
        "syscall",
        Place::Outside,
        "file_syscall",
        60.0,
    );
    sheet.finish()
}

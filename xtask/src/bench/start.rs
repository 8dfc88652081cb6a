//! Starts: of a pod, of a container within one, of a command within a container.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    StartDaemon, floor, peers,
    pods::{Pods, pod},
    rootfs,
    sheet::{Sheet, Times},
};
use crate::stop;

/// Samples of a kind before it is the next one's turn.
const TURN: usize = 5;

/// Starts of the long run.
const SOAK: usize = 10_000;

/// Without a pause between restarts, which is not what is measured.
const FLAGS: [&str; 1] = ["--restart-backoff-ms=0"];

#[derive(Default)]
struct Samples {
    pod: Vec<Duration>,
    restart: Vec<Duration>,
    exec: Vec<Duration>,
    floor: Vec<Duration>,
    crun: Vec<Duration>,
    runc: Vec<Duration>,
    crun_exec: Vec<Duration>,
}

pub(super) fn run(start_daemon: &StartDaemon<'_>, n: usize) -> anyhow::Result<Value> {
    let daemon = start_daemon(&FLAGS)?;
    let rootfs = rootfs::make(daemon.directory())?;
    let mut pods = Pods::connect(&daemon)?;
    // The first pod unpacks the image.
    start_pod(&mut pods, &rootfs, daemon.directory())?;
    pods.create(&pod("living", &rootfs, &["/bin/sleep"], "Always", daemon.directory()))?;
    pods.wait_for("living", "Running")?;
    pods.exec_true("living")?;

    let mut samples = Samples::default();
    let rounds = n.div_ceil(TURN);
    for round in 1..=rounds {
        if round % 5 == 1 {
            println!("bench: starts, round {round} of {rounds}");
        }
        for _ in 0..TURN {
            stop::check()?;
            samples.pod.push(start_pod(&mut pods, &rootfs, daemon.directory())?);
        }
        samples.restart.extend(restarts(&mut pods, &rootfs, daemon.directory(), TURN + 1)?);
        for _ in 0..TURN {
            samples.exec.push(pods.exec_true("living")?);
        }
        samples.floor.extend(floor::measure(&rootfs, TURN)?);
        samples.crun.extend(peers::crun_run(&rootfs, TURN)?);
        samples.runc.extend(peers::runc_run(&rootfs, TURN)?);
        samples.crun_exec.extend(peers::crun_exec(&rootfs, TURN)?);
    }
    pods.delete("living")?;
    daemon.stop()?;
    Ok(report(samples))
}

/// Runs `/bin/true` very often in one pod, and compares what was counted with what happened.
pub(super) fn soak(start_daemon: &StartDaemon<'_>) -> anyhow::Result<Value> {
    println!("bench: {SOAK} starts in one pod");
    let daemon = start_daemon(&FLAGS)?;
    let rootfs = rootfs::make(daemon.directory())?;
    let mut pods = Pods::connect(&daemon)?;
    let began = Instant::now();
    let file = run_stamps(&mut pods, &rootfs, daemon.directory(), SOAK)?;
    let took = began.elapsed();
    let stamps = stamps(&file)?;
    let times = Times::new(stamps.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect());

    let metrics = daemon.scrape()?;
    let of = [("pod", "stamps")];
    let mut sheet =
        Sheet::new("soak: one container, restarted", ["counted", "got", "expected", "lost"]);
    let expected = [
        ("podscope_exec_total", SOAK),
        ("podscope_process_exits_total", SOAK),
        ("podscope_container_restarts_total", SOAK - 1),
    ];
    let mut lost = (SOAK - stamps.len().min(SOAK)) as f64;
    for (name, expected) in expected {
        let (got, expected) = (metrics.sum(name, &of), expected as f64);
        lost += (expected - got).abs();
        let cells = [got, expected, expected - got].map(|number| number.to_string());
        let [got, expected, difference] = cells;
        sheet.row([name.to_owned(), got, expected, difference]);
    }
    sheet.times("restart", "from one start to the next (p50, p95)", &times, None);
    sheet.note("seconds", took.as_secs_f64());
    sheet.target("lost starts, execs, exits and restarts", lost, 0.0, "");
    sheet.target("restart after a crash, p99", times.percentile(99) / 1e3, 50.0, " ms");
    pods.delete("stamps")?;
    daemon.stop()?;
    Ok(sheet.finish())
}

/// From the request's first byte to the first instruction of the container's `main`.
fn start_pod(pods: &mut Pods, rootfs: &Path, directory: &Path) -> anyhow::Result<Duration> {
    let file = directory.join("out/started");
    let shared = directory.join("out");
    fs::create_dir_all(&shared).context("make a directory for time stamps")?;
    let manifest = pod("once", rootfs, &["/bin/stamp", "/out/started", "1"], "Never", &shared);

    let start = SystemTime::now();
    pods.create(&manifest)?;
    // Asking the daemon would cost it time, and a pod's state comes after its start.
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::metadata(&file).map_or(0, |meta| meta.len()) < 8 {
        ensure!(Instant::now() < deadline, "the pod did not start");
        thread::sleep(Duration::from_millis(1));
    }
    let started = stamps(&file)?[0];
    pods.delete("once")?;
    fs::remove_file(&file).context("remove a time stamp")?;
    let start = start.duration_since(UNIX_EPOCH).context("read the clock")?;
    started.checked_sub(start).context("the clock was set meanwhile")
}

/// From one start of a container to its next: what is between is the program's own run, its
/// death, and all that a restart takes.
fn restarts(
    pods: &mut Pods,
    rootfs: &Path,
    directory: &Path,
    n: usize,
) -> anyhow::Result<Vec<Duration>> {
    let file = run_stamps(pods, rootfs, directory, n)?;
    let stamps = stamps(&file)?;
    ensure!(stamps.len() == n, "{} starts became {}", n, stamps.len());
    pods.delete("stamps")?;
    Ok(stamps.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect())
}

/// Lets a container fail until it has left `n` time stamps; the pod stays.
fn run_stamps(
    pods: &mut Pods,
    rootfs: &Path,
    directory: &Path,
    n: usize,
) -> anyhow::Result<std::path::PathBuf> {
    let shared = directory.join("out");
    fs::create_dir_all(&shared).context("make a directory for time stamps")?;
    let file = shared.join("stamps");
    drop(fs::remove_file(&file));
    let count = n.to_string();
    let command = ["/bin/stamp", "/out/stamps", &count];
    pods.create(&pod("stamps", rootfs, &command, "OnFailure", &shared))?;
    let mut progress = (0, Instant::now());
    while fs::metadata(&file).map_or(0, |meta| meta.len()) < 8 * n as u64 {
        stop::check()?;
        thread::sleep(Duration::from_millis(20));
        let length = fs::metadata(&file).map_or(0, |meta| meta.len());
        if length > progress.0 {
            progress = (length, Instant::now());
        }
        let phase = pods.phase("stamps");
        ensure!(
            progress.1.elapsed() < Duration::from_secs(15),
            "no restart since 15 s, after {} of {n}; the pod is {phase:?}",
            length / 8,
        );
    }
    pods.wait_for("stamps", "Succeeded")?;
    Ok(file)
}

/// Times since 1970 that `/bin/stamp` wrote.
fn stamps(file: &Path) -> anyhow::Result<Vec<Duration>> {
    let bytes = fs::read(file).context("read time stamps")?;
    let (stamps, _) = bytes.as_chunks::<8>();
    Ok(stamps.iter().map(|&stamp| Duration::from_nanos(u64::from_le_bytes(stamp))).collect())
}

fn report(samples: Samples) -> Value {
    let Samples { pod, restart, exec, floor, crun, runc, crun_exec } = samples;
    let [pod, restart, exec] = [pod, restart, exec].map(Times::new);
    let [floor, crun, runc, crun_exec] = [floor, crun, runc, crun_exec].map(Times::new);
    let mut sheet = Sheet::new("start", ["of /bin/true", "p50", "p95", "of crun's p50"]);
    let crun_run = Some(&crun);
    sheet.times("floor", "clone3, pivot_root, exec, wait", &floor, crun_run);
    sheet.times("crun_run", "crun run", &crun, crun_run);
    sheet.times("runc_run", "runc run", &runc, crun_run);
    sheet.times("pod", "pod: API request to main()", &pod, crun_run);
    sheet.times("restart", "container restart: main() to main()", &restart, crun_run);
    sheet.times("crun_exec", "crun exec", &crun_exec, Some(&crun_exec));
    sheet.times("exec", "exec over the API, to its end", &exec, Some(&crun_exec));
    sheet.target("pod start, in crun runs", pod.p50() / crun.p50(), 1.0, "");
    sheet.target("container restart, in crun runs", restart.p50() / crun.p50(), 0.4, "");
    sheet.target("container restart, in floors", restart.p50() / floor.p50(), 3.0, "");
    sheet.target("exec, in crun execs", exec.p50() / crun_exec.p50(), 0.6, "");
    sheet.target("restart after a crash, p99", restart.percentile(99) / 1e3, 50.0, " ms");
    sheet.finish()
}

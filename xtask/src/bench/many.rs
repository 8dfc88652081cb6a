//! Many pods: how long they take to start, to come and go, and to be taken over by a new daemon.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    StartDaemon, peers,
    pods::{Pods, pod},
    rootfs,
    sheet::{Sheet, Times},
};
use crate::{daemon::Daemon, stop};

/// Pods that are started at once.
const BURST: usize = 50;

/// Clients at a time, here and for podman.
const CLIENTS: usize = 5;

/// Pods that live while the daemon dies.
const LIVING: usize = 100;

/// Times that it dies.
const CRASHES: usize = 10;

/// Pods that come and go.
const CHURN: usize = 1000;

pub(super) fn run(start_daemon: &StartDaemon<'_>) -> anyhow::Result<Value> {
    let mut daemon = start_daemon(&[])?;
    let rootfs = rootfs::make(daemon.directory())?;
    // The first pod unpacks the image.
    start(&daemon, &rootfs, 0..1)?;
    println!("bench: {BURST} pods at once");
    let burst = start(&daemon, &rootfs, 1..BURST + 1)?;
    println!("bench: {BURST} containers of podman at once");
    let podman = peers::podman_run(&rootfs, BURST, CLIENTS)?;
    start(&daemon, &rootfs, BURST + 1..LIVING)?;

    println!("bench: {CRASHES} crashes with {LIVING} pods");
    let resident = daemon.resident()?;
    let processes = processes_below(daemon.cgroup_root())?;
    let crashes = (0..CRASHES).map(|_| {
        stop::check()?;
        let took = daemon.crash()?;
        ensure!(running(&daemon)? == LIVING, "not all pods were taken over");
        Ok(took)
    });
    let crashes = Times::new(crashes.collect::<anyhow::Result<_>>()?);
    let resident_after = daemon.resident()?;
    for index in 0..LIVING {
        Pods::connect(&daemon)?.delete(&name(index))?;
    }
    println!("bench: {CHURN} pods that come and go");
    let churn = churn(&daemon, &rootfs)?;
    daemon.stop()?;

    let mut sheet = Sheet::new("many pods", ["", "p50", "p95", ""]);
    let mut single = |key: &str, what: &str, value: f64, unit: &str| {
        let shown = format!("{value:.2} {unit}");
        sheet.row([what.to_owned(), shown, String::new(), String::new()]);
        sheet.note(key, value);
    };
    let seconds = |time: Duration| time.as_secs_f64();
    single("burst_seconds", &format!("{BURST} pods, {CLIENTS} clients"), seconds(burst), "s");
    single("podman_seconds", "as many containers with podman", seconds(podman), "s");
    single("churn_rate", "pods that come and go", churn, "per second");
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    single("resident_after", "daemon, after the crashes", megabytes(resident_after), "MB");
    sheet.times("crash", "start after kill -9 to serving", &crashes, None);
    sheet.target("burst, in bursts of podman", seconds(burst) / seconds(podman), 0.3, "");
    sheet.target("serving again, p95", crashes.percentile(95) / 1e3, 500.0, " ms");
    sheet.target("daemon's memory, 100 pods", megabytes(resident), 40.0, " MB");
    let beside = processes as f64 / LIVING as f64 - 1.0;
    sheet.target("processes per pod beside its container", beside, 1.0, "");
    Ok(sheet.finish())
}

fn name(index: usize) -> String {
    format!("pod-{index}")
}

/// Starts pods and takes the time until all of them run.
fn start(
    daemon: &Daemon,
    rootfs: &Path,
    indexes: std::ops::Range<usize>,
) -> anyhow::Result<Duration> {
    let (total, indexes) = (indexes.end, indexes.collect::<Vec<_>>());
    let began = Instant::now();
    thread::scope(|scope| {
        let create = |indexes: &[usize]| {
            let mut pods = Pods::connect(daemon)?;
            for index in indexes {
                let name = name(*index);
                let pod = pod(&name, rootfs, &["/bin/sleep"], "Always", daemon.directory());
                pods.create(&pod)?;
            }
            anyhow::Ok(())
        };
        let share = indexes.len().div_ceil(CLIENTS);
        let clients: Vec<_> =
            indexes.chunks(share).map(|chunk| scope.spawn(move || create(chunk))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("no panic"))
    })?;
    let deadline = began + Duration::from_secs(60);
    while running(daemon)? < total {
        ensure!(Instant::now() < deadline, "not all pods run");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(began.elapsed())
}

fn running(daemon: &Daemon) -> anyhow::Result<usize> {
    let pods = Pods::connect(daemon)?.list()?;
    Ok(pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count())
}

/// Lets pods of `/bin/true` come and go, [`BURST`] at a time; returns pods per second.
fn churn(daemon: &Daemon, rootfs: &Path) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut pods = Pods::connect(daemon)?;
    let (mut made, mut gone) = (0, 0);
    let mut leaving = std::collections::BTreeSet::new();
    while gone < CHURN {
        stop::check()?;
        ensure!(began.elapsed() < Duration::from_secs(600), "pods do not go");
        let list = pods.list()?;
        let named = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let there: std::collections::BTreeSet<String> = list.iter().map(named).collect();
        let before = leaving.len();
        leaving.retain(|name| there.contains(name));
        gone += before - leaving.len();
        for pod in &list {
            let name = named(pod);
            if pod["status"]["phase"] == "Succeeded" && !leaving.contains(&name) {
                pods.delete_soon(&name)?;
                leaving.insert(name);
            }
        }
        for _ in 0..(BURST + gone).saturating_sub(made).min(CHURN - made) {
            let name = format!("churn-{made}");
            pods.create(&pod(&name, rootfs, &["/bin/true"], "Never", daemon.directory()))?;
            made += 1;
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(CHURN as f64 / began.elapsed().as_secs_f64())
}

/// Number of processes in a cgroup and below.
fn processes_below(cgroup: &Path) -> anyhow::Result<usize> {
    let list = fs::read_to_string(cgroup.join("cgroup.procs")).context("read a cgroup")?;
    let mut count = list.lines().count();
    for entry in fs::read_dir(cgroup).context("list a cgroup")?.flatten() {
        if entry.path().is_dir() {
            count += processes_below(&entry.path())?;
        }
    }
    Ok(count)
}

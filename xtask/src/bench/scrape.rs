//! Many idle pods: what the daemon needs for them, and what a scrape takes. Beside it node exporter,
//! which tells of the node alone.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    StartDaemon,
    pods::{Pods, pod},
    rootfs,
    sheet::{Sheet, Times, milliseconds},
};
use crate::{
    daemon::{cpu_time, free_port, spawn},
    http::Client,
    stop,
};

/// Scrapes that are measured.
const SCRAPES: usize = 50;

/// The interval of scrapes that the share of a CPU is told for; as long it is looked what the daemon
/// needs without any.
const INTERVAL: Duration = Duration::from_secs(15);

/// As long an interval is at least that lets the daemon know an idle container.
const SETTLED: Duration = Duration::from_secs(5);

/// What scrapes took.
struct Scraped {
    times: Times,
    /// Of the last page.
    bytes: usize,
    /// CPU time of one.
    cpu: Duration,
}

/// Scrapes a program again and again, given how to learn its CPU time.
fn scrape(
    address: SocketAddr,
    cpu: impl Fn() -> anyhow::Result<Duration>,
) -> anyhow::Result<Scraped> {
    let mut client = Client::tcp(address)?;
    let mut times = Vec::new();
    let mut bytes = 0;
    let before = cpu()?;
    for _ in 0..SCRAPES {
        let start = Instant::now();
        bytes = client.request("GET", "/metrics", "")?.text()?.len();
        times.push(start.elapsed());
        stop::sleep_until(Instant::now() + Duration::from_millis(50));
    }
    let cpu = (cpu()? - before) / u32::try_from(SCRAPES)?;
    Ok(Scraped { times: Times::new(times), bytes, cpu })
}

/// The same of node exporter.
fn scrape_node_exporter() -> anyhow::Result<Scraped> {
    let address = free_port(0)?;
    let mut command = Command::new("prometheus-node-exporter");
    command.arg(format!("--web.listen-address={address}"));
    // It would complain at each scrape of a node without systemd.
    command.args(["--no-collector.systemd", "--log.level=error"]);
    let mut exporter = spawn(&mut command)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let scraped = loop {
        match scrape(address, || cpu_time(exporter.id())) {
            Err(_) if Instant::now() < deadline => {
                stop::sleep_until(Instant::now() + Duration::from_millis(200));
            }
            result => break result,
        }
    };
    exporter.kill().and_then(|()| exporter.wait()).context("end node exporter")?;
    scraped
}

pub(super) fn run(start_daemon: &StartDaemon<'_>, count: usize) -> anyhow::Result<Value> {
    println!("bench: starting {count} pods of two containers");
    let daemon = start_daemon(&[])?;
    let rootfs = rootfs::make(daemon.directory())?;
    let mut pods = Pods::connect(&daemon)?;
    let empty = daemon.resident()?;
    let began = Instant::now();
    for index in 0..count {
        stop::check()?;
        let name = format!("idle-{index}");
        let mut manifest = pod(&name, &rootfs, &["/bin/sleep"], "Always", daemon.directory());
        let containers =
            manifest["spec"]["containers"].as_array_mut().context("find containers")?;
        let mut second = containers[0].clone();
        second["name"] = "second".into();
        containers.push(second);
        pods.create(&manifest)?;
    }
    let deadline = Instant::now() + Duration::from_secs(120);
    let running = || -> anyhow::Result<f64> {
        Ok(daemon.scrape()?.sum("podscope_container_state", &[("state", "running")]))
    };
    while running()? < (2 * count) as f64 {
        stop::check()?;
        ensure!(Instant::now() < deadline, "not all pods run");
        stop::sleep_until(Instant::now() + Duration::from_millis(200));
    }
    let started = began.elapsed();

    let before = daemon.cpu_time()?;
    stop::sleep_until(Instant::now() + INTERVAL);
    let idle = daemon.cpu_time()? - before;
    // What a scrape finds idle it need not read, but only once it knows.
    for _ in 0..2 {
        daemon.scrape()?;
        stop::sleep_until(Instant::now() + SETTLED);
    }
    let Scraped { times, bytes, cpu } = scrape(daemon.metrics_address(), || daemon.cpu_time())?;
    let node = scrape_node_exporter()?;
    let own = daemon.scrape()?.sum("podscope_scrape_duration_seconds", &[]);
    let resident = daemon.resident()?;

    let began = Instant::now();
    println!("bench: ending {count} pods");
    daemon.stop()?;
    let ended = began.elapsed();

    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let title = format!("scrape: {count} pods of 2 idle containers");
    let mut sheet = Sheet::new(&title, ["", "p50", "p95", ""]);
    sheet.times("scrape", "scrape, as a client sees it", &times, None);
    sheet.times("node_exporter", "node exporter, which tells of no pod", &node.times, Some(&times));
    let mut single = |key: &str, what: &str, value: f64, shown: String| {
        sheet.row([what.to_owned(), shown, String::new(), String::new()]);
        sheet.note(key, value);
    };
    single("scrape_own_us", "the daemon's own account", own * 1e6, milliseconds(own * 1e6));
    single("bytes", "bytes of a scrape", bytes as f64, bytes.to_string());
    single("node_exporter_bytes", "node exporter's", node.bytes as f64, node.bytes.to_string());
    let shown = |time: Duration| milliseconds(time.as_secs_f64() * 1e6);
    single("cpu_ms", "CPU time of a scrape", cpu.as_secs_f64() * 1e3, shown(cpu));
    single(
        "node_exporter_cpu_ms",
        "node exporter's",
        node.cpu.as_secs_f64() * 1e3,
        shown(node.cpu),
    );
    let title = "CPU time without scrapes, in 15 s";
    single("idle_cpu_ms", title, idle.as_secs_f64() * 1e3, shown(idle));
    let shown = |bytes| format!("{:.1} MB", megabytes(bytes));
    single("resident_empty", "daemon, without pods", empty as f64, shown(empty));
    single("resident", "daemon, with them", resident as f64, shown(resident));
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    single("start_seconds", "starting them all", started.as_secs_f64(), seconds(started));
    single("stop_seconds", "ending them all", ended.as_secs_f64(), seconds(ended));
    let share = (idle + cpu).as_secs_f64() / INTERVAL.as_secs_f64();
    sheet.target("memory over that without pods", megabytes(resident - empty), 15.0, " MB");
    sheet.target("scrape, p95", times.percentile(95) / 1e3, 100.0, " ms");
    sheet.target("share of a CPU, scraped every 15 s", share * 100.0, 0.5, " %");
    Ok(sheet.finish())
}

//! Many idle pods: what the daemon needs for them, and what a scrape takes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    StartDaemon,
    pods::{Pods, pod},
    rootfs,
    sheet::{Sheet, Times, milliseconds},
};
use crate::{http::Client, stop};

/// Scrapes that are measured.
const SCRAPES: usize = 50;

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

    let mut client = Client::tcp(daemon.metrics_address())?;
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..SCRAPES {
        let start = Instant::now();
        bytes = client.request("GET", "/metrics", "")?.text()?.len();
        times.push(start.elapsed());
        stop::sleep_until(Instant::now() + Duration::from_millis(50));
    }
    let times = Times::new(times);
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
    let mut single = |key: &str, what: &str, value: f64, shown: String| {
        sheet.row([what.to_owned(), shown, String::new(), String::new()]);
        sheet.note(key, value);
    };
    single("scrape_own_us", "the daemon's own account", own * 1e6, milliseconds(own * 1e6));
    single("bytes", "bytes of a scrape", bytes as f64, bytes.to_string());
    let shown = |bytes| format!("{:.1} MB", megabytes(bytes));
    single("resident_empty", "daemon, without pods", empty as f64, shown(empty));
    single("resident", "daemon, with them", resident as f64, shown(resident));
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    single("start_seconds", "starting them all", started.as_secs_f64(), seconds(started));
    single("stop_seconds", "ending them all", ended.as_secs_f64(), seconds(ended));
    sheet.target("daemon's memory", megabytes(resident), 40.0, " MB");
    sheet.target("scrape, p95", times.percentile(95) / 1e3, 50.0, " ms");
    Ok(sheet.finish())
}

//! More pods than may have series of their own: the others are added up, and nothing is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use pod_tests::{
    Daemon, Metrics, eventually, http,
    manifest::{self, mounts, pod},
    metrics::Sample,
};
use serde_json::json;

use crate::held;

/// What folded pods are called.
const OTHER: &str = "__other__";

/// Processes that each pod starts.
const FORKS: usize = 3;

/// Bytes that each pod writes.
const BYTES: usize = 100;

/// What somebody has seen who scrapes all the time.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) scrapes: usize,
    /// The most series that pods had.
    pub(crate) most: usize,
    /// The last page.
    last: Option<Metrics>,
    /// Pods that had series of their own, and those that lived and had none.
    own: BTreeSet<String>,
    folded: BTreeSet<String>,
}

impl Seen {
    /// Scrapes every `interval` as long as there is something to see; see [`Seen::look`].
    pub(crate) fn follow(
        address: SocketAddr,
        ceiling: usize,
        interval: Duration,
        is_over: &AtomicBool,
    ) -> Self {
        let mut seen = Self::default();
        while !is_over.load(Ordering::Relaxed) {
            // The daemon is killed now and then.
            if let Ok(answer) = http::tcp(address, "/metrics")
                && answer.status == 200
            {
                seen.look(Metrics::parse(answer.body), ceiling);
            }
            thread::sleep(interval);
        }
        seen
    }

    /// Checks that there are no more series than may be, that no counter of `__other__` is gone or
    /// less than it was, and that no sum over all pods is.
    fn look(&mut self, now: Metrics, ceiling: usize) {
        let series = series_of_pods(&now);
        assert!(series <= ceiling, "{series} series of pods, of {ceiling}");
        assert_eq!(now.one("podscope_series", &[]), series as f64);
        let reserved = now.one("podscope_series_reserved", &[]);
        assert!(series as f64 <= reserved && reserved <= ceiling as f64, "{reserved}");
        if let Some(before) = &self.last {
            let others = counters_of_others(&now);
            for (name, before) in counters_of_others(before) {
                // The daemon's own account of its probes begins anew with each.
                let is_kept = name.0 != "podscope_bpf_pod_seconds_total";
                let now = others.get(&name);
                let is_less = now.is_none_or(|now| *now < before);
                assert!(!(is_less && is_kept), "{name:?} was {before} and is {now:?}");
            }
            for (before, now) in held::sums(before).into_iter().zip(held::sums(&now)).take(5) {
                assert!(before - now < 1e-4, "{before} became {now}");
            }
        }
        for own in pods(&now) {
            assert!(!self.folded.contains(&own), "{own} was folded and has series of its own");
            self.own.insert(own);
        }
        self.most = self.most.max(series);
        self.scrapes += 1;
        self.last = Some(now);
    }
}

/// Series that have a label `pod`.
fn series_of_pods(metrics: &Metrics) -> usize {
    let lines = metrics.text.lines().filter(|line| !line.starts_with('#'));
    lines.filter(|line| line.contains(",pod=\"")).count()
}

/// Counters of folded pods, and what of their histograms is one, by name and labels.
fn counters_of_others(metrics: &Metrics) -> BTreeMap<(&str, &BTreeMap<String, String>), f64> {
    let is_counter = |sample: &&Sample| {
        let ends = ["_total", "_bucket", "_sum", "_count"];
        let is_others = sample.labels.get("pod").is_some_and(|pod| pod == OTHER);
        is_others && ends.iter().any(|end| sample.name.ends_with(end))
    };
    let counters = metrics.all().filter(is_counter);
    counters.map(|sample| ((&*sample.name, &sample.labels), sample.value)).collect()
}

/// Pods with series of their own.
fn pods(metrics: &Metrics) -> BTreeSet<String> {
    let series = metrics.series("podscope_exec_total", &[]);
    series.map(|sample| sample.labels["pod"].clone()).filter(|pod| pod != OTHER).collect()
}

fn busy(name: &str) -> manifest::Pod {
    let steps = format!("spawn {FORKS} , write /data/file {BYTES} , print done , pause");
    let busy = pod(name).volume("data", "emptyDir", json!({}));
    busy.container_with("app", &steps, mounts(&[("data", "/data")]))
}

/// Sums over everything that was counted of forks and bytes.
fn totals(metrics: &Metrics) -> [f64; 2] {
    ["forks_total", "file_written_bytes_total"].map(|name| {
        metrics.sum(&format!("podscope_{name}"), &[])
            + metrics.sum(&format!("podscope_completed_{name}"), &[])
    })
}

fn assert_totals(metrics: &Metrics, pods: usize) {
    assert_eq!(totals(metrics), [(pods * FORKS) as f64, (pods * BYTES) as f64]);
}

fn folded(metrics: &Metrics) -> f64 {
    metrics.one("podscope_pods_folded_total", &[])
}

#[test]
fn pods_beyond_the_ceiling_are_added_up() {
    let ceiling = 5600;
    let option = format!("--max-series={ceiling}");
    let mut daemon = Daemon::start(&[&option, "--hold-seconds=600"]);
    assert_eq!(daemon.metrics().one("podscope_series_ceiling", &[]), f64::from(5600));
    let (address, is_over) = (daemon.metrics_address(), AtomicBool::new(false));
    let names: Vec<_> = (0..10).map(|index| format!("pod-{index}")).collect();
    thread::scope(|scope| {
        let scraper =
            scope.spawn(|| Seen::follow(address, ceiling, Duration::from_millis(150), &is_over));
        let _end = End(&is_over);
        for name in &names {
            daemon.run(busy(name));
            daemon.wait_logged(name, "", "done");
        }
        let all = daemon.metrics();
        let own = pods(&all);
        println!("{} of {} pods have series of their own: {own:?}", own.len(), names.len());
        // Who comes first has them.
        assert!((2..8).contains(&own.len()) && own.iter().eq(&names[..own.len()]), "{own:?}");
        let others = names.len() - own.len();
        assert_eq!(folded(&all), others as f64);
        assert_totals(&all, names.len());
        let of_others = [("namespace", OTHER), ("pod", OTHER), ("container", OTHER)];
        assert_eq!(all.one("podscope_forks_total", &of_others), (others * FORKS) as f64);
        let states = all.sum("podscope_container_state", &of_others);
        assert_eq!(states, others as f64);
        assert_eq!(all.series("podscope_container_start_time_seconds", &of_others).count(), 0);

        // The next daemon knows who they are.
        daemon.kill();
        daemon.restart();
        let metrics = daemon.metrics();
        assert_eq!((pods(&metrics), folded(&metrics)), (own.clone(), others as f64));
        assert_totals(&metrics, names.len());

        // Half of them, with a daemon that is killed in between, and then the rest.
        let (first, rest) = names[own.len()..].split_at(others / 2);
        for (index, name) in first.iter().enumerate() {
            let path = format!("/api/v1/namespaces/default/pods/{name}?gracePeriodSeconds=0");
            assert!(daemon.api("DELETE", &path, None).status < 300);
            thread::sleep(Duration::from_millis(7) * u32::try_from(index).unwrap());
            daemon.kill();
            daemon.restart();
            daemon.wait_for(name, "gone", serde_json::Value::is_null);
            assert_totals(&daemon.metrics(), names.len());
        }
        rest.iter().for_each(|name| daemon.delete(name));
        let metrics = daemon.metrics();
        assert_totals(&metrics, names.len());
        assert_eq!(metrics.one("podscope_forks_total", &of_others), (others * FORKS) as f64);
        assert_eq!(metrics.sum("podscope_container_state", &of_others), 0.0);
        let ended = [("namespace", OTHER)];
        assert_eq!(metrics.one("podscope_completed_pods_total", &ended), others as f64);
        assert_eq!((pods(&metrics), folded(&metrics)), (own.clone(), others as f64));

        // Those that are held give way to those that live.
        own.iter().for_each(|name| daemon.delete(name));
        assert_eq!(daemon.metrics().one("podscope_held_pods", &[]), own.len() as f64);
        for name in &own {
            daemon.run(busy(&format!("new-{name}")));
            daemon.wait_logged(&format!("new-{name}"), "", "done");
        }
        let metrics = daemon.metrics();
        let made = names.len() + own.len();
        assert_totals(&metrics, made);
        assert_eq!(folded(&metrics), others as f64);
        assert!(metrics.one("podscope_held_pods_folded_early_total", &[]) > 0.0);
        assert!(own.iter().all(|name| pods(&metrics).contains(&format!("new-{name}"))));

        // With less room than they have, the last ones are folded, too.
        is_over.store(true, Ordering::Relaxed);
        let seen = scraper.join().expect("who scrapes is content");
        println!("{} scrapes, {} series at most", seen.scrapes, seen.most);
        assert!(seen.scrapes > 5);
        daemon.kill();
        daemon.restart_with("--max-series=2000");
        let metrics = daemon.metrics();
        assert!(series_of_pods(&metrics) <= 2000 && folded(&metrics) > others as f64);
        assert!(pods(&metrics).contains(&format!("new-{}", names[0])));
        assert_totals(&metrics, made);
    });
    daemon.stop();
}

#[test]
fn no_ceiling_folds_nobody() {
    let daemon = Daemon::start(&["--max-series=0"]);
    let names: Vec<_> = (0..4).map(|index| format!("free-{index}")).collect();
    names.iter().for_each(|name| daemon.run(busy(name)));
    names.iter().for_each(|name| drop(daemon.wait_logged(name, "", "done")));
    let metrics = eventually("all pods are on the page", pod_tests::seconds(5), || {
        Some(daemon.metrics()).filter(|metrics| pods(metrics).len() == names.len())
    });
    assert_eq!(metrics.find("podscope_series_ceiling", &[]), None);
    assert_eq!(folded(&metrics), 0.0);
    assert!(metrics.all().all(|sample| sample.labels.values().all(|value| value != OTHER)));
    daemon.stop();
}

/// Says that it is over, also when a test fails.
pub(crate) struct End<'a>(pub(crate) &'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

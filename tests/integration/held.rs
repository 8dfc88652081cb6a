//! What was counted for pods that are gone: seen by every scraper, and never less.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use pod_tests::{
    Daemon, Metrics, eventually, http, in_vm,
    manifest::{mounts, pod},
    seconds,
};
use serde_json::json;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// Bytes that each pod writes.
const BYTES: usize = 100;

/// Counters that are followed: the series of a pod, and what they become.
const FOLLOWED: [(&str, &str); 6] = [
    ("podscope_exec_total", "podscope_completed_exec_total"),
    ("podscope_process_exits_total", "podscope_completed_process_exits_total"),
    ("podscope_file_written_bytes_total", "podscope_completed_file_written_bytes_total"),
    ("podscope_file_operations_total", "podscope_completed_file_operations_total"),
    ("podscope_cpu_seconds_total", "podscope_completed_cpu_seconds_total"),
    // A gauge that a pod has for as long as it is shown: pods do not get fewer.
    ("podscope_pod_created_timestamp_seconds", "podscope_completed_pods_total"),
];

/// Sums over what lives, what is held and what is added up.
pub(crate) fn sums(metrics: &Metrics) -> [f64; FOLLOWED.len()] {
    FOLLOWED.map(|(name, completed)| {
        let own = if name.ends_with("_timestamp_seconds") {
            metrics.series(name, &[]).count() as f64
        } else {
            metrics.sum(name, &[])
        };
        own + metrics.sum(completed, &[])
    })
}

/// What a scraper has seen.
#[derive(Default)]
struct Seen {
    scrapes: usize,
    last: [f64; FOLLOWED.len()],
    pods: BTreeSet<String>,
}

/// Scrapes every `interval` as long as there is something to see, and checks that no sum drops.
fn follow(address: SocketAddr, interval: Duration, is_over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !is_over.load(Ordering::Relaxed) {
        // The daemon is killed now and then.
        if let Ok(answer) = http::tcp(address, "/metrics")
            && answer.status == 200
        {
            let metrics = Metrics::parse(answer.body);
            let now = sums(&metrics);
            for ((before, now), (name, _)) in seen.last.iter().zip(now).zip(FOLLOWED) {
                // A sum of fractions depends on its order.
                let drop = before - now;
                assert!(drop <= 1e-9, "{name} drops by {drop} in scrape {}", seen.scrapes);
            }
            let complete = metrics.series("podscope_exec_total", &[]);
            seen.pods.extend(
                complete
                    .filter(|sample| sample.value == 1.0)
                    .map(|sample| sample.labels["pod"].clone()),
            );
            seen.last = now;
            seen.scrapes += 1;
        }
        thread::sleep(interval);
    }
    seen
}

#[test]
fn two_scrapers_see_every_pod_and_no_sum_ever_drops() {
    let (batches, width): (u32, u32) = if in_vm() { (4, 5) } else { (15, 20) };
    let mut daemon = Daemon::start(&["--hold-seconds=4"]);
    let address = daemon.metrics_address();
    let is_over = AtomicBool::new(false);
    let all: BTreeSet<String> =
        (0..batches * width).map(|index| format!("short-{index}")).collect();
    let seen = thread::scope(|scope| {
        let scrapers = [700, 1100].map(|interval| {
            let is_over = &is_over;
            scope.spawn(move || follow(address, Duration::from_millis(interval), is_over))
        });
        for batch in 0..batches {
            let names: Vec<_> =
                (0..width).map(|index| format!("short-{}", batch * width + index)).collect();
            for name in &names {
                let steps = format!("write /data/file {BYTES} , exit 0");
                let short = pod(name).volume("data", "emptyDir", json!({}));
                daemon.run(short.container_with("app", &steps, mounts(&[("data", "/data")])));
            }
            for name in &names {
                daemon.wait_over(name);
            }
            for name in &names {
                let path = format!("{PODS}/{name}?gracePeriodSeconds=0");
                assert!(daemon.api("DELETE", &path, None).status < 300);
            }
            if batch % 4 == 1 {
                // In the midst of the removals, at another point each time.
                thread::sleep(Duration::from_millis(5) * batch);
                daemon.kill();
                daemon.restart();
            }
            for name in &names {
                daemon.wait_for(name, "gone", serde_json::Value::is_null);
            }
        }
        eventually("all pods are added up", seconds(30), || {
            let metrics = daemon.metrics();
            let completed = metrics.sum("podscope_completed_pods_total", &[]);
            (completed == all.len() as f64).then_some(())
        });
        // A last look for both.
        thread::sleep(Duration::from_millis(2500));
        is_over.store(true, Ordering::Relaxed);
        scrapers.map(|scraper| scraper.join().expect("a scraper is content"))
    });
    let pods = all.len() as f64;
    for seen in seen {
        println!("{} scrapes saw {} of {pods} pods", seen.scrapes, seen.pods.len());
        assert_eq!(seen.pods, all);
        let bytes = pods * BYTES as f64;
        assert_eq!(
            [seen.last[0], seen.last[1], seen.last[2], seen.last[5]],
            [pods, pods, bytes, pods]
        );
    }
    daemon.stop();
}

#[test]
fn a_held_pod_is_as_it_was_and_makes_room_for_its_successor() {
    let mut daemon = Daemon::start(&["--hold-seconds=600"]);
    let app = [("pod", "held"), ("container", "app")];
    daemon.run(pod("held").container("app", "spawn 2 , exit 7"));
    daemon.wait_over("held");
    daemon.delete("held");
    let held = daemon.metrics();
    assert_eq!(held.one("podscope_forks_total", &app), 2.0);
    assert_eq!(held.one("podscope_container_last_exit_code", &app), 7.0);
    assert!(held.find("podscope_pod_deleted_timestamp_seconds", &[("pod", "held")]).is_some());
    assert_eq!(held.one("podscope_held_pods", &[]), 1.0);
    assert_eq!(held.series("podscope_pod_phase", &[("pod", "held")]).count(), 0);
    for map in ["SLOTS", "FILES"] {
        assert_eq!(held.one("podscope_bpf_map_entries", &[("map", map)]), 0.0, "{map}");
    }
    let of_pod = |metrics: &Metrics| {
        let lines = metrics.text.lines().filter(|line| line.contains("pod=\"held\""));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    daemon.kill();
    daemon.restart();
    assert_eq!(of_pod(&daemon.metrics()), of_pod(&held));

    // Another of the same name: two series of the same labels would be refused.
    daemon.run(pod("held").container("app", "pause"));
    daemon.wait_ready("held");
    let metrics = daemon.metrics();
    assert_eq!(metrics.one("podscope_forks_total", &app), 0.0);
    assert_eq!(metrics.sum("podscope_completed_forks_total", &[]), 2.0);
    assert_eq!(metrics.one("podscope_held_pods", &[]), 0.0);
    daemon.delete("held");
    daemon.stop();
}

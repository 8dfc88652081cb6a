//! Many pods, and pods that cannot be made: afterwards everything is as it was.

use std::{
    collections::BTreeSet,
    env, fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use pod_tests::{
    Daemon, eventually, in_vm,
    manifest::{mounts, pod},
    seconds, state,
};
use serde_json::json;

use crate::ceiling::{End, Seen};

/// How many pods, unless the environment says otherwise (`PODSCOPE_CHURN=10000` for a thorough run),
/// and how many at a time. An emulated CPU takes half a second for each.
fn scale() -> (usize, usize) {
    let (count, width) = if in_vm() { (30, 10) } else { (1000, 50) };
    (env::var("PODSCOPE_CHURN").map_or(count, |text| text.parse().unwrap()), width)
}

const PODS: &str = "/api/v1/namespaces/default/pods";

/// What a daemon has that could grow: open files, threads, and kibibytes of memory.
fn size(daemon: &Daemon) -> (usize, u64, u64) {
    let pid = daemon.pid().as_raw();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    (state::open_files(pid).len(), field("Threads:"), field("VmRSS:"))
}

/// Makes and deletes `count` pods of a program that does nothing, `width` at a time; returns pods per
/// second.
fn churn(daemon: &Daemon, count: usize, width: usize, label: &str) -> f64 {
    let began = Instant::now();
    let (mut made, mut ended, mut gone) = (0, 0, 0);
    let mut leaving = BTreeSet::new();
    let mut progress = Instant::now();
    while gone < count {
        let list = daemon.api("GET", PODS, None).json();
        let pods = list["items"].as_array().unwrap();
        let there: BTreeSet<&str> =
            pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap()).collect();
        let before = leaving.len();
        leaving.retain(|name: &String| there.contains(&**name));
        let left = before - leaving.len();
        gone += left;
        for pod in pods {
            let name = pod["metadata"]["name"].as_str().unwrap();
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            if leaving.contains(name) || !matches!(phase, "Succeeded" | "Failed") {
                continue;
            }
            let exit = &pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"];
            assert_eq!(exit, 0, "{name}: {:#}", pod["status"]);
            ended += 1;
            assert!(daemon.api("DELETE", &format!("{PODS}/{name}"), None).status < 300);
            leaving.insert(name.to_owned());
        }
        let room = (width + gone).saturating_sub(made).min(count - made);
        for _ in 0..room {
            let name = format!("{label}-{made}");
            let manifest = pod(&name).container("app", "exit 0").into_value(&daemon.image());
            let answer = daemon.api("POST", PODS, Some(&manifest));
            assert_eq!(answer.status, 201, "{}", answer.body);
            made += 1;
        }
        if left > 0 || room > 0 {
            progress = Instant::now();
        }
        let hangs = progress.elapsed() > seconds(30);
        assert!(!hangs, "{gone} of {count} pods are gone, and no more go: {list:#}");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(ended, count, "exits were lost");
    count as f64 / began.elapsed().as_secs_f64()
}

#[test]
fn pods_by_the_thousand_leave_nothing() {
    let (count, width) = scale();
    // Room for two thirds of the pods that there are at a time.
    let ceiling = 1000 + 700 * width;
    let daemon = Daemon::start(&[&format!("--max-series={ceiling}")]);
    let earlier = daemon.metrics();
    // What is made once, such as threads, is there afterwards.
    churn(&daemon, width * 2, width, "first");
    let before = state::State::capture();
    let (files, threads, memory) = size(&daemon);
    let (address, is_over) = (daemon.metrics_address(), AtomicBool::new(false));
    let (rate, seen) = thread::scope(|scope| {
        let scraper =
            scope.spawn(|| Seen::follow(address, ceiling, Duration::from_secs(1), &is_over));
        let _end = End(&is_over);
        let rate = churn(&daemon, count, width, "pod");
        is_over.store(true, Ordering::Relaxed);
        (rate, scraper.join().expect("who scrapes is content"))
    });
    let (files_now, threads_now, memory_now) = size(&daemon);
    println!(
        "{count} pods, {rate:.1} per second; open files {files} -> {files_now}, \
         threads {threads} -> {threads_now}, memory {memory} -> {memory_now} KiB; {} series at most \
         in {} scrapes, where {ceiling} may be, and {} pods folded",
        seen.most,
        seen.scrapes,
        daemon.metrics().one("podscope_pods_folded_total", &[]),
    );
    state::State::capture().assert_same(&before);
    daemon.assert_no_files();
    eventually("open files and threads are as before", seconds(15), || {
        let (files_now, threads_now, _) = size(&daemon);
        (files_now <= files && threads_now <= threads).then_some(())
    });
    assert!(memory_now < memory + 4096 + memory / 4, "{memory} KiB became {memory_now} KiB");
    let metrics = daemon.metrics();
    for map in ["SLOTS", "FILES", "VOLUMES"] {
        assert_eq!(metrics.one("podscope_bpf_map_entries", &[("map", map)]), 0.0, "{map}");
    }
    // Other tests may have used this daemon.
    let since = |name: &str, namespace: &str| {
        let namespace = [("namespace", namespace)];
        metrics.sum(name, &namespace) - earlier.sum(name, &namespace)
    };
    let total = |name: &str| {
        let completed = since(&format!("podscope_completed_{name}"), "default");
        completed + since(&format!("podscope_{name}"), "__other__")
    };
    let pods = (count + width * 2) as f64;
    assert_eq!(total("exec_total"), pods);
    assert_eq!(total("process_exits_total"), pods);
    let completed = "podscope_completed_pods_total";
    assert_eq!(since(completed, "default") + since(completed, "__other__"), pods);
    daemon.stop();
}

/// The steps of `pod_daemon::fault`, which stops the daemon at one that is not listed here.
const STEPS: [&str; 18] = [
    "pod cgroup",
    "pod limits",
    "pod probes",
    "infra cgroup",
    "container cgroup",
    "container probes",
    "address",
    "volumes",
    "ports",
    "output",
    "infra namespaces",
    "veth",
    "interface",
    "infra process",
    "scratch",
    "log",
    "mounts",
    "container process",
];

#[test]
fn a_pod_that_cannot_be_made_leaves_nothing() {
    let daemon = Daemon::start(&[]);
    let fault = daemon.folder().join("run/fault");
    let run = |name: &str| {
        daemon.run(
            pod(name)
                .with("restartPolicy", "Always")
                .volume("data", "emptyDir", json!({}))
                .volume("fast", "emptyDir", json!({"medium": "Memory"}))
                .container_with(
                    "app",
                    "print ready , pause",
                    mounts(&[("data", "/data"), ("fast", "/fast")]),
                )
                .container_with(
                    "other",
                    "pause",
                    json!({"ports": [{"containerPort": 80, "hostPort": 47_080}]}),
                ),
        );
    };
    run("warm-up");
    daemon.wait_ready("warm-up");
    daemon.delete("warm-up");
    let before = state::State::capture();
    let (files, ..) = size(&daemon);
    for (index, step) in STEPS.into_iter().enumerate() {
        fs::write(&fault, step).unwrap();
        let name = format!("faulty-{index}");
        run(&name);
        daemon.wait_for(&name, &format!("refused at {step}"), |pod| {
            let text = pod["status"].to_string();
            text.contains("a test made the step") && text.contains(step)
        });
        if index % 2 == 0 {
            // It recovers by itself.
            fs::write(&fault, "").unwrap();
            daemon.wait_ready(&name);
        }
        daemon.delete(&name);
        fs::write(&fault, "").unwrap();
        state::State::capture().assert_same(&before);
        daemon.assert_no_files();
        let metrics = daemon.metrics();
        for map in ["SLOTS", "FILES", "VOLUMES"] {
            let entries = metrics.one("podscope_bpf_map_entries", &[("map", map)]);
            assert_eq!(entries, 0.0, "{map} after {step}");
        }
    }
    eventually("open files are as before", seconds(10), || {
        (size(&daemon).0 <= files).then_some(())
    });
    daemon.stop();
}

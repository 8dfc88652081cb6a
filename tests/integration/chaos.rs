//! Daemons that are killed again and again, at random points of their pods' lives.

use std::{collections::BTreeMap, env, fs, path::Path, thread, time::Duration};

use pod_tests::{
    Daemon, in_vm,
    manifest::{Pod, mounts, pod},
    seconds, state,
};
use serde_json::{Value, json};

/// Kills unless the environment says otherwise (`PODSCOPE_KILLS=200` for a thorough run), and pods that
/// live through all of them. An emulated CPU would spend all of its time on more.
fn scale() -> (usize, usize) {
    let (kills, pods) = if in_vm() { (4, 4) } else { (20, 20) };
    (env::var("PODSCOPE_KILLS").map_or(kills, |text| text.parse().unwrap()), pods)
}

/// A sequence that looks random and can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // Constants of Knuth's MMIX generator.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A pod that writes down what it does, where the test can read it.
fn chronicler(name: &str, record: &Path, lines: u64) -> Pod {
    fs::create_dir_all(record).unwrap();
    let steps = format!("chronicle /record/{name} {lines} , exit 3");
    pod(name)
        .with("restartPolicy", "Always")
        .volume("record", "hostPath", json!({"path": record}))
        .container_with("app", &steps, mounts(&[("record", "/record")]))
}

/// The numbers of every run that a pod has written down itself.
fn recorded(record: &Path, name: &str) -> Vec<Vec<u64>> {
    let mut runs: Vec<Vec<u64>> = Vec::new();
    for line in fs::read_to_string(record.join(name)).unwrap_or_default().lines() {
        match line.parse() {
            Ok(number) => runs.last_mut().unwrap().push(number),
            Err(_) => runs.push(Vec::new()),
        }
    }
    runs
}

/// The numbers of every run whose log is kept.
fn logged(folder: &Path) -> BTreeMap<u32, Vec<u64>> {
    let mut runs: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    let mut files = state::entries(folder);
    files.sort();
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let run = name.split('.').next().unwrap().parse().unwrap();
        for line in fs::read_to_string(&file).unwrap().lines() {
            let message = line.splitn(4, ' ').nth(3).unwrap();
            runs.entry(run).or_default().push(message.parse().unwrap());
        }
    }
    runs
}

#[test]
fn nothing_is_lost_however_often_the_daemon_is_killed() {
    let (kills, pods) = scale();
    let seed = env::var("PODSCOPE_SEED").map_or(1, |text| text.parse().unwrap());
    let mut random = Random(seed);
    let mut daemon = Daemon::start(&[if in_vm() {
        "--restart-backoff-ms=200"
    } else {
        "--restart-backoff-ms=20"
    }]);
    let record = daemon.folder().join("record");
    let name = |index: usize| format!("pod-{index}");
    for index in 0..pods {
        // From runs that end every few milliseconds to runs that outlive many daemons.
        let lines = [3, 10, 50, 300, 100_000][index % 5];
        daemon.run(chronicler(&name(index), &record, lines));
    }
    for round in 0..kills {
        // Beside those, one pod is made and one is deleted; the daemon dies meanwhile, or before.
        let passing = format!("passing-{round}");
        let path = "/api/v1/namespaces/default/pods";
        if random.below(2) == 0 {
            let manifest = chronicler(&passing, &record, 5).into_value(&daemon.image());
            drop(daemon.api("POST", path, Some(&manifest)));
        }
        if random.below(2) == 0 && round > 0 {
            let earlier = format!("{path}/passing-{}?gracePeriodSeconds=1", round - 1);
            drop(daemon.api("DELETE", &earlier, None));
        }
        thread::sleep(Duration::from_millis(random.below(60)));
        daemon.kill();
        thread::sleep(Duration::from_millis(random.below(20)));
        if random.below(3) == 0 {
            // One that dies before it is ready.
            daemon.restart_soon();
            thread::sleep(Duration::from_millis(random.below(150)));
            daemon.kill();
        }
        daemon.restart();
    }
    for index in 0..pods {
        daemon.wait_for(&name(index), "running or waiting", |pod| !pod.is_null());
    }
    daemon.kill();
    daemon.restart();
    let uids: BTreeMap<String, Value> =
        (0..pods).map(|index| (name(index), daemon.pod(&name(index)))).collect();
    for (name, pod) in &uids {
        check(&daemon, &record, name, pod);
    }
    let list = daemon.api("GET", "/api/v1/namespaces/default/pods", None).json();
    for item in list["items"].as_array().unwrap() {
        let name = item["metadata"]["name"].as_str().unwrap();
        let path = format!("/api/v1/namespaces/default/pods/{name}?gracePeriodSeconds=0");
        assert!(daemon.api("DELETE", &path, None).status < 300);
    }
    pod_tests::eventually("all pods are gone", seconds(30), || {
        let list = daemon.api("GET", "/api/v1/namespaces/default/pods", None).json();
        list["items"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    for map in ["SLOTS", "FILES", "VOLUMES"] {
        pod_tests::eventually(&format!("{map} is empty"), seconds(5), || {
            let entries = daemon.metrics().one("podscope_bpf_map_entries", &[("map", map)]);
            (entries == 0.0).then_some(())
        });
    }
    daemon.assert_no_files();
    daemon.stop();
}

/// Compares what a pod has written down itself with its logs and its status.
#[track_caller]
fn check(daemon: &Daemon, record: &Path, name: &str, pod: &Value) {
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let folder = daemon.folder().join("logs").join(format!("default_{name}_{uid}/app"));
    let status = &pod["status"]["containerStatuses"][0];
    let restarts = usize::try_from(status["restartCount"].as_u64().unwrap()).unwrap();
    let before = logged(&folder);
    let own = recorded(record, name);
    // Runs begin and end while this test looks.
    assert!(
        (restarts + 1..=restarts + 4).contains(&own.len()),
        "{name}: {} runs, and {restarts} restarts; {status:#}\n{}",
        own.len(),
        daemon.log()
    );
    assert!(!before.is_empty(), "{name} has no logs");
    for (run, numbers) in &before {
        let expected = &own[usize::try_from(*run).unwrap()];
        let is_over = usize::try_from(*run).unwrap() < restarts;
        if is_over {
            assert_eq!(numbers, expected, "{name}, run {run}");
        } else {
            assert!(expected.starts_with(numbers), "{name}, run {run}: {numbers:?}");
        }
    }
    let last = &status["lastState"]["terminated"];
    if restarts > 0 {
        assert_eq!(last["exitCode"], 3, "{name}: {status:#}\n{}", daemon.log());
    }
}

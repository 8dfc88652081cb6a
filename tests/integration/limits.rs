//! Limits: enforced where the node can, refused where it cannot.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _},
    os::unix::fs::OpenOptionsExt as _,
};

use pod_tests::{Daemon, eventually, manifest::pod, met_limit, seconds, skip, state};
use serde_json::{Value, json};

/// Whether pods can have limits here.
pub(crate) fn enforceable() -> bool {
    let there = fs::read_to_string(state::cgroup_mount().join("cgroup.controllers"));
    let there = there.unwrap_or_default();
    let there: Vec<&str> = there.split_whitespace().collect();
    ["cpu", "memory", "pids"].iter().all(|controller| there.contains(controller))
}

fn limits(limits: Value) -> Value {
    json!({"resources": {"limits": limits, "requests": {"cpu": "250m"}}})
}

#[test]
fn limits_are_written_as_kubernetes_means_them() {
    if !enforceable() {
        return skip("cgroup v2 has no cpu, memory and pids controllers here");
    }
    let daemon = Daemon::start(&[]);
    let fields = limits(json!({"cpu": "500m", "memory": "64Mi", "podscope.dev/pids": "20"}));
    daemon.run(pod("limited").container_with("app", "pause", fields));
    let running = daemon.wait_ready("limited");
    let cgroup = daemon.cgroup(&running, "app");
    let read = |file: &str| {
        let text =
            fs::read_to_string(cgroup.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        text.trim().to_owned()
    };
    assert_eq!(read("cpu.max"), "50000 100000");
    assert_eq!(read("memory.max"), (64_u64 << 20).to_string());
    assert_eq!(read("memory.swap.max"), "0");
    assert_eq!(read("pids.max"), "20");
    let weight: u64 = read("cpu.weight").parse().unwrap();
    assert!((1..100).contains(&weight), "{weight}");
    let metrics = daemon.metrics();
    let labels = [("pod", "limited"), ("container", "app")];
    assert_eq!(metrics.one("podscope_cpu_limit_cores", &labels), 0.5);
    assert_eq!(metrics.one("podscope_cpu_request_cores", &labels), 0.25);
    assert_eq!(metrics.one("podscope_pids_limit", &labels), 20.0);
    assert_eq!(metrics.one("podscope_pids_current", &labels), 1.0);
    daemon.stop();
}

#[test]
fn too_much_memory_ends_the_container() {
    if !enforceable() {
        return skip("cgroup v2 has no cpu, memory and pids controllers here");
    }
    let daemon = Daemon::start(&[]);
    let fields = limits(json!({"memory": "16Mi"}));
    daemon.run(pod("hungry").container_with("app", "hold-memory 67108864", fields));
    let over = daemon.wait_over("hungry");
    let state = &over["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(state["reason"], "OOMKilled", "{over:#}");
    assert_eq!(state["exitCode"], 137);
    let message = state["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("the container met its memory limit of 16Mi"), "{message}");
    assert!(message.contains("the main process \"workload\" (pid "), "{message}");
    let metrics = daemon.metrics();
    let killed =
        metrics.one("podscope_memory_events_total", &[("pod", "hungry"), ("event", "oom_kill")]);
    assert!(killed >= 1.0, "{killed}");
    let labels = [("pod", "hungry"), ("limit", "container")];
    assert_eq!(metrics.one("podscope_container_oom_kills_total", &labels), 1.0);
    daemon.stop();
}

#[test]
fn a_child_that_takes_too_much_memory_ends_the_whole_container() {
    if !enforceable() {
        return skip("cgroup v2 has no cpu, memory and pids controllers here");
    }
    let daemon = Daemon::start(&[]);
    let fields = limits(json!({"memory": "16Mi"}));
    let both = pod("parent").container_with("app", "child-holds-memory 67108864 , pause", fields);
    daemon.run(both.container("other", "pause"));
    let pod = daemon.wait_for("parent", "out of memory", |pod| {
        let state = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        state["reason"] == "OOMKilled" && state["exitCode"] == 137
    });
    assert!(pod["status"]["containerStatuses"][1]["state"]["running"].is_object(), "{pod:#}");
    let message = &pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"];
    let message = message.as_str().unwrap_or_default();
    if let Some(missed) = daemon.metrics().missed()
        && !message.contains("the kernel chose")
    {
        // Who was chosen is known from the probes alone.
        daemon.stop();
        return skip(&missed);
    }
    let pid = |before: &str| -> u32 {
        let (_, rest) = message.split_once(before).unwrap_or_else(|| panic!("{message}"));
        let digits = rest.chars().take_while(char::is_ascii_digit);
        digits.collect::<String>().parse().unwrap_or_else(|_error| panic!("{message}"))
    };
    let (main, victim) =
        (pid("the main process \"workload\" (pid "), pid("the kernel chose \"workload\" (pid "));
    // The kernel says whom it chose, and then of whom it killed the rest.
    let killed: Vec<String> = kernel_log()
        .iter()
        .filter_map(|line| {
            line.split_once("out of memory: Killed process ")?
                .1
                .split(' ')
                .next()
                .map(str::to_owned)
        })
        .collect();
    let place = |pid: u32| killed.iter().position(|killed| *killed == pid.to_string());
    assert!(
        place(victim).is_some() && place(victim) < place(main),
        "{message}; the kernel: {killed:?}"
    );
    daemon.stop();
}

#[test]
fn the_pods_own_limit_is_not_the_containers() {
    if !enforceable() {
        return skip("cgroup v2 has no cpu, memory and pids controllers here");
    }
    let daemon = Daemon::start(&[]);
    let own = json!({"limits": {"memory": "16Mi", "cpu": "300m", "podscope.dev/pids": "30"}});
    daemon.run(pod("together").container("app", "hold-memory 67108864").with("resources", own));
    let over = daemon.wait_over("together");
    let state = &over["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&state["reason"], &state["exitCode"]), (&json!("Error"), &json!(137)), "{over:#}");
    let message = state["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("the pod met its memory limit of 16Mi"), "{message}");
    let cgroup = daemon.cgroup(&over, "");
    for (file, value) in
        [("memory.max", "16777216"), ("cpu.max", "30000 100000"), ("pids.max", "30")]
    {
        assert_eq!(fs::read_to_string(cgroup.join(file)).unwrap().trim(), value, "{file}");
    }
    let metrics = daemon.metrics();
    let labels = [("pod", "together"), ("limit", "pod")];
    assert_eq!(metrics.one("podscope_container_oom_kills_total", &labels), 1.0);
    daemon.stop();
}

#[test]
fn a_disk_is_written_to_at_the_pace_that_is_allowed() {
    if !enforceable() {
        return skip("cgroup v2 has no cpu, memory and pids controllers here");
    }
    let Some(disk) = state::disk() else { return skip("there is no disk for the tests alone") };
    let data = disk.join("paced");
    let daemon = Daemon::start(&[&format!("--data-dir={}", data.display())]);
    // 4 MiB.
    let milliseconds = |name: &str, limit: Value| -> f64 {
        let more = json!({
            "resources": limits(limit)["resources"],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        });
        let pod = pod(name).volume("data", "emptyDir", json!({}));
        let pod = pod.container_with("app", "write-direct /data/file 64", more);
        let output = daemon.output_of(pod, name);
        let time = output.strip_prefix("written in ").and_then(|rest| rest.strip_suffix(" ms\n"));
        time.unwrap_or_else(|| panic!("{output}")).parse().unwrap()
    };
    let free = milliseconds("free", json!({}));
    let paced = milliseconds("paced", json!({"podscope.dev/io-write-bps": "1Mi"}));
    // The kernel lets a little through at once.
    assert!(
        paced > 2500.0 && paced > 2.0 * free,
        "{paced} ms at 1 MiB/s, {free} ms without a limit"
    );

    let cgroup = daemon.cgroup(&daemon.pod("paced"), "app");
    let line = fs::read_to_string(cgroup.join("io.max")).unwrap();
    assert!(line.contains("wbps=1048576"), "{line}");
    let counted = fs::read_to_string(cgroup.join("io.stat")).unwrap();
    let written = counted.split_once("wbytes=").and_then(|(_, rest)| rest.split(' ').next());
    let written: u64 = written.unwrap_or_else(|| panic!("{counted}")).parse().unwrap();
    assert!(written >= 4 << 20, "{counted}");
    daemon.stop();
    fs::remove_dir_all(data).unwrap();
}

#[test]
fn limits_of_a_disk_that_is_none_are_refused() {
    if !enforceable() {
        return skip("cgroup v2 has no cpu, memory and pids controllers here");
    }
    let daemon = Daemon::start(&[]);
    let fields = limits(json!({"podscope.dev/io-read-iops": "100"}));
    let manifest = pod("slow").container_with("app", "pause", fields).into_value(&daemon.image());
    let answer = daemon.api("POST", "/api/v1/namespaces/default/pods", Some(&manifest));
    // A temporary directory may be on a disk, too.
    if answer.status != 201 {
        let message = answer.json()["message"].to_string();
        let without_device = message.contains("is not on a block device");
        assert!(without_device || message.contains("controller `io`"), "{message}");
    }
    daemon.stop();
}

#[test]
fn huge_pages_are_for_who_asks_for_them() {
    let there = fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
    let controllers = fs::read_to_string(state::cgroup_mount().join("cgroup.controllers"));
    if there.trim() == "0" || !controllers.unwrap_or_default().contains("hugetlb") {
        return skip("no huge pages are set aside here, or cgroup v2 cannot limit them");
    }
    let daemon = Daemon::start(&[]);
    let has =
        |pages: u64| limits(json!({"hugepages-2Mi": format!("{}Mi", 2 * pages), "memory": "32Mi"}));
    let steps = "huge-pages 3 , huge-pages 2";
    let two = pod("two-pages").container_with("app", steps, has(2));
    assert_eq!(daemon.output_of(two, "two-pages"), "3 huge pages: ENOMEM\n2 huge pages: ok\n");
    let none = pod("no-page").container("app", "huge-pages 1");
    assert_eq!(daemon.output_of(none, "no-page"), "1 huge pages: ENOMEM\n");

    // More than the node has.
    let most: u64 = there.trim().parse().unwrap();
    daemon.run(pod("greedy").container_with("app", "pause", has(most + 1)));
    let pod = daemon.wait_for("greedy", "waiting for room", |pod| {
        pod["status"]["conditions"][0]["reason"] == "Unschedulable"
    });
    let message = pod["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("hugepages-2Mi"), "{message}");
    daemon.stop();
}

#[test]
fn a_fork_bomb_is_stopped() {
    if !enforceable() {
        return skip("cgroup v2 has no cpu, memory and pids controllers here");
    }
    let daemon = Daemon::start(&[]);
    let fields = limits(json!({"podscope.dev/pids": "10"}));
    daemon.run(pod("bomb").container_with("app", "fork-bomb , pause", fields));
    daemon.wait_logged("bomb", "", "stopped after 9 children");
    eventually("the refusal is counted", seconds(5), || {
        let refused = daemon.metrics().sum("podscope_pids_refused_total", &[("pod", "bomb")]);
        (refused >= 1.0).then_some(())
    });
    eventually("the limit is told of", seconds(15), || {
        let shown = daemon.podctl(&["describe", "pod", "bomb"]).stdout;
        shown.contains("Container app met its limit of 10 processes").then_some(())
    });
    daemon.wait_for("bomb", "told of its limit", |pod| met_limit(pod, "PidsLimit"));
    daemon.stop();
}

#[test]
fn a_limit_that_cannot_be_enforced_is_refused() {
    if enforceable() {
        return skip("this node can enforce every limit");
    }
    let daemon = Daemon::start(&[]);
    let fields = limits(json!({"memory": "16Mi"}));
    let message = daemon.refused(pod("limited").container_with("app", "pause", fields.clone()));
    assert!(message.contains("spec.containers[0].resources.limits"), "{message}");
    assert!(message.contains("`memory`"), "{message}");
    assert!(message.contains("--unenforced-limits=warn"), "{message}");
    assert!(message.contains("systemd.unified_cgroup_hierarchy=1"), "{message}");
    daemon.stop();

    let daemon = Daemon::start(&["--unenforced-limits=warn"]);
    daemon.run(pod("limited").container_with("app", "pause", fields));
    daemon.wait_ready("limited");
    let metrics = daemon.metrics();
    let labels = [("pod", "limited"), ("controller", "memory")];
    assert_eq!(metrics.one("podscope_limit_unenforced", &labels), 1.0);
    daemon.stop();
}

/// What the kernel has logged since it booted.
fn kernel_log() -> Vec<String> {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let mut log = options.open("/dev/kmsg").expect("the kernel's log");
    let mut lines = Vec::new();
    let mut record = [0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(length) => lines.push(String::from_utf8_lossy(&record[..length]).into_owned()),
            // A record was overwritten before it was read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return lines,
            Err(error) => panic!("the kernel's log: {error}"),
        }
    }
}

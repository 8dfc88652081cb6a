//! Admission: a pod is on the node whole or not at all, and what it may use it may not exceed.

use std::{fs, thread};

use pod_tests::{
    Daemon, eventually,
    manifest::{self, mounts, pod},
    seconds,
};
use serde_json::{Value, json};

/// CPU for pods on this node, in thousandths.
fn allocatable(daemon: &Daemon) -> u64 {
    let list = daemon.api("GET", "/api/v1/nodes", None).json();
    let cpu = list["items"][0]["status"]["allocatable"]["cpu"].as_str().unwrap_or_default();
    cpu.trim_end_matches('m').parse().unwrap()
}

fn asking(name: &str, millicores: u64) -> manifest::Pod {
    let resources = json!({"resources": {"requests": {"cpu": format!("{millicores}m")}}});
    pod(name).container_with("app", "pause", resources)
}

/// Waits until the pod waits for room, and says why it does.
fn why_it_waits(daemon: &Daemon, name: &str) -> String {
    let pod = daemon.wait_for(name, "unschedulable", |pod| {
        pod["status"]["conditions"][0]["reason"] == "Unschedulable"
    });
    let condition = &pod["status"]["conditions"][0];
    assert_eq!(pod["status"]["phase"], "Pending");
    assert_eq!(
        (&condition["type"], &condition["status"]),
        (&json!("PodScheduled"), &json!("False"))
    );
    condition["message"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_pod_that_does_not_fit_waits_and_starts_when_there_is_room() {
    let daemon = Daemon::start(&[]);
    let all = allocatable(&daemon);
    daemon.run(asking("first", all - 200));
    daemon.wait_ready("first");
    daemon.run(asking("second", 500));
    let message = why_it_waits(&daemon, "second");
    let start = "0/1 nodes are available: 1 Insufficient cpu (asked 500m, free 200m of ";
    assert!(message.starts_with(start), "{message}");

    let waiting = daemon.pod("second");
    assert!(!daemon.cgroup(&waiting, "").exists(), "it has a cgroup");
    assert_eq!(waiting["status"]["podIP"], Value::Null);
    assert_eq!(waiting["status"]["containerStatuses"], Value::Null);
    let shown = daemon.podctl(&["get", "pods", "second"]).stdout;
    assert!(shown.contains("Pending"), "{shown}");
    let shown = daemon.podctl(&["describe", "pod", "second"]).stdout;
    assert!(shown.contains("Insufficient cpu (asked 500m"), "{shown}");
    for command in ["explain", "events"] {
        let shown = daemon.podctl(&[command, "second"]).success();
        assert!(shown.contains("Insufficient cpu (asked 500m"), "{shown}");
    }
    let shown = daemon.podctl(&["describe", "node"]).stdout;
    assert!(shown.contains("1 with a place, 1 waiting"), "{shown}");
    let metrics = daemon.metrics();
    assert_eq!(metrics.one("podscope_pods_pending", &[("reason", "cpu")]), 1.0);
    let cpu = [("resource", "cpu")];
    let cores = |name: &str| metrics.one(name, &cpu);
    let free = cores("podscope_node_allocatable") - cores("podscope_node_requested");
    assert!((free - 0.2).abs() < 1e-6, "{free}");

    // What fits does not wait behind it, and what waits can be deleted.
    daemon.run(asking("small", 100));
    daemon.wait_ready("small");
    daemon.run(asking("third", all));
    why_it_waits(&daemon, "third");
    daemon.delete("third");

    daemon.delete("first");
    let running = daemon.wait_ready("second");
    assert_eq!(running["status"]["conditions"][0]["status"], "True", "{running:#}");
    assert_eq!(daemon.metrics().one("podscope_pods_pending", &[("reason", "cpu")]), 0.0);
    daemon.stop();
}

#[test]
fn a_pod_that_has_ended_makes_room() {
    let daemon = Daemon::start(&[]);
    let all = allocatable(&daemon);
    let fields = json!({"resources": {"requests": {"cpu": format!("{all}m")}}});
    daemon.run(pod("job").container_with("app", "sleep-ms 300 , exit 0", fields));
    daemon.run(asking("next", all));
    why_it_waits(&daemon, "next");
    daemon.wait_ready("next");
    assert_eq!(daemon.pod("job")["status"]["phase"], "Succeeded");
    daemon.stop();
}

#[test]
fn a_higher_priority_pushes_out_a_lower_one() {
    let daemon = Daemon::start(&[]);
    let all = allocatable(&daemon);
    let fields = json!({"resources": {"requests": {"cpu": format!("{}m", all - 300)}}});
    daemon.run(
        pod("low")
            .container_with("app", "ignore-term , pause", fields)
            .with("terminationGracePeriodSeconds", 2),
    );
    daemon.run(asking("equal", 100));
    daemon.wait_ready("low");
    daemon.wait_ready("equal");
    daemon.run(asking("polite", 500).with("priority", 5).with("preemptionPolicy", "Never"));
    let message = why_it_waits(&daemon, "polite");
    assert!(!message.contains("preemption"), "{message}");
    daemon.delete("polite");

    daemon.run(asking("high", 500).with("priority", 10));
    let message = why_it_waits(&daemon, "high");
    assert!(message.ends_with("preemption: waiting for 1 pod(s) to leave"), "{message}");
    let victim = daemon.wait_for("low", "told", |pod| pod["status"]["reason"] == "Preempted");
    let message = victim["status"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("default/high (priority 10 is higher than 0)"), "{message}");
    assert!(victim["metadata"]["deletionTimestamp"].is_string(), "{victim:#}");
    daemon.wait_for("low", "gone", Value::is_null);
    daemon.wait_ready("high");
    assert_eq!(daemon.wait_ready("equal")["status"]["reason"], Value::Null);
    let evictions = daemon.metrics();
    assert_eq!(evictions.one("podscope_pod_evictions_total", &[("reason", "Preempted")]), 1.0);
    daemon.stop();
}

#[test]
fn two_pods_do_not_get_the_same_port_of_the_node() {
    let daemon = Daemon::start(&[]);
    let web = |name: &str| {
        let ports = json!({"ports": [{"containerPort": 18_475}]});
        pod(name).container_with("app", "pause", ports).with("hostNetwork", true)
    };
    daemon.run(web("first"));
    daemon.wait_ready("first");
    daemon.run(web("second"));
    let message = why_it_waits(&daemon, "second");
    assert!(message.contains("18475/TCP is taken by default/first"), "{message}");
    daemon.delete("first");
    daemon.wait_ready("second");
    daemon.stop();
}

#[test]
fn a_pod_that_fills_its_volume_is_evicted() {
    let daemon = Daemon::start(&["--disk-usage-seconds=1"]);
    daemon.run(pod("bystander").container("app", "pause"));
    let mut fields = mounts(&[("cache", "/cache")]);
    fields["resources"] = json!({"limits": {"ephemeral-storage": "64Mi"}});
    let steps = "write /cache/file 4194304 , pause";
    daemon.run(
        pod("greedy")
            .container_with("app", steps, fields)
            .container("other", "pause")
            .volume("cache", "emptyDir", json!({"sizeLimit": "1Mi"}))
            .with("restartPolicy", "Always"),
    );
    let evicted = daemon.wait_for("greedy", "evicted", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(evicted["status"]["reason"], "Evicted", "{evicted:#}");
    let message = evicted["status"]["message"].as_str().unwrap_or_default();
    let start = "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\": ";
    assert!(message.starts_with(start), "{message}");
    assert_eq!(daemon.podctl(&["get", "pods", "greedy"]).stdout.matches("Evicted").count(), 1);
    let metrics = daemon.metrics();
    assert_eq!(metrics.one("podscope_pod_evictions_total", &[("reason", "Evicted")]), 1.0);
    // It stays, and does not start again.
    thread::sleep(seconds(1));
    let still = daemon.pod("greedy");
    assert_eq!(still["status"]["phase"], "Failed");
    assert!(still["metadata"]["deletionTimestamp"].is_null());
    for container in ["app", "other", "_infra"] {
        let procs = daemon.cgroup(&still, container).join("cgroup.procs");
        assert_eq!(fs::read_to_string(procs).unwrap_or_default(), "", "{container}");
    }
    daemon.wait_ready("bystander");
    daemon.delete("greedy");
    daemon.stop();
}

#[test]
fn a_container_that_writes_more_than_it_may_is_evicted() {
    let daemon = Daemon::start(&["--disk-usage-seconds=1"]);
    let fields = json!({"resources": {"limits": {"ephemeral-storage": "1Mi"}}});
    daemon.run(pod("greedy").container_with("app", "write /file 4194304 , pause", fields));
    let evicted = daemon.wait_over("greedy");
    let message = evicted["status"]["message"].as_str().unwrap_or_default();
    let start = "Container app exceeded its local ephemeral storage limit \"1Mi\": ";
    assert!(message.starts_with(start), "{message}");
    daemon.stop();
}

#[test]
fn places_outlive_the_daemon() {
    let mut daemon = Daemon::start(&["--disk-usage-seconds=1"]);
    let all = allocatable(&daemon);
    daemon.run(asking("first", all - 200));
    let pid = daemon.pid_of(&daemon.wait_ready("first"), "app");
    daemon.run(asking("second", 500));
    why_it_waits(&daemon, "second");
    daemon.run(
        pod("greedy")
            .container_with(
                "app",
                "write /cache/file 4194304 , pause",
                mounts(&[("cache", "/cache")]),
            )
            .volume("cache", "emptyDir", json!({"sizeLimit": "1Mi"}))
            .with("restartPolicy", "Always"),
    );
    daemon.wait_for("greedy", "evicted", |pod| pod["status"]["phase"] == "Failed");

    daemon.kill();
    daemon.restart();

    assert_eq!(daemon.pid_of(&daemon.wait_ready("first"), "app"), pid);
    let message = why_it_waits(&daemon, "second");
    assert!(message.contains("(asked 500m, free 200m of "), "{message}");
    let evicted = daemon.pod("greedy");
    assert_eq!(evicted["status"]["phase"], "Failed", "{evicted:#}");
    assert_eq!(evicted["status"]["reason"], "Evicted", "{evicted:#}");
    daemon.delete("first");
    daemon.wait_ready("second");
    daemon.stop();
}

#[test]
fn processes_are_killed_in_the_order_of_their_pods_class() {
    let daemon = Daemon::start(&["--unenforced-limits=warn"]);
    let own = || fs::read_to_string(format!("/proc/{}/oom_score_adj", daemon.pid())).unwrap();
    let before = own();
    let with = |resources: Value| json!({"resources": resources});
    daemon.run(pod("best").container("app", "fork 1 , pause"));
    let little = with(json!({"requests": {"memory": "1Ki"}}));
    daemon.run(pod("burstable").container_with("app", "pause", little));
    let all = with(json!({"limits": {"memory": "64Mi", "cpu": "100m"}}));
    daemon.run(pod("guaranteed").container_with("app", "pause", all));
    let score = |name: &str, container: &str| -> i32 {
        let pid = daemon.pid_of(&daemon.wait_ready(name), container);
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse().unwrap()
    };
    assert_eq!((score("best", "app"), score("burstable", "app")), (1000, 999));
    let (guaranteed, infra) = (score("guaranteed", "app"), score("guaranteed", "_infra"));
    let refused = daemon.metrics().one("podscope_oom_score_adj_refused_total", &[]);
    if refused == 0.0 {
        assert_eq!((guaranteed, infra), (-997, -998));
    } else {
        // Three infra programs and one container; without the capability, all keep the daemon's.
        assert_eq!(refused, 4.0);
        assert_eq!(
            (guaranteed.to_string(), infra.to_string()),
            (before.trim().into(), before.trim().into())
        );
        assert!(daemon.log().contains("CAP_SYS_RESOURCE"), "{}", daemon.log());
    }
    for (name, class) in
        [("best", "BestEffort"), ("burstable", "Burstable"), ("guaranteed", "Guaranteed")]
    {
        assert_eq!(daemon.pod(name)["status"]["qosClass"], class);
        let labels = [("pod", name), ("class", class)];
        assert_eq!(daemon.metrics().one("podscope_pod_qos_class", &labels), 1.0);
    }
    // A new process shares the daemon's memory until its exec, and not its score.
    assert_eq!(own(), before);
    daemon.stop();
}

#[test]
fn a_pod_that_opens_a_hundred_thousand_files_hurts_nobody() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("bystander").container("app", "greet 8080 hello"));
    let ip = daemon.wait_ready("bystander")["status"]["podIP"].as_str().unwrap().to_owned();
    daemon.run(pod("greedy").container("app", "open-files 100000 , pause"));
    let log = daemon.wait_logged("greedy", "", "files are open");
    println!("{log}");
    daemon.wait_ready("greedy");
    assert!(daemon.metrics().one("podscope_pod_ready", &[("pod", "bystander")]) > 0.0);
    daemon.run(pod("client").container("app", &format!("connect {ip}:8080")));
    daemon.wait_logged("client", "", "connect: ok");
    daemon.stop();
}

#[test]
fn a_pod_that_takes_all_its_ports_takes_nobody_elses() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("bystander").container("app", "greet 8080 hello"));
    let ip = daemon.wait_ready("bystander")["status"]["podIP"].as_str().unwrap().to_owned();
    daemon.run(pod("greedy").container("app", "take-ports , pause"));
    let log = daemon.wait_logged("greedy", "", "ports are taken");
    println!("{log}");
    daemon.run(pod("client").container("app", &format!("connect {ip}:8080")));
    daemon.wait_logged("client", "", "connect: ok");
    eventually("the metrics go on", seconds(5), || {
        let ready = daemon.metrics().one("podscope_pod_ready", &[("pod", "greedy")]);
        (ready > 0.0).then_some(())
    });
    daemon.stop();
}

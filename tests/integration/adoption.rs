//! Daemons that are killed, and the pods that outlive them.

use std::{fs, thread, time::Duration};

use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use pod_tests::{
    Daemon, eventually,
    manifest::{config_map, mounts, pod},
    seconds, skip, state,
};
use serde_json::{Value, json};

use crate::{exemplars::now, hostports::fetch, trace::let_go};

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[test]
fn a_killed_daemon_harms_no_pod() {
    let mut daemon = Daemon::start(&[]);
    daemon.apply(&config_map("settings", json!({"key": "value"})));
    daemon.run(
        pod("kept")
            .volume("data", "emptyDir", json!({}))
            .volume("settings", "configMap", json!({"name": "settings"}))
            .container_with(
                "app",
                "fork 3 , write /data/file 1000 , print ready , chronicle /data/record 100000",
                mounts(&[("data", "/data"), ("settings", "/settings")]),
            )
            .container("other", "print ready , pause"),
    );
    daemon.run(
        pod("shared").with("shareProcessNamespace", true).container("app", "print ready , pause"),
    );
    for (name, query) in [("kept", "container=app"), ("kept", "container=other"), ("shared", "")] {
        daemon.wait_logged(name, query, "ready");
    }
    let before = daemon.pod("kept");
    let pids = |pod: &Value| ["_infra", "app", "other"].map(|name| daemon.pid_of(pod, name));
    let pids_before = pids(&before);
    let labels = [("pod", "kept"), ("container", "app")];
    let metrics = daemon.metrics();
    let execs = metrics.one("podscope_exec_total", &labels);
    let written = [labels[0], labels[1], ("volume", "data")];
    let bytes = metrics.one("podscope_file_written_bytes_total", &written);

    daemon.kill();
    thread::sleep(Duration::from_millis(300));
    daemon.restart();

    let after = daemon.pod("kept");
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
    assert_eq!(before["status"]["podIP"], after["status"]["podIP"]);
    assert_eq!(before["status"]["startTime"], after["status"]["startTime"]);
    assert_eq!(status(&after)["restartCount"], 0);
    assert_eq!(status(&before)["containerID"], status(&after)["containerID"]);
    assert_eq!(status(&before)["state"], status(&after)["state"]);
    let pids = |pod: &Value| ["_infra", "app", "other"].map(|name| daemon.pid_of(pod, name));
    assert_eq!(pids_before, pids(&after));

    let metrics = daemon.metrics();
    assert_eq!(metrics.one("podscope_exec_total", &labels), execs);
    assert!(metrics.one("podscope_file_written_bytes_total", &written) > bytes);
    assert_eq!(metrics.one("podscope_adopted_pods", &[("outcome", "kept")]), 2.0);
    assert_eq!(metrics.one("podscope_probe_object_info", &[("origin", "adopted")]), 1.0);

    // Everything still works: commands, logs, config maps, and the counting of what is done now.
    let seen = daemon.podctl(&[
        "exec",
        "kept",
        "-c",
        "app",
        "--",
        "/bin/workload",
        "cat",
        "/settings/key",
    ]);
    assert_eq!((seen.code, &*seen.stdout), (0, "value"));
    assert_eq!(daemon.metrics().one("podscope_exec_total", &labels), execs + 1.0);
    let log = daemon.logs("kept", "container=app");
    let numbers: Vec<u64> = log.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.len() > 100, "{log}");
    assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{log}");
    let map = daemon.api("GET", "/api/v1/namespaces/default/configmaps/settings", None);
    assert_eq!(map.json()["data"]["key"], "value");

    daemon.delete("kept");
    daemon.delete("shared");
    daemon.assert_no_files();
    daemon.stop();
}

#[test]
fn exits_while_the_daemon_is_away_are_known() {
    let mut daemon = Daemon::start(&["--restart-backoff-ms=100"]);
    daemon.run(pod("code").container("app", "print ready , wait-for /tmp/go , exit 7"));
    daemon.run(pod("signal").container("app", "print ready , pause"));
    daemon
        .run(pod("again").with("restartPolicy", "Always").container("app", "print ready , pause"));
    daemon.run(
        pod("shared")
            .with("shareProcessNamespace", true)
            .container("app", "print ready , spawn 1 , pause"),
    );
    for name in ["code", "signal", "again", "shared"] {
        daemon.wait_logged(name, "", "ready");
    }
    let pids: Vec<_> = ["code", "signal", "again", "shared"]
        .map(|name| daemon.pid_of(&daemon.pod(name), "app"))
        .into();
    daemon.kill();
    thread::sleep(Duration::from_millis(50));
    let before = Timestamp::now();
    let_go(pids[0]);
    for pid in &pids[1..] {
        kill(*pid, Signal::SIGKILL).unwrap();
    }
    thread::sleep(seconds(1));
    daemon.restart();

    let code = daemon.wait_over("code");
    let terminated = &status(&code)["state"]["terminated"];
    assert_eq!(terminated["exitCode"], 7, "{terminated}");
    assert_eq!(terminated["reason"], "Error");
    let finished: Timestamp = terminated["finishedAt"].as_str().unwrap().parse().unwrap();
    // The API shows whole seconds; the daemon came back a second later at the earliest.
    let late = finished.duration_since(before).as_secs_f64();
    assert!((-1.0..0.9 * seconds(1).as_secs_f64()).contains(&late), "{finished}, {before}");

    for name in ["signal", "shared"] {
        let pod = daemon.wait_over(name);
        let terminated = &status(&pod)["state"]["terminated"];
        assert_eq!(terminated["exitCode"], 137, "{name}: {terminated}");
        assert_eq!(terminated["signal"], 9, "{name}: {terminated}");
    }
    let again = daemon.wait_for("again", "restarted", |pod| status(pod)["restartCount"] == 1);
    assert_eq!(status(&again)["lastState"]["terminated"]["exitCode"], 137);
    daemon.stop();
}

#[test]
fn the_pause_before_a_restart_goes_on() {
    // Longer than a daemon takes to start.
    let pause = seconds(8);
    let mut daemon = Daemon::start(&[&format!("--restart-backoff-ms={}", pause.as_millis())]);
    daemon.run(pod("crashing").with("restartPolicy", "Always").container("app", "exit 1"));
    let waits = |pod: &Value| {
        status(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && status(pod)["restartCount"] == 1
    };
    let before = daemon.wait_for("crashing", "in its first pause", waits);
    daemon.kill();
    daemon.restart();
    let after = daemon.pod("crashing");
    assert!(waits(&after), "{:#}", after["status"]);
    assert_eq!(status(&before)["lastState"], status(&after)["lastState"]);
    let next = daemon.wait_for("crashing", "restarted", |pod| status(pod)["restartCount"] == 2);
    let message = &status(&next)["state"]["waiting"]["message"];
    if let Some(message) = message.as_str() {
        let next = format!("back-off {}s", 2 * pause.as_secs());
        assert!(message.contains(&next), "{message}");
    }
    daemon.stop();
}

#[test]
fn the_kernels_threads_of_a_process_do_not_say_how_it_ends() {
    let mut daemon = Daemon::start(&["--restart-backoff-ms=100"]);
    let free = json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}});
    if daemon.output_of(pod("try").container_with("app", "has-uring , exit 0", free.clone()), "try")
        != "uring: true\n"
    {
        skip("io_uring is not allowed");
        return daemon.stop();
    }
    // Of an adopted container the end is known from the probes alone. Which thread ends last is chance.
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        let steps = "uring-thread , print ready , wait-for /tmp/go , exit 7";
        daemon.run(pod(name).container_with("app", steps, free.clone()));
        daemon.wait_logged(name, "", "ready");
    }
    daemon.kill();
    daemon.restart();
    for name in names {
        let_go(daemon.pid_of(&daemon.pod(name), "app"));
        let over = daemon.wait_over(name);
        assert_eq!(status(&over)["state"]["terminated"]["exitCode"], 7, "{over:#}");
    }
    daemon.stop();
}

#[test]
fn a_pod_that_was_being_deleted_goes() {
    let mut daemon = Daemon::start(&[]);
    let stubborn = pod("stubborn").with("terminationGracePeriodSeconds", 2);
    daemon.run(stubborn.container("app", "ignore-term , print ready , pause"));
    daemon.wait_logged("stubborn", "", "ready");
    let answer = daemon.api("DELETE", "/api/v1/namespaces/default/pods/stubborn", None);
    assert!(answer.status < 300, "{}", answer.body);
    daemon.kill();
    daemon.restart();
    daemon.wait_for("stubborn", "gone", Value::is_null);
    let completed =
        daemon.metrics().one("podscope_completed_pods_total", &[("namespace", "default")]);
    assert_eq!(completed, 1.0);
    daemon.assert_no_files();
    daemon.stop();
}

#[test]
fn pods_come_back_after_a_reboot() {
    let mut daemon = Daemon::start(&[]);
    daemon.run(
        pod("always")
            .with("restartPolicy", "Always")
            .volume("data", "emptyDir", json!({}))
            .container_with(
                "app",
                "print ready , chronicle /data/record 1 , pause",
                mounts(&[("data", "/data")]),
            ),
    );
    daemon.run(pod("never").container("app", "print ready , pause"));
    daemon.run(pod("done").container("app", "print ready , exit 3"));
    for name in ["always", "never", "done"] {
        daemon.wait_logged(name, "", "ready");
    }
    daemon.wait_over("done");
    let uid = daemon.pod("always")["metadata"]["uid"].clone();
    daemon.kill();
    daemon.reboot();
    daemon.restart();

    let always = daemon.wait_for("always", "back", |pod| {
        status(pod)["restartCount"] == 1 && status(pod)["ready"] == true
    });
    assert_eq!(always["metadata"]["uid"], uid);
    let last = &status(&always)["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(255), &json!("Unknown")));
    // What it had written is still there.
    let log = daemon.wait_logged("always", "", "\n1\n");
    assert!(log.contains("ready\n1\n"), "{log}");
    // One that is not to be started again has failed, as with kubelet.
    let never = daemon.wait_over("never");
    assert_eq!(never["status"]["phase"], "Failed");
    assert_eq!(status(&never)["state"]["terminated"]["exitCode"], 255);
    let done = daemon.pod("done");
    assert_eq!(status(&done)["state"]["terminated"]["exitCode"], 3);
    let adopted = |outcome| daemon.metrics().one("podscope_adopted_pods", &[("outcome", outcome)]);
    assert_eq!((adopted("restarted"), adopted("kept")), (1.0, 2.0));
    daemon.stop();
}

#[test]
fn other_probes_go_on_with_the_same_counters() {
    let mut daemon = Daemon::start(&[]);
    daemon.run(pod("kept").container("app", "fork 5 , print ready , serve 8000"));
    daemon.wait_logged("kept", "", "listening");
    let labels = [("pod", "kept"), ("container", "app")];
    let before = daemon.metrics().one("podscope_exec_total", &labels);
    daemon.kill();
    // Logging is compiled into the programs: another object, as after an upgrade.
    daemon.restart_with("--probe-log=debug");
    let metrics = daemon.metrics();
    assert_eq!(metrics.one("podscope_probe_object_info", &[("origin", "migrated")]), 1.0);
    assert_eq!(metrics.one("podscope_exec_total", &labels), before);
    let run = daemon.podctl(&["exec", "kept", "--", "/bin/workload", "fork", "2"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(daemon.metrics().one("podscope_exec_total", &labels), before + 1.0);
    daemon.stop();
}

#[test]
fn counters_of_another_layout_are_given_up() {
    let mut daemon = Daemon::start(&[]);
    daemon.run(pod("kept").container("app", "fork 5 , print ready , greet 8080 welcome"));
    daemon.wait_logged("kept", "", "listening");
    let pid = daemon.pid_of(&daemon.pod("kept"), "app");
    daemon.kill();
    // As if an earlier version had made them.
    let pins = daemon.folder().join("bpf");
    let found = || -> Vec<String> {
        let entries = fs::read_dir(&pins).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    for name in found() {
        if let Some((kind @ ("maps" | "object"), _)) = name.split_once('-') {
            fs::rename(pins.join(&name), pins.join(format!("{kind}-0"))).unwrap();
        }
    }
    assert!(found().contains(&"maps-0".to_owned()), "{:?}", found());
    let restarted = now();
    daemon.restart();

    let metrics = daemon.metrics();
    assert_eq!(metrics.one("podscope_probe_object_info", &[("origin", "replaced")]), 1.0);
    let observed = metrics.one("podscope_observed_from_timestamp_seconds", &[("pod", "kept")]);
    assert!(observed > restarted, "{observed} is before {restarted}");
    assert!(found().iter().all(|name| !name.ends_with("-0")), "{:?}", found());
    let kept = daemon.pod("kept");
    assert_eq!(daemon.pid_of(&kept, "app"), pid);
    // Everything is counted from zero, and everything is counted.
    let labels = [("pod", "kept"), ("container", "app")];
    let count = |name| daemon.metrics().sum(name, &labels);
    let counters = [
        "podscope_exec_total",
        "podscope_forks_total",
        "podscope_tcp_accepts_total",
        "podscope_network_bytes_total",
    ];
    assert_eq!(counters.map(count), [0.0; 4]);
    let run = daemon.podctl(&["exec", "kept", "--", "/bin/workload", "fork", "2"]);
    assert_eq!(run.code, 0, "{run:?}");
    let address = kept["status"]["podIP"].as_str().unwrap();
    assert_eq!(fetch(&format!("{address}:8080")).as_deref(), Some("welcome"));
    let [execs, forks, accepts, bytes] = counters.map(count);
    assert_eq!((execs, forks, accepts), (1.0, 2.0, 1.0));
    assert!(bytes > 200.0, "{bytes}");
    daemon.stop();
}

#[test]
fn state_that_cannot_be_used_makes_the_pod_begin_anew() {
    let mut daemon = Daemon::start(&[]);
    daemon
        .run(pod("broken").with("restartPolicy", "Always").container("app", "print ready , pause"));
    daemon.wait_logged("broken", "", "ready");
    let pod_before = daemon.pod("broken");
    let pid = daemon.pid_of(&pod_before, "app");
    daemon.kill();
    let state = daemon.files_of(&pod_before).join("state.json");
    fs::write(&state, r#"{"version": 99}"#).unwrap();
    daemon.restart();
    daemon.wait_ready("broken");
    let after = daemon.pod("broken");
    assert_ne!(daemon.pid_of(&after, "app"), pid);
    assert_eq!(daemon.metrics().one("podscope_adopted_pods", &[("outcome", "reset")]), 1.0);
    assert!(daemon.log().contains("of version 99"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn what_was_half_made_is_removed() {
    let mut daemon = Daemon::start(&[]);
    daemon.run(pod("half").container("app", "print ready , pause"));
    daemon.wait_logged("half", "", "ready");
    let half = daemon.pod("half");
    daemon.kill();
    // As if the daemon had been killed before the pod was stored.
    fs::remove_file(daemon.files_of(&half).join("pod.json")).unwrap();
    daemon.restart();
    assert!(daemon.pod("half").is_null());
    assert!(state::processes_below(daemon.cgroups()).is_empty(), "processes survive");
    assert!(!state::State::capture().links.iter().any(|link| link.starts_with("veth")));
    daemon.assert_no_files();
    daemon.stop();
}

#[test]
fn a_daemon_that_keeps_its_pods_hands_them_over() {
    let mut daemon = Daemon::start(&["--on-stop=keep"]);
    daemon.run(pod("kept").container("app", "print ready , pause"));
    daemon.wait_logged("kept", "", "ready");
    let pid = daemon.pid_of(&daemon.pod("kept"), "app");
    kill(daemon.pid(), Signal::SIGTERM).unwrap();
    eventually("the daemon is gone", seconds(10), || {
        fs::read_to_string(format!("/proc/{}/stat", daemon.pid()))
            .map_or(Some(()), |stat| stat.contains(") Z").then_some(()))
    });
    daemon.kill();
    assert!(kill(pid, None).is_ok(), "the pod ended with the daemon");
    daemon.restart_with("--on-stop=end");
    assert_eq!(daemon.pid_of(&daemon.pod("kept"), "app"), pid);
    daemon.stop();
}

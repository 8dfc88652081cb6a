//! Containers that end, and what becomes of them and of their pod.

use std::{thread, time::Duration};

use nix::sys::signal::{Signal, kill};
use pod_tests::{
    Daemon, eventually,
    manifest::{mounts, pod},
    seconds, skip, state,
};
use serde_json::{Value, json};

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
}

#[test]
fn a_container_restarts_as_its_policy_says() {
    let daemon = Daemon::start(&[]);
    let with = |name: &str, policy: &str, steps: &str| {
        daemon.run(pod(name).with("restartPolicy", policy).container("app", steps));
    };
    with("always", "Always", "exit 0");
    with("on-failure", "OnFailure", "exit 3");
    with("on-success", "OnFailure", "exit 0");
    with("never", "Never", "exit 3");
    daemon.wait_for("always", "restarted", |pod| restarts(pod) >= 2);
    daemon.wait_for("on-failure", "restarted", |pod| restarts(pod) >= 2);
    for (name, phase) in [("on-success", "Succeeded"), ("never", "Failed")] {
        let over = daemon.wait_over(name);
        assert_eq!(over["status"]["phase"], phase);
        assert_eq!(restarts(&over), 0);
    }
    let code = &daemon.pod("never")["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(code["exitCode"], 3);
    daemon.stop();
}

#[test]
fn a_container_with_cgroups_of_its_own_is_entered_and_restarted() {
    let daemon = Daemon::start(&[]);
    let steps = "nest init , print nested , wait-for /calls/end , unlink /calls/end , exit 1";
    let mut fields = mounts(&[("calls", "/calls")]);
    fields["securityContext"] = json!({"privileged": true});
    let nest = pod("nest").with("restartPolicy", "Always").volume("calls", "emptyDir", json!({}));
    daemon.run(nest.container_with("app", steps, fields));
    daemon.wait_logged("nest", "", "nested with");
    let within = |words: &[&str]| {
        let command = ["exec", "nest", "--", "/bin/workload"];
        daemon.podctl(&[&command, words].concat())
    };
    let is_nested = !daemon.logs("nest", "").contains("nested with \n");
    let expected = if is_nested { "0::/init\n" } else { "0::/\n" };
    let cgroups = within(&["cat", "/proc/self/cgroup"]).success();
    assert!(cgroups.ends_with(expected), "{cgroups}");
    // It may be ended together with the container.
    drop(within(&["touch", "/calls/end"]));
    daemon.wait_for("nest", "restarted", |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        restarts(pod) == 1 && status["ready"] == true
    });
    if !is_nested {
        skip("containers have no controllers of cgroup v2 here");
    }
    daemon.stop();
}

#[test]
fn the_pause_before_a_restart_doubles() {
    let daemon = Daemon::start(&[]);
    let crashing = pod("crashing").with("restartPolicy", "Always");
    daemon.run(crashing.container("app", "print run , exit 1"));
    // None, 50, 100, 200, 400, 800 ms, and then thirty times the first.
    let waiting = daemon.wait_for("crashing", "in its longest pause", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["reason"] == "CrashLoopBackOff" && restarts(pod) >= 6
    });
    let message = &waiting["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
    let longest = message.as_str().unwrap();
    assert!(longest.contains("back-off 1.5s"), "{longest}");
    // The counters go on from run to run.
    eventually("every run is counted", seconds(10), || {
        let metrics = daemon.metrics();
        let labels = [("pod", "crashing"), ("container", "app")];
        let restarts = metrics.one("podscope_container_restarts_total", &labels);
        let execs = metrics.one("podscope_exec_total", &labels);
        (restarts >= 6.0 && execs == restarts + 1.0).then_some(())
    });
    daemon.stop();
}

#[test]
fn a_crashed_container_restarts_inside_its_living_pod() {
    let daemon = Daemon::start(&[]);
    let crashing = pod("crashing")
        .with("restartPolicy", "Always")
        .container("app", "pause")
        .container("other", "pause");
    daemon.run(crashing);
    let before = daemon.wait_ready("crashing");
    let other = daemon.pid_of(&before, "other");
    let infra = daemon.pid_of(&before, "_infra");
    kill(daemon.pid_of(&before, "app"), Signal::SIGKILL).unwrap();
    let after = daemon.wait_for("crashing", "restarted", |pod| {
        restarts(pod) == 1 && pod["status"]["containerStatuses"][0]["ready"] == true
    });
    assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
    assert_eq!(daemon.pid_of(&after, "_infra"), infra);
    assert_eq!(daemon.pid_of(&after, "other"), other);
    let last = &after["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 137, "{after:#}");
    daemon.stop();
}

#[test]
fn processes_that_a_container_leaves_behind_do_not_hinder_the_next_run() {
    let daemon = Daemon::start(&[]);
    // In a shared PID namespace, the end of a container's first process is not that of the others.
    let leaving = pod("leaving")
        .with("shareProcessNamespace", true)
        .with("restartPolicy", "OnFailure")
        .volume("data", "emptyDir", json!({}))
        .container_with(
            "app",
            "exit-if /data/mark 0 , touch /data/mark , leave-child , exit 1",
            mounts(&[("data", "/data")]),
        );
    daemon.run(leaving);
    let over = daemon.wait_over("leaving");
    assert_eq!(over["status"]["phase"], "Succeeded");
    assert_eq!(restarts(&over), 1, "{over:#}");
    daemon.stop();
}

#[test]
fn a_pod_recovers_from_the_end_of_its_infra_process() {
    let daemon = Daemon::start(&[]);
    let hit = pod("hit")
        .with("restartPolicy", "Always")
        .volume("data", "emptyDir", json!({}))
        .container_with("app", "greet 8080 hello", mounts(&[("data", "/data")]));
    daemon.run(hit);
    let before = daemon.wait_ready("hit");
    let infra = daemon.pid_of(&before, "_infra");
    kill(infra, Signal::SIGKILL).unwrap();
    let after = daemon.wait_for("hit", "restarted", |pod| {
        restarts(pod) == 1 && pod["status"]["containerStatuses"][0]["ready"] == true
    });
    assert_ne!(daemon.pid_of(&after, "_infra"), infra);
    let address = after["status"]["podIP"].as_str().unwrap().to_owned();
    eventually("the pod is reached again", seconds(10), || {
        let result = std::net::TcpStream::connect((address.as_str(), 8080));
        result.inspect_err(|error| println!("{address}: {error}")).ok()
    });
    daemon.stop();
}

#[test]
fn a_pod_that_does_not_restart_is_over_when_its_infra_process_ends() {
    let daemon = Daemon::start(&[]);
    let asked = json!({"resources": {"requests": {"cpu": "100m"}}});
    daemon.run(pod("once").container_with("app", "print ready , pause", asked));
    let before = daemon.wait_ready("once");
    let infra = daemon.pid_of(&before, "_infra");
    kill(infra, Signal::SIGKILL).unwrap();
    let over = daemon.wait_over("once");
    assert_eq!(over["status"]["phase"], "Failed", "{over:#}");
    let list = daemon.cgroup(&over, "_infra").join("cgroup.procs");
    // What would be a new one comes after that.
    thread::sleep(Duration::from_secs(2));
    assert!(state::pids(&list).is_empty(), "it has a new infra process");
    let requested = daemon.metrics().one("podscope_node_requested", &[("resource", "cpu")]);
    assert_eq!(requested, 0.0, "it keeps its place");
    daemon.stop();
}

#[test]
fn nobody_is_told_again_and_again_what_a_pod_waits_for() {
    let daemon = Daemon::start(&[]);
    let absent = json!({"image": "localhost/absent:1", "imagePullPolicy": "Never"});
    daemon.run(pod("absent").container_with("app", "pause", absent));
    let waits = |pod: &Value| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImageNeverPull"
    };
    let before = daemon.wait_for("absent", "waiting for its image", waits);
    // It is tried every second.
    thread::sleep(Duration::from_millis(3500));
    assert_eq!(daemon.pod("absent"), before);
    daemon.stop();
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let daemon = Daemon::start(&[]);
    let fields = json!({"command": ["/bin/nothing"]});
    daemon.run(pod("absent").container_with("app", "", fields));
    let over = daemon.wait_over("absent");
    let state = &over["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(state["exitCode"], 128, "{over:#}");
    assert_eq!(state["reason"], "StartError");
    assert!(state["message"].as_str().unwrap().contains("/bin/nothing"), "{state}");
    daemon.stop();
}

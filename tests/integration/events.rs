//! Events: what has happened to pods, for those who ask why one does not run.

use pod_tests::{Daemon, eventually, manifest::pod, seconds};
use serde_json::{Value, json};

/// The events of a pod with this reason.
fn events(daemon: &Daemon, pod: &str, reason: &str) -> Vec<Value> {
    let fields = format!("involvedObject.name={pod},reason={reason}");
    let path = format!("/api/v1/namespaces/default/events?fieldSelector={fields}");
    let list = daemon.api("GET", &path, None).json();
    assert_eq!(list["kind"], "EventList", "{list:#}");
    list["items"].as_array().cloned().unwrap_or_default()
}

/// Waits for the only event of that reason.
fn wait_for(daemon: &Daemon, pod: &str, reason: &str, is: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{pod} has the event {reason}"), seconds(10), || {
        let mut all = events(daemon, pod, reason);
        assert!(all.len() <= 1, "{all:#?}");
        all.pop().filter(&is)
    })
}

#[test]
fn a_crash_is_told_and_counted() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("crashing").with("restartPolicy", "Always").container("app", "exit 3"));
    let count = |event: &Value| event["count"].as_u64().unwrap_or_default();
    let first = wait_for(&daemon, "crashing", "BackOff", |_| true);
    let later = wait_for(&daemon, "crashing", "BackOff", |event| count(event) > count(&first));
    assert_eq!(first["metadata"]["uid"], later["metadata"]["uid"]);
    assert_eq!(later["type"], "Warning");
    assert_eq!(later["message"], "Back-off restarting failed container app");
    let about = &later["involvedObject"];
    assert_eq!(about["uid"], daemon.pod("crashing")["metadata"]["uid"]);
    assert_eq!(about["fieldPath"], "spec.containers{app}");

    // One start more than pauses: the first restart waits for nothing.
    let started = wait_for(&daemon, "crashing", "Started", |_| true);
    assert!(count(&started) >= count(&later), "{started:#}");
    let failed = wait_for(&daemon, "crashing", "Failed", |_| true);
    assert_eq!(failed["message"], "Container app ended with exit code 3");
    let scheduled = wait_for(&daemon, "crashing", "Scheduled", |_| true);
    assert_eq!(scheduled["count"], 1);

    let shown = daemon.podctl(&["get", "events"]).stdout;
    assert!(shown.contains("BackOff     pod/crashing   Back-off restarting"), "{shown}");
    let shown = daemon.podctl(&["describe", "pod", "crashing"]).stdout;
    let table = shown.split_once("\nEvents:\n").expect("a table of events").1;
    assert!(table.contains("Container app ended with exit code 3"), "{shown}");

    // They outlive the pod.
    daemon.delete("crashing");
    wait_for(&daemon, "crashing", "BackOff", |_| true);
    daemon.stop();
}

#[test]
fn a_pod_without_a_place_says_what_it_lacks() {
    let daemon = Daemon::start(&[]);
    let resources = json!({"resources": {"requests": {"cpu": "100000"}}});
    daemon.run(pod("large").container_with("app", "pause", resources));
    let why = wait_for(&daemon, "large", "FailedScheduling", |_| true);
    assert_eq!(why["type"], "Warning");
    assert!(why["message"].as_str().unwrap().contains("Insufficient cpu"), "{why:#}");
    assert_eq!(events(&daemon, "large", "Scheduled"), [Value::Null; 0]);
    daemon.stop();
}

#[test]
fn a_container_that_is_stopped_has_not_failed() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("stopped").container("app", "pause"));
    daemon.wait_ready("stopped");
    daemon.delete("stopped");
    wait_for(&daemon, "stopped", "Killing", |event| event["type"] == "Normal");
    assert_eq!(events(&daemon, "stopped", "Failed"), [Value::Null; 0]);
    daemon.stop();
}

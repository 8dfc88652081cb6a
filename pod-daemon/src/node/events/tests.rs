//! What each change of a pod means, and how long that is remembered.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{super::ContainerSnapshot, *};
use crate::{
    cgroup::Limits,
    node::{Exit, State},
};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn pod(status: Value) -> Pod {
    let metadata = json!({"name": "web", "namespace": "shop", "uid": "u1"});
    serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
}

fn container(state: State) -> ContainerSnapshot {
    ContainerSnapshot {
        name: "app".to_owned(),
        image: "shop/app:1".to_owned(),
        image_id: String::new(),
        container_id: String::new(),
        state,
        last_exit: None,
        restarts: 0,
        slot: 0,
        cgroup: None,
        volumes: Arc::default(),
        volume_count: 2,
        limits: Limits::default(),
        requests: Limits::default(),
        ooms: [0; 3],
        traceparent: None,
    }
}

fn waiting(reason: &str, message: &str) -> State {
    State::Waiting { reason: reason.to_owned(), message: message.to_owned() }
}

fn running(since: i64) -> State {
    State::Running { started: at(since) }
}

fn exit(code: i32, reason: &str, message: &str, finished: i64) -> Exit {
    Exit {
        code,
        signal: (code > 128).then(|| code - 128),
        reason: reason.to_owned(),
        message: message.to_owned(),
        started: at(0),
        finished: at(finished),
    }
}

/// What happened, one line each.
fn lines(drafts: Vec<Draft>) -> Vec<String> {
    let line = |draft: Draft| {
        let Draft { container, kind, reason, message } = draft;
        let about = container.map(|name| format!(" [{name}]")).unwrap_or_default();
        format!("{} {reason}{about}: {message}", kind.name())
    };
    drafts.into_iter().map(line).collect()
}

fn of_pods(old: &Pod, new: &Pod) -> Vec<String> {
    let seen = |pod| Seen { pod, containers: &[] };
    lines(between("here", seen(old), seen(new)))
}

fn of_containers(old: &ContainerSnapshot, new: &ContainerSnapshot) -> Vec<String> {
    let pod = pod(json!({}));
    let seen = |container| Seen { pod: &pod, containers: std::slice::from_ref(container) };
    lines(between("here", seen(old), seen(new)))
}

fn placed(status: &str, message: Option<&str>) -> Pod {
    let condition = json!({"type": "PodScheduled", "status": status, "message": message});
    pod(json!({"conditions": [condition]}))
}

#[test]
fn a_place_is_told_and_why_there_is_none() {
    let (new, has) = (pod(Value::Null), placed("True", None));
    let [cpu, memory] = ["cpu", "memory"].map(|lack| placed("False", Some(lack)));
    assert_eq!(of_pods(&new, &has), ["Normal Scheduled: Successfully assigned shop/web to here"]);
    assert_eq!(of_pods(&new, &cpu), ["Warning FailedScheduling: cpu"]);
    assert_eq!(of_pods(&cpu, &memory), ["Warning FailedScheduling: memory"]);
    assert_eq!(of_pods(&cpu, &has).len(), 1);
    for same in [&new, &has, &cpu] {
        assert_eq!(of_pods(same, same), [""; 0]);
    }
}

#[test]
fn what_ends_a_pod_is_told_with_the_containers_that_are_stopped() {
    let whole = pod(json!({}));
    let evicted = pod(json!({"reason": "Evicted", "message": "too much"}));
    let mut deleted = whole.clone();
    deleted.metadata.deletion_timestamp = Some(Time(NOW));
    let containers = [container(running(1)), container(waiting("ContainerCreating", ""))];
    let seen = |pod| Seen { pod, containers: &containers };
    let killing = "Normal Killing [app]: Stopping container app";
    assert_eq!(lines(between("here", seen(&whole), seen(&deleted))), [killing]);
    assert_eq!(
        lines(between("here", seen(&whole), seen(&evicted))),
        ["Warning Evicted: too much", killing]
    );
    assert_eq!(lines(between("here", seen(&evicted), seen(&deleted))), [""; 0]);
    // Whoever pushes a pod out deletes it, and the worker may learn why only then.
    assert_eq!(
        lines(between("here", seen(&deleted), seen(&evicted))),
        ["Warning Evicted: too much"]
    );

    // An end that was to be is no failure.
    let ended = ContainerSnapshot {
        last_exit: Some(exit(143, "Error", "", 5)),
        ..container(State::Terminated(exit(143, "Error", "", 5)))
    };
    let ended = Seen { pod: &deleted, containers: std::slice::from_ref(&ended) };
    assert_eq!(lines(between("here", seen(&deleted), ended)), [""; 0]);
}

#[test]
fn each_start_is_told_once() {
    let [created, first, second] =
        [waiting("ContainerCreating", ""), running(1), running(2)].map(container);
    let started = ["Normal Started [app]: Started container app"];
    assert_eq!(of_containers(&created, &first), started);
    assert_eq!(of_containers(&first, &second), started);
    assert_eq!(of_containers(&first, &first), [""; 0]);
}

#[test]
fn an_end_with_an_error_is_told_with_what_is_known_about_it() {
    let after = |exit: Exit, ooms| ContainerSnapshot {
        last_exit: Some(exit.clone()),
        ooms,
        ..container(State::Terminated(exit))
    };
    let check = |exit: Exit, ooms, expected: &str| {
        let new = after(exit, ooms);
        assert_eq!(of_containers(&container(running(1)), &new).join("\n"), expected);
        assert_eq!(of_containers(&new, &new), [""; 0]);
    };
    check(exit(0, "Completed", "", 5), [0; 3], "");
    check(
        exit(3, "Error", "", 5),
        [0; 3],
        "Warning Failed [app]: Container app ended with exit code 3",
    );
    check(
        exit(128, "StartError", "there is no /bin/x", 5),
        [0; 3],
        "Warning Failed [app]: Container app was not started: StartError: there is no /bin/x",
    );
    check(
        exit(137, "OOMKilled", "the container met its memory limit", 5),
        [1, 0, 0],
        "Warning OOMKilled [app]: Container app ended with exit code 137 (signal 9): the container \
         met its memory limit",
    );
    check(
        exit(137, "Error", "the pod met its memory limit", 5),
        [0, 1, 0],
        "Warning OOMKilling [app]: Container app ended with exit code 137 (signal 9): the pod met \
         its memory limit",
    );
    check(
        exit(0, "Completed", "the kernel killed \"child\"", 5),
        [1, 0, 0],
        "Warning OOMKilling [app]: Container app ended with exit code 0: the kernel killed \"child\"",
    );
}

#[test]
fn every_pause_before_a_restart_is_told() {
    let crashed = |finished, pause: &str| ContainerSnapshot {
        last_exit: Some(exit(1, "Error", "", finished)),
        ..container(waiting("CrashLoopBackOff", pause))
    };
    let failed = "Warning Failed [app]: Container app ended with exit code 1";
    let back_off = "Warning BackOff [app]: Back-off restarting failed container app";
    let both = [failed, back_off];
    assert_eq!(of_containers(&container(running(1)), &crashed(5, "back-off 10s")), both);
    // Not started either, and the pause is as long as the one before.
    assert_eq!(of_containers(&crashed(5, "back-off 10s"), &crashed(6, "back-off 10s")), both);
    assert_eq!(of_containers(&crashed(5, "back-off 10s"), &crashed(5, "back-off 10s")), [""; 0]);
    // Started again at once.
    let at_once = ContainerSnapshot { state: waiting("ContainerCreating", ""), ..crashed(5, "") };
    assert_eq!(of_containers(&container(running(1)), &at_once), [failed]);
}

#[test]
fn an_image_that_is_not_to_be_had_is_told() {
    let created = container(waiting("ContainerCreating", ""));
    for (reason, message, expected) in [
        (
            "ErrImagePull",
            "no such tag",
            "Warning Failed [app]: Failed to pull image \"shop/app:1\": no such tag",
        ),
        (
            "ImagePullBackOff",
            "Back-off pulling image \"x\"",
            "Warning BackOff [app]: Back-off pulling image \"x\"",
        ),
        ("InvalidImageName", "it is: -", "Warning Failed [app]: Error: InvalidImageName: it is: -"),
    ] {
        let waits = container(waiting(reason, message));
        assert_eq!(of_containers(&created, &waits), [expected]);
        assert_eq!(of_containers(&waits, &waits), [""; 0]);
    }
}

#[test]
fn what_all_containers_wait_for_is_told_once() {
    let pod = pod(json!({}));
    let both = |state: State| [container(state.clone()), container(state)];
    let created = both(waiting("ContainerCreating", ""));
    for reason in ["FailedCreatePodSandBox", "FailedMount"] {
        let waits = both(waiting(reason, "no room"));
        let told = between(
            "here",
            Seen { pod: &pod, containers: &created },
            Seen { pod: &pod, containers: &waits },
        );
        assert_eq!(lines(told), [format!("Warning {reason}: no room")]);
    }
}

fn happen(events: &Events, message: &str, seconds: i64) {
    let draft = Draft::new(Some("app"), EventType::Warning, "BackOff", message);
    events.add_at(&pod(json!({})).metadata, draft, at(seconds));
}

fn list(events: &Events, seconds: i64) -> Vec<Arc<Event>> {
    events.list_at(None, at(seconds)).0
}

#[test]
fn what_happens_again_is_counted() {
    let events = Events::new("here");
    happen(&events, "a", 1);
    happen(&events, "b", 2);
    happen(&events, "a", 3);
    let (all, version) = events.list_at(Some("shop"), at(4));
    let shown: Vec<_> =
        all.iter().map(|event| (event.message.as_deref().unwrap(), event.count.unwrap())).collect();
    assert_eq!(shown, [("b", 1), ("a", 2)]);
    let again = serde_json::to_value(&*all[1]).unwrap();
    assert_eq!(again["firstTimestamp"], "1970-01-01T00:00:01Z");
    assert_eq!(again["lastTimestamp"], "1970-01-01T00:00:03Z");
    assert_eq!(again["metadata"]["resourceVersion"], version.to_string());
    assert!(again["metadata"]["name"].as_str().unwrap().starts_with("web."));
    assert_eq!(
        again["involvedObject"],
        json!({
            "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web", "uid": "u1",
            "fieldPath": "spec.containers{app}",
        })
    );
    assert_eq!(again["source"], json!({"component": "podscope", "host": "here"}));
    assert_eq!(again["type"], "Warning");
    assert_eq!(events.list_at(Some("other"), at(4)).0.len(), 0);
    let name = all[1].metadata.name.as_deref().unwrap();
    assert!(events.get(&Key::new("other", name)).is_err());
}

#[test]
fn watchers_are_told_in_the_order_of_versions() {
    let events = Events::new("here");
    let mut changes = events.watch();
    happen(&events, "a", 1);
    happen(&events, "a", 2);
    list(&events, 2 + 3600);
    let mut version = 0;
    for kind in [ChangeKind::Added, ChangeKind::Modified, ChangeKind::Deleted] {
        let change = changes.try_recv().unwrap();
        assert_eq!(change.kind, kind);
        assert!(change.resource_version > version);
        version = change.resource_version;
        let own = change.object.metadata.resource_version.as_deref();
        assert_eq!(own, Some(version.to_string().as_str()));
    }
    assert!(changes.try_recv().is_err());
}

#[test]
fn events_are_forgotten_after_an_hour() {
    let events = Events::new("here");
    happen(&events, "a", 0);
    happen(&events, "b", 1);
    happen(&events, "a", 2);
    assert_eq!(list(&events, 3600).len(), 2);
    assert_eq!(list(&events, 3601).len(), 1);
    assert_eq!(list(&events, 3602).len(), 0);
}

#[test]
fn there_are_never_too_many() {
    let events = Events::new("here");
    let mut pod = pod(json!({})).metadata;
    for number in 0..MOST + 5 {
        pod.uid = Some(number.to_string());
        events.add_at(&pod, Draft::new(None, EventType::Normal, "Scheduled", "x"), NOW);
    }
    let all = list(&events, 0);
    assert_eq!(all.len(), MOST);
    assert_eq!(all[0].involved_object.uid.as_deref(), Some("5"));
}

#[test]
fn what_differs_in_words_alone_becomes_one() {
    let events = Events::new("here");
    for number in 0..MOST_SIMILAR + 5 {
        happen(&events, &format!("free {number}"), 0);
    }
    let all = list(&events, 0);
    assert_eq!(all.len(), MOST_SIMILAR + 1);
    let last = all.last().unwrap();
    assert_eq!(last.message.as_deref(), Some("(combined from similar events): free 14"));
    assert_eq!(last.count, Some(5));
    // What was there before is still counted by itself.
    happen(&events, "free 3", 0);
    assert_eq!(list(&events, 0).last().unwrap().count, Some(2));
}

#[test]
fn a_long_message_is_shortened() {
    let events = Events::new("here");
    happen(&events, &"ä".repeat(2000), 0);
    let message = list(&events, 0)[0].message.clone().unwrap();
    assert!(message.len() <= MOST_BYTES && message.ends_with("ä..."), "{message}");
}

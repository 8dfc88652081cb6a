//! A pod's state in a word, computed as kubectl computes it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::{human, output::Tone};

/// What `get pods` says about a pod.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) ready: String,
    pub(super) status: String,
    pub(super) restarts: String,
}

/// Sums up the states of the pod's containers.
pub(super) fn summary(pod: &Pod, now: Timestamp) -> Summary {
    let status = pod.status.as_ref();
    let containers: &[ContainerStatus] =
        status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    let reason = status.and_then(|status| status.reason.as_deref());
    let reason = reason.filter(|reason| !reason.is_empty());
    let mut word = reason.unwrap_or(phase).to_owned();
    let (mut ready, mut restarts, mut last_restart) = (0, 0, None);
    let mut running = false;
    // From the last to the first, so that it is the first one's state that is shown.
    for container in containers.iter().rev() {
        restarts += container.restart_count;
        let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let finished = last.and_then(|last| last.finished_at.as_ref()).map(|time| time.0);
        last_restart = last_restart.max(finished);
        if let Some(reason) = state(container) {
            word = reason;
        } else if container.ready {
            running = true;
            ready += 1;
        }
    }
    if phase == "Failed"
        && let Some(reason) = reason
    {
        // Why the pod was ended says more than how its containers did.
        reason.clone_into(&mut word);
    }
    if word == "Completed" && running {
        word = if has_ready_condition(pod) { "Running" } else { "NotReady" }.to_owned();
    }
    if pod.metadata.deletion_timestamp.is_some() && !matches!(phase, "Succeeded" | "Failed") {
        "Terminating".clone_into(&mut word);
    }
    let total = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
    Summary {
        ready: format!("{ready}/{total}"),
        status: word,
        restarts: match last_restart.filter(|_| restarts > 0) {
            Some(then) => format!("{restarts} ({} ago)", human::age(then, now)),
            None => restarts.to_string(),
        },
    }
}

/// Why the container does not run; nothing if it does.
fn state(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let waiting = state.waiting.as_ref().and_then(|waiting| waiting.reason.clone());
    if let Some(reason) = waiting.filter(|reason| !reason.is_empty()) {
        return Some(reason);
    }
    let ended = state.terminated.as_ref()?;
    Some(match (ended.reason.as_deref(), ended.signal) {
        (Some(reason), _) if !reason.is_empty() => reason.to_owned(),
        (_, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", ended.exit_code),
    })
}

fn has_ready_condition(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// How the word is meant.
pub(super) fn tone(status: &str) -> Tone {
    match status {
        "Running" => Tone::Good,
        "Completed" | "Succeeded" => Tone::Plain,
        "Pending" | "ContainerCreating" | "PodInitializing" | "Terminating" | "NotReady" => {
            Tone::Busy
        }
        _ => Tone::Bad,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(pod: serde_json::Value, expected: [&str; 3]) {
        let mut pod = pod;
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let summary = summary(&pod, "2026-01-01T00:01:00Z".parse().unwrap());
        assert_eq!([&*summary.ready, &*summary.status, &*summary.restarts], expected);
    }

    fn pod(containers: &[serde_json::Value], phase: &str) -> serde_json::Value {
        let names: Vec<_> =
            (0..containers.len()).map(|index| json!({"name": format!("c{index}")})).collect();
        let statuses: Vec<_> = containers
            .iter()
            .map(|container| {
                let mut status = json!({
                    "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                });
                let changes = container.as_object().unwrap().clone();
                status.as_object_mut().unwrap().extend(changes);
                status
            })
            .collect();
        json!({
            "metadata": {},
            "spec": {"containers": names},
            "status": {"phase": phase, "containerStatuses": statuses},
        })
    }

    #[test]
    fn a_pod_is_summed_up_as_kubectl_does() {
        let running = json!({"ready": true, "state": {"running": {}}});
        let creating = json!({"state": {"waiting": {"reason": "ContainerCreating"}}});
        let completed = json!({"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let crashing = json!({
            "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:00:55Z"}},
        });
        let killed = json!({"state": {"terminated": {"exitCode": 137, "signal": 9}}});
        let failed = json!({"state": {"terminated": {"exitCode": 3}}});
        let oom = json!({"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}});

        check(
            json!({"metadata": {}, "spec": {"containers": [{"name": "a"}]}}),
            ["0/1", "Pending", "0"],
        );
        check(pod(&[creating], "Pending"), ["0/1", "ContainerCreating", "0"]);
        check(pod(&[running.clone(), running.clone()], "Running"), ["2/2", "Running", "0"]);
        check(
            pod(&[running.clone(), crashing.clone()], "Running"),
            ["1/2", "CrashLoopBackOff", "3 (5s ago)"],
        );
        check(pod(std::slice::from_ref(&completed), "Succeeded"), ["0/1", "Completed", "0"]);
        check(pod(&[completed.clone(), running.clone()], "Running"), ["1/2", "NotReady", "0"]);
        let mut ready = pod(&[completed, running.clone()], "Running");
        ready["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        check(ready, ["1/2", "Running", "0"]);
        check(pod(&[killed], "Failed"), ["0/1", "Signal:9", "0"]);
        check(pod(&[failed], "Failed"), ["0/1", "ExitCode:3", "0"]);
        check(pod(&[oom], "Failed"), ["0/1", "OOMKilled", "0"]);
        let mut leaving = pod(&[running], "Running");
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        check(leaving, ["1/1", "Terminating", "0"]);
        let killed = json!({"state": {"terminated": {"exitCode": 137, "reason": "Error"}}});
        let mut evicted = pod(&[killed], "Failed");
        evicted["status"]["reason"] = "Evicted".into();
        check(evicted, ["0/1", "Evicted", "0"]);
        let mut refused = pod(&[], "Failed");
        refused["status"]["reason"] = "OutOfcpu".into();
        check(refused, ["0/0", "OutOfcpu", "0"]);
    }
}

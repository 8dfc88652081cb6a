//! What has happened to a pod between two states of it, in the words of kubelet and scheduler.
//!
//! A pod's worker publishes what is; only this says what became. Pulls are not seen: a container
//! that waits for its image is like any other that is being created.

use k8s_openapi::api::core::v1::Pod;

use super::{
    super::{ContainerSnapshot, Exit, State},
    Draft,
    EventType::{Normal, Warning},
};

/// Reasons of runs that began.
const RAN: [&str; 4] = ["Completed", "Error", "OOMKilled", "Unknown"];

/// A pod at one instant; its spec is not looked at.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Seen<'a> {
    pub(in super::super) pod: &'a Pod,
    pub(in super::super) containers: &'a [ContainerSnapshot],
}

/// What has happened on `node`, in the order in which it did.
pub(in super::super) fn between(node: &str, old: Seen<'_>, new: Seen<'_>) -> Vec<Draft> {
    let mut drafts: Vec<_> = scheduled(node, old.pod, new.pod).into_iter().collect();
    if let (None, Some((reason, message))) = (disruption(old.pod), disruption(new.pod)) {
        drafts.push(Draft::new(None, Warning, reason, message));
    }
    let stopping = is_stopping(new.pod);
    if stopping && !is_stopping(old.pod) {
        drafts.extend(new.containers.iter().filter_map(killed));
    }
    for (old, new) in old.containers.iter().zip(new.containers) {
        let ended = ended(old, new);
        drafts.extend(ended.and_then(|exit| end(old, new, exit, stopping)));
        let draft = match &new.state {
            State::Running { .. } => started(old, new),
            State::Waiting { reason, message } => {
                waits(old, new, reason, message, ended.is_some()).filter(|_| !stopping)
            }
            State::Terminated(_) => None,
        };
        // What all containers wait for has happened once.
        drafts.extend(draft.filter(|draft| !drafts.contains(draft)));
    }
    drafts
}

fn scheduled(node: &str, old: &Pod, new: &Pod) -> Option<Draft> {
    let (before, now) = (placed(old), placed(new)?);
    if before == Some(now) {
        return None;
    }
    let draft = match now {
        Ok(()) => {
            let metadata = &new.metadata;
            let [namespace, name] = [&metadata.namespace, &metadata.name]
                .map(|name| name.as_deref().unwrap_or_default());
            let message = format!("Successfully assigned {namespace}/{name} to {node}");
            Draft::new(None, Normal, "Scheduled", message)
        }
        Err(why) => Draft::new(None, Warning, "FailedScheduling", why),
    };
    Some(draft)
}

/// Whether the pod has its place, or why not; `None` while nobody has looked for one.
fn placed(pod: &Pod) -> Option<Result<(), &str>> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    let placed = condition.status == "True";
    Some(if placed { Ok(()) } else { Err(condition.message.as_deref().unwrap_or_default()) })
}

/// Whether the pod ends, however its containers do.
fn is_stopping(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() || disruption(pod).is_some()
}

/// Why the pod ends against its will.
fn disruption(pod: &Pod) -> Option<(&str, &str)> {
    let status = pod.status.as_ref()?;
    Some((status.reason.as_deref()?, status.message.as_deref().unwrap_or_default()))
}

fn killed(container: &ContainerSnapshot) -> Option<Draft> {
    let State::Running { .. } = container.state else { return None };
    let message = format!("Stopping container {}", container.name);
    Some(Draft::new(Some(&container.name), Normal, "Killing", message))
}

fn started(old: &ContainerSnapshot, new: &ContainerSnapshot) -> Option<Draft> {
    let began = |container: &ContainerSnapshot| match container.state {
        State::Running { started } => Some(started),
        _ => None,
    };
    if began(old) == began(new) {
        return None;
    }
    let message = format!("Started container {}", new.name);
    Some(Draft::new(Some(&new.name), Normal, "Started", message))
}

/// The end of a run that had not ended before.
fn ended<'a>(old: &ContainerSnapshot, new: &'a ContainerSnapshot) -> Option<&'a Exit> {
    let before = old.last_exit.as_ref().map(|exit| exit.finished);
    new.last_exit.as_ref().filter(|exit| before != Some(exit.finished))
}

/// A run's end, unless it is one that was to be.
fn end(
    old: &ContainerSnapshot,
    new: &ContainerSnapshot,
    exit: &Exit,
    stopping: bool,
) -> Option<Draft> {
    let reason = match exit.reason.as_str() {
        "OOMKilled" => "OOMKilled",
        // For want of the pod's or the node's memory, or not the first process.
        _ if old.ooms != new.ooms => "OOMKilling",
        _ if stopping || exit.code == 0 => return None,
        _ => "Failed",
    };
    let name = &new.name;
    let mut message = if RAN.contains(&exit.reason.as_str()) {
        let signal = exit.signal.map(|signal| format!(" (signal {signal})")).unwrap_or_default();
        format!("Container {name} ended with exit code {}{signal}", exit.code)
    } else {
        format!("Container {name} was not started: {}", exit.reason)
    };
    if !exit.message.is_empty() {
        message.push_str(": ");
        message.push_str(&exit.message);
    }
    Some(Draft::new(Some(name), Warning, reason, message))
}

/// What a container waits for, if that is news and not just its turn.
fn waits(
    old: &ContainerSnapshot,
    new: &ContainerSnapshot,
    reason: &str,
    message: &str,
    ended: bool,
) -> Option<Draft> {
    let ContainerSnapshot { name, image, .. } = new;
    let is_old = matches!(&old.state, State::Waiting { reason: before, message: why }
        if before == reason && why == message);
    let warning = |reason: &str, message: String| Draft::new(Some(name), Warning, reason, message);
    Some(match reason {
        // Its message has the length of the pause, and may be that of the pause before.
        "CrashLoopBackOff" if ended => {
            warning("BackOff", format!("Back-off restarting failed container {name}"))
        }
        "ContainerCreating" | "CrashLoopBackOff" => return None,
        _ if is_old => return None,
        "FailedMount" | "FailedCreatePodSandBox" => Draft::new(None, Warning, reason, message),
        "ImagePullBackOff" => warning("BackOff", message.to_owned()),
        "ErrImagePull" => warning("Failed", format!("Failed to pull image \"{image}\": {message}")),
        _ => warning("Failed", format!("Error: {reason}: {message}")),
    })
}

//! A pod's status as Kubernetes shows it.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{Disruption, Worker};
use crate::{
    manifest::qos_class,
    node::{ContainerSnapshot, Exit, PodSnapshot, State},
};

/// A limit that hindered a pod.
#[derive(Clone, Debug)]
pub struct LimitMet {
    /// Which, as its event says.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// When that was noticed.
    pub at: Timestamp,
}

/// The phase of a pod whose sandbox is `started`, by kubelet's rules.
pub(super) fn phase(containers: &[ContainerSnapshot], policy: &str, started: bool) -> &'static str {
    let running = containers.iter().any(|one| matches!(one.state, State::Running { .. }));
    let never_ran = containers
        .iter()
        .any(|one| matches!(one.state, State::Waiting { .. }) && one.last_exit.is_none());
    let exits: Option<Vec<i32>> = containers
        .iter()
        .map(|one| match &one.state {
            State::Terminated(exit) => Some(exit.code),
            _ => None,
        })
        .collect();
    match exits {
        _ if !started => "Pending",
        Some(codes) if codes.iter().all(|code| *code == 0) => "Succeeded",
        Some(_) if policy != "Always" => "Failed",
        _ if never_ran && !running => "Pending",
        _ => "Running",
    }
}

/// The status of a worker's pod.
pub(super) fn of(worker: &Worker, snapshot: &PodSnapshot) -> PodStatus {
    if let Some(message) = &worker.unschedulable {
        return unschedulable(worker, message);
    }
    let disruption = worker.disruption.as_ref();
    let ips = snapshot.ip.as_ref().map(|ip| vec![PodIP { ip: ip.clone() }]);
    PodStatus {
        phase: Some(snapshot.phase.to_owned()),
        conditions: Some(
            conditions(snapshot)
                .into_iter()
                .chain(disruption.map(disrupted))
                .chain(worker.limit.as_ref().map(hindered))
                .collect(),
        ),
        reason: disruption.map(|why| why.reason.clone()),
        message: disruption.map(|why| why.message.clone()),
        pod_ip: snapshot.ip.clone(),
        pod_ips: ips,
        start_time: worker.started.map(Time),
        qos_class: Some(qos_class(&worker.about.spec).to_owned()),
        container_statuses: Some(snapshot.containers.iter().map(container).collect()),
        ..PodStatus::default()
    }
}

/// A pod that has no place has nothing but the reason.
fn unschedulable(worker: &Worker, message: &str) -> PodStatus {
    PodStatus {
        phase: Some("Pending".to_owned()),
        conditions: Some(vec![PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some("Unschedulable".to_owned()),
            message: Some(message.to_owned()),
            ..PodCondition::default()
        }]),
        qos_class: Some(qos_class(&worker.about.spec).to_owned()),
        ..PodStatus::default()
    }
}

/// The condition that tells a pod that was ended from one that ended.
fn disrupted(why: &Disruption) -> PodCondition {
    PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some(
            if why.evicted { "TerminationByKubelet" } else { "PreemptionByScheduler" }.to_owned(),
        ),
        message: Some(why.message.clone()),
        ..PodCondition::default()
    }
}

/// The condition that names the last limit that a pod has met.
fn hindered(limit: &LimitMet) -> PodCondition {
    PodCondition {
        type_: "podscope.dev/LimitMet".to_owned(),
        status: "True".to_owned(),
        reason: Some(limit.reason.to_owned()),
        message: Some(limit.message.clone()),
        last_transition_time: Some(Time(limit.at)),
        ..PodCondition::default()
    }
}

fn conditions(snapshot: &PodSnapshot) -> Vec<PodCondition> {
    let sandbox = snapshot.started.is_some();
    let over = matches!(snapshot.phase, "Succeeded" | "Failed");
    [
        ("PodScheduled", true),
        ("PodReadyToStartContainers", sandbox && !over),
        ("Initialized", sandbox),
        ("ContainersReady", snapshot.ready),
        ("Ready", snapshot.ready),
    ]
    .into_iter()
    .map(|(name, holds)| PodCondition {
        type_: name.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        ..PodCondition::default()
    })
    .collect()
}

fn container(snapshot: &ContainerSnapshot) -> ContainerStatus {
    let running = matches!(snapshot.state, State::Running { .. });
    let id = Some(snapshot.container_id.clone()).filter(|id| !id.is_empty());
    let state = match &snapshot.state {
        State::Waiting { reason, message } => ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason.clone()),
                message: Some(message.clone()).filter(|message| !message.is_empty()),
            }),
            ..ContainerState::default()
        },
        State::Running { started } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(*started)) }),
            ..ContainerState::default()
        },
        State::Terminated(exit) => terminated(exit, id.clone()),
    };
    // The end that `state` shows is not the one before it.
    let last = match &snapshot.state {
        State::Terminated(_) => None,
        // The id is that of the run that runs.
        State::Running { .. } => snapshot.last_exit.as_ref().map(|exit| terminated(exit, None)),
        State::Waiting { .. } => {
            snapshot.last_exit.as_ref().map(|exit| terminated(exit, id.clone()))
        }
    };
    ContainerStatus {
        name: snapshot.name.clone(),
        image: snapshot.image.clone(),
        image_id: snapshot.image_id.clone(),
        container_id: id,
        ready: running,
        started: Some(running),
        restart_count: i32::try_from(snapshot.restarts).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: last,
        ..ContainerStatus::default()
    }
}

fn terminated(exit: &Exit, container_id: Option<String>) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: exit.code,
            signal: exit.signal,
            reason: Some(exit.reason.clone()),
            message: Some(exit.message.clone()).filter(|message| !message.is_empty()),
            started_at: Some(Time(exit.started)),
            finished_at: Some(Time(exit.finished)),
            container_id,
        }),
        ..ContainerState::default()
    }
}

//! Pods and containers as such: what they are, and what became of them.

use jiff::Timestamp;

use super::{
    family::{
        Domain, Family, Label,
        Source::{Container, Pod},
    },
    process::signal_name,
    reading,
};
use crate::node::{Exit, State};

const PHASE: Label = Label::one_of("phase", &["Pending", "Running", "Succeeded", "Failed"]);
const STATE: Label = Label::one_of("state", &["waiting", "running", "terminated"]);
const OOM_LIMITS: [&str; 3] = ["container", "pod", "node"];
const REASON: Label = Label::free("reason", "as `podctl get pods` shows it");

pub(super) const DOMAIN: Domain = Domain {
    title: "Pods and containers",
    text: "Only the `_info` metrics carry a uid, an image or an address; join them by \
           `namespace`, `pod` and `container`. A container that has ended keeps its series for as \
           long as its pod is there.",
    families: &[
        Family::gauge(
            "podscope_pod_info",
            "What identifies the pod; always 1.",
            Pod(|pod, sheet| {
                let network = if pod.about.host_network { "host" } else { "pod" };
                let ip = pod.about.ip.as_deref().unwrap_or_default();
                sheet.count(&[&pod.about.uid, ip, &pod.about.node, network], 1);
            }),
        )
        .by(&[
            Label::free("uid", "uid of the pod"),
            Label::free("ip", "address of the pod; empty while it has none"),
            Label::free("node", "name of the node"),
            Label::one_of("network", &["pod", "host"]),
        ])
        .kept(),
        Family::gauge(
            "podscope_pod_phase",
            "The phase that the pod is in; always 1.",
            Pod(|pod, sheet| sheet.count(&[pod.about.phase], 1)),
        )
        .by(&[PHASE]),
        Family::gauge(
            "podscope_pod_ready",
            "1 when all containers of the pod are ready, else 0.",
            Pod(|pod, sheet| sheet.count(&[], pod.about.ready.into())),
        ),
        Family::gauge(
            "podscope_pod_created_timestamp_seconds",
            "When the pod was admitted, as a Unix time.",
            Pod(|pod, sheet| sheet.value(&[], seconds(pod.about.created))),
        )
        .kept()
        .never_summed(),
        Family::gauge(
            "podscope_pod_start_time_seconds",
            "When the pod's infra container started, as a Unix time; absent before.",
            Pod(|pod, sheet| {
                if let Some(started) = pod.about.started {
                    sheet.value(&[], seconds(started));
                }
            }),
        )
        .kept()
        .never_summed(),
        Family::gauge(
            "podscope_observed_from_timestamp_seconds",
            "Since when the probes count for the pod, as a Unix time. Not after the start of the \
             pod, unless the daemon could not keep its counters over a restart.",
            Pod(|pod, sheet| sheet.value(&[], seconds(pod.about.observed_from))),
        )
        .kept()
        .never_summed(),
        Family::gauge(
            "podscope_limit_unenforced",
            "A limit of the pod that this node cannot enforce, by the controller that it lacks; \
             always 1. Only with `--unenforced-limits=warn`.",
            Pod(|pod, sheet| {
                for controller in &pod.unenforced {
                    sheet.count(&[controller], 1);
                }
            }),
        )
        .by(&[Label::each("controller", &["cpu", "memory", "pids", "io", "hugetlb"])]),
        Family::gauge(
            "podscope_pod_qos_class",
            "The pod's quality-of-service class; always 1.",
            Pod(|pod, sheet| sheet.count(&[pod.about.qos_class], 1)),
        )
        .by(&[Label::one_of("class", &["Guaranteed", "Burstable", "BestEffort"])]),
        Family::gauge(
            "podscope_container_info",
            "What the container runs; always 1.",
            Container(|c, sheet| {
                sheet.count(&[&c.about.image, &c.about.image_id, &c.about.container_id], 1);
            }),
        )
        .by(&[
            Label::free("image", "image as the manifest names it"),
            Label::free("image_id", "digest of the image"),
            Label::free("container_id", "id of the running or last container"),
        ])
        .kept(),
        Family::gauge(
            "podscope_container_state",
            "The state that the container is in; always 1.",
            Container(|c, sheet| {
                let state = match c.about.state {
                    State::Waiting { .. } => "waiting",
                    State::Running { .. } => "running",
                    State::Terminated(_) => "terminated",
                };
                sheet.count(&[state], 1);
            }),
        )
        .by(&[STATE]),
        Family::gauge(
            "podscope_container_waiting_reason",
            "Why the container waits; always 1, and absent when it does not.",
            Container(|c, sheet| {
                if let State::Waiting { reason, .. } = &c.about.state {
                    sheet.count(&[reason], 1);
                }
            }),
        )
        .by(&[REASON]),
        Family::counter(
            "podscope_container_restarts_total",
            "Restarts of the container within its pod.",
            Container(|c, sheet| sheet.count(&[], c.about.restarts.into())),
        ),
        Family::counter(
            "podscope_container_oom_kills_total",
            "Runs of the container that lost processes to the kernel's OOM killer, by whose memory \
             had run out: only those of its own limit are called OOMKilled. Exemplar: the process that \
             was killed in the last run.",
            Container(|c, sheet| {
                for (limit, count) in OOM_LIMITS.iter().zip(c.about.ooms) {
                    sheet.count_such_as(&[limit], count, c.victim);
                }
            }),
        )
        .by(&[Label::each("limit", &OOM_LIMITS)]),
        Family::gauge(
            "podscope_container_rootfs_used_bytes",
            "Disk that the container's changes to its image take up, measured every \
             `--disk-usage-seconds`, or seldom enough to cost a tenth of a CPU at most (a \
             thousandth for pods without a limit of disk, but every 30th time); absent before \
             the first time.",
            Container(|c, sheet| {
                if let Some(disk) = c.disk {
                    sheet.count(&[], disk.rootfs_bytes);
                }
            }),
        ),
        Family::gauge(
            "podscope_container_log_used_bytes",
            "Disk that the container's logs take up, measured with the former.",
            Container(|c, sheet| {
                if let Some(disk) = c.disk {
                    sheet.count(&[], disk.log_bytes);
                }
            }),
        ),
        Family::gauge(
            "podscope_container_start_time_seconds",
            "When the container last started, as a Unix time; absent before its first start.",
            Container(|c, sheet| {
                if let Some(started) = started(c) {
                    sheet.value(&[], seconds(started));
                }
            }),
        )
        .kept()
        .never_summed(),
        Family::gauge(
            "podscope_container_last_exit_code",
            "Exit code of the container's last end, 128 + signal if one ended it; absent before.",
            Container(|c, sheet| {
                if let Some(exit) = last_exit(c) {
                    sheet.value(&[], exit.code.into());
                }
            }),
        )
        .kept()
        .never_summed(),
        Family::gauge(
            "podscope_container_last_exit_timestamp_seconds",
            "When the container last ended, as a Unix time; absent before.",
            Container(|c, sheet| {
                if let Some(exit) = last_exit(c) {
                    sheet.value(&[], seconds(exit.finished));
                }
            }),
        )
        .kept()
        .never_summed(),
        Family::gauge(
            "podscope_container_last_exit_info",
            "How the container last ended; always 1, and absent before.",
            Container(|c, sheet| {
                if let Some(exit) = last_exit(c) {
                    let signal = exit.signal.and_then(|signal| usize::try_from(signal).ok());
                    let signal = signal.map(signal_name).unwrap_or_default();
                    sheet.count(&[&exit.reason, &signal], 1);
                }
            }),
        )
        .by(&[REASON, Label::free("signal", "signal that ended it, if one did, such as `SIGKILL`")])
        .kept(),
    ],
};

fn last_exit(container: &reading::Container) -> Option<&Exit> {
    match &container.about.state {
        State::Terminated(exit) => Some(exit),
        State::Waiting { .. } | State::Running { .. } => container.about.last_exit.as_ref(),
    }
}

fn started(container: &reading::Container) -> Option<Timestamp> {
    match &container.about.state {
        State::Running { started } => Some(*started),
        State::Terminated(_) | State::Waiting { .. } => last_exit(container).map(|e| e.started),
    }
}

pub(super) fn seconds(timestamp: Timestamp) -> f64 {
    timestamp.as_duration().as_secs_f64()
}

//! What the node does on its own: it ends pods that have to leave for others, and those that use more
//! disk than they may; and it tells about limits that hinder without ending anything.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    EventType, Node, Shared,
    admission::Preemption,
    disk::{self, Budget},
};
use crate::{
    cgroup::stats,
    pod::{self, Disruption, Key},
};

/// Walking pods' files may take this share of one CPU's time, and no more.
const SHARE: u32 = 10;

/// How often it is looked for pods with too many connections.
const CONNECTIONS_INTERVAL: Duration = Duration::from_secs(5);

/// As much as a thread can give way.
const NICE: i32 = 19;

/// How often it is looked for refused forks.
const LIMITS_INTERVAL: Duration = Duration::from_secs(5);

/// Runs until the node is gone.
pub(super) fn start(shared: &Arc<Shared>, preemptions: mpsc::UnboundedReceiver<Preemption>) {
    tokio::spawn(preempt(Arc::downgrade(shared), preemptions));
    tokio::spawn(watch_disk(Arc::downgrade(shared)));
    tokio::spawn(watch_connections(Arc::downgrade(shared)));
    tokio::spawn(watch_limits(Arc::downgrade(shared)));
}

/// Ends pods that have to leave for others, with the grace that they have.
async fn preempt(shared: Weak<Shared>, mut preemptions: mpsc::UnboundedReceiver<Preemption>) {
    while let Some(Preemption { victim, message }) = preemptions.recv().await {
        let Some(shared) = shared.upgrade() else { return };
        let Ok(commands) = shared.table.commands(&victim) else { continue };
        let why = Disruption { reason: "Preempted".to_owned(), message, evicted: false };
        // A worker that does not listen is on its way out already.
        commands.send(pod::Command::Disrupt(why)).await.ok();
        let node = Node { shared };
        if let Err(error) = node.delete_pod(&victim.namespace, &victim.name, None).await {
            tracing::warn!(pod = %victim, %error, "a pod that has to leave stays");
        }
    }
}

/// Reads what connections pods were refused, again and again, and says whose.
async fn watch_connections(shared: Weak<Shared>) {
    let mut known = BTreeMap::new();
    loop {
        let Some(node) = shared.upgrade() else { return };
        let limit = node.network.connection_limit();
        if limit == 0 {
            return;
        }
        let reader = Arc::clone(&node);
        let read = tokio::task::spawn_blocking(move || reader.network.count_refused());
        if let Ok(Err(error)) = read.await {
            tracing::debug!(%error, "refused connections are not counted");
        }
        let refused = node.network.refused_connections();
        for (uid, count) in refused.iter().filter(|(uid, count)| known.get(*uid) != Some(*count)) {
            tracing::warn!(uid, count, limit, "a pod has as many connections as it may");
            let pods = node.table.snapshots();
            if let Some(pod) = pods.iter().find(|pod| pod.uid == *uid) {
                let key = Key::new(&pod.namespace, &pod.name);
                let message =
                    format!("The pod has {limit} connections, as many as it may; more are dropped");
                node.event(&key, None, EventType::Warning, "ConnectionsLimit", message);
            }
        }
        known = refused;
        drop(node);
        sleep(CONNECTIONS_INTERVAL).await;
    }
}

/// Measures what pods use, again and again, and evicts those that use too much.
async fn watch_disk(shared: Weak<Shared>) {
    loop {
        let Some(node) = shared.upgrade() else { return };
        node.admission.set_pressure(disk::pressure(&node.settings.data_dir, node.disk_reserve()));
        let limited: Vec<(Key, Vec<Budget>)> = limited_pods(&node);
        let began = Instant::now();
        let exceeded = if limited.is_empty() { Vec::new() } else { measure(limited).await };
        for (key, message) in exceeded {
            evict(&node, &key, message).await;
        }
        let pause = node.settings.usage_interval.max(began.elapsed() * SHARE);
        // Not held while nothing is done: the node may be gone by then.
        drop(node);
        sleep(pause).await;
    }
}

/// Pods that run and have limits.
fn limited_pods(shared: &Shared) -> Vec<(Key, Vec<Budget>)> {
    let (pods, _) = shared.table.pods(None);
    let budgets = |pod: &Arc<Pod>| {
        let key = Key::of(&**pod);
        let phase = pod.status.as_ref()?.phase.as_deref()?;
        if matches!(phase, "Succeeded" | "Failed") {
            return None;
        }
        let uid = pod.metadata.uid.as_deref()?;
        let files = shared.pod_directory(uid);
        let logs = pod::logs::directory(&shared.settings.log_dir, &key, uid);
        let budgets = disk::budgets(pod.spec.as_ref()?, &files, &logs);
        (!budgets.is_empty()).then_some((key, budgets))
    };
    pods.iter().filter_map(budgets).collect()
}

/// Finds the pods that use too much, on a thread that gives way to everything else.
async fn measure(limited: Vec<(Key, Vec<Budget>)>) -> Vec<(Key, String)> {
    let (reply, answer) = oneshot::channel();
    let walk = move || {
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "pods' files are measured at full speed");
        }
        let exceeded = limited
            .into_iter()
            .filter_map(|(key, budgets)| Some((key, budgets.iter().find_map(Budget::violation)?)));
        // Nobody waits when the daemon ends.
        reply.send(exceeded.collect()).ok();
    };
    if let Err(error) = std::thread::Builder::new().name("disk-usage".to_owned()).spawn(walk) {
        tracing::warn!(%error, "pods' use of the disk is not measured");
        return Vec::new();
    }
    answer.await.unwrap_or_default()
}

async fn evict(shared: &Shared, key: &Key, message: String) {
    tracing::warn!(pod = %key, %message, "evicted");
    let Ok(commands) = shared.table.commands(key) else { return };
    let why = Disruption { reason: "Evicted".to_owned(), message, evicted: true };
    if commands.send(pod::Command::Disrupt(why)).await.is_ok() {
        shared.admission.count_disruption("Evicted");
    }
}

/// Tells about containers that have met their limit of processes: the program sees an error like any
/// other, and nobody else sees anything.
async fn watch_limits(shared: Weak<Shared>) {
    let began = Timestamp::now();
    let mut refused = HashMap::new();
    loop {
        sleep(LIMITS_INTERVAL).await;
        let Some(node) = shared.upgrade() else { return };
        refused = refusals(&node, &refused, began);
    }
}

/// How many forks each container was refused so far, by cgroup; tells what is more than `before`.
fn refusals(
    node: &Shared,
    before: &HashMap<PathBuf, u64>,
    began: Timestamp,
) -> HashMap<PathBuf, u64> {
    let mut all = HashMap::new();
    for pod in node.table.snapshots() {
        for container in pod.containers {
            let (Some(cgroup), Some(limit)) = (container.cgroup, container.limits.pids) else {
                continue;
            };
            let Some(stats::Pids { refused, .. }) = stats::pids(&cgroup) else { continue };
            // An earlier daemon has told what it saw of the pods that this one took over.
            let known = if pod.created < began { refused } else { 0 };
            if refused > before.get(&cgroup).copied().unwrap_or(known) {
                let (key, name) = (Key::new(&pod.namespace, &pod.name), container.name);
                let message = format!(
                    "Container {name} met its limit of {limit} processes and threads; forks are refused"
                );
                node.event(&key, Some(&name), EventType::Warning, "PidsLimit", message);
            }
            all.insert(cgroup, refused);
        }
    }
    all
}

/// How often pods' use of the disk is measured unless the node's owner says otherwise.
pub const USAGE_INTERVAL: Duration = Duration::from_secs(10);

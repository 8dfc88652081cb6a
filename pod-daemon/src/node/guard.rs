//! What the node does to pods on its own: it ends those that have to leave for others, and those that
//! use more disk than they may.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, PoisonError, Weak},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::PodSpec;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    DiskUsage, Node, PodSnapshot, Shared,
    admission::Preemption,
    disk::{self, Budget, Measured},
    refusals,
};
use crate::pod::{self, Disruption, Key};

/// Walking the files of pods that may be evicted may take this share of one CPU's time, and no more.
const SHARE: u32 = 10;

/// And of all others, who are measured for their owners' eyes alone, this one.
const SHARE_OF_OTHERS: u32 = 1000;

/// But they are measured each time that so many intervals are over, whatever it takes.
const RARELY: u32 = 30;

/// As much as a thread can give way.
const NICE: i32 = 19;

/// Runs until the node is gone.
pub(super) fn start(shared: &Arc<Shared>, preemptions: mpsc::UnboundedReceiver<Preemption>) {
    tokio::spawn(preempt(Arc::downgrade(shared), preemptions));
    tokio::spawn(watch_disk(Arc::downgrade(shared)));
    tokio::spawn(refusals::watch(Arc::downgrade(shared)));
}

/// Ends pods that have to leave for others, with the grace that they have.
async fn preempt(shared: Weak<Shared>, mut preemptions: mpsc::UnboundedReceiver<Preemption>) {
    while let Some(Preemption { victim, message }) = preemptions.recv().await {
        let Some(shared) = shared.upgrade() else { return };
        let Ok(commands) = shared.table.commands(&victim) else { continue };
        let why = Disruption { reason: "Preempted".to_owned(), message, evicted: false };
        // A worker that does not listen is on its way out already.
        commands.send(Box::new(pod::Command::Disrupt(why))).await.ok();
        let node = Node { shared };
        if let Err(error) = node.delete_pod(&victim.namespace, &victim.name, None).await {
            tracing::warn!(pod = %victim, %error, "a pod that has to leave stays");
        }
    }
}

/// Measures what pods have on the disk, again and again, and evicts those that use too much.
async fn watch_disk(shared: Weak<Shared>) {
    // By uid, for as long as they are there: a pod takes its time to end, and is evicted once.
    let mut evicted: HashSet<String> = HashSet::new();
    let mut all_again = Instant::now();
    loop {
        let Some(node) = shared.upgrade() else { return };
        node.admission.set_pressure(disk::pressure(&node.settings.data_dir, node.disk_reserve()));
        let mut written = written(&node, &evicted);
        let there: HashSet<String> = written.iter().map(|pod| pod.uid.clone()).collect();
        evicted.retain(|uid| there.contains(uid));
        let began = Instant::now();
        let is_all = began >= all_again;
        if !is_all {
            let usage = node.disk_usage.lock().unwrap_or_else(PoisonError::into_inner);
            written.retain(|pod| !pod.budgets.is_empty() || !usage.contains_key(&pod.uid));
        }
        let measured = if written.is_empty() { Vec::new() } else { measure(written).await };
        let cost = began.elapsed();
        if is_all {
            all_again = began + (cost * SHARE_OF_OTHERS).min(node.settings.usage_interval * RARELY);
        }
        let mut usage = HashMap::with_capacity(measured.len());
        for pod in measured {
            if let Some(message) = pod.violation {
                evict(&node, &pod.key, message).await;
                evicted.insert(pod.uid.clone());
            }
            usage.insert(pod.uid, Arc::new(pod.usage));
        }
        {
            let mut known = node.disk_usage.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|uid, _| there.contains(uid));
            known.extend(usage);
        }
        let pause = node.settings.usage_interval.max(cost * SHARE);
        // Not held while nothing is done: the node may be gone by then.
        drop(node);
        sleep(pause).await;
    }
}

/// A pod that has written something, or may have.
struct Written {
    key: Key,
    uid: String,
    files: PathBuf,
    logs: PathBuf,
    containers: Vec<String>,
    /// Its limits, if it can still be evicted.
    budgets: Vec<Budget>,
}

/// What it has written.
struct Measurement {
    key: Key,
    uid: String,
    usage: HashMap<String, DiskUsage>,
    violation: Option<String>,
}

/// All pods; those that are over, or `evicted`, without their limits.
fn written(shared: &Shared, evicted: &HashSet<String>) -> Vec<Written> {
    let written = |(pod, spec): (Arc<PodSnapshot>, Arc<PodSpec>)| {
        let (key, uid) = (pod.key(), pod.uid.clone());
        let files = shared.pod_directory(&uid);
        let logs = pod::logs::directory(&shared.settings.log_dir, &key, &uid);
        let stays = matches!(pod.phase, "Succeeded" | "Failed") || evicted.contains(&uid);
        let budgets = if stays { Vec::new() } else { disk::budgets(&spec, &files, &logs) };
        let containers = spec.containers.iter().map(|container| container.name.clone()).collect();
        Written { key, uid, files, logs, containers, budgets }
    };
    shared.table.specs(None).into_iter().map(written).collect()
}

/// Measures what pods have written, on a thread that gives way to everything else.
async fn measure(written: Vec<Written>) -> Vec<Measurement> {
    let (reply, answer) = oneshot::channel();
    let walk = move || {
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "pods' files are measured at full speed");
        }
        // Nobody waits when the daemon ends.
        reply.send(written.into_iter().map(Written::measure).collect()).ok();
    };
    if let Err(error) = std::thread::Builder::new().name("disk-usage".to_owned()).spawn(walk) {
        tracing::warn!(%error, "pods' use of the disk is not measured");
        return Vec::new();
    }
    answer.await.unwrap_or_default()
}

impl Written {
    fn measure(self) -> Measurement {
        let Self { key, uid, files, logs, containers, budgets } = self;
        let mut measured = Measured::default();
        let violation = disk::violation(&budgets, &mut measured);
        let usage = containers.into_iter().map(|name| {
            let usage = measured.container(&name, &files, &logs);
            (name, usage)
        });
        Measurement { usage: usage.collect(), key, uid, violation }
    }
}

async fn evict(shared: &Shared, key: &Key, message: String) {
    tracing::warn!(pod = %key, %message, "evicted");
    let Ok(commands) = shared.table.commands(key) else { return };
    let why = Disruption { reason: "Evicted".to_owned(), message, evicted: true };
    if commands.send(Box::new(pod::Command::Disrupt(why))).await.is_ok() {
        shared.admission.count_disruption("Evicted");
    }
}

/// How often pods' use of the disk is measured unless the node's owner says otherwise.
pub const USAGE_INTERVAL: Duration = Duration::from_secs(10);

//! What the node does to pods on its own: it ends those that have to leave for others, and those that
//! use more disk than they may.

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    Node, Shared,
    admission::Preemption,
    disk::{self, Budget},
    refusals,
};
use crate::pod::{self, Disruption, Key};

/// Walking pods' files may take this share of one CPU's time, and no more.
const SHARE: u32 = 10;

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
        commands.send(pod::Command::Disrupt(why)).await.ok();
        let node = Node { shared };
        if let Err(error) = node.delete_pod(&victim.namespace, &victim.name, None).await {
            tracing::warn!(pod = %victim, %error, "a pod that has to leave stays");
        }
    }
}

/// Measures what pods use, again and again, and evicts those that use too much.
async fn watch_disk(shared: Weak<Shared>) {
    // By uid, for as long as they are there: a pod takes its time to end, and is evicted once.
    let mut evicted: HashSet<String> = HashSet::new();
    loop {
        let Some(node) = shared.upgrade() else { return };
        node.admission.set_pressure(disk::pressure(&node.settings.data_dir, node.disk_reserve()));
        let limited = limited_pods(&node, &mut evicted);
        let began = Instant::now();
        let exceeded = if limited.is_empty() { Vec::new() } else { measure(limited).await };
        for (pod, message) in exceeded {
            evict(&node, &pod.key, message).await;
            evicted.insert(pod.uid);
        }
        let pause = node.settings.usage_interval.max(began.elapsed() * SHARE);
        // Not held while nothing is done: the node may be gone by then.
        drop(node);
        sleep(pause).await;
    }
}

/// A pod that has limits.
struct Limited {
    key: Key,
    uid: String,
    budgets: Vec<Budget>,
}

/// Pods that run, have limits, and are not `evicted`; those that are gone are struck off that.
fn limited_pods(shared: &Shared, evicted: &mut HashSet<String>) -> Vec<Limited> {
    let (pods, _) = shared.table.pods(None);
    let uids: HashSet<&str> = pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
    evicted.retain(|uid| uids.contains(uid.as_str()));
    let limited = |pod: &Arc<Pod>| {
        let key = Key::of(&**pod);
        let phase = pod.status.as_ref()?.phase.as_deref()?;
        if matches!(phase, "Succeeded" | "Failed") {
            return None;
        }
        let uid = pod.metadata.uid.as_deref().filter(|uid| !evicted.contains(*uid))?;
        let files = shared.pod_directory(uid);
        let logs = pod::logs::directory(&shared.settings.log_dir, &key, uid);
        let budgets = disk::budgets(pod.spec.as_ref()?, &files, &logs);
        (!budgets.is_empty()).then(|| Limited { key, uid: uid.to_owned(), budgets })
    };
    pods.iter().filter_map(limited).collect()
}

/// Finds the pods that use too much, on a thread that gives way to everything else.
async fn measure(limited: Vec<Limited>) -> Vec<(Limited, String)> {
    let (reply, answer) = oneshot::channel();
    let walk = move || {
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "pods' files are measured at full speed");
        }
        let exceeded = limited.into_iter().filter_map(|pod| {
            let message = disk::violation(&pod.budgets)?;
            Some((pod, message))
        });
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

/// How often pods' use of the disk is measured unless the node's owner says otherwise.
pub const USAGE_INTERVAL: Duration = Duration::from_secs(10);

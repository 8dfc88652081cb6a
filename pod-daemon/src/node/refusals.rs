//! Limits that hinder a pod without ending it: the program sees an error like any other, and nobody
//! else would see anything. Told as events, and in the pod's status.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::time::sleep;

use super::{EventType, PodSnapshot, Shared};
use crate::{
    cgroup::stats,
    pod::{self, Key, LimitMet},
};

/// How often it is looked for pods that were refused something, unless that costs too much.
const INTERVAL: Duration = Duration::from_secs(5);

/// Looking may take this share of one CPU's time: to run a program costs more, the more descriptors
/// the daemon has.
const SHARE: u32 = 500;

/// The longest pause that this leads to.
const LONGEST: Duration = Duration::from_secs(30);

/// What pods were refused so far.
struct Refused {
    /// When this daemon began: an earlier one has told what it saw.
    began: Timestamp,
    /// Forks, by the id of the container's cgroup.
    forks: HashMap<u64, u64>,
    /// Connections, by the pod's uid.
    connections: BTreeMap<String, u64>,
}

/// A limit that somebody has met.
struct Met {
    pod: Key,
    container: Option<String>,
    reason: &'static str,
    message: String,
}

/// Looks again and again, until the node is gone.
pub(super) async fn watch(shared: Weak<Shared>) {
    let mut refused =
        Refused { began: Timestamp::now(), forks: HashMap::new(), connections: BTreeMap::new() };
    let mut pause = INTERVAL;
    loop {
        sleep(pause).await;
        let began = Instant::now();
        let Some(node) = shared.upgrade() else { return };
        let look = move || {
            let met = refused.look(&node);
            for met in met {
                tell(&node, met);
            }
            refused
        };
        // Files are read and a program is run.
        refused = match tokio::task::spawn_blocking(look).await {
            Ok(refused) => refused,
            Err(error) => return tracing::error!(%error, "limits are not watched any more"),
        };
        pause = INTERVAL.max((began.elapsed() * SHARE).min(LONGEST));
    }
}

impl Refused {
    /// The limits that were met since the last look.
    fn look(&mut self, node: &Shared) -> Vec<Met> {
        let mut met = self.look_for_forks(node);
        met.extend(self.look_for_connections(node));
        met
    }

    fn look_for_forks(&mut self, node: &Shared) -> Vec<Met> {
        let (mut all, mut met) = (HashMap::new(), Vec::new());
        for pod in node.table.snapshots() {
            for container in &pod.containers {
                let (Some(cgroup), Some(limit)) = (&container.cgroup, container.limits.pids) else {
                    continue;
                };
                let Some(stats::Pids { refused, .. }) = stats::pids(cgroup) else { continue };
                let told = if pod.created < self.began { refused } else { 0 };
                if refused > self.forks.get(&cgroup.id()).copied().unwrap_or(told) {
                    let name = container.name.clone();
                    met.push(Met {
                        pod: pod.key(),
                        reason: "PidsLimit",
                        message: format!(
                            "Container {name} met its limit of {limit} processes and threads; forks \
                             are refused"
                        ),
                        container: Some(name),
                    });
                }
                all.insert(cgroup.id(), refused);
            }
        }
        self.forks = all;
        met
    }

    fn look_for_connections(&mut self, node: &Shared) -> Vec<Met> {
        let limit = node.network.connection_limit();
        let counted = node.network.count_refused();
        if let Err(error) = &counted {
            tracing::debug!(%error, "refused connections are not counted");
        }
        if limit == 0 || counted.is_err() {
            node.network.restore();
        }
        let all = node.network.refused_connections();
        let more = |pod: &Arc<PodSnapshot>| {
            let Some(refused) = all.get(&pod.uid) else { return false };
            let told = if pod.created < self.began { *refused } else { 0 };
            *refused > self.connections.get(&pod.uid).copied().unwrap_or(told)
        };
        let pods = node.table.snapshots().into_iter().filter(more);
        let met = pods.map(|pod| Met {
            pod: pod.key(),
            container: None,
            reason: "ConnectionsLimit",
            message: format!(
                "The pod has {limit} connections, as many as it may; more are dropped"
            ),
        });
        let met = met.collect();
        // A pod that nothing was refused yet has been looked at, too.
        self.connections = node.table.snapshots().iter().map(|pod| (pod.uid.clone(), 0)).collect();
        self.connections.extend(all);
        met
    }
}

fn tell(node: &Arc<Shared>, met: Met) {
    let Met { pod, container, reason, message } = met;
    tracing::warn!(%pod, reason, message, "a pod has met a limit");
    node.event(&pod, container.as_deref(), EventType::Warning, reason, message.clone());
    if let Ok(commands) = node.table.commands(&pod) {
        let limit = LimitMet { reason, message, at: Timestamp::now() };
        // A pod that is busy hears of it the next time.
        commands.try_send(Box::new(pod::Command::LimitMet(limit))).ok();
    }
}

//! What the node runs at one instant, as metrics and `top` need it.

use std::{path::PathBuf, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    cgroup::{Cgroup, Limits},
    pod::Key,
};

/// One pod.
#[derive(Clone, Debug)]
pub struct PodSnapshot {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its address, once it has one.
    pub ip: Option<String>,
    /// The node's name.
    pub node: String,
    /// Whether it uses the host's network.
    pub host_network: bool,
    /// `Pending`, `Running`, `Succeeded` or `Failed`.
    pub phase: &'static str,
    /// Its quality-of-service class.
    pub qos_class: &'static str,
    /// Whether all containers are ready.
    pub ready: bool,
    /// When it was created.
    pub created: Timestamp,
    /// When its sandbox was up.
    pub started: Option<Timestamp>,
    /// Since when the probes have been counting.
    pub observed_from: Timestamp,
    /// The cgroup that those of its containers are in; none before it is made.
    pub cgroup: Option<Arc<Cgroup>>,
    /// Names of its volumes, and for each a path on its file system; none before they are made.
    pub volumes: Vec<(String, PathBuf)>,
    /// How many these are when they are made.
    pub volume_count: usize,
    /// Its containers, in the manifest's order.
    pub containers: Vec<ContainerSnapshot>,
}

impl PodSnapshot {
    /// Its name and namespace.
    #[must_use]
    pub fn key(&self) -> Key {
        Key::new(&self.namespace, &self.name)
    }
}

/// One container.
#[derive(Clone, Debug)]
pub struct ContainerSnapshot {
    /// Its name.
    pub name: String,
    /// The image as the manifest names it.
    pub image: String,
    /// What that turned out to be; empty while unknown.
    pub image_id: String,
    /// Id of the current or last run; empty before the first.
    pub container_id: String,
    /// What it is doing.
    pub state: State,
    /// How its last run ended.
    pub last_exit: Option<Exit>,
    /// How often it was started again.
    pub restarts: u32,
    /// Slot of its counters; 0 if it has none yet.
    pub slot: u32,
    /// Its cgroup.
    pub cgroup: Option<Arc<Cgroup>>,
    /// Volumes and the cells of their counters, `rootfs` first and `other` last; none before they have
    /// cells.
    pub volumes: Arc<[(Arc<str>, u32)]>,
    /// How many these are when they have cells.
    pub volume_count: usize,
    /// What it may use.
    pub limits: Limits,
    /// What it asks for.
    pub requests: Limits,
    /// Runs that the kernel ended for want of memory: the container's, the pod's, or the node's.
    pub ooms: [u64; 3],
    /// The variable `TRACEPARENT` that the manifest gives it.
    pub traceparent: Option<String>,
}

/// What a container has on the node's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes of what it has changed in its image.
    pub rootfs_bytes: u64,
    /// Bytes of its logs.
    pub log_bytes: u64,
}

/// What a container is doing.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum State {
    /// Not running, but it will.
    Waiting {
        /// As kubelet names it, e.g. `ContainerCreating`.
        reason: String,
        /// For people.
        message: String,
    },
    /// Running.
    Running {
        /// Since when.
        started: Timestamp,
    },
    /// Ended for good.
    Terminated(Exit),
}

/// How a run ended.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Exit {
    /// Exit code, or 128 plus the signal.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// As kubelet names it, e.g. `Completed`.
    pub reason: String,
    /// For people; empty if there is nothing to say.
    pub message: String,
    /// When the run began.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
}

/// Keeps what was counted for pods when they are gone.
pub trait Keeper: Send + Sync {
    /// Reads what is gone with the pod's infra process, for [`Self::hold`]: before that is ended. Blocks.
    fn look(&self, pod: &PodSnapshot);

    /// Reads a pod for the last time and stores that, unless it is stored already: its processes are
    /// dead. When this has returned, nobody reads its cgroups and counters any more. Blocks.
    fn hold(&self, pod: PodSnapshot, refused_connections: u64);

    /// Takes note that the node does not have the pod any more: its name may be another's.
    fn retire(&self, uid: &str);
}

/// What a pod uses now.
#[derive(Clone, Debug)]
pub struct PodUsage {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its containers.
    pub containers: Vec<ContainerUsage>,
}

/// What a container uses now, and what it did so far.
#[derive(Clone, Debug)]
pub struct ContainerUsage {
    /// Its name.
    pub name: String,
    /// CPUs in use.
    pub cpu_cores: f64,
    /// Memory in use, if the node can tell.
    pub memory_bytes: Option<u64>,
    /// Execs so far.
    pub execs: u64,
    /// Bytes received so far.
    pub received_bytes: u64,
    /// Bytes sent so far.
    pub transmitted_bytes: u64,
    /// Bytes read from files so far.
    pub read_bytes: u64,
    /// Bytes written to files so far.
    pub written_bytes: u64,
}

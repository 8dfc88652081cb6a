//! How a pod lived and died: what `podctl explain` shows.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Advice, Event, Nearest};
use crate::node::Exit;

/// A pod's life so far, or all of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// When it was made.
    pub made: Timestamp,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
    /// The node.
    pub node: String,
    /// The pod's phase.
    pub phase: String,
    /// When it was created.
    pub created: Timestamp,
    /// When its sandbox was up.
    pub started: Option<Timestamp>,
    /// When it was removed.
    pub deleted: Option<Timestamp>,
    /// Its containers.
    pub containers: Vec<ContainerReport>,
    /// What it has of TCP; unknown of a pod that is gone or uses the host's network.
    pub connections: Option<Connections>,
    /// Limits that it met, and what Kubernetes' events told.
    pub events: Vec<Event>,
}

/// A container's part of that. Bytes, seconds and counts are of its whole life.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerReport {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// `waiting`, `running` or `terminated`.
    pub state: String,
    /// Why it waits.
    pub reason: String,
    /// The same for people.
    pub message: String,
    /// Since when it runs.
    pub since: Option<Timestamp>,
    /// How its last run ended.
    pub last_exit: Option<Exit>,
    /// How often it was started again.
    pub restarts: u32,
    /// Runs that were ended for want of memory.
    pub oom_kills: u64,
    /// What it used of each resource, as far as the node can tell.
    pub usage: Usage,
    /// Bytes over the network.
    pub received_bytes: u64,
    /// Bytes over the network.
    pub transmitted_bytes: u64,
    /// Outgoing connections by result.
    pub connects: BTreeMap<String, u64>,
    /// Incoming connections.
    pub accepts: u64,
    /// Successful execs.
    pub execs: u64,
    /// Processes that ended.
    pub exits: u64,
    /// Bytes of files, by volume.
    pub volumes: Vec<VolumeReport>,
    /// Its last execs, exits, victims and failed connects, by time.
    pub events: Vec<Event>,
    /// Its last lines of output.
    pub log: Vec<String>,
    /// The limit that it came nearest to.
    pub nearest: Option<Nearest>,
    /// Limits that would suit it better.
    pub advice: Vec<Advice>,
}

/// What a container used, and what it may.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Seconds that its life lasted, pauses between restarts included.
    pub life_seconds: f64,
    /// CPU time.
    pub cpu_seconds: Option<f64>,
    /// CPUs that it may use.
    pub cpu_limit: Option<f64>,
    /// CPUs that it asks for.
    pub cpu_request: Option<f64>,
    /// Periods of its CPU limit in which it wanted to run.
    pub cpu_periods: u64,
    /// Those in which it was held back.
    pub cpu_throttled_periods: u64,
    /// How long its tasks were held back.
    pub cpu_throttled_seconds: f64,
    /// Memory now.
    pub memory_bytes: Option<u64>,
    /// The most that it ever had (Linux 5.19).
    pub memory_peak: Option<u64>,
    /// Inactive files in what it has now, which the kernel takes back when it needs room.
    pub memory_cache: Option<u64>,
    /// What it asks for.
    pub memory_request: Option<u64>,
    /// What it may have.
    pub memory_limit: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// The most there ever were (Linux 6.10).
    pub pids_peak: Option<u64>,
    /// What there may be.
    pub pids_limit: Option<u64>,
    /// Forks that the limit refused.
    pub pids_refused: u64,
    /// Bytes from disks.
    pub io_read_bytes: Option<u64>,
    /// Bytes to disks.
    pub io_written_bytes: Option<u64>,
    /// Bytes per second that may be read and written.
    pub io_limits: [Option<u64>; 2],
    /// Seconds in which something waited for CPU, memory, disks.
    pub pressure_seconds: [Option<f64>; 3],
}

/// What a container read and wrote in a volume.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeReport {
    /// Its name.
    pub name: String,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// TCP sockets of a pod at the moment.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connections {
    /// Connections that are established.
    pub established: u64,
    /// Ports that it listens on.
    pub listening: Vec<u16>,
    /// Whom it has most connections with, and how many.
    pub peers: Vec<(String, u64)>,
}

//! All numbers of one scrape of /metrics/cadvisor.

use std::path::Path;

use jiff::Timestamp;

use super::{
    interface::{self, Interface},
    machine::Machine,
};
use crate::{
    cgroup::{
        Hierarchy,
        file::Reader,
        stats::{self, Details},
    },
    metrics::reading::for_each,
    node::{ContainerSnapshot, Node, PodSnapshot, State},
    pod::INFRA,
};

/// Labels of every series of a cgroup.
pub(super) const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// What stands for the image of the infra program, which has none: in many queries `image!=""`
/// means a container and not a cgroup around it, and `pause` one that is not the user's.
const INFRA_IMAGE: &str = concat!("podscope.dev/pause:", env!("CARGO_PKG_VERSION"));

/// Precedes the id of a container in the API.
const SCHEME: &str = "podscope://";

/// What one scrape tells.
pub(in crate::metrics) struct Reading {
    pub(super) machine: Machine,
    pods: Vec<Vec<Cgroup>>,
}

/// One cgroup and all that is known about it.
pub(in crate::metrics) struct Cgroup {
    /// Values of [`LABELS`].
    pub(super) labels: [String; LABELS.len()],
    pub(super) details: Details,
    /// Whether it is a container's.
    pub(super) is_container: bool,
    /// When what is in it was started.
    pub(super) started: Timestamp,
    /// When that was last seen.
    pub(super) seen: Timestamp,
    /// The pod's interfaces, if this is its infra program's cgroup.
    pub(super) interfaces: Vec<Interface>,
}

impl Reading {
    pub(in crate::metrics) fn take(node: &Node) -> Self {
        let machine = Machine::read(&node.admission().occupancy().capacity);
        let cgroups = node.cgroups();
        let snapshots = node.snapshot().into_iter();
        let mut pods: Vec<_> = snapshots.map(|about| (about, Vec::new())).collect();
        for_each(&mut pods, Reader::new, |reader, (about, found)| {
            *found = read(about, cgroups, reader);
        });
        Self { machine, pods: pods.into_iter().map(|(_, found)| found).collect() }
    }

    #[cfg(test)]
    pub(super) fn new(machine: Machine, pods: Vec<Vec<Cgroup>>) -> Self {
        Self { machine, pods }
    }

    pub(super) fn cgroups(&self) -> impl Iterator<Item = &Cgroup> {
        self.pods.iter().flatten()
    }

    #[cfg(test)]
    pub(super) fn cgroups_mut(&mut self) -> impl Iterator<Item = &mut Cgroup> {
        self.pods.iter_mut().flatten()
    }
}

/// The cgroups of a pod: its own, that of its infra program, and those of the containers.
fn read(pod: &PodSnapshot, cgroups: &Hierarchy, reader: &mut Reader) -> Vec<Cgroup> {
    let own = cgroups.root().join(&pod.uid);
    let infra = own.join(INFRA);
    let now = Timestamp::now();
    let started = pod.started.unwrap_or(pod.created);
    let mut cgroup = |path: &Path, container: &str, image: &str, name: &str| {
        let id = cgroups.name_of(path);
        let labels = [container, &*id, image, name, &*pod.namespace, &*pod.name];
        Some(Cgroup {
            labels: labels.map(str::to_owned),
            details: stats::details(path, reader)?,
            is_container: !container.is_empty(),
            started,
            seen: now,
            interfaces: Vec::new(),
        })
    };
    let mut found = Vec::with_capacity(2 + pod.containers.len());
    found.extend(cgroup(&own, "", "", ""));
    found.extend(cgroup(&infra, "", INFRA_IMAGE, &pod.uid).map(|mut found| {
        if !pod.host_network {
            found.interfaces = interface::of_cgroup(&infra);
        }
        found
    }));
    for container in &pod.containers {
        let ContainerSnapshot { name, image, container_id, cgroup: path, .. } = container;
        let id = container_id.strip_prefix(SCHEME).unwrap_or(container_id);
        // Before its first run, a container is nothing that cAdvisor would know of.
        let (Some(path), Some((started, seen))) = (path, lifetime(container, now)) else {
            continue;
        };
        let path = path.path();
        found.extend(cgroup(path, name, image, id).map(|found| Cgroup { started, seen, ..found }));
    }
    found
}

/// When the last run of a container began, and when it was last seen; `None` before its first.
fn lifetime(container: &ContainerSnapshot, now: Timestamp) -> Option<(Timestamp, Timestamp)> {
    if container.container_id.is_empty() {
        return None;
    }
    match (&container.state, &container.last_exit) {
        (State::Running { started }, _) => Some((*started, now)),
        (State::Terminated(exit), _) | (State::Waiting { .. }, Some(exit)) => {
            Some((exit.started, exit.finished))
        }
        (State::Waiting { .. }, None) => None,
    }
}

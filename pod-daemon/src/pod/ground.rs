//! What a pod has from its first moment to its last: cgroups, limits, probes and counters.
//!
//! A new sandbox or a restarted container finds the same cgroup and the same counters, so its
//! series go on.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Container;

use super::{About, Waiting, resources};
use crate::{
    cgroup::{self, Cgroup, Limits},
    node::{Completed, Shared},
    probes::{ContainerProbe, PodLinks},
};

/// Name of the infra program's cgroup. Containers' names cannot begin with an underscore.
const INFRA: &str = "_infra";

/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// The root filesystem's volume, in the metrics.
const ROOTFS: &str = "rootfs";

/// A pod's cgroups and what is attached to them.
pub(super) struct Ground {
    shared: Arc<Shared>,
    pod: Cgroup,
    infra: Cgroup,
    places: Vec<Place>,
    /// Declared last: the counters of the containers go first.
    _links: PodLinks,
}

/// One container's cgroup and counters.
pub(super) struct Place {
    pub(super) cgroup: Cgroup,
    pub(super) probe: ContainerProbe,
    pub(super) limits: Limits,
    pub(super) requests: Limits,
}

impl Ground {
    /// Makes the cgroups of a pod, and attaches the probes before there is a process in them.
    pub(super) fn make(shared: &Arc<Shared>, about: &About) -> Result<Self, Waiting> {
        Self::try_make(shared, about).inspect_err(|_error| {
            let path = shared.hierarchy.root().join(&about.uid);
            if let Err(error) = cgroup::remove_tree(&path) {
                tracing::warn!(pod = %about.key, %error, "a half-made pod leaves a cgroup");
            }
        })
    }

    fn try_make(shared: &Arc<Shared>, about: &About) -> Result<Self, Waiting> {
        let fail = |error: &dyn std::error::Error| Waiting::new("FailedCreatePodSandBox", error);
        let available = shared.hierarchy.controllers();
        let pod =
            Cgroup::create(shared.hierarchy.root(), &about.uid).map_err(|error| fail(&error))?;
        cgroup::hierarchy::enable_for_containers(pod.path());
        let whole = resources::of_pod(&about.spec.containers).map_err(|error| fail(&error))?;
        let asked =
            resources::requests_of_pod(&about.spec.containers).map_err(|error| fail(&error))?;
        cgroup::limits::apply(&pod, &whole, &asked, available).map_err(|error| fail(&error))?;
        let links = shared.probes.attach_pod(&pod).map_err(|error| fail(&error))?;
        let infra = Cgroup::create(pod.path(), INFRA).map_err(|error| fail(&error))?;
        let mut places = Vec::new();
        for container in &about.spec.containers {
            let cgroup =
                Cgroup::create(pod.path(), &container.name).map_err(|error| fail(&error))?;
            let limits = resources::limits(container).map_err(|error| fail(&error))?;
            let requests = resources::requests(container).map_err(|error| fail(&error))?;
            cgroup::limits::apply(&cgroup, &limits, &requests, available)
                .map_err(|error| fail(&error))?;
            // A container, not the pod: the others and the infra program are to live on.
            cgroup::limits::die_as_one(&cgroup, available).map_err(|error| fail(&error))?;
            let probe = shared
                .probes
                .add_container(&cgroup, &volume_labels(container))
                .map_err(|error| fail(&error))?;
            places.push(Place { cgroup, probe, limits, requests });
        }
        Ok(Self { shared: Arc::clone(shared), pod, infra, places, _links: links })
    }

    pub(super) fn infra(&self) -> &Cgroup {
        &self.infra
    }

    /// The place of the container `index`.
    pub(super) fn place(&self, index: usize) -> &Place {
        &self.places[index]
    }

    /// Kills the containers, and not the infra program.
    pub(super) fn kill_containers(&self) {
        for place in &self.places {
            report(place.cgroup.kill(PATIENCE));
        }
    }

    /// Kills what is left of one container's processes.
    pub(super) fn kill_container(&self, index: usize) {
        report(self.places[index].cgroup.kill(PATIENCE));
    }

    /// Kills the infra program.
    pub(super) fn kill_infra(&self) {
        report(self.infra.kill(PATIENCE));
    }

    /// What the pod did, for the totals of deleted pods. Its processes must be dead.
    pub(super) fn totals(&self, mut totals: Completed) -> Completed {
        let probes = &self.shared.probes;
        for place in &self.places {
            let process = probes.process(place.probe.slot());
            totals.execs += process.execs;
            totals.exits += process.exits.iter().chain(&process.signals).sum::<u64>();
            let net = probes.net(place.probe.slot());
            totals.received_bytes += net.bytes[0];
            totals.transmitted_bytes += net.bytes[1];
            for (_, cell) in place.probe.volumes() {
                let file = probes.file(cell);
                totals.read_bytes += file.read_bytes;
                totals.written_bytes += file.written_bytes;
            }
        }
        totals
    }

    /// Removes the cgroups. All processes must be dead. The counters are given back when the result
    /// is dropped, which is when nobody shows the pod any more.
    pub(super) fn remove(self) -> Vec<ContainerProbe> {
        report(self.pod.kill(PATIENCE));
        let (cgroups, probes): (Vec<_>, Vec<_>) =
            self.places.into_iter().map(|place| (place.cgroup, place.probe)).unzip();
        drop(cgroups);
        report(self.infra.remove());
        report(self.pod.remove());
        probes
    }
}

/// Names of a container's volumes in the metrics, in the order of their counters: the root, then
/// its mounts.
fn volume_labels(container: &Container) -> Vec<String> {
    std::iter::once(ROOTFS.to_owned())
        .chain(mounted_volumes(container).into_iter().map(|name| match name {
            // Taken by the root itself, and by everything that is no volume.
            ROOTFS | "other" => format!("{name}-volume"),
            name => name.to_owned(),
        }))
        .collect()
}

/// Names of the volumes that a container mounts, each once.
pub(super) fn mounted_volumes(container: &Container) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        if !names.contains(&mount.name.as_str()) {
            names.push(&mount.name);
        }
    }
    names
}

fn report(result: Result<(), cgroup::Error>) {
    if let Err(error) = result {
        tracing::error!(
            error = super::chain(&error),
            "cgroup left behind; the next start sweeps it"
        );
    }
}

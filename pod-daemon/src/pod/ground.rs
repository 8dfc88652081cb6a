//! What a pod has from its first moment to its last: cgroups, limits, probes and counters.
//!
//! A new sandbox or a restarted container finds the same cgroup and the same counters, so its
//! series go on.

use std::{os::fd::BorrowedFd, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Container;

use super::{About, Waiting, resources, security};
use crate::{
    cgroup::{self, Cgroup, Limits, OomCounts},
    events::Whose,
    fault,
    node::Shared,
    probes::{Claim, ContainerProbe},
};

/// Name of the infra program's cgroup. Containers' names cannot begin with an underscore.
pub const INFRA: &str = "_infra";

/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// The root filesystem's volume, in the metrics.
pub(super) const ROOTFS: &str = "rootfs";

/// A pod's cgroups and what is attached to them.
pub(super) struct Ground {
    shared: Arc<Shared>,
    pod: Arc<Cgroup>,
    limits: Limits,
    infra: Cgroup,
    places: Vec<Place>,
    uid: String,
}

/// One container's cgroup and counters.
pub(super) struct Place {
    pub(super) cgroup: Arc<Cgroup>,
    pub(super) probe: ContainerProbe,
    pub(super) limits: Limits,
    pub(super) requests: Limits,
}

impl Ground {
    /// Makes the cgroups of a pod, and attaches the probes before there is a process in them.
    pub(super) fn make(shared: &Arc<Shared>, about: &About) -> Result<Self, Waiting> {
        let mut places = Vec::new();
        let made = Self::try_make(shared, about, &mut places);
        match made {
            Ok((pod, infra)) => {
                let (limits, uid) = (resources::of_pod(&about.spec), about.uid.clone());
                let (shared, pod) = (Arc::clone(shared), pod.into());
                Ok(Self { shared, pod, limits, infra, places, uid })
            }
            Err(error) => {
                places.into_iter().for_each(|place| place.probe.release());
                sweep(shared, &about.uid);
                Err(Waiting::new("FailedCreatePodSandBox", &*error))
            }
        }
    }

    fn try_make(
        shared: &Shared,
        about: &About,
        places: &mut Vec<Place>,
    ) -> Result<(Cgroup, Cgroup), Failure> {
        let available = shared.hierarchy.controllers();
        fault::at("pod cgroup")?;
        let pod = Cgroup::create(shared.hierarchy.root(), &about.uid)?;
        cgroup::hierarchy::enable_for_containers(pod.path());
        fault::at("pod limits")?;
        let whole = resources::of_pod(&about.spec);
        let asked = resources::requests_of_pod(&about.spec);
        let device = shared.io_device;
        cgroup::limits::apply(&pod, &whole, &asked, available, device)?;
        fault::at("pod probes")?;
        shared.probes.prepare_pod(&about.uid)?;
        fault::at("infra cgroup")?;
        let infra = Cgroup::create(pod.path(), INFRA)?;
        let devices = Devices::of(about);
        devices.guard_pod(shared, &pod, &infra)?;
        for container in &about.spec.containers {
            fault::at("container cgroup")?;
            let cgroup = Cgroup::create(pod.path(), &container.name)?;
            devices.guard_container(shared, container, &cgroup)?;
            let (limits, requests) = (resources::limits(container), resources::requests(container));
            cgroup::limits::apply(&cgroup, &limits, &requests, available, device)?;
            // A container, not the pod: the others and the infra program are to live on.
            cgroup::limits::die_as_one(&cgroup, available)?;
            let volumes = volume_labels(container);
            let name = (&*about.uid, &*container.name);
            fault::at("container probes")?;
            let probe = shared.probes.add_container(name, &cgroup, &volumes)?;
            introduce(shared, about, container, &probe);
            places.push(Place { cgroup: Arc::new(cgroup), probe, limits, requests });
        }
        Ok((pod, infra))
    }

    /// Takes over the cgroups and counters that an earlier daemon has made.
    pub(super) fn adopt(
        shared: &Arc<Shared>,
        about: &About,
        counters: Vec<Claim>,
    ) -> Result<Self, Failure> {
        let path = shared.hierarchy.root().join(&about.uid);
        let infra = Cgroup::open(path.join(INFRA))?;
        let pod = Cgroup::open(path)?;
        shared.probes.prepare_pod(&about.uid)?;
        let devices = Devices::of(about);
        devices.guard_pod(shared, &pod, &infra)?;
        let mut places = Vec::new();
        for (container, claim) in about.spec.containers.iter().zip(counters) {
            let cgroup = Cgroup::open(pod.path().join(&container.name))?;
            devices.guard_container(shared, container, &cgroup)?;
            let (limits, requests) = (resources::limits(container), resources::requests(container));
            let volumes = volume_labels(container);
            let name = (&*about.uid, &*container.name);
            let probe = shared.probes.adopt_container(name, &cgroup, &volumes, claim)?;
            introduce(shared, about, container, &probe);
            places.push(Place { cgroup: Arc::new(cgroup), probe, limits, requests });
        }
        let (limits, uid) = (resources::of_pod(&about.spec), about.uid.clone());
        let (shared, pod) = (Arc::clone(shared), pod.into());
        Ok(Self { shared, pod, limits, infra, places, uid })
    }

    /// What a later daemon needs to take the counters over.
    pub(super) fn claims(&self) -> Vec<Claim> {
        self.places.iter().map(|place| place.probe.claim()).collect()
    }

    pub(super) fn infra(&self) -> &Cgroup {
        &self.infra
    }

    /// The cgroup that all others of the pod are in.
    pub(super) fn cgroup(&self) -> &Arc<Cgroup> {
        &self.pod
    }

    /// The place of the container `index`.
    pub(super) fn place(&self, index: usize) -> &Place {
        &self.places[index]
    }

    /// Counts what is dropped in the pod's network namespace, while it has one of its own.
    pub(super) fn watch_network(&self, namespace: Option<BorrowedFd<'_>>) {
        let inode = namespace.and_then(|namespace| rustix::fs::fstat(namespace).ok());
        let inode = inode.and_then(|stat| u32::try_from(stat.st_ino).ok());
        let Some(first) = self.places.first() else { return };
        if let Err(error) = first.probe.set_network(inode) {
            tracing::warn!(uid = self.uid, error = super::chain(&error), "drops are not counted");
        }
    }

    /// How often memory ran out for a container, and for the pod.
    pub(super) fn oom_counts(&self, index: usize) -> (OomCounts, OomCounts) {
        (self.places[index].cgroup.oom_counts(), self.pod.oom_counts())
    }

    /// The memory limits of a container, and of the pod.
    pub(super) fn memory_limits(&self, index: usize) -> (Option<u64>, Option<u64>) {
        (self.places[index].limits.memory_bytes, self.limits.memory_bytes)
    }

    /// The most memory that a container ever had.
    pub(super) fn memory_peak(&self, index: usize) -> Option<u64> {
        self.places[index].cgroup.memory_peak()
    }

    /// Kills the containers, and not the infra program.
    pub(super) fn kill_containers(&self) {
        (0..self.places.len()).for_each(|index| self.kill_container(index));
    }

    /// Kills what is left of one container's processes, and removes the cgroups that they made.
    pub(super) fn kill_container(&self, index: usize) {
        let cgroup = &self.places[index].cgroup;
        report(cgroup.kill(PATIENCE));
        report(cgroup.clear());
    }

    /// Kills the infra program.
    pub(super) fn kill_infra(&self) {
        report(self.infra.kill(PATIENCE));
    }

    /// Removes the cgroups. All processes must be dead. The counters are to be given back when nobody
    /// shows the pod any more.
    pub(super) fn remove(self) -> Vec<ContainerProbe> {
        report(self.pod.kill(PATIENCE));
        self.shared.probes.detach_pod(&self.uid);
        let (cgroups, probes): (Vec<_>, Vec<_>) =
            self.places.into_iter().map(|place| (place.cgroup, place.probe)).unzip();
        drop(cgroups);
        report(self.infra.remove());
        report(cgroup::remove_tree(self.pod.path()));
        probes
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Removes whatever there is of the cgroups of the pod `uid`, with the processes in them.
pub(super) fn sweep(shared: &Shared, uid: &str) {
    let path = shared.hierarchy.root().join(uid);
    if path.exists() {
        report(cgroup::kill_all(&path, PATIENCE));
        report(cgroup::remove_tree(&path));
    }
    shared.probes.detach_pod(uid);
}

/// Which cgroups of a pod get the device policy.
///
/// A device must be allowed at every level, so one container that may use all of them leaves the pod
/// itself without a guard, and every other container with one of its own.
struct Devices<'a> {
    uid: &'a str,
    by_container: bool,
}

impl<'a> Devices<'a> {
    fn of(about: &'a About) -> Self {
        let by_container = about.spec.containers.iter().any(security::is_privileged);
        Self { uid: &about.uid, by_container }
    }

    fn guard_pod(&self, shared: &Shared, pod: &Cgroup, infra: &Cgroup) -> Result<(), Failure> {
        let cgroup = if self.by_container { infra } else { pod };
        Ok(shared.probes.guard_devices(self.uid, INFRA, cgroup)?)
    }

    fn guard_container(
        &self,
        shared: &Shared,
        container: &Container,
        cgroup: &Cgroup,
    ) -> Result<(), Failure> {
        if self.by_container && !security::is_privileged(container) {
            shared.probes.guard_devices(self.uid, &container.name, cgroup)?;
        }
        Ok(())
    }
}

/// Says whose events those of a container are.
fn introduce(shared: &Shared, about: &About, container: &Container, probe: &ContainerProbe) {
    let whose = Whose {
        namespace: about.key.namespace.clone(),
        pod: about.key.name.clone(),
        uid: about.uid.clone(),
        container: container.name.clone(),
    };
    shared.chronicle.introduce(probe.owner(), whose);
}

/// Names of a container's volumes in the metrics, in the order of their counters: the root, then
/// its mounts.
fn volume_labels(container: &Container) -> Vec<String> {
    std::iter::once(ROOTFS.to_owned())
        .chain(mounted_volumes(container).into_iter().map(volume_label))
        .collect()
}

/// How many volumes a container has in the metrics: those, and what is on none of them.
pub(super) fn volume_count(container: &Container) -> usize {
    volume_labels(container).len() + 1
}

/// The name of a volume in the metrics.
pub(super) fn volume_label(name: &str) -> String {
    match name {
        // Taken by the root itself, and by everything that is no volume. No volume's name has a `_`.
        ROOTFS | "other" => format!("{name}_volume"),
        name => name.to_owned(),
    }
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

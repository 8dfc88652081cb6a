//! What a pod shows of itself, and leaves on disk.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PodStatus;

use super::{Worker, container::Container, record::Record, sandbox, status, volumes};
use crate::node::{PodSnapshot, State};

impl Worker {
    /// Tells the node what has become of the pod.
    pub(super) fn publish(&mut self) {
        self.record();
        let (status, snapshot) = self.status();
        self.shared.publish(&self.about.key, |pod| pod.status = Some(status), snapshot);
    }

    /// What the pod is at this instant, for people and for metrics.
    #[must_use]
    pub fn status(&self) -> (PodStatus, PodSnapshot) {
        let snapshot = self.snapshot();
        (status::of(self, &snapshot), snapshot)
    }

    /// Writes down how far the pod has come, for the next daemon.
    pub(super) fn record(&mut self) {
        let record = Record {
            started: self.started,
            counted_from: self.counted_from,
            counters: self.ground.as_ref().map(|ground| ground.claims()),
            sandbox: self.sandbox.as_ref().and_then(|sandbox| sandbox.record()),
            containers: self.containers.iter().map(Container::record).collect(),
            disruption: self.disruption.clone(),
            ..Record::new()
        };
        let directory = sandbox::directory(&self.shared, &self.about);
        if let Err(error) = self.journal.write(&directory, &record) {
            tracing::error!(pod = %self.about.key, %error, "a later daemon cannot take this pod over as it is");
        }
    }

    /// What the pod is at this instant.
    #[must_use]
    pub fn snapshot(&self) -> PodSnapshot {
        let place = |index| self.ground.as_ref().map(|ground| ground.place(index));
        let containers: Vec<_> = self
            .containers
            .iter()
            .enumerate()
            .map(|(index, container)| container.snapshot(place(index)))
            .collect();
        let policy = self.about.restart_policy();
        let volumes =
            self.sandbox.as_ref().map(|_| volumes::filesystems(&self.shared, &self.about));
        PodSnapshot {
            namespace: self.about.key.namespace.clone(),
            name: self.about.key.name.clone(),
            uid: self.about.uid.clone(),
            ip: self.sandbox.as_ref().and_then(|sandbox| sandbox.ip()).map(|ip| ip.to_string()),
            node: self.shared.settings.name.clone(),
            host_network: self.about.spec.host_network.unwrap_or(false),
            phase: if self.is_evicted() && self.is_over() {
                "Failed"
            } else {
                status::phase(&containers, policy, self.started.is_some())
            },
            qos_class: crate::manifest::qos_class(&self.about.spec),
            ready: containers
                .iter()
                .all(|container| matches!(container.state, State::Running { .. })),
            created: self.about.created,
            started: self.started,
            observed_from: self.counted_from.or(self.started).unwrap_or(self.about.created),
            cgroup: self.ground.as_ref().map(|ground| Arc::clone(ground.cgroup())),
            volumes: volumes.unwrap_or_default(),
            volume_count: volumes::count(&self.about),
            containers,
        }
    }
}

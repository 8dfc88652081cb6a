//! Taking over a pod that an earlier daemon has left.
//!
//! What is there decides, not what was written down: a process that runs is watched, one that is gone
//! has ended, and what cannot be taken over is removed and made anew.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::PodSpec, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::{
    Happening, Key, Worker, chain,
    ground::{self, Ground},
    record::Record,
    sandbox::{self, Sandbox},
};
use crate::{node::Shared, probes::Origin};

/// What became of a pod when this daemon took it over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Adopted {
    /// It goes on in the sandbox that it had, or is over.
    Kept,
    /// Its sandbox was gone: it gets a new one.
    Restarted,
    /// What was written down about it cannot be used: it begins from its manifest.
    Reset,
}

impl Adopted {
    /// Every outcome.
    pub const ALL: [Self; 3] = [Self::Kept, Self::Restarted, Self::Reset];

    /// The value of the `outcome` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Restarted => "restarted",
            Self::Reset => "reset",
        }
    }
}

impl Worker {
    /// A worker for a pod that an earlier daemon has left. Blocks; must be called within the runtime.
    pub fn adopt(
        shared: &Arc<Shared>,
        key: Key,
        metadata: &ObjectMeta,
        spec: Arc<PodSpec>,
    ) -> (Self, Adopted) {
        let deletion = metadata.deletion_timestamp.as_ref().map(|time| time.0);
        let mut worker = Self::new(Arc::clone(shared), key, metadata, spec);
        worker.deletion = deletion;
        let directory = sandbox::directory(shared, &worker.about);
        let record = Record::read(&directory).and_then(|record| match record {
            Some(record) if record.containers.len() != worker.containers.len() => {
                Err(std::io::Error::other("it is about other containers"))
            }
            record => Ok(record),
        });
        let adopted = match record {
            Ok(Some(record)) => worker.take_over(record),
            Ok(None) => {
                worker.sweep();
                Adopted::Restarted
            }
            Err(error) => {
                tracing::warn!(pod = %worker.about.key, %error, "the pod's state cannot be used; it begins anew");
                worker.sweep();
                Adopted::Reset
            }
        };
        if adopted == Adopted::Kept {
            worker.keep_place();
        }
        (worker, adopted)
    }

    fn take_over(&mut self, mut record: Record) -> Adopted {
        self.started = record.started;
        self.counted_from = match self.shared.probes.origin() {
            Origin::New | Origin::Replaced => Some(Timestamp::now()),
            _ => record.counted_from.or(record.started),
        };
        self.disruption = record.disruption.take();
        let base = self.shared.settings.restart_backoff;
        self.containers = std::mem::take(&mut self.containers)
            .into_iter()
            .zip(std::mem::take(&mut record.containers))
            .map(|(container, record)| container.adopt(record, base))
            .collect();
        let sandbox = self.adopt_ground(&mut record).and_then(|ground| {
            let (shared, about) = (Arc::clone(&self.shared), Arc::clone(&self.about));
            let record = record.sandbox.as_ref()?;
            Sandbox::adopt(shared, about, ground, record)
                .inspect_err(|error| {
                    tracing::warn!(pod = %self.about.key, error = chain(error), "the sandbox cannot be taken over");
                })
                .ok()?
        });
        match sandbox {
            Some(sandbox) => {
                self.watch_infra(&sandbox);
                let sandbox = Arc::new(sandbox);
                self.resume_runs(&sandbox);
                self.sandbox = Some(sandbox);
                Adopted::Kept
            }
            None => {
                self.end_what_is_left(record.sandbox.and_then(|sandbox| sandbox.ip));
                if self.is_over() { Adopted::Kept } else { Adopted::Restarted }
            }
        }
    }

    fn adopt_ground(&mut self, record: &mut Record) -> Option<Arc<Ground>> {
        let counters = record.counters.take()?;
        match Ground::adopt(&self.shared, &self.about, counters) {
            Ok(ground) => {
                let ground = Arc::new(ground);
                self.ground = Some(Arc::clone(&ground));
                Some(ground)
            }
            Err(error) => {
                // As after a reboot.
                tracing::info!(pod = %self.about.key, %error, "the pod's cgroups are gone");
                None
            }
        }
    }

    /// Watches what runs, and takes note of what has ended.
    fn resume_runs(&mut self, sandbox: &Sandbox) {
        let mut runs = Vec::new();
        for (index, container) in self.containers.iter_mut().enumerate() {
            match container.resume(&self.shared, sandbox) {
                Some(Ok(run)) => runs.push((index, run)),
                Some(Err(error)) => {
                    tracing::warn!(pod = %self.about.key, container = %container.spec().name, %error, "the container cannot be watched; it starts anew");
                    sandbox.ground.kill_container(index);
                    if let Some(ended) = container.lost() {
                        self.happenings.0.send(Happening::Ended(index, Box::new(ended))).ok();
                    }
                }
                None => {}
            }
        }
        for (index, run) in runs {
            self.watch_run(index, run);
        }
    }

    /// The pod's namespaces are gone: what is left of its containers ends.
    fn end_what_is_left(&mut self, ip: Option<std::net::Ipv4Addr>) {
        if let Some(ip) = ip {
            self.shared.network.adopt(&self.about.uid, ip, &[]);
        }
        match &self.ground {
            Some(ground) => {
                ground.kill_containers();
                ground.kill_infra();
            }
            None => self.sweep(),
        }
        if let Err(error) = self.shared.network.disconnect(&self.about.uid) {
            tracing::debug!(%error, "no interface to remove");
        }
        let policy = self.about.restart_policy();
        for container in &mut self.containers {
            if let Some(ended) = container.lost() {
                container.finish(ended, policy);
                container.retry_now();
            }
        }
    }

    fn sweep(&self) {
        ground::sweep(&self.shared, &self.about.uid);
    }
}

//! The node's operations on pods, containers and config maps.
//!
//! Free of HTTP and command-line concerns: the control API calls these as they are, and a CRI
//! server can. The table of pods is written by the pods' own workers only.

pub mod admission;
mod disk;
mod events;
mod explain;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod limits;
mod object;
mod objects;
mod refusals;
mod sample;
pub mod secrets;
mod shared;
mod snapshot;
mod store;
mod table;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
use tokio::{
    net::unix::pipe,
    sync::{broadcast, mpsc, oneshot},
};

pub use self::admission::{Admission, Ask, Occupancy, Reserve, Ticket, Verdict, capacity};
pub(crate) use self::events::EventType;
pub use self::guard::USAGE_INTERVAL;
pub use self::shared::{Settings, Shared, UnenforcedLimits};
pub use self::snapshot::{
    ContainerSnapshot, ContainerUsage, DiskUsage, Exit, Keeper, PodSnapshot, PodUsage, State,
};
use crate::{
    cgroup::Hierarchy,
    events::Chronicle,
    image::{Images, Reference},
    network::Network,
    pod::{self, Adopted, Key, record},
    probes::Probes,
    sandbox::remove_all,
};

/// Commands that a pod's worker may be behind.
const COMMANDS: usize = 16;

/// A node that runs pods: a handle, cheap to clone.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

/// A change of an object.
#[derive(Clone, Debug)]
pub struct Change<T> {
    /// What happened.
    pub kind: ChangeKind,
    /// The object after it.
    pub object: Arc<T>,
    /// The node's version after it; grows with every change.
    pub resource_version: u64,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It changed.
    Modified,
    /// It is gone.
    Deleted,
}

/// Why an operation was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no such thing.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// e.g. `pods`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// There is one already.
    #[error("{kind} \"{name}\" already exists")]
    AlreadyExists {
        /// e.g. `pods`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object cannot be as it is.
    #[error("{field}: {message}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// Not now.
    #[error("{message}")]
    Conflict {
        /// Why not.
        message: String,
    },
    /// The node failed.
    #[error("{message}")]
    Internal {
        /// How.
        message: String,
    },
}

/// A command that runs in a container. Dropping it kills the command.
#[derive(Debug)]
pub struct Exec {
    /// To the command, if asked for.
    pub stdin: Option<pipe::Sender>,
    /// From the command.
    pub stdout: pipe::Receiver,
    /// From the command.
    pub stderr: pipe::Receiver,
    /// Exit code, or 128 plus the signal; comes when the command has ended.
    pub status: oneshot::Receiver<i32>,
    /// Its other end ends the command when this one is gone.
    pub(crate) _alive: oneshot::Sender<()>,
}

/// Log files of a container, oldest first, in the CRI format.
#[derive(Clone, Debug)]
pub struct LogSource {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Whether more may come.
    pub live: bool,
}

impl Node {
    /// A node without pods; needs a runtime.
    #[must_use]
    pub fn new(shared: Shared) -> Self {
        let shared = Arc::new(shared);
        let preemptions = &shared.preemptions;
        let preemptions = preemptions.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(preemptions) = preemptions {
            guard::start(&shared, preemptions);
        }
        Self { shared }
    }

    /// Stores a validated pod and starts it.
    pub async fn create_pod(&self, mut pod: Pod) -> Result<Pod, Error> {
        let key = Key::of(&pod);
        self.check_limits(&pod)?;
        let metadata = &mut pod.metadata;
        metadata.namespace = Some(key.namespace.clone());
        metadata.uid = Some(uuid::Uuid::new_v4().to_string());
        metadata.creation_timestamp = Some(Time(Timestamp::now()));
        let mut spec = pod.spec.take().unwrap_or_default();
        spec.node_name = Some(self.shared.settings.name.clone());
        let spec = Arc::new(spec);
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (shared, own) = (Arc::clone(&self.shared), Arc::clone(&spec));
        let worker = pod::Worker::new(shared, key.clone(), &pod.metadata, own);
        let stored = self.shared.table.insert(&key, (pod, spec), worker.snapshot(), commands)?;
        tokio::spawn(worker.run(receiver));
        // The disk takes its time; the pod starts meanwhile, and the client waits for both.
        if let Err(error) = self.write_pod(&stored, record::write_pod).await {
            self.delete_pod(&key.namespace, &key.name, Some(0)).await.ok();
            return Err(error);
        }
        if self.shared.table.snapshot(&key).is_err() {
            // Somebody else has deleted it meanwhile.
            remove_all(&self.directory(&stored)).ok();
        }
        Ok(Arc::unwrap_or_clone(stored))
    }

    /// Where a pod's files are.
    fn directory(&self, pod: &Pod) -> PathBuf {
        self.shared.pod_directory(pod.metadata.uid.as_deref().unwrap_or_default())
    }

    async fn write_pod(
        &self,
        pod: &Arc<Pod>,
        write: fn(&Path, &Pod) -> std::io::Result<()>,
    ) -> Result<(), Error> {
        let directory = self.directory(pod);
        let pod = Arc::clone(pod);
        let failed = |error: std::io::Error| Error::Internal {
            message: format!("cannot store the pod: {error}"),
        };
        tokio::task::spawn_blocking(move || write(&directory, &pod))
            .await
            .map_err(|error| failed(error.into()))?
            .map_err(failed)
    }

    /// Takes over the pods that an earlier daemon has left, and returns their uids. Blocks; must be
    /// called within the runtime, before anything else.
    #[must_use]
    pub fn adopt(&self) -> Vec<String> {
        let (mut uids, mut workers) = (Vec::new(), Vec::new());
        for (uid, mut pod) in self.shared.files.pods() {
            let key = Key::of(&pod);
            pod.metadata.uid = Some(uid.clone());
            let spec = Arc::new(pod.spec.take().unwrap_or_default());
            let (commands, receiver) = mpsc::channel(COMMANDS);
            let (shared, own) = (&self.shared, Arc::clone(&spec));
            let (worker, adopted) = pod::Worker::adopt(shared, key.clone(), &pod.metadata, own);
            let (status, snapshot) = worker.status();
            pod.status = Some(status);
            if let Err(error) = self.shared.table.insert(&key, (pod, spec), snapshot, commands) {
                // Two pods of one name: the older one has it.
                tracing::error!(pod = %key, uid, %error, "a pod that was left behind is removed");
                continue;
            }
            *self.adopted().entry(adopted).or_default() += 1;
            workers.push(worker.run(receiver));
            uids.push(uid);
        }
        // Not before all that run have their places: the others take what those leave.
        workers.into_iter().for_each(|worker| drop(tokio::spawn(worker)));
        uids
    }

    /// Removes what belongs to none of the pods `living`, all of which have been taken over; returns how
    /// many interfaces there were.
    pub fn sweep(&self, living: &[&str]) -> Result<usize, crate::network::Error> {
        self.shared.probes.sweep(living);
        if let Err(error) = self.shared.memory.sweep(living) {
            tracing::warn!(%error, "file systems in memory are left over");
        }
        self.shared.network.sweep(living)
    }

    /// How many pods of an earlier daemon were taken over, by what became of them.
    #[must_use]
    pub fn adopted_pods(&self) -> BTreeMap<Adopted, u64> {
        self.adopted().clone()
    }

    fn adopted(&self) -> MutexGuard<'_, BTreeMap<Adopted, u64>> {
        self.shared.adopted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, Error> {
        self.shared.table.pod(&Key::new(namespace, name))
    }

    /// All pods, or those of a namespace, and the version of that list.
    #[must_use]
    pub fn pods(&self, namespace: Option<&str>) -> (Vec<Arc<Pod>>, u64) {
        self.shared.table.pods(namespace)
    }

    /// Begins to delete a pod. Its containers get `grace_seconds` to leave by themselves; the
    /// manifest's own period if `None`. The watch tells when the pod is gone.
    pub async fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        grace_seconds: Option<u32>,
    ) -> Result<Arc<Pod>, Error> {
        let key = Key::new(namespace, name);
        let pod = self.shared.table.mark_deleted(&key, grace_seconds)?;
        self.shared.admission.leaving(&key);
        // A pod that is on its way out must not come back after a power cut; but what keeps it from being
        // noted may be a disk that the pod has filled, and no reason to let it go on.
        if let Err(error) = self.write_pod(&pod, record::rewrite_pod).await {
            tracing::warn!(pod = %key, %error, "the pod is deleted; after a power cut it would come back");
        }
        self.send(&key, pod::Command::Delete { grace_seconds }).await?;
        Ok(pod)
    }

    /// Changes of pods from now on.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Arc<Change<Pod>>> {
        self.shared.table.watch()
    }

    /// Runs a command in a container; in the only one if `container` is `None`.
    pub async fn exec(
        &self,
        namespace: &str,
        name: &str,
        container: Option<&str>,
        command: Vec<String>,
        stdin: bool,
    ) -> Result<Exec, Error> {
        let key = Key::new(namespace, name);
        let container = self.container(&key, container)?;
        let (reply, answer) = oneshot::channel();
        self.send(&key, pod::Command::Exec { container, command, stdin, reply }).await?;
        answer.await.map_err(|_gone| Error::NotFound { kind: "pods", name: name.to_owned() })?
    }

    /// Log files of a container; `previous` means its last run that has ended.
    pub fn logs(
        &self,
        namespace: &str,
        name: &str,
        container: Option<&str>,
        previous: bool,
    ) -> Result<LogSource, Error> {
        let key = Key::new(namespace, name);
        let container = self.container(&key, container)?;
        let snapshot = self.shared.table.snapshot(&key)?;
        let directory = pod::logs::directory(&self.shared.settings.log_dir, &key, &snapshot.uid)
            .join(&container);
        let state = snapshot.containers.iter().find(|candidate| candidate.name == container);
        let Some(state) = state else {
            return Err(Error::NotFound { kind: "containers", name: container });
        };
        let ended = !matches!(state.state, State::Running { .. });
        // A container that waits for its restart has no current log but that of its last run.
        let run = match (previous, state.restarts) {
            (false, restarts) => restarts,
            (true, restarts) if ended && state.last_exit.is_some() => restarts,
            (true, 0) => {
                return Err(Error::Invalid {
                    field: "previous".to_owned(),
                    message: format!("container {container:?} in pod {key} has not been restarted"),
                });
            }
            (true, restarts) => restarts - 1,
        };
        let files = pod::logs::files(&directory, run);
        let live = !previous && matches!(state.state, State::Running { .. });
        Ok(LogSource { files, live })
    }

    /// What pods use now; takes a short while, since CPU use is a difference.
    pub async fn usage(&self, namespace: Option<&str>) -> Vec<PodUsage> {
        sample::usage(self, namespace).await
    }

    /// What the node runs at this instant.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Arc<PodSnapshot>> {
        self.shared.table.snapshots()
    }

    /// What a pod's containers have on the disk, by their names; `None` before it was measured.
    #[must_use]
    pub fn disk_usage(&self, uid: &str) -> Option<Arc<HashMap<String, DiskUsage>>> {
        let known = self.shared.disk_usage.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(uid).cloned()
    }

    /// What the node has, and what of it pods have.
    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.shared.admission
    }

    /// Where pods' cgroups are.
    #[must_use]
    pub fn cgroups(&self) -> &Hierarchy {
        &self.shared.hierarchy
    }

    /// The pods' network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.shared.network
    }

    /// How many processes have the daemon's `oom_score_adj` since the kernel refused theirs.
    #[must_use]
    pub fn oom_scores_refused(&self) -> u64 {
        self.shared.sandboxes.oom_scores_refused()
    }

    /// The probes of this node.
    #[must_use]
    pub fn probes(&self) -> &Arc<Probes> {
        &self.shared.probes
    }

    /// What containers did, one by one.
    #[must_use]
    pub fn chronicle(&self) -> &Arc<Chronicle> {
        &self.shared.chronicle
    }

    /// The images of this node.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.shared.images
    }

    /// Ids and references of the images that pods have.
    #[must_use]
    pub fn images_in_use(&self) -> std::collections::HashSet<String> {
        image_users(&self.snapshot()).into_iter().map(|(image, _)| image).collect()
    }

    /// The pods that have an image of this id or reference.
    #[must_use]
    pub fn pods_with_image(&self, image: &str) -> Vec<String> {
        let users = image_users(&self.snapshot()).into_iter();
        let mut pods: Vec<_> = users.filter(|(own, _)| own == image).map(|(_, pod)| pod).collect();
        pods.sort_unstable();
        pods.dedup();
        pods
    }

    /// Deletes every pod, giving each at most `grace_seconds`, and waits until they are gone.
    pub async fn shut_down(&self, grace_seconds: u32) {
        let mut changes = self.watch();
        let (pods, _) = self.pods(None);
        for pod in pods {
            let key = Key::of(&*pod);
            let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
            let own = own.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(grace_seconds);
            self.delete_pod(&key.namespace, &key.name, Some(own.min(grace_seconds))).await.ok();
        }
        while !self.shared.table.is_empty() {
            // A lagging receiver is no harm: the table is what counts.
            tokio::time::timeout(Duration::from_millis(200), changes.recv()).await.ok();
        }
        if let Err(error) = self.shared.network.remove() {
            tracing::warn!(%error, "the pods' network is not removed");
        }
        self.shared.probes.remove();
        self.shared.archive.clear();
        if let Err(error) = self.shared.memory.close() {
            tracing::warn!(%error, "the file system in memory stays");
        }
    }

    async fn send(&self, key: &Key, command: pod::Command) -> Result<(), Error> {
        let commands = self.shared.table.commands(key)?;
        commands.send(Box::new(command)).await.map_err(|_gone| key.not_found::<Pod>())
    }

    /// The container of that name, or the only one.
    fn container(&self, key: &Key, container: Option<&str>) -> Result<String, Error> {
        let pod = self.shared.table.snapshot(key)?;
        let names: Vec<_> =
            pod.containers.iter().map(|container| container.name.as_str()).collect();
        match (container, names.as_slice()) {
            (Some(name), names) if names.contains(&name) => Ok(name.to_owned()),
            (Some(name), names) => Err(Error::Invalid {
                field: "container".to_owned(),
                message: format!(
                    "pod {key} has no container {name:?}; it has: {}",
                    names.join(", ")
                ),
            }),
            (None, [only]) => Ok((*only).to_owned()),
            (None, names) => Err(Error::Invalid {
                field: "container".to_owned(),
                message: format!(
                    "pod {key} has several containers, choose one of: {}",
                    names.join(", ")
                ),
            }),
        }
    }
}

/// The images that pods have, by id and by full reference, each with its pod.
fn image_users(pods: &[Arc<PodSnapshot>]) -> Vec<(String, String)> {
    let mut users = Vec::new();
    for pod in pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        for container in &pod.containers {
            let reference = container.image.parse::<Reference>().ok();
            let reference = reference.map(|reference| reference.to_string());
            // Before its first run a container has a reference only.
            let id = Some(container.image_id.clone()).filter(|id| !id.is_empty());
            users.extend(reference.into_iter().chain(id).map(|image| (image, name.clone())));
        }
    }
    users
}

/// Boxed: a channel has room for 32 from the start.
type Commands = mpsc::Sender<Box<pod::Command>>;
type ByKey<T> = BTreeMap<Key, T>;

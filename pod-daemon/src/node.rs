//! The node's operations on pods, containers and config maps.
//!
//! Free of HTTP and command-line concerns: the control API calls these as they are, and a CRI
//! server can. The table of pods is written by the pods' own workers only.

pub mod admission;
mod disk;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod limits;
mod object;
mod sample;
pub mod secrets;
mod snapshot;
mod store;
mod table;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ConfigMap, Pod, Secret},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use tokio::{
    net::unix::pipe,
    sync::{broadcast, mpsc, oneshot},
};

pub use self::admission::{Admission, Ask, Occupancy, Reserve, Ticket, Verdict, capacity};
pub use self::guard::USAGE_INTERVAL;
pub use self::snapshot::{
    Completed, ContainerSnapshot, ContainerUsage, Exit, PodSnapshot, PodUsage, State,
};
use self::{secrets::Secrets, store::Store as Files, table::Table};
use crate::{
    cgroup::{Device, Hierarchy},
    image::{Images, Reference},
    manifest::demand::{self, Totals},
    network::Network,
    pod::{self, Adopted, Key, record},
    probes::Probes,
    sandbox::{Memory, Sandboxes},
};

/// A node that runs pods: a handle, cheap to clone.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

/// What the node is made of; the pods' workers use it.
pub struct Shared {
    /// The node's name.
    pub name: String,
    /// Where pods' files are: `pods/<uid>` and images, below the data directory.
    pub data_dir: PathBuf,
    /// Where containers' logs are.
    pub log_dir: PathBuf,
    /// How long containers' logs may become.
    pub log_limits: pod::logs::Limits,
    /// First pause between restarts; it doubles up to 30 times itself.
    pub restart_backoff: Duration,
    /// Whether a pod with limits that this node cannot enforce may run.
    pub unenforced_limits: UnenforcedLimits,
    /// The images.
    pub images: Images,
    /// Starts processes.
    pub sandboxes: Sandboxes,
    /// Podscope's cgroups.
    pub hierarchy: Hierarchy,
    /// The pods' network.
    pub network: Network,
    /// The probes.
    pub probes: Arc<Probes>,
    /// Which pods may run.
    pub admission: Arc<Admission>,
    /// The node's memory.
    pub memory_bytes: u64,
    /// Bytes of the data directory's file system that are to stay free.
    pub disk_reserve: u64,
    /// How often pods' use of the disk is measured.
    pub usage_interval: Duration,
    /// The block device below the data directory.
    pub io_device: Option<Device>,
    preemptions: Mutex<Option<mpsc::UnboundedReceiver<admission::Preemption>>>,
    /// What must not be on a disk.
    pub memory: Memory,
    secrets: Secrets,
    table: Table,
    files: Files,
    adopted: Mutex<BTreeMap<Adopted, u64>>,
}

/// What happens to a pod whose limits this node cannot enforce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnenforcedLimits {
    /// It is refused.
    #[default]
    Deny,
    /// It runs, with a warning and a metric.
    Warn,
}

/// A change of a pod.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The pod after it.
    pub pod: Arc<Pod>,
    /// The node's version after it; grows with every change.
    pub resource_version: u64,
}

/// What happened to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
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
        let uid = uuid::Uuid::new_v4().to_string();
        metadata.uid = Some(uid.clone());
        metadata.creation_timestamp = Some(Time(Timestamp::now()));
        if let Some(spec) = &mut pod.spec {
            spec.node_name = Some(self.shared.name.clone());
        }
        let (commands, receiver) = mpsc::channel(16);
        let worker = pod::Worker::new(Arc::clone(&self.shared), key.clone(), uid, pod.clone());
        let stored = self.shared.table.insert(&key, pod, worker.snapshot(), commands)?;
        tokio::spawn(worker.run(receiver));
        // The disk takes its time; the pod starts meanwhile, and the client waits for both.
        if let Err(error) = self.write_pod(&stored, record::write_pod).await {
            self.delete_pod(&key.namespace, &key.name, Some(0)).await.ok();
            return Err(error);
        }
        if self.shared.table.pod(&key).is_err() {
            // Somebody else has deleted it meanwhile.
            std::fs::remove_dir_all(self.directory(&stored)).ok();
        }
        Ok(Pod::clone(&stored))
    }

    /// Where a pod's files are.
    fn directory(&self, pod: &Pod) -> PathBuf {
        self.shared.data_dir.join("pods").join(pod.metadata.uid.as_deref().unwrap_or_default())
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
        for (uid, pod) in self.shared.files.pods() {
            let key = Key::of(&pod);
            let (commands, receiver) = mpsc::channel(16);
            let (shared, own) = (&self.shared, pod.clone());
            let (worker, adopted) = pod::Worker::adopt(shared, key.clone(), uid.clone(), own);
            let (status, snapshot) = worker.status();
            let pod = Pod { status: Some(status), ..pod };
            if let Err(error) = self.shared.table.insert(&key, pod, snapshot, commands) {
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
        // A pod that is on its way out must not come back after a power cut.
        self.write_pod(&pod, record::rewrite_pod).await?;
        self.send(&key, pod::Command::Delete { grace_seconds }).await?;
        Ok(pod)
    }

    /// Stores a config map, new or changed.
    pub fn apply_config_map(&self, map: ConfigMap) -> Result<ConfigMap, Error> {
        let map = self.shared.table.apply_config_map(map);
        self.shared.files.write_config_map(&map).map_err(|error| Error::Internal {
            message: format!("cannot store the config map: {error}"),
        })?;
        self.refresh(map.metadata.namespace.as_deref());
        Ok(map)
    }

    /// One config map.
    pub fn config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, Error> {
        self.shared.table.config_map(&Key::new(namespace, name))
    }

    /// All config maps, or those of a namespace.
    #[must_use]
    pub fn config_maps(&self, namespace: Option<&str>) -> Vec<ConfigMap> {
        self.shared.table.config_maps(namespace)
    }

    /// Deletes a config map. Pods that have it keep the files that they have.
    pub fn delete_config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, Error> {
        let map = self.shared.table.delete_config_map(&Key::new(namespace, name))?;
        self.shared.files.remove_config_map(&map).map_err(|error| Error::Internal {
            message: format!("cannot remove the config map's file: {error}"),
        })?;
        Ok(map)
    }

    /// Stores a secret, new or changed.
    pub fn apply_secret(&self, secret: Secret) -> Result<Secret, Error> {
        let secret = self.shared.secrets.apply(secret, self.shared.table.next_version())?;
        self.refresh(secret.metadata.namespace.as_deref());
        Ok(secret)
    }

    /// One secret.
    pub fn secret(&self, namespace: &str, name: &str) -> Result<Secret, Error> {
        self.shared.secrets.get(&Key::new(namespace, name))
    }

    /// All secrets, or those of a namespace.
    #[must_use]
    pub fn secrets(&self, namespace: Option<&str>) -> Vec<Secret> {
        self.shared.secrets.list(namespace)
    }

    /// Deletes a secret. Pods that have it keep the files that they have.
    pub fn delete_secret(&self, namespace: &str, name: &str) -> Result<Secret, Error> {
        self.shared.secrets.delete(&Key::new(namespace, name))
    }

    /// Lets the pods of a namespace look again at what they show of other objects.
    fn refresh(&self, namespace: Option<&str>) {
        for pod in self.shared.table.pods(namespace).0 {
            let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes).flatten();
            let mut shown = volumes.map(|volume| (&volume.config_map, &volume.secret));
            if shown.any(|(map, secret)| map.is_some() || secret.is_some())
                && let Ok(commands) = self.shared.table.commands(&Key::of(&pod))
            {
                // A worker whose queue is full looks again soon enough: it is being deleted, or its
                // pod has many commands to run, each of which is taken up at once.
                commands.try_send(pod::Command::Refresh).ok();
            }
        }
    }

    /// Changes of pods from now on.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Arc<Event>> {
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
        let directory =
            pod::logs::directory(&self.shared.log_dir, &key, &snapshot.uid).join(&container);
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
    pub fn snapshot(&self) -> Vec<PodSnapshot> {
        self.shared.table.snapshots()
    }

    /// Totals of deleted pods by namespace.
    #[must_use]
    pub fn completed(&self) -> Vec<(String, Completed)> {
        self.shared.table.completed()
    }

    /// What the node has, and what of it pods have.
    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.shared.admission
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
        let mut events = self.watch();
        let (pods, _) = self.pods(None);
        for pod in pods {
            let key = Key::of(&pod);
            let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
            let own = own.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(grace_seconds);
            self.delete_pod(&key.namespace, &key.name, Some(own.min(grace_seconds))).await.ok();
        }
        while !self.pods(None).0.is_empty() {
            // A lagging receiver is no harm: the table is what counts.
            tokio::time::timeout(Duration::from_millis(200), events.recv()).await.ok();
        }
        if let Err(error) = self.shared.network.remove() {
            tracing::warn!(%error, "the pods' network is not removed");
        }
        self.shared.probes.remove();
        if let Err(error) = self.shared.memory.close() {
            tracing::warn!(%error, "the file system in memory stays");
        }
    }

    async fn send(&self, key: &Key, command: pod::Command) -> Result<(), Error> {
        let commands = self.shared.table.commands(key)?;
        commands.send(command).await.map_err(|_gone| key.not_found())
    }

    /// The container of that name, or the only one.
    fn container(&self, key: &Key, container: Option<&str>) -> Result<String, Error> {
        let pod = self.shared.table.pod(key)?;
        let names: Vec<_> = pod
            .spec
            .iter()
            .flat_map(|spec| &spec.containers)
            .map(|container| container.name.as_str())
            .collect();
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

impl Shared {
    /// Builds what the workers share, with what an earlier daemon has stored.
    #[must_use]
    pub fn new(
        settings: Settings,
        images: Images,
        sandboxes: Sandboxes,
        hierarchy: Hierarchy,
        network: Network,
        probes: Arc<Probes>,
        memory: Memory,
    ) -> Self {
        let Settings {
            name,
            data_dir,
            log_dir,
            log_limits,
            restart_backoff,
            unenforced_limits,
            capacity,
            reserve,
            usage_interval,
        } = settings;
        let files = Files::new(&data_dir);
        let table = Table::new(files.config_maps(), files.completed());
        let io_device = Device::below(&data_dir)
            .inspect_err(|error| tracing::debug!(%error, "no limits of block devices"))
            .ok();
        let (admission, preemptions) = Admission::new(capacity, reserve.allocatable(capacity));
        Self {
            admission,
            memory_bytes: capacity[demand::MEMORY],
            disk_reserve: reserve.disk_bytes(capacity[demand::STORAGE]),
            usage_interval,
            io_device,
            preemptions: Mutex::new(Some(preemptions)),
            name,
            data_dir,
            log_dir,
            log_limits,
            restart_backoff,
            unenforced_limits,
            images,
            sandboxes,
            hierarchy,
            network,
            probes,
            secrets: Secrets::open(memory.directory("secrets")),
            memory,
            table,
            files,
            adopted: Mutex::default(),
        }
    }

    /// Publishes what a pod has become.
    pub(crate) fn publish(&self, key: &Key, change: impl FnOnce(&mut Pod), snapshot: PodSnapshot) {
        self.table.update(key, change, snapshot);
    }

    /// Stores the totals of a pod that is about to be removed. Returns those that are still to be
    /// counted: none, if an earlier daemon got as far as this.
    pub(crate) fn fold(&self, key: &Key, uid: &str, totals: Completed) -> Completed {
        self.files.fold(&key.namespace, uid, totals)
    }

    /// Removes a pod that is gone, and keeps its totals.
    pub(crate) fn retire(&self, key: &Key, uid: &str, totals: &Completed) {
        self.files.forget(uid);
        self.table.remove(key, totals);
    }

    /// The metadata of a pod, if it exists.
    pub(crate) fn metadata(&self, key: &Key) -> Option<ObjectMeta> {
        self.table.pod(key).ok().map(|pod| pod.metadata.clone())
    }

    /// A secret, if it exists.
    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<Secret> {
        self.secrets.get(&Key::new(namespace, name)).ok()
    }

    /// A config map's entries, if it exists.
    pub(crate) fn config_map(&self, namespace: &str, name: &str) -> Option<ConfigMap> {
        self.table.config_map(&Key::new(namespace, name)).ok()
    }
}

/// The images that pods have, by id and by full reference, each with its pod.
fn image_users(pods: &[PodSnapshot]) -> Vec<(String, String)> {
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

/// What the node's owner decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's name.
    pub name: String,
    /// See [`Shared::data_dir`].
    pub data_dir: PathBuf,
    /// See [`Shared::log_dir`].
    pub log_dir: PathBuf,
    /// See [`Shared::log_limits`].
    pub log_limits: pod::logs::Limits,
    /// See [`Shared::restart_backoff`].
    pub restart_backoff: Duration,
    /// See [`Shared::unenforced_limits`].
    pub unenforced_limits: UnenforcedLimits,
    /// What the node has.
    pub capacity: Totals,
    /// What of that is not for pods.
    pub reserve: Reserve,
    /// See [`Shared::usage_interval`].
    pub usage_interval: Duration,
}

type Commands = mpsc::Sender<pod::Command>;
type ByKey<T> = BTreeMap<Key, T>;

//! What the node's operations and the pods' workers share.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Pod, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use tokio::sync::mpsc;

use super::{
    Admission, DiskUsage, Keeper, PodSnapshot, Reserve, admission, secrets::Secrets,
    store::Store as Files, table::Table,
};
use crate::{
    cgroup::{Device, Hierarchy},
    events::{Archive, Chronicle, Traces},
    image::Images,
    manifest::demand::{self, Totals},
    network::Network,
    pod::{self, Adopted, Key},
    probes::Probes,
    sandbox::{Memory, Sandboxes},
};

/// What the node is made of; the pods' workers use it.
pub struct Shared {
    /// What the node's owner has decided.
    pub settings: Settings,
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
    /// What containers did, one by one.
    pub chronicle: Arc<Chronicle>,
    /// Which pods may run.
    pub admission: Arc<Admission>,
    /// The block device below the data directory.
    pub io_device: Option<Device>,
    pub(super) preemptions: Mutex<Option<mpsc::UnboundedReceiver<admission::Preemption>>>,
    /// What must not be on a disk.
    pub memory: Memory,
    pub(super) traces: Arc<Traces>,
    pub(super) archive: Archive,
    pub(super) secrets: Secrets,
    pub(super) table: Table,
    pub(super) files: Files,
    keeper: Arc<dyn Keeper>,
    pub(super) adopted: Mutex<BTreeMap<Adopted, u64>>,
    /// What pods' containers have on the disk, as it was last measured, by the pods' uids.
    pub(super) disk_usage: Mutex<HashMap<String, Arc<HashMap<String, DiskUsage>>>>,
}

/// What the node's owner decides.
#[derive(Clone, Debug)]
pub struct Settings {
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
    /// What the node has.
    pub capacity: Totals,
    /// What of that is not for pods.
    pub reserve: Reserve,
    /// How often pods' use of the disk is measured.
    pub usage_interval: Duration,
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

impl Shared {
    /// Builds what the workers share, with what an earlier daemon has stored.
    #[must_use]
    pub fn new(
        settings: Settings,
        images: Images,
        sandboxes: Sandboxes,
        hierarchy: Hierarchy,
        network: Network,
        (probes, keeper): (Arc<Probes>, Arc<dyn Keeper>),
        memory: Memory,
    ) -> Self {
        let files = Files::new(&settings.data_dir);
        let table = Table::new(&settings.name, files.config_maps());
        let io_device = Device::below(&settings.data_dir)
            .inspect_err(|error| tracing::debug!(%error, "no limits of block devices"))
            .ok();
        let Settings { capacity, reserve, .. } = settings;
        let (admission, preemptions) = Admission::new(capacity, reserve.allocatable(capacity));
        Self {
            chronicle: Arc::default(),
            admission,
            io_device,
            preemptions: Mutex::new(Some(preemptions)),
            settings,
            images,
            sandboxes,
            hierarchy,
            network,
            probes,
            traces: Arc::default(),
            archive: Archive::open(memory.directory("reports")),
            secrets: Secrets::open(memory.directory("secrets")),
            memory,
            table,
            files,
            keeper,
            adopted: Mutex::default(),
            disk_usage: Mutex::default(),
        }
    }

    /// The node's memory, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.settings.capacity[demand::MEMORY]
    }

    /// Bytes of the data directory's file system that are to stay free.
    pub(crate) fn disk_reserve(&self) -> u64 {
        self.settings.reserve.disk_bytes(self.settings.capacity[demand::STORAGE])
    }

    /// Where a pod's files are.
    pub(crate) fn pod_directory(&self, uid: &str) -> PathBuf {
        self.settings.data_dir.join("pods").join(uid)
    }

    /// Publishes what a pod has become.
    pub(crate) fn publish(&self, key: &Key, change: impl FnOnce(&mut Pod), snapshot: PodSnapshot) {
        self.table.update(key, change, snapshot);
    }

    /// Reads what is gone with a pod's infra process, before that is ended. Blocks.
    pub(crate) fn look(&self, pod: &PodSnapshot) {
        self.keeper.look(pod);
    }

    /// Reads a pod for the last time, now that its processes are dead. When this has returned, nobody
    /// reads its cgroups and counters any more. Blocks.
    pub(crate) fn hold(&self, pod: PodSnapshot) {
        let refused = self.network.refused_connections().get(&pod.uid).copied();
        self.keeper.hold(pod, refused.unwrap_or(0));
    }

    /// Removes a pod that is gone.
    pub(crate) fn retire(&self, key: &Key, uid: &str) {
        self.table.remove(key);
        self.keeper.retire(uid);
        self.chronicle.retire(uid);
    }

    /// The metadata of a pod, if it exists.
    pub(crate) fn metadata(&self, key: &Key) -> Option<ObjectMeta> {
        self.table.metadata(key)
    }

    /// A secret's entries, if it exists.
    pub(crate) fn secret_data(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<BTreeMap<String, Vec<u8>>> {
        let data = self.secret(namespace, name)?.data.unwrap_or_default();
        Some(data.into_iter().map(|(key, value)| (key, value.0)).collect())
    }

    /// A secret, if it exists.
    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<Secret> {
        self.secrets.get(&Key::new(namespace, name)).ok()
    }

    /// A config map, if it exists.
    pub(crate) fn config_map(&self, namespace: &str, name: &str) -> Option<ConfigMap> {
        self.table.config_map(&Key::new(namespace, name)).ok()
    }
}

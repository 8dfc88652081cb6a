//! The pods and config maps that exist, with one version number for all changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    Metadata,
    api::core::v1::{ConfigMap, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use tokio::sync::broadcast;

use super::{
    ByKey, Change, ChangeKind, Commands, Error, PodSnapshot,
    events::{Events, Seen},
};
use crate::pod::Key;

/// Changes that a slow watcher may be behind before it has to list again.
const BACKLOG: usize = 4096;

#[derive(Debug)]
pub(super) struct Table {
    contents: Mutex<Contents>,
    changes: broadcast::Sender<Arc<Change<Pod>>>,
    events: Events,
}

#[derive(Debug)]
struct Contents {
    version: u64,
    pods: ByKey<Entry>,
    config_maps: ByKey<ConfigMap>,
}

#[derive(Debug)]
struct Entry {
    /// Without its spec.
    pod: Pod,
    /// Most of a pod, which never changes: its worker has it, too.
    spec: Arc<PodSpec>,
    /// Shared with those who read it: a scrape does so every few seconds, and it seldom changes.
    snapshot: Arc<PodSnapshot>,
    commands: Commands,
}

impl Table {
    /// A table without pods, on the node `node`.
    pub(super) fn new(node: &str, config_maps: Vec<ConfigMap>) -> Self {
        let config_maps = config_maps.into_iter().map(|map| (Key::of(&map), map)).collect();
        // Versions grow from one daemon to the next, too.
        let version = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(0);
        let contents = Contents { version, pods: ByKey::new(), config_maps };
        Self {
            contents: Mutex::new(contents),
            changes: broadcast::channel(BACKLOG).0,
            events: Events::new(node),
        }
    }

    /// Never held across an await: every operation here is a few map accesses.
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells watchers, if there are any. Under the table's lock, so that changes come in the order of
    /// their versions.
    fn tell(&self, kind: ChangeKind, entry: &Entry, resource_version: u64) {
        if self.changes.receiver_count() > 0 {
            let object = entry.whole();
            self.changes.send(Arc::new(Change { kind, object, resource_version })).ok();
        }
    }

    /// What has happened to the pods.
    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    pub(super) fn watch(&self) -> broadcast::Receiver<Arc<Change<Pod>>> {
        self.changes.subscribe()
    }

    /// Adds a pod, whose spec is told beside it.
    pub(super) fn insert(
        &self,
        key: &Key,
        (mut pod, spec): (Pod, Arc<PodSpec>),
        snapshot: PodSnapshot,
        commands: Commands,
    ) -> Result<Arc<Pod>, Error> {
        let mut contents = self.contents();
        if contents.pods.contains_key(key) {
            return Err(Error::AlreadyExists { kind: "pods", name: key.name.clone() });
        }
        let version = contents.next_version();
        pod.metadata.resource_version = Some(version.to_string());
        let entry = Entry { pod, spec, snapshot: Arc::new(snapshot), commands };
        self.tell(ChangeKind::Added, &entry, version);
        let pod = entry.whole();
        contents.pods.insert(key.clone(), entry);
        Ok(pod)
    }

    /// Changes what is known of a pod. Nobody is told if it looks the same from outside, as one does that
    /// tries again and again what it cannot do.
    pub(super) fn update(&self, key: &Key, change: impl FnOnce(&mut Pod), snapshot: PodSnapshot) {
        let mut contents = self.contents();
        let version = contents.version + 1;
        let Some(entry) = contents.pods.get_mut(key) else { return };
        let mut pod = entry.pod.clone();
        change(&mut pod);
        let is_same = pod == entry.pod;
        let new = Seen { pod: &pod, containers: &snapshot.containers };
        self.events.observe(entry.seen(), new);
        entry.snapshot = Arc::new(snapshot);
        if is_same {
            return;
        }
        pod.metadata.resource_version = Some(version.to_string());
        entry.pod = pod;
        self.tell(ChangeKind::Modified, entry, version);
        contents.version = version;
    }

    /// Sets the time by which the pod is to be gone. A second request may only bring it forward.
    pub(super) fn mark_deleted(
        &self,
        key: &Key,
        grace_seconds: Option<u32>,
    ) -> Result<Arc<Pod>, Error> {
        let mut contents = self.contents();
        let version = contents.next_version();
        let entry = contents.pods.get_mut(key).ok_or_else(|| key.not_found::<Pod>())?;
        let mut pod = entry.pod.clone();
        let own = entry.spec.termination_grace_period_seconds;
        let seconds = grace_seconds.map_or_else(|| own.unwrap_or(30), i64::from);
        let deadline = Timestamp::now() + SignedDuration::from_secs(seconds);
        if pod.metadata.deletion_timestamp.as_ref().is_none_or(|old| deadline < old.0) {
            pod.metadata.deletion_timestamp = Some(Time(deadline));
            pod.metadata.deletion_grace_period_seconds = Some(seconds);
        }
        pod.metadata.resource_version = Some(version.to_string());
        self.events.observe(entry.seen(), Seen { pod: &pod, ..entry.seen() });
        entry.pod = pod;
        self.tell(ChangeKind::Modified, entry, version);
        Ok(entry.whole())
    }

    pub(super) fn remove(&self, key: &Key) {
        let mut contents = self.contents();
        let version = contents.next_version();
        let Some(mut entry) = contents.pods.remove(key) else { return };
        entry.pod.metadata.resource_version = Some(version.to_string());
        self.tell(ChangeKind::Deleted, &entry, version);
    }

    pub(super) fn pod(&self, key: &Key) -> Result<Arc<Pod>, Error> {
        let contents = self.contents();
        contents.pods.get(key).map(Entry::whole).ok_or_else(|| key.not_found::<Pod>())
    }

    pub(super) fn pods(&self, namespace: Option<&str>) -> (Vec<Arc<Pod>>, u64) {
        let contents = self.contents();
        let pods = listed(&contents.pods, namespace).map(Entry::whole).collect();
        (pods, contents.version)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.contents().pods.is_empty()
    }

    pub(super) fn metadata(&self, key: &Key) -> Option<ObjectMeta> {
        self.contents().pods.get(key).map(|entry| entry.pod.metadata.clone())
    }

    /// What the pods are, and what they are made of.
    pub(super) fn specs(&self, namespace: Option<&str>) -> Vec<(Arc<PodSnapshot>, Arc<PodSpec>)> {
        let contents = self.contents();
        let both = |entry: &Entry| (Arc::clone(&entry.snapshot), Arc::clone(&entry.spec));
        listed(&contents.pods, namespace).map(both).collect()
    }

    pub(super) fn commands(&self, key: &Key) -> Result<Commands, Error> {
        let contents = self.contents();
        contents
            .pods
            .get(key)
            .map(|entry| entry.commands.clone())
            .ok_or_else(|| key.not_found::<Pod>())
    }

    pub(super) fn snapshot(&self, key: &Key) -> Result<Arc<PodSnapshot>, Error> {
        let contents = self.contents();
        contents
            .pods
            .get(key)
            .map(|entry| Arc::clone(&entry.snapshot))
            .ok_or_else(|| key.not_found::<Pod>())
    }

    pub(super) fn snapshots(&self) -> Vec<Arc<PodSnapshot>> {
        self.contents().pods.values().map(|entry| Arc::clone(&entry.snapshot)).collect()
    }

    /// The version of a change that is kept elsewhere.
    pub(super) fn next_version(&self) -> u64 {
        self.contents().next_version()
    }

    pub(super) fn apply_config_map(&self, mut map: ConfigMap) -> ConfigMap {
        let mut contents = self.contents();
        let version = contents.next_version();
        let key = Key::of(&map);
        stamp(&mut map, contents.config_maps.get(&key), version);
        contents.config_maps.insert(key, map.clone());
        map
    }

    pub(super) fn config_map(&self, key: &Key) -> Result<ConfigMap, Error> {
        self.contents().config_maps.get(key).cloned().ok_or_else(|| key.not_found::<ConfigMap>())
    }

    pub(super) fn config_maps(&self, namespace: Option<&str>) -> Vec<ConfigMap> {
        listed(&self.contents().config_maps, namespace).cloned().collect()
    }

    pub(super) fn delete_config_map(&self, key: &Key) -> Result<ConfigMap, Error> {
        self.contents().config_maps.remove(key).ok_or_else(|| key.not_found::<ConfigMap>())
    }
}

impl Entry {
    /// The pod as others know it.
    fn whole(&self) -> Arc<Pod> {
        Arc::new(Pod { spec: Some(PodSpec::clone(&self.spec)), ..self.pod.clone() })
    }

    fn seen(&self) -> Seen<'_> {
        Seen { pod: &self.pod, containers: &self.snapshot.containers }
    }
}

impl Contents {
    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }
}

/// The objects, or those of a namespace.
pub(super) fn listed<'a, T>(
    objects: &'a ByKey<T>,
    namespace: Option<&'a str>,
) -> impl Iterator<Item = &'a T> {
    let wanted = move |key: &Key| namespace.is_none_or(|namespace| key.namespace == namespace);
    objects.iter().filter(move |(key, _)| wanted(key)).map(|(_, object)| object)
}

/// Fills in what the node says about an object that is stored: new, or in the place of `old`.
pub(super) fn stamp<T: Metadata<Ty = ObjectMeta>>(object: &mut T, old: Option<&T>, version: u64) {
    let old = old.map(|old| old.metadata().clone()).unwrap_or_default();
    let metadata = object.metadata_mut();
    metadata.namespace.get_or_insert_with(|| "default".to_owned());
    metadata.uid = old.uid.or_else(|| Some(uuid::Uuid::new_v4().to_string()));
    metadata.creation_timestamp =
        old.creation_timestamp.or_else(|| Some(Time(whole_seconds(Timestamp::now()))));
    metadata.resource_version = Some(version.to_string());
}

/// Times are stored so.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

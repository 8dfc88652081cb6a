//! What the node keeps on disk beside the pods' own files: config maps, and totals of deleted pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde::{Deserialize, Serialize};

use super::Completed;
use crate::pod::record::{self, Durability};

/// Totals of deleted pods.
const COMPLETED: &str = "completed.json";

#[derive(Debug)]
pub(super) struct Store {
    data_dir: PathBuf,
    folded: Mutex<Folded>,
}

/// Totals of deleted pods.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Folded {
    namespaces: BTreeMap<String, Completed>,
    /// Pods whose totals are in, and which are not wholly removed yet.
    removing: BTreeSet<String>,
}

impl Store {
    pub(super) fn new(data_dir: &Path) -> Self {
        let mut folded: Folded =
            or_warn(data_dir.join(COMPLETED), record::read).unwrap_or_default();
        folded.removing.retain(|uid| data_dir.join("pods").join(uid).exists());
        Self { data_dir: data_dir.to_path_buf(), folded: Mutex::new(folded) }
    }

    fn folded(&self) -> MutexGuard<'_, Folded> {
        self.folded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pods that are stored, with their uids, oldest first.
    pub(super) fn pods(&self) -> Vec<(String, Pod)> {
        let mut pods: Vec<_> = entries(&self.data_dir.join("pods"))
            .into_iter()
            .filter_map(|path| {
                let uid = path.file_name()?.to_str()?.to_owned();
                let pod = or_warn(path, record::read_pod)?;
                (pod.metadata.uid.as_ref() == Some(&uid)).then_some((uid, pod))
            })
            .collect();
        pods.sort_by_key(|(_, pod)| pod.metadata.creation_timestamp.clone());
        pods
    }

    pub(super) fn config_maps(&self) -> Vec<ConfigMap> {
        entries(&self.config_map_dir())
            .into_iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .filter_map(|path| or_warn(path, record::read))
            .collect()
    }

    pub(super) fn write_config_map(&self, map: &ConfigMap) -> io::Result<()> {
        fs::create_dir_all(self.config_map_dir())?;
        record::replace(&self.config_map_file(map), map, Durability::Disk)
    }

    pub(super) fn remove_config_map(&self, map: &ConfigMap) -> io::Result<()> {
        fs::remove_file(self.config_map_file(map))
    }

    fn config_map_dir(&self) -> PathBuf {
        self.data_dir.join("config-maps")
    }

    fn config_map_file(&self, map: &ConfigMap) -> PathBuf {
        let namespace = map.metadata.namespace.as_deref().unwrap_or("default");
        let name = map.metadata.name.as_deref().unwrap_or_default();
        // Neither can contain an underscore.
        self.config_map_dir().join(format!("{namespace}_{name}.json"))
    }

    /// Totals of deleted pods, by namespace.
    pub(super) fn completed(&self) -> BTreeMap<String, Completed> {
        self.folded().namespaces.clone()
    }

    /// Adds the totals of a pod that is about to be removed, unless they are in already; returns what
    /// was added.
    pub(super) fn fold(&self, namespace: &str, uid: &str, totals: Completed) -> Completed {
        let mut folded = self.folded();
        if !folded.removing.insert(uid.to_owned()) {
            return Completed::default();
        }
        folded.namespaces.entry(namespace.to_owned()).or_default().add(&totals);
        self.write(&folded);
        totals
    }

    /// A pod is wholly removed. Its totals stay; that its uid is forgotten is written down with the
    /// next pod's totals.
    pub(super) fn forget(&self, uid: &str) {
        self.folded().removing.remove(uid);
    }

    fn write(&self, folded: &Folded) {
        let path = self.data_dir.join(COMPLETED);
        if let Err(error) = record::replace(&path, folded, Durability::Cache) {
            tracing::error!(%error, "totals of deleted pods will not outlive this daemon");
        }
    }
}

/// What is in a file; `None` if it is not there, or if it cannot be read, which is reported.
fn or_warn<T>(path: PathBuf, read: impl Fn(&Path) -> io::Result<T>) -> Option<T> {
    match read(&path) {
        Ok(value) => Some(value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "left out: it cannot be read");
            None
        }
    }
}

/// What is in a directory; nothing if it is not there.
pub(super) fn entries(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_counted_once_however_often_a_removal_begins() {
        let dir = tempfile::tempdir().unwrap();
        let totals = Completed { pods: 1, execs: 7, ..Completed::default() };
        fs::create_dir_all(dir.path().join("pods/a")).unwrap();
        let store = Store::new(dir.path());
        assert_eq!(store.fold("default", "a", totals).execs, 7);
        // Killed here, and begun again.
        let store = Store::new(dir.path());
        assert_eq!(store.fold("default", "a", totals).execs, 0);
        store.forget("a");
        assert_eq!(store.fold("default", "b", totals).execs, 7);
        let completed = Store::new(dir.path()).completed();
        assert_eq!((completed["default"].pods, completed["default"].execs), (2, 14));
    }

    #[test]
    fn config_maps_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let mut map = ConfigMap::default();
        map.metadata.name = Some("a.b".to_owned());
        store.write_config_map(&map).unwrap();
        assert_eq!(Store::new(dir.path()).config_maps(), [map.clone()]);
        store.remove_config_map(&map).unwrap();
        assert!(store.config_maps().is_empty());
    }
}

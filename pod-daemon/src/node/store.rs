//! What the node keeps on disk beside the pods' own files: config maps.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};

use crate::pod::record::{self, Durability};

#[derive(Debug)]
pub(super) struct Store {
    data_dir: PathBuf,
}

impl Store {
    pub(super) fn new(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_path_buf() }
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

//! The node's operations on config maps and secrets.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use super::{Error, Node};
use crate::pod::{self, Key};

impl Node {
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
        for (pod, spec) in self.shared.table.specs(namespace) {
            let volumes = spec.volumes.iter().flatten();
            let mut shown = volumes.map(|volume| (&volume.config_map, &volume.secret));
            if shown.any(|(map, secret)| map.is_some() || secret.is_some())
                && let Ok(commands) = self.shared.table.commands(&pod.key())
            {
                // A worker whose queue is full looks again soon enough: it is being deleted, or its
                // pod has many commands to run, each of which is taken up at once.
                commands.try_send(Box::new(pod::Command::Refresh)).ok();
            }
        }
    }
}

//! Manifests of the tests' pods.

use serde_json::{Value, json};

/// A manifest of a pod that is being written.
#[derive(Clone, Debug)]
pub struct Pod(Value);

/// A pod that is not started again, and that leaves within a second when told to.
#[must_use]
pub fn pod(name: &str) -> Pod {
    Pod(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": []},
    }))
}

/// A pod whose container `app` reads 4 KiB of a file on its volume `data` again and again.
#[must_use]
pub fn reader(name: &str) -> Pod {
    pod(name).volume("data", "emptyDir", json!({})).container_with(
        "app",
        "write /data/file 4096 , time-reads /data/file 1000000000 4096",
        mounts(&[("data", "/data")]),
    )
}

impl Pod {
    /// Sets a field of the spec.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0["spec"][field] = value.into();
        self
    }

    /// Adds a container that does `steps`, as the workload's arguments on one line.
    #[must_use]
    pub fn container(self, name: &str, steps: &str) -> Self {
        self.container_with(name, steps, json!({}))
    }

    /// Adds a container with more fields than these.
    #[must_use]
    pub fn container_with(mut self, name: &str, steps: &str, fields: Value) -> Self {
        let words: Vec<&str> =
            std::iter::once("/bin/workload").chain(steps.split_whitespace()).collect();
        let mut container = json!({"name": name, "command": words});
        if let (Some(container), Value::Object(fields)) = (container.as_object_mut(), fields) {
            container.extend(fields);
        }
        self.push("containers", container);
        self
    }

    /// Adds a volume.
    #[must_use]
    pub fn volume(mut self, name: &str, kind: &str, source: Value) -> Self {
        self.push("volumes", json!({"name": name, kind: source}));
        self
    }

    fn push(&mut self, list: &str, item: Value) {
        let list = &mut self.0["spec"][list];
        match list {
            Value::Array(items) => items.push(item),
            _ => *list = json!([item]),
        }
    }

    /// The manifest; containers without an image get `image`.
    #[must_use]
    pub fn into_value(mut self, image: &str) -> Value {
        let containers = self.0["spec"]["containers"].as_array_mut();
        for container in containers.into_iter().flatten() {
            if container["image"].is_null() {
                container["image"] = image.into();
            }
        }
        self.0
    }
}

/// A field for a container: where volumes are mounted.
#[must_use]
pub fn mounts(places: &[(&str, &str)]) -> Value {
    let mounts: Vec<Value> =
        places.iter().map(|(name, path)| json!({"name": name, "mountPath": path})).collect();
    json!({"volumeMounts": mounts})
}

/// A secret.
#[must_use]
pub fn secret(name: &str, data: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "default"},
        "stringData": data,
    })
}

/// A config map.
#[must_use]
pub fn config_map(name: &str, data: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": data,
    })
}

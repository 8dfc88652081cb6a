//! What a manifest leaves out and Kubernetes fills in.
//!
//! Only what Podscope honours: a default for a field without effect would promise something.

use k8s_openapi::{
    api::core::v1::{Container, EmptyDirVolumeSource, Pod, Volume},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::schema::priority_of;

const NAMESPACE: &str = "default";
const GRACE_SECONDS: i64 = 30;
const FILE_MODE: i32 = 0o644;
/// Kubernetes lets everybody in a container read its secrets. Here that has to be said.
const SECRET_MODE: i32 = 0o600;

pub(super) fn pod(pod: &mut Pod) {
    metadata(&mut pod.metadata);
    let Some(spec) = &mut pod.spec else {
        return;
    };
    fill(&mut spec.restart_policy, "Always");
    fill(&mut spec.dns_policy, "ClusterFirst");
    spec.termination_grace_period_seconds.get_or_insert(GRACE_SECONDS);
    if let Some(priority) = spec.priority_class_name.as_deref().and_then(priority_of) {
        spec.priority.get_or_insert(priority);
    }
    spec.containers.iter_mut().for_each(container);
    if spec.host_network == Some(true) {
        for port in spec.containers.iter_mut().flat_map(|container| &mut container.ports).flatten()
        {
            // The port is the host's already.
            if port.host_port.is_none_or(|port| port == 0) {
                port.host_port = Some(port.container_port);
            }
        }
    }
    spec.volumes.iter_mut().flatten().for_each(volume);
}

pub(super) fn metadata(metadata: &mut ObjectMeta) {
    fill(&mut metadata.namespace, NAMESPACE);
}

fn container(container: &mut Container) {
    let policy = container.image.as_deref().map_or("IfNotPresent", pull_policy);
    fill(&mut container.image_pull_policy, policy);
    for port in container.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
    }
    if let Some(resources) = &mut container.resources
        && let Some(limits) = &resources.limits
    {
        // Who may use so much and no more is assumed to need that much.
        let requests = resources.requests.get_or_insert_default();
        for (resource, limit) in limits {
            requests.entry(resource.clone()).or_insert_with(|| limit.clone());
        }
    }
}

/// Kubernetes pulls `latest` anew each time; a local image is there or it is not.
fn pull_policy(image: &str) -> &'static str {
    const LOCAL: [&str; 4] = ["dir:", "oci:", "oci-archive:", "docker-archive:"];
    if LOCAL.iter().any(|transport| image.starts_with(transport)) || image.contains('@') {
        return "IfNotPresent";
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn volume(volume: &mut Volume) {
    if let Some(host_path) = &mut volume.host_path {
        fill(&mut host_path.type_, "");
    } else if let Some(config_map) = &mut volume.config_map {
        config_map.default_mode.get_or_insert(FILE_MODE);
    } else if let Some(secret) = &mut volume.secret {
        secret.default_mode.get_or_insert(SECRET_MODE);
    } else {
        volume.empty_dir.get_or_insert_with(EmptyDirVolumeSource::default);
    }
}

fn fill(field: &mut Option<String>, default: &str) {
    if field.as_deref().is_none_or(str::is_empty) {
        *field = Some(default.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::pull_policy;

    #[test]
    fn only_latest_is_pulled_every_time() {
        for (image, policy) in [
            ("busybox", "Always"),
            ("busybox:latest", "Always"),
            ("localhost:5000/busybox", "Always"),
            ("busybox:1.37", "IfNotPresent"),
            ("localhost:5000/busybox:1.37", "IfNotPresent"),
            ("busybox@sha256:0123", "IfNotPresent"),
            ("dir:/srv/rootfs", "IfNotPresent"),
            ("oci:/srv/image", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}

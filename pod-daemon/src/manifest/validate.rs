//! Validation of typed, defaulted objects, as the Kubernetes API server does it.

mod container;
mod environment;
mod network;
mod resources;
mod security;
mod volume;

use std::collections::BTreeSet;

use k8s_openapi::{
    api::core::v1::{Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{names, problem::Problems, schema::priority_of};

/// As in Kubernetes: all annotations of one object together.
const MAX_ANNOTATION_BYTES: usize = 256 << 10;

pub(super) fn pod(pod: &Pod, problems: &mut Problems, warnings: &mut Vec<String>) {
    metadata(&pod.metadata, problems);
    match &pod.spec {
        Some(spec) => self::spec(spec, problems, warnings),
        None => problems.required("spec"),
    }
}

pub(super) fn metadata(metadata: &ObjectMeta, problems: &mut Problems) {
    match metadata.name.as_deref() {
        None | Some("") => problems.required("metadata.name"),
        Some(name) => check(problems, "metadata.name", name, names::subdomain(name)),
    }
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    check(problems, "metadata.namespace", namespace, names::label(namespace));
    for (key, value) in metadata.labels.iter().flatten() {
        let field = format!("metadata.labels[{key}]");
        check(problems, &field, key, names::qualified(key));
        check(problems, &field, value, names::label_value(value));
    }
    let mut size = 0;
    for (key, value) in metadata.annotations.iter().flatten() {
        let lower = key.to_lowercase();
        check(problems, format!("metadata.annotations[{key}]"), key, names::qualified(&lower));
        size += key.len() + value.len();
    }
    if size > MAX_ANNOTATION_BYTES {
        problems.invalid(
            "metadata.annotations",
            format!("are {size} bytes, and {MAX_ANNOTATION_BYTES} is the most there may be"),
        );
    }
}

fn spec(spec: &PodSpec, problems: &mut Problems, warnings: &mut Vec<String>) {
    if spec.containers.is_empty() {
        problems.add(
            super::Reason::Required,
            "spec.containers",
            "must have at least one container",
        );
    }
    let policy = spec.restart_policy.as_deref().unwrap_or_default();
    problems.one_of("spec.restartPolicy", policy, &["Always", "OnFailure", "Never"]);
    let grace = spec.termination_grace_period_seconds.unwrap_or_default();
    if u32::try_from(grace).is_err() {
        problems.invalid(
            "spec.terminationGracePeriodSeconds",
            format!("must be between 0 and {}, not {grace}", u32::MAX),
        );
    }
    resources::of_pod(spec, problems);
    priority(spec, problems);
    if let Some(hostname) = &spec.hostname {
        check(problems, "spec.hostname", hostname, names::label(hostname));
    }

    network::network(spec, problems);
    for (index, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        let field = format!("spec.imagePullSecrets[{index}].name");
        match secret.name.as_str() {
            "" => problems.required(field),
            name => check(problems, field, name, names::subdomain(name)),
        }
    }
    security::pod(spec, problems);

    let mut volumes = BTreeSet::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = format!("spec.volumes[{index}]");
        name(problems, &path, &volume.name, &mut volumes);
        volume::volume(volume, &path, problems);
    }
    let mut containers = BTreeSet::new();
    for (index, container) in spec.containers.iter().enumerate() {
        let path = format!("spec.containers[{index}]");
        name(problems, &path, &container.name, &mut containers);
        container::container(container, &path, &volumes, problems, warnings);
        security::container(container, spec, &path, problems);
    }
}

/// Above one thousand million are the classes that Kubernetes is born with.
fn priority(spec: &PodSpec, problems: &mut Problems) {
    const HIGHEST: i32 = 1_000_000_000;
    let class = spec.priority_class_name.as_deref().and_then(priority_of);
    match (spec.priority, class) {
        (Some(priority), Some(class)) if priority != class => problems.invalid(
            "spec.priority",
            format!("must be {class}, as spec.priorityClassName has it, not {priority}"),
        ),
        (Some(priority), None) if priority > HIGHEST => {
            problems.invalid("spec.priority", format!("must be at most {HIGHEST}, not {priority}"));
        }
        _ => {}
    }
    if let Some(policy) = &spec.preemption_policy {
        problems.one_of("spec.preemptionPolicy", policy, &["PreemptLowerPriority", "Never"]);
    }
}

/// Checks the name of an item in a list, where names are unique.
fn name<'a>(problems: &mut Problems, path: &str, name: &'a str, seen: &mut BTreeSet<&'a str>) {
    let field = format!("{path}.name");
    if name.is_empty() {
        return problems.required(field);
    }
    check(problems, &field, name, names::label(name));
    if !seen.insert(name) {
        problems.duplicate(field, name);
    }
}

fn check(problems: &mut Problems, field: impl Into<String>, value: &str, verdict: names::Verdict) {
    if let Some(verdict) = verdict {
        problems.invalid(field, format!("`{value}` {verdict}"));
    }
}

//! Validation of one container.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, ContainerPort, VolumeMount};

use super::{
    super::{names, problem::Problems},
    check, environment,
};

pub(super) fn container(
    container: &Container,
    path: &str,
    volumes: &BTreeSet<&str>,
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) {
    match container.image.as_deref() {
        None | Some("") => problems.required(format!("{path}.image")),
        Some(image) if image != image.trim() => {
            problems.invalid(format!("{path}.image"), "must not begin or end with white space");
        }
        Some(_) => {}
    }
    let policy = container.image_pull_policy.as_deref().unwrap_or_default();
    problems.one_of(
        format!("{path}.imagePullPolicy"),
        policy,
        &["Always", "IfNotPresent", "Never"],
    );
    if container.working_dir.as_deref().is_some_and(|dir| !dir.is_empty() && !dir.starts_with('/'))
    {
        problems.invalid(format!("{path}.workingDir"), "must be an absolute path");
    }
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let field = format!("{path}.env[{index}].name");
        match variable.name.as_str() {
            "" => problems.required(field),
            name => check(problems, field, name, names::variable(name)),
        }
    }
    environment::sources(container, path, problems);
    no_nul(container, path, problems);
    mounts(container.volume_mounts.iter().flatten(), path, volumes, problems);
    ports(container.ports.iter().flatten(), path, problems, warnings);
    if let Some(resources) = &container.resources {
        super::resources::of_container(resources, path, problems);
    }
}

/// The kernel ends these strings at the first NUL, so one inside would cut them in silence.
fn no_nul(container: &Container, path: &str, problems: &mut Problems) {
    let lists = [("command", &container.command), ("args", &container.args)];
    let words = lists.into_iter().flat_map(|(field, words)| {
        let words = words.iter().flatten().enumerate();
        words.map(move |(index, word)| (format!("{path}.{field}[{index}]"), word))
    });
    let values = container.env.iter().flatten().enumerate().filter_map(|(index, variable)| {
        Some((format!("{path}.env[{index}].value"), variable.value.as_ref()?))
    });
    let dir = container.working_dir.iter().map(|dir| (format!("{path}.workingDir"), dir));
    for (field, _) in words.chain(values).chain(dir).filter(|(_, text)| text.contains('\0')) {
        problems.invalid(field, "must not contain a NUL character");
    }
}

fn mounts<'a>(
    mounts: impl Iterator<Item = &'a VolumeMount>,
    path: &str,
    volumes: &BTreeSet<&str>,
    problems: &mut Problems,
) {
    let mut seen = BTreeSet::new();
    for (index, mount) in mounts.enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if mount.name.is_empty() {
            problems.required(format!("{path}.name"));
        } else if !volumes.contains(mount.name.as_str()) {
            problems.invalid(
                format!("{path}.name"),
                format!("`{}` is not one of the pod's volumes", mount.name),
            );
        }
        let field = format!("{path}.mountPath");
        let target = mount.mount_path.as_str();
        let parts: Vec<_> = target.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        if target.is_empty() {
            problems.required(field);
        } else if !target.starts_with('/') || parts.contains(&"..") || target.contains('\0') {
            problems.invalid(field, format!("`{target}` must be an absolute path without `..`"));
        } else if parts.is_empty() {
            problems.invalid(field, "must not be the root of the container");
        } else if parts[0] == "proc" {
            problems.invalid(
                field,
                format!("`{target}` is in the container's own /proc; mount the volume elsewhere, such as at `/host{target}`"),
            );
        } else if !seen.insert(parts) {
            problems.duplicate(field, target);
        }
    }
}

fn ports<'a>(
    ports: impl Iterator<Item = &'a ContainerPort>,
    path: &str,
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.enumerate() {
        let path = format!("{path}.ports[{index}]");
        let number = port.container_port;
        if !(1..=65535).contains(&number) {
            let message = format!("must be between 1 and 65535, not {number}");
            problems.invalid(format!("{path}.containerPort"), message);
        }
        let protocol = port.protocol.as_deref().unwrap_or_default();
        problems.one_of(format!("{path}.protocol"), protocol, &["TCP", "UDP", "SCTP"]);
        if let Some(name) = &port.name {
            let field = format!("{path}.name");
            check(problems, &field, name, names::port(name));
            if !names.insert(name) {
                problems.duplicate(field, name);
            }
        }
        // Ports only inform, so Kubernetes lets this pass too.
        if !numbers.insert((number, protocol)) {
            warnings.push(format!("{path}: {number}/{protocol} is there twice"));
        }
    }
}

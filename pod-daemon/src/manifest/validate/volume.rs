//! Validation of one volume.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, EmptyDirVolumeSource, HostPathVolumeSource, KeyToPath,
    SecretVolumeSource, Volume,
};

use super::{
    super::{names, problem::Problems},
    check,
};

const HOST_PATH_TYPES: &[&str] = &[
    "",
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
];

pub(super) fn volume(volume: &Volume, path: &str, problems: &mut Problems) {
    let sources = [
        volume.empty_dir.is_some(),
        volume.host_path.is_some(),
        volume.config_map.is_some(),
        volume.secret.is_some(),
    ];
    if sources.into_iter().filter(|set| *set).count() > 1 {
        problems.invalid(path, "must have one source only");
    }
    if let Some(directory) = &volume.empty_dir {
        empty_dir(directory, &format!("{path}.emptyDir"), problems);
    }
    if let Some(host) = &volume.host_path {
        host_path(host, &format!("{path}.hostPath"), problems);
    }
    if let Some(map) = &volume.config_map {
        config_map(map, &format!("{path}.configMap"), problems);
    }
    if let Some(source) = &volume.secret {
        secret(source, &format!("{path}.secret"), problems);
    }
}

fn empty_dir(directory: &EmptyDirVolumeSource, path: &str, problems: &mut Problems) {
    let medium = directory.medium.as_deref().unwrap_or_default();
    problems.one_of(format!("{path}.medium"), medium, &["", "Memory"]);
}

fn host_path(host: &HostPathVolumeSource, path: &str, problems: &mut Problems) {
    let field = format!("{path}.path");
    if host.path.is_empty() {
        problems.required(field);
    } else if !host.path.starts_with('/') || has_parent(&host.path) || host.path.contains('\0') {
        problems.invalid(field, format!("`{}` must be an absolute path without `..`", host.path));
    }
    let kind = host.type_.as_deref().unwrap_or_default();
    problems.one_of(format!("{path}.type"), kind, HOST_PATH_TYPES);
}

fn config_map(map: &ConfigMapVolumeSource, path: &str, problems: &mut Problems) {
    let field = format!("{path}.name");
    match map.name.as_str() {
        "" => problems.required(field),
        name => check(problems, field, name, names::subdomain(name)),
    }
    mode(map.default_mode, format!("{path}.defaultMode"), problems);
    items(map.items.iter().flatten(), path, problems);
}

fn secret(secret: &SecretVolumeSource, path: &str, problems: &mut Problems) {
    let field = format!("{path}.secretName");
    match secret.secret_name.as_deref() {
        None | Some("") => problems.required(field),
        Some(name) => check(problems, field, name, names::subdomain(name)),
    }
    mode(secret.default_mode, format!("{path}.defaultMode"), problems);
    items(secret.items.iter().flatten(), path, problems);
}

fn items<'a>(items: impl Iterator<Item = &'a KeyToPath>, path: &str, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for (index, item) in items.enumerate() {
        let path = format!("{path}.items[{index}]");
        match item.key.as_str() {
            "" => problems.required(format!("{path}.key")),
            key => check(problems, format!("{path}.key"), key, names::config_key(key)),
        }
        let field = format!("{path}.path");
        if item.path.is_empty() {
            problems.required(field);
        } else if item.path.starts_with('/')
            // Names that begin so are the volume's own, as in Kubernetes.
            || item.path.starts_with("..")
            || has_parent(&item.path)
            || item.path.contains('\0')
        {
            let message = format!("`{}` must be a relative path without `..`", item.path);
            problems.invalid(field, message);
        } else if !seen.insert(&item.path) {
            problems.duplicate(field, &item.path);
        }
        mode(item.mode, format!("{path}.mode"), problems);
    }
}

fn mode(mode: Option<i32>, field: String, problems: &mut Problems) {
    if let Some(mode) = mode
        && !(0..=0o777).contains(&mode)
    {
        let message = format!("must be between 0 and 0777 (511), not {mode}");
        problems.invalid(field, message);
    }
}

fn has_parent(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

//! Validation of variables that come from elsewhere.

use k8s_openapi::api::core::v1::{Container, EnvVarSource};

use super::{
    super::{names, problem::Problems},
    check,
};

/// What `fieldRef` may name.
const FIELDS: [&str; 8] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.podIP",
    "status.podIPs",
];

pub(super) fn sources(container: &Container, path: &str, problems: &mut Problems) {
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let Some(source) = &variable.value_from else { continue };
        let path = format!("{path}.env[{index}].valueFrom");
        if variable.value.as_deref().is_some_and(|value| !value.is_empty()) {
            problems.invalid(&path, "must not stand beside `value`");
        }
        one(source, &path, problems);
    }
    for (index, source) in container.env_from.iter().flatten().enumerate() {
        let path = format!("{path}.envFrom[{index}]");
        if let Some(prefix) = source.prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
            check(problems, format!("{path}.prefix"), prefix, names::variable(prefix));
        }
        match (&source.config_map_ref, &source.secret_ref) {
            (Some(map), None) => name(&map.name, &format!("{path}.configMapRef"), problems),
            (None, Some(secret)) => name(&secret.name, &format!("{path}.secretRef"), problems),
            _ => problems.invalid(path, "must have one of `configMapRef` and `secretRef`"),
        }
    }
}

fn one(source: &EnvVarSource, path: &str, problems: &mut Problems) {
    let set = [
        source.config_map_key_ref.is_some(),
        source.secret_key_ref.is_some(),
        source.field_ref.is_some(),
    ];
    if set.into_iter().filter(|set| *set).count() != 1 {
        problems.invalid(path, "must have one of `configMapKeyRef`, `secretKeyRef` and `fieldRef`");
    }
    if let Some(from) = &source.config_map_key_ref {
        let path = format!("{path}.configMapKeyRef");
        name(&from.name, &path, problems);
        key(&from.key, &path, problems);
    }
    if let Some(from) = &source.secret_key_ref {
        let path = format!("{path}.secretKeyRef");
        name(&from.name, &path, problems);
        key(&from.key, &path, problems);
    }
    if let Some(from) = &source.field_ref {
        let field = format!("{path}.fieldRef.fieldPath");
        let entry = ["metadata.labels", "metadata.annotations"].into_iter().find_map(|map| {
            from.field_path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")
        });
        match entry {
            Some(key) => check(problems, field, key, names::qualified(&key.to_lowercase())),
            None => problems.one_of(field, &from.field_path, &FIELDS),
        }
    }
}

fn name(name: &str, path: &str, problems: &mut Problems) {
    let field = format!("{path}.name");
    match name {
        "" => problems.required(field),
        name => check(problems, field, name, names::subdomain(name)),
    }
}

fn key(key: &str, path: &str, problems: &mut Problems) {
    let field = format!("{path}.key");
    match key {
        "" => problems.required(field),
        key => check(problems, field, key, names::config_key(key)),
    }
}

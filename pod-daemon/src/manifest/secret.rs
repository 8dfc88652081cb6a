//! Completion and validation of secrets.
//!
//! No message says what a secret holds: messages end up in logs.

use k8s_openapi::{ByteString, api::core::v1::Secret};
use serde_json::Value;

use super::{
    names,
    problem::{Problems, Reason},
    validate,
};

/// As in Kubernetes: what fits one object of its store.
const MAX_BYTES: usize = 1 << 20;

/// The type of a secret that does not say its own.
const OPAQUE: &str = "Opaque";

/// The key of a secret for registries, in the form of docker's `config.json`.
pub const DOCKER_CONFIG: &str = ".dockerconfigjson";

/// The same in docker's older form.
pub const OLD_DOCKER_CONFIG: &str = ".dockercfg";

/// What the types of Kubernetes require: all of these keys.
const REQUIRED: [(&str, &[&str]); 4] = [
    ("kubernetes.io/dockerconfigjson", &[DOCKER_CONFIG]),
    ("kubernetes.io/dockercfg", &[OLD_DOCKER_CONFIG]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

/// Moves `stringData` into `data`, where it wins, and fills in the type.
pub(super) fn complete(secret: &mut Secret) {
    let texts = secret.string_data.take().unwrap_or_default();
    if !texts.is_empty() {
        let data = secret.data.get_or_insert_default();
        data.extend(texts.into_iter().map(|(key, text)| (key, ByteString(text.into_bytes()))));
    }
    if secret.type_.as_deref().is_none_or(str::is_empty) {
        secret.type_ = Some(OPAQUE.to_owned());
    }
}

pub(super) fn validate(secret: &Secret, problems: &mut Problems) {
    validate::metadata(&secret.metadata, problems);
    let mut size = 0;
    for (key, value) in secret.data.iter().flatten() {
        if let Some(verdict) = names::config_key(key) {
            problems.invalid(format!("data[{key}]"), verdict);
        }
        size += value.0.len();
    }
    if size > MAX_BYTES {
        problems
            .invalid("data", format!("is {size} bytes, and {MAX_BYTES} is the most there may be"));
    }
    let kind = secret.type_.as_deref().unwrap_or_default();
    let value = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
    let required = REQUIRED.iter().find(|(of, _)| *of == kind).map_or(&[][..], |(_, keys)| keys);
    for key in required {
        let field = format!("data[{key}]");
        match value(key) {
            None => problems.add(
                Reason::Required,
                field,
                format!("must be there in a secret of type `{kind}`"),
            ),
            Some(json)
                if [DOCKER_CONFIG, OLD_DOCKER_CONFIG].contains(key)
                    && !serde_json::from_slice::<Value>(&json.0)
                        .is_ok_and(|json| json.is_object()) =>
            {
                problems.invalid(field, "must be a JSON object");
            }
            Some(_) => {}
        }
    }
    if kind == "kubernetes.io/basic-auth"
        && value("username").or_else(|| value("password")).is_none()
    {
        problems.add(
            Reason::Required,
            "data",
            format!("must have `username` or `password` in a secret of type `{kind}`"),
        );
    }
}

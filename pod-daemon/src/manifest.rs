//! Manifests: text in, validated and defaulted Kubernetes objects out.
//!
//! Owns which fields of `v1.Pod`, `v1.ConfigMap` and `v1.Secret` Podscope honours. Nothing is ignored in
//! silence: a field that is not supported is a problem that names its path, and all problems of an
//! object are reported at once. Knows nothing about running pods, HTTP or the command line.

mod amounts;
mod config_map;
mod defaults;
pub mod demand;
mod documents;
mod expand;
mod fields;
mod names;
mod problem;
mod qos;
mod quantity;
mod schema;
mod secret;
mod validate;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use self::{
    amounts::{Amounts, HUGE_PAGES, IO, PIDS},
    demand::Demand,
    documents::documents,
    expand::expand,
    problem::{Problem, Reason},
    qos::{INFRA_OOM_SCORE_ADJ, oom_score_adj, qos_class},
    quantity::{Error as QuantityError, bytes, millicores},
    secret::{DOCKER_CONFIG, OLD_DOCKER_CONFIG},
};
use self::{fields::Walk, problem::Problems, schema::Type};

/// What to do about a field that Podscope does not support.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Unsupported {
    /// Refuse the object.
    #[default]
    Deny,
    /// Drop the field and say so.
    Warn,
}

/// A manifest was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is neither YAML nor JSON.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// Counted from one.
        line: u64,
        /// Counted from one.
        column: u64,
        /// What the parser expected.
        message: String,
    },
    /// The object is well-formed and says something that cannot be done.
    #[error("{object} is invalid:{}", problem::list(problems))]
    Invalid {
        /// Kind and name, like ``pod `web` ``.
        object: String,
        /// Everything that is wrong with it.
        problems: Vec<Problem>,
    },
}

impl Error {
    /// The problems of an invalid object; none for a syntax error.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Syntax { .. } => &[],
            Self::Invalid { problems, .. } => problems,
        }
    }
}

/// Checks one document that says it is a pod, and fills in the defaults.
///
/// Returns the pod and the warnings: fields that were dropped under [`Unsupported::Warn`], and
/// things that are legal but probably not meant.
pub fn parse_pod(value: Value, policy: Unsupported) -> Result<(Pod, Vec<String>), Error> {
    parse(value, &schema::POD, "pod", policy, |pod: &mut Pod, problems, warnings| {
        defaults::pod(pod);
        validate::pod(pod, problems, warnings);
    })
}

/// Checks one document that says it is a config map, and fills in the defaults.
pub fn parse_config_map(
    value: Value,
    policy: Unsupported,
) -> Result<(ConfigMap, Vec<String>), Error> {
    parse(value, &schema::CONFIG_MAP, "configmap", policy, |map: &mut ConfigMap, problems, _| {
        defaults::metadata(&mut map.metadata);
        config_map::validate(map, problems);
    })
}

/// Checks one document that says it is a secret, and fills in the defaults. `stringData` has become
/// a part of `data`.
pub fn parse_secret(value: Value, policy: Unsupported) -> Result<(Secret, Vec<String>), Error> {
    parse(value, &schema::SECRET, "secret", policy, |secret: &mut Secret, problems, _| {
        defaults::metadata(&mut secret.metadata);
        secret::complete(secret);
        secret::validate(secret, problems);
    })
}

/// The kind that a document declares, if it declares one.
pub fn kind(value: &Value) -> Option<&str> {
    value.get("kind").and_then(Value::as_str)
}

/// The name that a document gives its object, if it gives one.
pub fn name(value: &Value) -> Option<&str> {
    value.get("metadata")?.get("name")?.as_str()
}

/// Walks the document along the schema, then completes and validates the typed object.
fn parse<T>(
    mut value: Value,
    schema: &'static Type,
    kind: &'static str,
    policy: Unsupported,
    complete: impl FnOnce(&mut T, &mut Problems, &mut Vec<String>),
) -> Result<(T, Vec<String>), Error>
where
    T: DeserializeOwned + k8s_openapi::Resource,
{
    let name = name(&value).map(str::to_owned);
    let mut walk = Walk::new(policy);
    if walk.is_a(&value, T::API_VERSION, T::KIND) {
        walk.root(&mut value, schema);
    }
    let (mut problems, mut warnings) = walk.finish();
    // What the walk complained about it dropped if it could, so that the rest is validated too.
    match serde_json::from_value(value) {
        Ok(mut object) => {
            complete(&mut object, &mut problems, &mut warnings);
            if problems.is_empty() {
                return Ok((object, warnings));
            }
        }
        // The walk checks types and knows the path, so this is only the net below it.
        Err(error) if problems.is_empty() => problems.add(Reason::Type, "", error.to_string()),
        Err(_) => {}
    }
    Err(problems.into_error(kind, name.as_deref()))
}

#[cfg(test)]
mod tests;

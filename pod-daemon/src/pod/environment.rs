//! A container's variables as the manifest means them: what comes from config maps, secrets and the
//! pod itself is looked up when the container starts.

use std::{collections::BTreeMap, net::Ipv4Addr};

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVarSource};

use super::About;
use crate::{manifest::expand, node::Shared};

/// A variable has no value. The container is tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{kind} {name:?} not found")]
    NoObject { kind: &'static str, name: String },
    #[error("{kind} {name:?} has no key {key:?}")]
    NoKey { kind: &'static str, name: String, key: String },
    #[error("{kind} {name:?}: the value of {key:?} is not text")]
    NotText { kind: &'static str, name: String, key: String },
}

/// An object's entries, if it exists.
type Data = Option<BTreeMap<String, Vec<u8>>>;

/// The variable by which a process is told which trace it is part of, in the words of W3C's Trace Context.
pub(crate) const TRACEPARENT: &str = "TRACEPARENT";

/// The trace that the manifest itself says the container is part of.
pub(super) fn traceparent(spec: &Container) -> Option<String> {
    let mut variables = spec.env.iter().flatten().rev();
    variables.find(|variable| variable.name == TRACEPARENT)?.value.clone()
}

/// The container's variables. Those of `env` win over those of `envFrom`, and a later one over an
/// earlier one; `$(NAME)` stands for one that came before.
pub(super) fn of(
    shared: &Shared,
    about: &About,
    ip: Option<Ipv4Addr>,
    spec: &Container,
) -> Result<BTreeMap<String, String>, Error> {
    let mut all = BTreeMap::new();
    for source in spec.env_from.iter().flatten() {
        all.extend(all_of(shared, about, source)?);
    }
    for variable in spec.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => match one_of(shared, about, ip, source)? {
                Some(value) => value,
                None => continue,
            },
            None => expand(variable.value.as_deref().unwrap_or_default(), &all),
        };
        all.insert(variable.name.clone(), value);
    }
    Ok(all)
}

/// Every entry of an object whose name can be a variable's.
fn all_of(
    shared: &Shared,
    about: &About,
    source: &EnvFromSource,
) -> Result<BTreeMap<String, String>, Error> {
    let (kind, name, optional, data) = if let Some(map) = &source.config_map_ref {
        ("configmap", &map.name, map.optional, config_map(shared, about, &map.name))
    } else if let Some(one) = &source.secret_ref {
        ("secret", &one.name, one.optional, shared.secret_data(&about.key.namespace, &one.name))
    } else {
        return Ok(BTreeMap::new());
    };
    let Some(data) = data else {
        return if optional == Some(true) {
            Ok(BTreeMap::new())
        } else {
            Err(Error::NoObject { kind, name: name.clone() })
        };
    };
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let mut variables = BTreeMap::new();
    for (key, value) in data {
        let value = text(kind, name, &key, value)?;
        variables.insert(format!("{prefix}{key}"), value);
    }
    Ok(variables)
}

/// One value; none if it is optional and not there.
fn one_of(
    shared: &Shared,
    about: &About,
    ip: Option<Ipv4Addr>,
    source: &EnvVarSource,
) -> Result<Option<String>, Error> {
    let (kind, name, key, optional, data) = if let Some(from) = &source.config_map_key_ref {
        let data = config_map(shared, about, &from.name);
        ("configmap", &from.name, &from.key, from.optional, data)
    } else if let Some(from) = &source.secret_key_ref {
        let data = shared.secret_data(&about.key.namespace, &from.name);
        ("secret", &from.name, &from.key, from.optional, data)
    } else if let Some(from) = &source.field_ref {
        return Ok(Some(field(shared, about, ip, &from.field_path)));
    } else {
        return Ok(None);
    };
    let optional = optional == Some(true);
    match data {
        None if optional => Ok(None),
        None => Err(Error::NoObject { kind, name: name.clone() }),
        Some(mut data) => match data.remove(key) {
            Some(value) => text(kind, name, key, value).map(Some),
            None if optional => Ok(None),
            None => Err(Error::NoKey { kind, name: name.clone(), key: key.clone() }),
        },
    }
}

/// A field of the pod; validation has let no other path through.
fn field(shared: &Shared, about: &About, ip: Option<Ipv4Addr>, path: &str) -> String {
    let node_ip = || shared.network.node_address().to_string();
    let entry = |map: &str| {
        let key = path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(key.to_owned())
    };
    match path {
        "metadata.name" => about.key.name.clone(),
        "metadata.namespace" => about.key.namespace.clone(),
        "metadata.uid" => about.uid.clone(),
        "spec.nodeName" => shared.settings.name.clone(),
        "spec.serviceAccountName" => "default".to_owned(),
        "status.hostIP" => node_ip(),
        "status.podIP" | "status.podIPs" => ip.map_or_else(node_ip, |ip| ip.to_string()),
        _ => {
            let metadata = shared.metadata(&about.key).unwrap_or_default();
            let labels = || metadata.labels.as_ref()?.get(&entry("metadata.labels")?).cloned();
            let annotations =
                || metadata.annotations.as_ref()?.get(&entry("metadata.annotations")?).cloned();
            labels().or_else(annotations).unwrap_or_default()
        }
    }
}

fn config_map(shared: &Shared, about: &About, name: &str) -> Data {
    let map = shared.config_map(&about.key.namespace, name)?;
    let texts = map.data.unwrap_or_default().into_iter();
    Some(texts.map(|(key, text)| (key, text.into_bytes())).collect())
}

/// A variable ends at its first NUL, and the API speaks of text only.
fn text(kind: &'static str, name: &str, key: &str, value: Vec<u8>) -> Result<String, Error> {
    let not_text = || Error::NotText { kind, name: name.to_owned(), key: key.to_owned() };
    if value.contains(&0) {
        return Err(not_text());
    }
    String::from_utf8(value).map_err(|_invalid| not_text())
}

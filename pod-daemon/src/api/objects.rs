//! Config maps and secrets: create, read, list, replace, delete.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use k8s_openapi::{
    ListableResource,
    api::core::v1::{ConfigMap, Secret},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Api, Failure, Operations,
    params::{Document, Names, Params},
    pods::{List, in_namespace, warning_headers},
    selector::{Selectable, Selector},
};
use crate::{
    manifest::{self, Unsupported},
    node::Error,
};

/// An object that the node keeps for pods, and does nothing with by itself.
pub(super) trait Stored: ListableResource + Selectable + Serialize + Sized {
    fn parse(value: Value, policy: Unsupported) -> Result<(Self, Vec<String>), manifest::Error>;
    /// Refuses to become this if it must stay as `old`.
    fn check_change(&self, old: &Self) -> Result<(), Failure>;
    fn apply(self, node: &impl Operations) -> Result<Self, Error>;
    fn get(node: &impl Operations, namespace: &str, name: &str) -> Result<Self, Error>;
    fn all(node: &impl Operations, namespace: Option<&str>) -> Vec<Self>;
    fn delete(node: &impl Operations, namespace: &str, name: &str) -> Result<Self, Error>;
}

impl Stored for ConfigMap {
    fn parse(value: Value, policy: Unsupported) -> Result<(Self, Vec<String>), manifest::Error> {
        manifest::parse_config_map(value, policy)
    }

    fn check_change(&self, old: &Self) -> Result<(), Failure> {
        let same = self.data == old.data && self.binary_data == old.binary_data;
        check_immutable([old.immutable, self.immutable], same, "the config map")
    }

    fn apply(self, node: &impl Operations) -> Result<Self, Error> {
        node.apply_config_map(self)
    }

    fn get(node: &impl Operations, namespace: &str, name: &str) -> Result<Self, Error> {
        node.config_map(namespace, name)
    }

    fn all(node: &impl Operations, namespace: Option<&str>) -> Vec<Self> {
        node.config_maps(namespace)
    }

    fn delete(node: &impl Operations, namespace: &str, name: &str) -> Result<Self, Error> {
        node.delete_config_map(namespace, name)
    }
}

impl Stored for Secret {
    fn parse(value: Value, policy: Unsupported) -> Result<(Self, Vec<String>), manifest::Error> {
        manifest::parse_secret(value, policy)
    }

    fn check_change(&self, old: &Self) -> Result<(), Failure> {
        check_immutable([old.immutable, self.immutable], self.data == old.data, "the secret")?;
        if self.type_ != old.type_ {
            return Err(Failure::invalid("type", "cannot change; delete the secret first"));
        }
        Ok(())
    }

    fn apply(self, node: &impl Operations) -> Result<Self, Error> {
        node.apply_secret(self)
    }

    fn get(node: &impl Operations, namespace: &str, name: &str) -> Result<Self, Error> {
        node.secret(namespace, name)
    }

    fn all(node: &impl Operations, namespace: Option<&str>) -> Vec<Self> {
        node.secrets(namespace)
    }

    fn delete(node: &impl Operations, namespace: &str, name: &str) -> Result<Self, Error> {
        node.delete_secret(namespace, name)
    }
}

/// What was immutable stays so, and as it was.
fn check_immutable(
    [before, after]: [Option<bool>; 2],
    same: bool,
    what: &str,
) -> Result<(), Failure> {
    if before == Some(true) && !(same && after == Some(true)) {
        let message = format!("cannot change, since {what} is immutable");
        return Err(Failure::invalid("data", &message));
    }
    Ok(())
}

pub(super) async fn create<N: Operations, T: Stored>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
    document: Document,
) -> Result<Response, Failure> {
    params.no_dry_run()?;
    let value = in_namespace(document.required()?, &names.namespace)?;
    let (object, warnings) = T::parse(value, params.policy(api.policy)?)?;
    let name = object.metadata().name.clone().unwrap_or_default();
    if T::get(&api.node, &names.namespace, &name).is_ok() {
        return Err(Error::AlreadyExists { kind: T::URL_PATH_SEGMENT, name }.into());
    }
    let object = object.apply(&api.node)?;
    Ok((StatusCode::CREATED, warning_headers(&warnings), Json(object)).into_response())
}

pub(super) async fn replace<N: Operations, T: Stored>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
    document: Document,
) -> Result<Response, Failure> {
    params.no_dry_run()?;
    let value = in_namespace(document.required()?, &names.namespace)?;
    let expected = value.pointer("/metadata/resourceVersion").and_then(Value::as_str);
    let expected = expected.map(str::to_owned);
    let (object, warnings) = T::parse(value, params.policy(api.policy)?)?;
    if object.metadata().name.as_deref() != Some(&names.name) {
        return Err(Failure::bad_request("the object's name is not the one of the path"));
    }
    let old = T::get(&api.node, &names.namespace, &names.name)?;
    if expected.is_some() && expected != old.metadata().resource_version {
        return Err(Failure::conflict(format!(
            "{} \"{}\" has been changed since it was read; read it again",
            T::URL_PATH_SEGMENT,
            names.name
        )));
    }
    object.check_change(&old)?;
    let object = object.apply(&api.node)?;
    Ok((warning_headers(&warnings), Json(object)).into_response())
}

pub(super) async fn read<N: Operations, T: Stored>(
    State(api): State<Api<N>>,
    names: Names,
) -> Result<Json<T>, Failure> {
    Ok(Json(T::get(&api.node, &names.namespace, &names.name)?))
}

pub(super) async fn list_all<N: Operations, T: Stored>(
    State(api): State<Api<N>>,
    params: Params,
) -> Result<Response, Failure> {
    list_in::<N, T>(&api, None, &params)
}

pub(super) async fn list<N: Operations, T: Stored>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
) -> Result<Response, Failure> {
    list_in::<N, T>(&api, Some(&names.namespace), &params)
}

fn list_in<N: Operations, T: Stored>(
    api: &Api<N>,
    namespace: Option<&str>,
    params: &Params,
) -> Result<Response, Failure> {
    if params.flag("watch")? {
        return Err(Failure::bad_request(format!("{} cannot be watched yet", T::URL_PATH_SEGMENT)));
    }
    let selector = Selector::of::<T>(params)?;
    let mut objects = T::all(&api.node, namespace);
    objects.retain(|object| selector.accepts(object));
    Ok(Json(List::new(T::LIST_KIND, "v1", objects)).into_response())
}

pub(super) async fn delete<N: Operations, T: Stored>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
    document: Document,
) -> Result<Json<Value>, Failure> {
    params.no_dry_run()?;
    document
        .deletion(|| Ok(T::get(&api.node, &names.namespace, &names.name)?.metadata().clone()))?;
    let object = T::delete(&api.node, &names.namespace, &names.name)?;
    Ok(Json(json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {
            "name": names.name,
            "kind": T::URL_PATH_SEGMENT,
            "uid": object.metadata().uid,
        },
    })))
}

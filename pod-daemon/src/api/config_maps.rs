//! Config maps: create, read, list, replace, delete.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::{
    Api, Failure, Operations,
    params::{Document, Names, Params},
    pods::{List, in_namespace, warning_headers},
    selector::Selector,
};
use crate::{manifest, node};

pub(super) async fn create<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
    document: Document,
) -> Result<Response, Failure> {
    params.no_dry_run()?;
    let value = in_namespace(document.required()?, &names.namespace)?;
    let (map, warnings) = manifest::parse_config_map(value, params.policy(api.policy)?)?;
    let name = map.metadata.name.clone().unwrap_or_default();
    if api.node.config_map(&names.namespace, &name).is_ok() {
        return Err(node::Error::AlreadyExists { kind: "configmaps", name }.into());
    }
    let map = api.node.apply_config_map(map)?;
    Ok((StatusCode::CREATED, warning_headers(&warnings), Json(map)).into_response())
}

pub(super) async fn replace<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
    document: Document,
) -> Result<Response, Failure> {
    params.no_dry_run()?;
    let value = in_namespace(document.required()?, &names.namespace)?;
    let expected = value.pointer("/metadata/resourceVersion").and_then(Value::as_str);
    let expected = expected.map(str::to_owned);
    let (map, warnings) = manifest::parse_config_map(value, params.policy(api.policy)?)?;
    if map.metadata.name.as_deref() != Some(&names.name) {
        return Err(Failure::bad_request("the object's name is not the one of the path"));
    }
    let old = api.node.config_map(&names.namespace, &names.name)?;
    if expected.is_some() && expected != old.metadata.resource_version {
        return Err(Failure::conflict(format!(
            "configmaps \"{}\" has been changed since it was read; read it again",
            names.name
        )));
    }
    if old.immutable == Some(true)
        && (map.immutable != Some(true)
            || map.data != old.data
            || map.binary_data != old.binary_data)
    {
        return Err(Failure::invalid("data", "cannot change, since the config map is immutable"));
    }
    let map = api.node.apply_config_map(map)?;
    Ok((warning_headers(&warnings), Json(map)).into_response())
}

pub(super) async fn read<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
) -> Result<Json<ConfigMap>, Failure> {
    Ok(Json(api.node.config_map(&names.namespace, &names.name)?))
}

pub(super) async fn list_all<N: Operations>(
    State(api): State<Api<N>>,
    params: Params,
) -> Result<Response, Failure> {
    list_in(&api, None, &params)
}

pub(super) async fn list<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
) -> Result<Response, Failure> {
    list_in(&api, Some(&names.namespace), &params)
}

fn list_in<N: Operations>(
    api: &Api<N>,
    namespace: Option<&str>,
    params: &Params,
) -> Result<Response, Failure> {
    if params.flag("watch")? {
        return Err(Failure::bad_request("config maps cannot be watched yet"));
    }
    let selector = Selector::from_params(params)?;
    let mut maps = api.node.config_maps(namespace);
    maps.retain(|map| selector.accepts_metadata(&map.metadata));
    Ok(Json(List::new("ConfigMapList", "v1", maps)).into_response())
}

pub(super) async fn delete<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
) -> Result<Json<Value>, Failure> {
    params.no_dry_run()?;
    let map = api.node.delete_config_map(&names.namespace, &names.name)?;
    Ok(Json(json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": names.name, "kind": "configmaps", "uid": map.metadata.uid},
    })))
}

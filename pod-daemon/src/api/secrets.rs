//! Secrets: create, read, list, replace, delete.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use k8s_openapi::api::core::v1::Secret;
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
    let (secret, warnings) = manifest::parse_secret(value, params.policy(api.policy)?)?;
    let name = secret.metadata.name.clone().unwrap_or_default();
    if api.node.secret(&names.namespace, &name).is_ok() {
        return Err(node::Error::AlreadyExists { kind: "secrets", name }.into());
    }
    let secret = api.node.apply_secret(secret)?;
    Ok((StatusCode::CREATED, warning_headers(&warnings), Json(secret)).into_response())
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
    let (secret, warnings) = manifest::parse_secret(value, params.policy(api.policy)?)?;
    if secret.metadata.name.as_deref() != Some(&names.name) {
        return Err(Failure::bad_request("the object's name is not the one of the path"));
    }
    let old = api.node.secret(&names.namespace, &names.name)?;
    if expected.is_some() && expected != old.metadata.resource_version {
        return Err(Failure::conflict(format!(
            "secrets \"{}\" has been changed since it was read; read it again",
            names.name
        )));
    }
    if old.immutable == Some(true) && (secret.immutable != Some(true) || secret.data != old.data) {
        return Err(Failure::invalid("data", "cannot change, since the secret is immutable"));
    }
    if secret.type_ != old.type_ {
        return Err(Failure::invalid("type", "cannot change; delete the secret first"));
    }
    let secret = api.node.apply_secret(secret)?;
    Ok((warning_headers(&warnings), Json(secret)).into_response())
}

pub(super) async fn read<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
) -> Result<Json<Secret>, Failure> {
    Ok(Json(api.node.secret(&names.namespace, &names.name)?))
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
        return Err(Failure::bad_request("secrets cannot be watched yet"));
    }
    let selector = Selector::from_params(params)?;
    let mut secrets = api.node.secrets(namespace);
    secrets.retain(|secret| selector.accepts_metadata(&secret.metadata));
    Ok(Json(List::new("SecretList", "v1", secrets)).into_response())
}

pub(super) async fn delete<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
) -> Result<Json<Value>, Failure> {
    params.no_dry_run()?;
    let secret = api.node.delete_secret(&names.namespace, &names.name)?;
    Ok(Json(json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": names.name, "kind": "secrets", "uid": secret.metadata.uid},
    })))
}

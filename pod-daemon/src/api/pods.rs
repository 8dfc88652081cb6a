//! Pods: create and delete. They are read like everything that is [`super::observed`].

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header::WARNING},
    response::{AppendHeaders, IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;

use super::{
    Api, Failure, Operations,
    params::{Document, Names, Params},
};
use crate::manifest;

/// A Kubernetes list.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct List<T> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Value,
    items: Vec<T>,
}

impl<T> List<T> {
    pub(super) fn new(kind: &'static str, api_version: &'static str, items: Vec<T>) -> Self {
        Self { kind, api_version, metadata: serde_json::json!({}), items }
    }

    pub(super) fn at(mut self, resource_version: u64) -> Self {
        self.metadata = serde_json::json!({"resourceVersion": resource_version.to_string()});
        self
    }
}

pub(super) async fn create<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
    document: Document,
) -> Result<Response, Failure> {
    params.no_dry_run()?;
    let value = in_namespace(document.required()?, &names.namespace)?;
    let (pod, warnings) = manifest::parse_pod(value, params.policy(api.policy)?)?;
    let pod = api.node.create_pod(pod).await?;
    Ok((StatusCode::CREATED, warning_headers(&warnings), Json(pod)).into_response())
}

pub(super) async fn delete<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
    document: Document,
) -> Result<Response, Failure> {
    params.no_dry_run()?;
    let found = || Ok(api.node.pod(&names.namespace, &names.name)?.metadata.clone());
    let options = document.deletion(found)?;
    let grace = match options.get("gracePeriodSeconds").filter(|grace| !grace.is_null()) {
        Some(grace) => {
            Some(grace.as_u64().and_then(|grace| u32::try_from(grace).ok()).ok_or_else(|| {
                Failure::invalid("gracePeriodSeconds", &format!("must not be `{grace}`"))
            })?)
        }
        None => params.parsed("gracePeriodSeconds")?,
    };
    let pod = api.node.delete_pod(&names.namespace, &names.name, grace).await?;
    Ok(Json(&*pod).into_response())
}

/// The object put into the namespace of the request's path.
pub(super) fn in_namespace(mut value: Value, namespace: &str) -> Result<Value, Failure> {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        let own = metadata.entry("namespace").or_insert(Value::Null);
        if own.as_str().is_none_or(str::is_empty) && !own.is_number() {
            *own = namespace.into();
        }
        if own != namespace {
            return Err(Failure::bad_request(format!(
                "the object says namespace {own}, the path says \"{namespace}\""
            )));
        }
    }
    Ok(value)
}

/// Warnings as Kubernetes sends them, one header each.
pub(super) fn warning_headers(
    warnings: &[String],
) -> AppendHeaders<Vec<(axum::http::HeaderName, HeaderValue)>> {
    let header = |warning: &String| {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        let visible = quoted.replace(|c: char| !(' '..='~').contains(&c), "?");
        HeaderValue::from_str(&format!("299 - \"{visible}\"")).ok().map(|value| (WARNING, value))
    };
    AppendHeaders(warnings.iter().filter_map(header).collect())
}

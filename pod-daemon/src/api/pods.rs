//! Pods: create, read, list, watch, delete.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header::WARNING},
    response::{AppendHeaders, IntoResponse, Response},
};
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use serde_json::Value;

use super::{
    Api, Failure, Operations,
    params::{Document, Names, Params},
    selector::Selector,
    watch,
};
use crate::manifest;

/// Which pods a list or a watch is about.
pub(super) struct Scope {
    namespace: Option<String>,
    selector: Selector,
}

impl Scope {
    /// The namespace, if it is about one only.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    pub(super) fn contains(&self, pod: &Pod) -> bool {
        self.namespace
            .as_deref()
            .is_none_or(|namespace| pod.metadata.namespace.as_deref() == Some(namespace))
            && self.selector.accepts(pod)
    }
}

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

pub(super) async fn read<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
) -> Result<Response, Failure> {
    let pod = api.node.pod(&names.namespace, &names.name)?;
    Ok(Json(&*pod).into_response())
}

pub(super) async fn list_all<N: Operations>(
    State(api): State<Api<N>>,
    params: Params,
) -> Result<Response, Failure> {
    list_or_watch(&api, None, &params)
}

pub(super) async fn list<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
) -> Result<Response, Failure> {
    list_or_watch(&api, Some(names.namespace), &params)
}

fn list_or_watch<N: Operations>(
    api: &Api<N>,
    namespace: Option<String>,
    params: &Params,
) -> Result<Response, Failure> {
    let scope = Scope { namespace, selector: Selector::from_params(params)? };
    if params.flag("watch")? {
        return watch::pods(api, scope, params);
    }
    let (pods, version) = api.node.pods(scope.namespace());
    let items: Vec<&Pod> = pods.iter().map(Arc::as_ref).filter(|pod| scope.contains(pod)).collect();
    Ok(Json(List::new("PodList", "v1", items).at(version)).into_response())
}

pub(super) async fn delete<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
    document: Document,
) -> Result<Response, Failure> {
    params.no_dry_run()?;
    let options = document.optional().unwrap_or_default();
    let grace = match options.get("gracePeriodSeconds").filter(|grace| !grace.is_null()) {
        Some(grace) => {
            Some(grace.as_u64().and_then(|grace| u32::try_from(grace).ok()).ok_or_else(|| {
                Failure::invalid("gracePeriodSeconds", &format!("must not be `{grace}`"))
            })?)
        }
        None => params.parsed("gracePeriodSeconds")?,
    };
    if let Some(expected) = options.pointer("/preconditions/uid").and_then(Value::as_str) {
        let pod = api.node.pod(&names.namespace, &names.name)?;
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if uid != expected {
            return Err(Failure::conflict(format!(
                "pods \"{}\" has the uid {uid}, not {expected}",
                names.name
            )));
        }
    }
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

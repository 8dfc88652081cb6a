//! Pods and events, which the node makes known by itself: read, list, watch.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use k8s_openapi::{
    ListableResource,
    api::core::v1::{Event, Pod},
};
use serde::Serialize;
use tokio::sync::broadcast;

use super::{
    Api, Failure, Operations,
    params::{Names, Params},
    pods::List,
    selector::{Selectable, Selector},
    watch,
};
use crate::node::{Change, Error};

/// An object that changes, and tells so.
pub(super) trait Observed:
    ListableResource + Selectable + Serialize + Default + Send + Sync + 'static
{
    fn get(node: &impl Operations, namespace: &str, name: &str) -> Result<Arc<Self>, Error>;
    fn all(node: &impl Operations, namespace: Option<&str>) -> (Vec<Arc<Self>>, u64);
    fn changes(node: &impl Operations) -> broadcast::Receiver<Arc<Change<Self>>>;
}

impl Observed for Pod {
    fn get(node: &impl Operations, namespace: &str, name: &str) -> Result<Arc<Self>, Error> {
        node.pod(namespace, name)
    }

    fn all(node: &impl Operations, namespace: Option<&str>) -> (Vec<Arc<Self>>, u64) {
        node.pods(namespace)
    }

    fn changes(node: &impl Operations) -> broadcast::Receiver<Arc<Change<Self>>> {
        node.watch()
    }
}

impl Observed for Event {
    fn get(node: &impl Operations, namespace: &str, name: &str) -> Result<Arc<Self>, Error> {
        node.event(namespace, name)
    }

    fn all(node: &impl Operations, namespace: Option<&str>) -> (Vec<Arc<Self>>, u64) {
        node.events(namespace)
    }

    fn changes(node: &impl Operations) -> broadcast::Receiver<Arc<Change<Self>>> {
        node.watch_events()
    }
}

/// Which objects a list or a watch is about.
pub(super) struct Scope {
    namespace: Option<String>,
    selector: Selector,
}

impl Scope {
    /// The namespace, if it is about one only.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Whether an object may come into it and leave it while it exists.
    pub(super) fn selects(&self) -> bool {
        !self.selector.is_empty()
    }

    pub(super) fn contains(&self, object: &impl Selectable) -> bool {
        self.namespace
            .as_deref()
            .is_none_or(|namespace| object.metadata().namespace.as_deref() == Some(namespace))
            && self.selector.accepts(object)
    }
}

pub(super) async fn read<N: Operations, T: Observed>(
    State(api): State<Api<N>>,
    names: Names,
) -> Result<Response, Failure> {
    let object = T::get(&api.node, &names.namespace, &names.name)?;
    Ok(Json(&*object).into_response())
}

pub(super) async fn list_all<N: Operations, T: Observed>(
    State(api): State<Api<N>>,
    params: Params,
) -> Result<Response, Failure> {
    list_or_watch::<N, T>(&api, None, &params)
}

pub(super) async fn list<N: Operations, T: Observed>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
) -> Result<Response, Failure> {
    list_or_watch::<N, T>(&api, Some(names.namespace), &params)
}

fn list_or_watch<N: Operations, T: Observed>(
    api: &Api<N>,
    namespace: Option<String>,
    params: &Params,
) -> Result<Response, Failure> {
    let scope = Scope { namespace, selector: Selector::of::<T>(params)? };
    if params.flag("watch")? {
        return watch::answer::<N, T>(api, scope, params);
    }
    let (objects, version) = T::all(&api.node, scope.namespace());
    let items = objects.iter().map(Arc::as_ref).filter(|object| scope.contains(*object));
    Ok(Json(List::new(T::LIST_KIND, "v1", items.collect::<Vec<&T>>()).at(version)).into_response())
}

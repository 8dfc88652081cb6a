//! What the API needs of a node.
//!
//! [`Node`] is the one implementation that ships; tests of the API bring a small one of their own.

use std::{future::Future, sync::Arc};

use k8s_openapi::api::core::v1::{ConfigMap, Event, Node as NodeObject, Pod, Secret};
use tokio::sync::broadcast;

use super::ImageOperations;
use crate::{
    events::{Chronicle, Detail, Report, Trace},
    node::{Change, Error, Exec, LogSource, Node, PodUsage},
};

/// A node, as the API sees it; see the methods of [`Node`].
#[expect(missing_docs, reason = "the methods are those of `Node` and documented there")]
pub trait Operations: ImageOperations + Clone + Send + Sync + 'static {
    fn create_pod(&self, pod: Pod) -> impl Future<Output = Result<Pod, Error>> + Send;
    fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, Error>;
    fn pods(&self, namespace: Option<&str>) -> (Vec<Arc<Pod>>, u64);
    fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        grace_seconds: Option<u32>,
    ) -> impl Future<Output = Result<Arc<Pod>, Error>> + Send;
    fn apply_config_map(&self, map: ConfigMap) -> Result<ConfigMap, Error>;
    fn config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, Error>;
    fn config_maps(&self, namespace: Option<&str>) -> Vec<ConfigMap>;
    fn delete_config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, Error>;
    fn apply_secret(&self, secret: Secret) -> Result<Secret, Error>;
    fn secret(&self, namespace: &str, name: &str) -> Result<Secret, Error>;
    fn secrets(&self, namespace: Option<&str>) -> Vec<Secret>;
    fn delete_secret(&self, namespace: &str, name: &str) -> Result<Secret, Error>;
    fn watch(&self) -> broadcast::Receiver<Arc<Change<Pod>>>;
    fn event(&self, namespace: &str, name: &str) -> Result<Arc<Event>, Error>;
    fn events(&self, namespace: Option<&str>) -> (Vec<Arc<Event>>, u64);
    fn watch_events(&self) -> broadcast::Receiver<Arc<Change<Event>>>;
    fn exec(
        &self,
        namespace: &str,
        name: &str,
        container: Option<&str>,
        command: Vec<String>,
        stdin: bool,
    ) -> impl Future<Output = Result<Exec, Error>> + Send;
    fn logs(
        &self,
        namespace: &str,
        name: &str,
        container: Option<&str>,
        previous: bool,
    ) -> Result<LogSource, Error>;
    fn object(&self) -> NodeObject;
    fn chronicle(&self) -> &Arc<Chronicle>;
    fn explain(
        &self,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<Report, Error>> + Send;
    fn trace(
        &self,
        namespace: &str,
        name: &str,
        container: Option<&str>,
        detail: Detail,
    ) -> Result<Trace, Error>;
    fn usage(&self, namespace: Option<&str>) -> impl Future<Output = Vec<PodUsage>> + Send;
}

impl Operations for Node {
    async fn create_pod(&self, pod: Pod) -> Result<Pod, Error> {
        self.create_pod(pod).await
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, Error> {
        self.pod(namespace, name)
    }

    fn pods(&self, namespace: Option<&str>) -> (Vec<Arc<Pod>>, u64) {
        self.pods(namespace)
    }

    async fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        grace_seconds: Option<u32>,
    ) -> Result<Arc<Pod>, Error> {
        self.delete_pod(namespace, name, grace_seconds).await
    }

    fn apply_config_map(&self, map: ConfigMap) -> Result<ConfigMap, Error> {
        self.apply_config_map(map)
    }

    fn config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, Error> {
        self.config_map(namespace, name)
    }

    fn config_maps(&self, namespace: Option<&str>) -> Vec<ConfigMap> {
        self.config_maps(namespace)
    }

    fn delete_config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, Error> {
        self.delete_config_map(namespace, name)
    }

    fn apply_secret(&self, secret: Secret) -> Result<Secret, Error> {
        self.apply_secret(secret)
    }

    fn secret(&self, namespace: &str, name: &str) -> Result<Secret, Error> {
        self.secret(namespace, name)
    }

    fn secrets(&self, namespace: Option<&str>) -> Vec<Secret> {
        self.secrets(namespace)
    }

    fn delete_secret(&self, namespace: &str, name: &str) -> Result<Secret, Error> {
        self.delete_secret(namespace, name)
    }

    fn watch(&self) -> broadcast::Receiver<Arc<Change<Pod>>> {
        self.watch()
    }

    fn event(&self, namespace: &str, name: &str) -> Result<Arc<Event>, Error> {
        self.event(namespace, name)
    }

    fn events(&self, namespace: Option<&str>) -> (Vec<Arc<Event>>, u64) {
        self.events(namespace)
    }

    fn watch_events(&self) -> broadcast::Receiver<Arc<Change<Event>>> {
        self.watch_events()
    }

    async fn exec(
        &self,
        namespace: &str,
        name: &str,
        container: Option<&str>,
        command: Vec<String>,
        stdin: bool,
    ) -> Result<Exec, Error> {
        self.exec(namespace, name, container, command, stdin).await
    }

    fn logs(
        &self,
        namespace: &str,
        name: &str,
        container: Option<&str>,
        previous: bool,
    ) -> Result<LogSource, Error> {
        self.logs(namespace, name, container, previous)
    }

    fn object(&self) -> NodeObject {
        self.object()
    }

    fn chronicle(&self) -> &Arc<Chronicle> {
        self.chronicle()
    }

    async fn explain(&self, namespace: &str, name: &str) -> Result<Report, Error> {
        self.explain(namespace, name).await
    }

    fn trace(
        &self,
        namespace: &str,
        name: &str,
        container: Option<&str>,
        detail: Detail,
    ) -> Result<Trace, Error> {
        self.trace(namespace, name, container, detail)
    }

    async fn usage(&self, namespace: Option<&str>) -> Vec<PodUsage> {
        self.usage(namespace).await
    }
}

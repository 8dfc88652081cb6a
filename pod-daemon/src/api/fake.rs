//! A node without pods behind it: a table, files for logs, and commands run on this host.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ConfigMap, Event, NodeStatus, Pod, PodStatus, Secret},
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, Time},
    },
};
use nix::fcntl::OFlag;
use tokio::{
    net::{UnixListener, unix::pipe},
    sync::{broadcast, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::Operations;
use crate::{
    events::{Chronicle, Detail, Report, Trace},
    manifest::Unsupported,
    node::{Change, ChangeKind, ContainerUsage, Error, Exec, LogSource, PodUsage},
};

type Key = (String, String);

/// The node.
#[derive(Clone)]
pub(crate) struct Fake(
    Arc<Mutex<State>>,
    crate::image::Images,
    Arc<Chronicle>,
    Arc<Mutex<Option<Report>>>,
);

impl super::ImageOperations for Fake {
    fn images(&self) -> &crate::image::Images {
        &self.1
    }

    fn pods_with_image(&self, image: &str) -> Vec<String> {
        let state = self.0.lock().unwrap();
        let pods = state.pods.iter().filter(|(_, pod)| {
            let mut containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            containers.any(|container| container.image.as_deref() == Some(image))
        });
        pods.map(|((namespace, name), _)| format!("{namespace}/{name}")).collect()
    }

    fn images_in_use(&self) -> std::collections::HashSet<String> {
        let state = self.0.lock().unwrap();
        let specs = state.pods.values().filter_map(|pod| pod.spec.as_ref());
        specs.flat_map(|spec| &spec.containers).filter_map(|c| c.image.clone()).collect()
    }
}

struct State {
    version: u64,
    pods: BTreeMap<Key, Arc<Pod>>,
    maps: BTreeMap<Key, ConfigMap>,
    secrets: BTreeMap<Key, Secret>,
    changes: broadcast::Sender<Arc<Change<Pod>>>,
    events: BTreeMap<Key, Arc<Event>>,
    event_changes: broadcast::Sender<Arc<Change<Event>>>,
    logs: (Vec<PathBuf>, bool),
}

/// The node behind a socket.
pub(crate) struct Served {
    pub(crate) node: Fake,
    pub(crate) socket: PathBuf,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// Serves a new node on a socket of its own.
pub(crate) fn serve() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let images = crate::image::Store::open(&dir.path().join("images")).unwrap();
    let images = crate::image::Images::new(images, crate::image::Settings::default());
    let state = State {
        version: 0,
        pods: BTreeMap::new(),
        maps: BTreeMap::new(),
        secrets: BTreeMap::new(),
        changes: broadcast::channel(64).0,
        events: BTreeMap::new(),
        event_changes: broadcast::channel(64).0,
        logs: (Vec::new(), false),
    };
    let node = Fake(Arc::new(Mutex::new(state)), images, Arc::default(), Arc::default());
    let shutdown = CancellationToken::new();
    let serve = super::serve(listener, node.clone(), Unsupported::Deny, shutdown.clone());
    Served { node, socket, dir, shutdown, server: tokio::spawn(serve) }
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

fn not_found(kind: &'static str, name: &str) -> Error {
    Error::NotFound { kind, name: name.to_owned() }
}

impl Fake {
    /// Changes a pod, or makes one, and tells about it.
    pub(crate) fn change(&self, namespace: &str, name: &str, change: impl FnOnce(&mut Pod)) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        let version = state.version;
        let old = state.pods.get(&key(namespace, name));
        let kind = if old.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
        let mut pod = old.map(|pod| Pod::clone(pod)).unwrap_or_default();
        pod.metadata.namespace = Some(namespace.to_owned());
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.uid.get_or_insert_with(|| format!("uid-{version}"));
        pod.metadata.resource_version = Some(version.to_string());
        change(&mut pod);
        let pod = Arc::new(pod);
        state.pods.insert(key(namespace, name), Arc::clone(&pod));
        state.changes.send(Arc::new(Change { kind, object: pod, resource_version: version })).ok();
    }

    /// Removes a pod and tells about it.
    pub(crate) fn remove(&self, namespace: &str, name: &str) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        let resource_version = state.version;
        let pod = state.pods.remove(&key(namespace, name)).unwrap();
        let change = Change { kind: ChangeKind::Deleted, object: pod, resource_version };
        state.changes.send(Arc::new(change)).ok();
    }

    /// Adds an event, or puts it in the place of one, and tells about it.
    pub(crate) fn happen(&self, namespace: &str, name: &str, event: serde_json::Value) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        let resource_version = state.version;
        let mut event: Event = serde_json::from_value(event).unwrap();
        event.metadata.namespace = Some(namespace.to_owned());
        event.metadata.name = Some(name.to_owned());
        event.metadata.resource_version = Some(resource_version.to_string());
        let object = Arc::new(event);
        let old = state.events.insert(key(namespace, name), Arc::clone(&object));
        let kind = if old.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
        state.event_changes.send(Arc::new(Change { kind, object, resource_version })).ok();
    }

    /// Sets the files of every log, and whether more may come.
    pub(crate) fn set_logs(&self, files: Vec<PathBuf>, live: bool) {
        self.0.lock().unwrap().logs = (files, live);
    }
}

impl Operations for Fake {
    async fn create_pod(&self, mut pod: Pod) -> Result<Pod, Error> {
        let (namespace, name) =
            (pod.metadata.namespace.clone().unwrap(), pod.metadata.name.clone().unwrap());
        if self.pod(&namespace, &name).is_ok() {
            return Err(Error::AlreadyExists { kind: "pods", name });
        }
        pod.metadata.creation_timestamp = Some(Time(Timestamp::now()));
        pod.status = Some(PodStatus { phase: Some("Pending".to_owned()), ..PodStatus::default() });
        self.change(&namespace, &name, |new| *new = pod);
        self.change(&namespace, &name, |pod| pod.metadata.uid = Some(format!("uid-{name}")));
        Ok(Pod::clone(&*self.pod(&namespace, &name)?))
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, Error> {
        let state = self.0.lock().unwrap();
        state.pods.get(&key(namespace, name)).cloned().ok_or_else(|| not_found("pods", name))
    }

    fn pods(&self, namespace: Option<&str>) -> (Vec<Arc<Pod>>, u64) {
        let state = self.0.lock().unwrap();
        let wanted = |key: &Key| namespace.is_none_or(|namespace| key.0 == namespace);
        let pods = state.pods.iter().filter(|(key, _)| wanted(key));
        (pods.map(|(_, pod)| Arc::clone(pod)).collect(), state.version)
    }

    async fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        grace_seconds: Option<u32>,
    ) -> Result<Arc<Pod>, Error> {
        self.pod(namespace, name)?;
        self.change(namespace, name, |pod| {
            pod.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
            pod.metadata.deletion_grace_period_seconds = grace_seconds.map(i64::from);
        });
        let (node, key) = (self.clone(), key(namespace, name));
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            node.remove(&key.0, &key.1);
        });
        self.pod(namespace, name)
    }

    fn apply_config_map(&self, mut map: ConfigMap) -> Result<ConfigMap, Error> {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        map.metadata.resource_version = Some(state.version.to_string());
        let metadata = &map.metadata;
        let key = key(metadata.namespace.as_ref().unwrap(), metadata.name.as_ref().unwrap());
        state.maps.insert(key, map.clone());
        Ok(map)
    }

    fn config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, Error> {
        let state = self.0.lock().unwrap();
        state.maps.get(&key(namespace, name)).cloned().ok_or_else(|| not_found("configmaps", name))
    }

    fn config_maps(&self, namespace: Option<&str>) -> Vec<ConfigMap> {
        let state = self.0.lock().unwrap();
        let wanted = |key: &Key| namespace.is_none_or(|namespace| key.0 == namespace);
        state.maps.iter().filter(|(key, _)| wanted(key)).map(|(_, map)| map.clone()).collect()
    }

    fn delete_config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, Error> {
        let mut state = self.0.lock().unwrap();
        state.maps.remove(&key(namespace, name)).ok_or_else(|| not_found("configmaps", name))
    }

    fn apply_secret(&self, mut secret: Secret) -> Result<Secret, Error> {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        secret.metadata.resource_version = Some(state.version.to_string());
        let metadata = &secret.metadata;
        let key = key(metadata.namespace.as_ref().unwrap(), metadata.name.as_ref().unwrap());
        state.secrets.insert(key, secret.clone());
        Ok(secret)
    }

    fn secret(&self, namespace: &str, name: &str) -> Result<Secret, Error> {
        let state = self.0.lock().unwrap();
        state.secrets.get(&key(namespace, name)).cloned().ok_or_else(|| not_found("secrets", name))
    }

    fn secrets(&self, namespace: Option<&str>) -> Vec<Secret> {
        let state = self.0.lock().unwrap();
        let wanted = |key: &Key| namespace.is_none_or(|namespace| key.0 == namespace);
        state.secrets.iter().filter(|(key, _)| wanted(key)).map(|(_, one)| one.clone()).collect()
    }

    fn delete_secret(&self, namespace: &str, name: &str) -> Result<Secret, Error> {
        let mut state = self.0.lock().unwrap();
        state.secrets.remove(&key(namespace, name)).ok_or_else(|| not_found("secrets", name))
    }

    fn watch(&self) -> broadcast::Receiver<Arc<Change<Pod>>> {
        self.0.lock().unwrap().changes.subscribe()
    }

    fn event(&self, namespace: &str, name: &str) -> Result<Arc<Event>, Error> {
        let state = self.0.lock().unwrap();
        state.events.get(&key(namespace, name)).cloned().ok_or_else(|| not_found("events", name))
    }

    fn events(&self, namespace: Option<&str>) -> (Vec<Arc<Event>>, u64) {
        let state = self.0.lock().unwrap();
        let wanted = |key: &Key| namespace.is_none_or(|namespace| key.0 == namespace);
        let events = state.events.iter().filter(|(key, _)| wanted(key));
        (events.map(|(_, event)| Arc::clone(event)).collect(), state.version)
    }

    fn watch_events(&self) -> broadcast::Receiver<Arc<Change<Event>>> {
        self.0.lock().unwrap().event_changes.subscribe()
    }

    async fn exec(
        &self,
        namespace: &str,
        name: &str,
        container: Option<&str>,
        command: Vec<String>,
        stdin: bool,
    ) -> Result<Exec, Error> {
        let pod = self.pod(namespace, name)?;
        if container.is_none() && pod.spec.as_ref().is_some_and(|spec| spec.containers.len() > 1) {
            let message = "choose one".to_owned();
            return Err(Error::Invalid { field: "container".to_owned(), message });
        }
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let (their_stdin, our_stdin) = pipe();
        let (our_stdout, their_stdout) = pipe();
        let (our_stderr, their_stderr) = pipe();
        let mut child = tokio::process::Command::new(&command[0])
            .args(&command[1..])
            .stdin(if stdin { their_stdin.into() } else { Stdio::null() })
            .stdout(their_stdout)
            .stderr(their_stderr)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Error::Internal { message: error.to_string() })?;
        let (status_sender, status) = oneshot::channel();
        let (alive, gone) = oneshot::channel::<()>();
        tokio::spawn(async move {
            tokio::select! {
                status = child.wait() => {
                    status_sender.send(status.unwrap().code().unwrap_or(137)).ok();
                }
                _ = gone => child.kill().await.unwrap(),
            }
        });
        let stdin = stdin.then(|| pipe::Sender::from_owned_fd(our_stdin).unwrap());
        Ok(Exec {
            stdin,
            stdout: pipe::Receiver::from_owned_fd(our_stdout).unwrap(),
            stderr: pipe::Receiver::from_owned_fd(our_stderr).unwrap(),
            status,
            _alive: alive,
        })
    }

    fn logs(
        &self,
        namespace: &str,
        name: &str,
        container: Option<&str>,
        _: bool,
    ) -> Result<LogSource, Error> {
        let pod = self.pod(namespace, name)?;
        if container.is_none() && pod.spec.as_ref().is_some_and(|spec| spec.containers.len() > 1) {
            let message = "choose one".to_owned();
            return Err(Error::Invalid { field: "container".to_owned(), message });
        }
        let (files, live) = self.0.lock().unwrap().logs.clone();
        Ok(LogSource { files, live })
    }

    fn object(&self) -> k8s_openapi::api::core::v1::Node {
        let cpus = |count: &str| [("cpu".to_owned(), Quantity(count.to_owned()))].into();
        k8s_openapi::api::core::v1::Node {
            metadata: ObjectMeta { name: Some("here".to_owned()), ..ObjectMeta::default() },
            spec: None,
            status: Some(NodeStatus {
                capacity: Some(cpus("4000m")),
                allocatable: Some(cpus("3500m")),
                ..NodeStatus::default()
            }),
        }
    }

    fn chronicle(&self) -> &Arc<Chronicle> {
        &self.2
    }

    async fn explain(&self, namespace: &str, name: &str) -> Result<Report, Error> {
        let report = self.3.lock().unwrap().clone();
        let report = report.filter(|one| one.namespace == namespace && one.name == name);
        report.ok_or_else(|| not_found("pods", name))
    }

    fn trace(
        &self,
        namespace: &str,
        name: &str,
        _container: Option<&str>,
        _detail: Detail,
    ) -> Result<Trace, Error> {
        self.pod(namespace, name)?;
        Err(Error::Conflict { message: "there are no probes".to_owned() })
    }

    async fn usage(&self, namespace: Option<&str>) -> Vec<PodUsage> {
        let (pods, _) = self.pods(namespace);
        let usage = |pod: &Arc<Pod>| PodUsage {
            namespace: pod.metadata.namespace.clone().unwrap(),
            name: pod.metadata.name.clone().unwrap(),
            containers: ["a", "b"]
                .map(|name| ContainerUsage {
                    name: name.to_owned(),
                    cpu_cores: 0.1234,
                    memory_bytes: (name == "a").then_some(5 << 20),
                    execs: 1,
                    received_bytes: 2048,
                    transmitted_bytes: 10,
                    read_bytes: 0,
                    written_bytes: 4096,
                })
                .into(),
        };
        pods.iter().map(usage).collect()
    }
}

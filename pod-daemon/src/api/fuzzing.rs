//! Doors for the fuzz targets: a node without pods, and requests that reach it without a socket.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode, header},
};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node as NodeObject, Pod, Secret};
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    sync::broadcast,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{
    Api, ImageOperations, Operations,
    log::{
        decode::Decoder,
        files::{LogFile, skip_to_tail},
    },
    router,
};
use crate::{
    events::{Chronicle, Detail, Report, Trace},
    image::{Images, Settings, Store},
    manifest::Unsupported,
    node::{Change, Error, Exec, LogSource, PodUsage},
};

/// Largest answer that is looked at.
const MAX_ANSWER: usize = 64 << 20;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("start a runtime"));

/// Images of the process, of which there are none at first.
static IMAGES: LazyLock<(TempDir, Images)> = LazyLock::new(|| {
    let place = tempfile::tempdir().expect("make a directory");
    let store = Store::open(&place.path().join("images")).expect("open the store");
    (place, Images::new(store, Settings::default()))
});

/// What follows is the name of an image that a POST pulls.
const PULL: &str = "/podscope/v1/images/";

/// Sends what `bytes` describe, `METHOD PATH` on the first line and then the body, to a new node
/// that has one pod, one config map and one secret.
///
/// # Panics
/// When the API blames itself, or says that its answer is JSON and it is not.
pub fn request(bytes: &[u8]) {
    let (head, body) = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    let Some((method, path)) = str::from_utf8(head).ok().and_then(|head| head.split_once(' '))
    else {
        return;
    };
    // It would go to whatever registry the name is of.
    if method == "POST" && path.starts_with(PULL) {
        return;
    }
    let kind = if body.starts_with(b"{") { "application/json" } else { "application/yaml" };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "fuzz")
        .header(header::CONTENT_TYPE, kind)
        .body(Body::from(body.to_vec()));
    let Ok(request) = request else { return };
    RUNTIME.block_on(answer(request));
}

async fn answer(request: Request<Body>) {
    // Watches end at once.
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let api = Api { node: Few::new(), policy: Unsupported::Deny, shutdown };
    let router: Router = router(api);
    let Ok(answer) = router.oneshot(request).await;
    assert_ne!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR, "{answer:?}");
    let is_json = answer
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes() == b"application/json");
    let body = to_bytes(answer.into_body(), MAX_ANSWER).await.expect("read the answer");
    if is_json {
        for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            serde_json::from_slice::<serde_json::Value>(line).expect("the answer is JSON");
        }
    }
}

/// Decodes `bytes` as a stored log, in pieces of which the first byte says how large they are, and
/// looks for its last lines.
///
/// # Panics
/// When the pieces make a difference, or the last lines are not found.
pub fn log(bytes: &[u8]) {
    let Some((size, log)) = bytes.split_first() else { return };
    let size = usize::from(*size).max(1);
    let decode = |size: usize| {
        let (mut decoder, mut out) = (Decoder::new(size.is_multiple_of(2), None), Vec::new());
        log.chunks(size).for_each(|piece| decoder.push(piece, &mut out));
        decoder.finish(&mut out);
        out
    };
    // As many as that, with the same parity, are one piece.
    let whole = log.len().next_multiple_of(2) + 2 + size % 2;
    assert_eq!(decode(size), decode(whole), "in pieces of {size} bytes");

    let file = tempfile::NamedTempFile::new().expect("make a file");
    std::fs::write(&file, log).expect("write the log");
    let lines = size as u64 % 8;
    let files = LogFile::open(file.path()).into_iter().collect();
    skip_to_tail(files, lines).expect("find the tail");
}

type ByName<T> = BTreeMap<(String, String), T>;

/// A node with few objects.
#[derive(Clone)]
struct Few(Arc<Mutex<Objects>>, Arc<Chronicle>);

#[derive(Default)]
struct Objects {
    pods: ByName<Arc<Pod>>,
    config_maps: ByName<ConfigMap>,
    secrets: ByName<Secret>,
}

impl Few {
    fn new() -> Self {
        let mut objects = Objects::default();
        let key = ("default".to_owned(), "a".to_owned());
        let mut pod = Pod::default();
        pod.metadata.namespace = Some(key.0.clone());
        pod.metadata.name = Some(key.1.clone());
        objects.pods.insert(key.clone(), Arc::new(pod.clone()));
        let map = ConfigMap { metadata: pod.metadata.clone(), ..ConfigMap::default() };
        objects.config_maps.insert(key.clone(), map);
        let secret = Secret { metadata: pod.metadata, ..Secret::default() };
        objects.secrets.insert(key, secret);
        Self(Arc::new(Mutex::new(objects)), Arc::default())
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(namespace: &str, name: &str) -> (String, String) {
    (namespace.to_owned(), name.to_owned())
}

fn not_found(kind: &'static str, name: &str) -> Error {
    Error::NotFound { kind, name: name.to_owned() }
}

fn listed<T: Clone>(objects: &ByName<T>, namespace: Option<&str>) -> Vec<T> {
    let wanted = |key: &(String, String)| namespace.is_none_or(|namespace| key.0 == namespace);
    objects.iter().filter(|(key, _)| wanted(key)).map(|(_, object)| object.clone()).collect()
}

impl Operations for Few {
    async fn create_pod(&self, pod: Pod) -> Result<Pod, Error> {
        Ok(pod)
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, Error> {
        let objects = self.objects();
        objects.pods.get(&key(namespace, name)).cloned().ok_or_else(|| not_found("pods", name))
    }

    fn pods(&self, namespace: Option<&str>) -> (Vec<Arc<Pod>>, u64) {
        (listed(&self.objects().pods, namespace), 1)
    }

    async fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        _grace_seconds: Option<u32>,
    ) -> Result<Arc<Pod>, Error> {
        self.pod(namespace, name)
    }

    fn apply_config_map(&self, map: ConfigMap) -> Result<ConfigMap, Error> {
        Ok(map)
    }

    fn config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, Error> {
        let objects = self.objects();
        let map = objects.config_maps.get(&key(namespace, name)).cloned();
        map.ok_or_else(|| not_found("configmaps", name))
    }

    fn config_maps(&self, namespace: Option<&str>) -> Vec<ConfigMap> {
        listed(&self.objects().config_maps, namespace)
    }

    fn delete_config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, Error> {
        self.config_map(namespace, name)
    }

    fn apply_secret(&self, secret: Secret) -> Result<Secret, Error> {
        Ok(secret)
    }

    fn secret(&self, namespace: &str, name: &str) -> Result<Secret, Error> {
        let objects = self.objects();
        let secret = objects.secrets.get(&key(namespace, name)).cloned();
        secret.ok_or_else(|| not_found("secrets", name))
    }

    fn secrets(&self, namespace: Option<&str>) -> Vec<Secret> {
        listed(&self.objects().secrets, namespace)
    }

    fn delete_secret(&self, namespace: &str, name: &str) -> Result<Secret, Error> {
        self.secret(namespace, name)
    }

    fn watch(&self) -> broadcast::Receiver<Arc<Change<Pod>>> {
        broadcast::channel(1).1
    }

    fn event(&self, _namespace: &str, name: &str) -> Result<Arc<Event>, Error> {
        Err(not_found("events", name))
    }

    fn events(&self, _namespace: Option<&str>) -> (Vec<Arc<Event>>, u64) {
        (vec![Arc::default()], 1)
    }

    fn watch_events(&self) -> broadcast::Receiver<Arc<Change<Event>>> {
        broadcast::channel(1).1
    }

    async fn exec(
        &self,
        _namespace: &str,
        name: &str,
        _container: Option<&str>,
        _command: Vec<String>,
        _stdin: bool,
    ) -> Result<Exec, Error> {
        Err(not_found("pods", name))
    }

    fn logs(
        &self,
        namespace: &str,
        name: &str,
        _container: Option<&str>,
        _previous: bool,
    ) -> Result<LogSource, Error> {
        self.pod(namespace, name)?;
        Ok(LogSource { files: Vec::new(), live: false })
    }

    fn chronicle(&self) -> &Arc<Chronicle> {
        &self.1
    }

    async fn explain(&self, namespace: &str, name: &str) -> Result<Report, Error> {
        self.pod(namespace, name)?;
        Err(Error::Conflict { message: "there is nothing to say".to_owned() })
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

    async fn usage(&self, _namespace: Option<&str>) -> Vec<PodUsage> {
        Vec::new()
    }

    fn object(&self) -> NodeObject {
        NodeObject::default()
    }
}

impl ImageOperations for Few {
    fn images(&self) -> &Images {
        &IMAGES.1
    }

    fn pods_with_image(&self, _image: &str) -> Vec<String> {
        Vec::new()
    }

    fn images_in_use(&self) -> HashSet<String> {
        HashSet::new()
    }
}

//! The node's images: list, inspect, pull, load, remove, prune. Kubernetes has no API for these.
//!
//! Pulls and loads answer with a line of JSON each time something has happened, and one at the end
//! with `image`, `images` or `error`.

use std::{collections::HashSet, convert::Infallible, time::Duration};

use axum::{
    Json,
    body::{Body, BodyDataStream, Bytes},
    extract::State,
    response::{IntoResponse as _, Response},
};
use futures_util::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, sync::watch};

use super::{
    Api, Failure, Operations,
    params::{Names, Params},
};
use crate::{
    image::{Error, Images, Layer, Name, Progress, Reference, Summary, Upload},
    node::{self, Node},
};

/// Between two lines about the same pull.
const INTERVAL: Duration = Duration::from_millis(100);

/// What the API needs to know about images.
pub trait ImageOperations {
    /// The images.
    fn images(&self) -> &Images;
    /// The pods that have an image of this id or reference, as `namespace/name`.
    fn pods_with_image(&self, image: &str) -> Vec<String>;
    /// Ids and references of all images that pods have.
    fn images_in_use(&self) -> HashSet<String>;
}

impl ImageOperations for Node {
    fn images(&self) -> &Images {
        self.images()
    }

    fn pods_with_image(&self, image: &str) -> Vec<String> {
        self.pods_with_image(image)
    }

    fn images_in_use(&self) -> HashSet<String> {
        self.images_in_use()
    }
}

pub(super) async fn list<N: Operations>(State(api): State<Api<N>>) -> Result<Json<Value>, Failure> {
    let store = std::sync::Arc::clone(api.node.images().store());
    let images = blocking(move || store.list()).await?;
    let items: Vec<_> = images.iter().map(|image| shown(&api.node, image)).collect();
    Ok(Json(json!({"kind": "ImageList", "apiVersion": VERSION, "items": items})))
}

pub(super) async fn read<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
) -> Result<Json<Value>, Failure> {
    let image = find(&api.node, &names.name).await?;
    let mut value = shown(&api.node, &image);
    value["layers"] = image.layers.iter().map(|layer| layer.display().to_string()).collect();
    value["config"] = serde_json::to_value(&image.config).unwrap_or_default();
    Ok(Json(value))
}

pub(super) async fn remove<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
) -> Result<Json<Value>, Failure> {
    let image = find(&api.node, &names.name).await?;
    let users = users(&api.node, &image);
    if !users.is_empty() {
        return Err(Failure::conflict(format!(
            "image {} is used by {}; delete what uses it first",
            image.reference,
            users.join(", ")
        )));
    }
    let shown = shown(&api.node, &image);
    let images = api.node.images().clone();
    blocking(move || images.remove(&image)).await?;
    Ok(Json(shown))
}

pub(super) async fn prune<N: Operations>(
    State(api): State<Api<N>>,
    params: Params,
) -> Result<Json<Value>, Failure> {
    let all = params.flag("all")?;
    let in_use = api.node.images_in_use();
    let pruned = api.node.images().prune(all, in_use).await;
    let (images, bytes) = pruned.map_err(|error| failure(&error))?;
    Ok(Json(json!({"images": images, "bytes": bytes})))
}

pub(super) async fn pull<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
) -> Result<Response, Failure> {
    let reference: Reference = names.name.parse().map_err(|error| failure(&error))?;
    let images = api.node.images().clone();
    let pulling = images.pull(&reference, &[]);
    let progress = pulling.progress();
    let node = api.node.clone();
    let result = async move {
        match pulling.result().await {
            Ok(_) => match find(&node, &reference.to_string()).await {
                Ok(image) => json!({"image": shown(&node, &image)}),
                // A directory is no image of the store's.
                Err(_) => json!({"image": {"name": reference.to_string()}}),
            },
            Err(error) => {
                json!({"error": {"reason": error.reason, "message": error.message}})
            }
        }
    };
    Ok(lines(progress, result))
}

pub(super) async fn load<N: Operations>(
    State(api): State<Api<N>>,
    params: Params,
    body: Body,
) -> Result<Response, Failure> {
    let images = api.node.images().clone();
    let mut body = body.into_data_stream();
    let (upload, name) = match take_in(&images, &params, &mut body).await {
        Ok(taken) => taken,
        Err(failure) => {
            // Whoever still sends would see a broken pipe, not the reason.
            while let Some(Ok(_)) = body.next().await {}
            return Err(failure);
        }
    };
    let progress = Progress::default();
    let listener = progress.listen();
    let result = async move {
        let loaded = images.load(upload.path(), name, progress).await;
        // Not before: it goes when this is dropped.
        drop(upload);
        match loaded {
            Ok(names) => json!({"images": names}),
            Err(error) => {
                json!({"error": {"reason": "ErrImageLoad", "message": chain(&error)}})
            }
        }
    };
    Ok(lines(listener, result))
}

/// Stores an archive that is sent, and reads the name it is to get.
async fn take_in(
    images: &Images,
    params: &Params,
    body: &mut BodyDataStream,
) -> Result<(Upload, Option<Name>), Failure> {
    let name = params.text("name").map(str::parse).transpose().map_err(|error| failure(&error))?;
    let upload = images.upload().map_err(|error| failure(&error))?;
    let broken = |error: std::io::Error| {
        Failure::internal(format!("the archive could not be taken in: {error}"))
    };
    let mut file = tokio::fs::File::create(upload.path()).await.map_err(broken)?;
    while let Some(piece) = body.next().await {
        let piece = piece
            .map_err(|error| Failure::bad_request(format!("the archive was cut off: {error}")))?;
        file.write_all(&piece).await.map_err(broken)?;
    }
    file.flush().await.map_err(broken)?;
    Ok((upload, name))
}

const VERSION: &str = "podscope/v1";

/// Answers with how far something is, and with its result.
fn lines(
    progress: watch::Receiver<Vec<Layer>>,
    result: impl Future<Output = Value> + Send + 'static,
) -> Response {
    enum Stage<F> {
        Running(watch::Receiver<Vec<Layer>>, F),
        Ending(Value),
        Over,
    }
    let begin = Stage::Running(progress, Box::pin(result));
    let values = stream::unfold(begin, |stage| async move {
        let (mut progress, mut result) = match stage {
            Stage::Running(progress, result) => (progress, result),
            Stage::Ending(value) => return Some((value, Stage::Over)),
            Stage::Over => return None,
        };
        let changed = tokio::select! {
            biased;
            value = &mut result => Err(value),
            changed = progress.changed() => Ok(changed),
        };
        let value = match changed {
            Ok(Ok(())) => {
                // A pull says it at every read, and nobody reads faster than this.
                tokio::time::sleep(INTERVAL).await;
                let value = layers(&progress.borrow_and_update());
                return Some((value, Stage::Running(progress, result)));
            }
            // The pull is over, and its result on the way.
            Ok(Err(_over)) => result.await,
            Err(value) => value,
        };
        let last = layers(&progress.borrow());
        Some((last, Stage::Ending(value)))
    });
    ([("content-type", "application/json")], Body::from_stream(text(values))).into_response()
}

fn text(
    values: impl Stream<Item = Value> + Send,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    values.map(|value| Ok(Bytes::from(format!("{value}\n"))))
}

fn layers(layers: &[Layer]) -> Value {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            json!({
                "id": layer.id,
                "phase": layer.phase.word(),
                "current": layer.current,
                "total": layer.total,
            })
        })
        .collect();
    json!({"layers": layers})
}

/// The one image that is meant.
async fn find<N: Operations>(node: &N, name: &str) -> Result<Summary, Failure> {
    let (store, text) = (std::sync::Arc::clone(node.images().store()), name.to_owned());
    let mut found = blocking(move || store.find_all(&text)).await?;
    let first = found.first().map(|image| image.id.clone());
    if found.iter().any(|image| Some(&image.id) != first.as_ref()) {
        let names: Vec<_> = found.iter().map(|image| image.reference.as_str()).collect();
        return Err(Failure::conflict(format!(
            "{name:?} is the beginning of several ids, of {}; write more of it",
            names.join(", ")
        )));
    }
    found
        .pop()
        .ok_or_else(|| node::Error::NotFound { kind: "images", name: name.to_owned() }.into())
}

fn users<N: Operations>(node: &N, image: &Summary) -> Vec<String> {
    let mut users = node.pods_with_image(&image.id);
    if !image.replaced {
        users.extend(node.pods_with_image(&image.reference));
    }
    users.sort_unstable();
    users.dedup();
    users
}

fn shown<N: Operations>(node: &N, image: &Summary) -> Value {
    let seconds = i64::try_from(image.since).unwrap_or(i64::MAX);
    json!({
        "name": image.reference,
        "replaced": image.replaced,
        "id": image.id,
        "digests": image.manifests,
        "bytes": image.bytes,
        "downloadBytes": image.download_bytes,
        "created": Timestamp::from_second(seconds).ok(),
        "lastUsed": Timestamp::try_from(image.used).ok(),
        "pods": users(node, image),
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| failure(&error)),
        Err(_panic) => Err(Failure::internal("an operation on images panicked")),
    }
}

fn failure(error: &Error) -> Failure {
    match error {
        Error::Reference { .. } => Failure::bad_request(error.to_string()),
        _ => Failure::internal(chain(error)),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

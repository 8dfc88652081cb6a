//! Watching: one JSON object per line, from a known state on without a gap.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Api, Failure, Operations,
    observed::{Observed, Scope},
    params::Params,
};
use crate::{
    node::{Change, ChangeKind},
    pod::Key,
};

/// Stands for "no time limit"; about a century.
const FOREVER: Duration = Duration::from_secs(3_000_000_000);

/// Answers a watch.
///
/// Without a `resourceVersion` it begins with an `ADDED` event for each object that exists; with
/// `sendInitialEvents=true` a `BOOKMARK` tells where those end. With the version of a list it
/// continues from that list, if nothing happened meanwhile; otherwise the list has expired, since
/// past changes are not kept.
pub(super) fn answer<N: Operations, T: Observed>(
    api: &Api<N>,
    scope: Scope,
    params: &Params,
) -> Result<Response, Failure> {
    // First the subscription, then the list: what happens in between is in both, and the version
    // tells so. The other way round it would be in neither.
    let changes = T::changes(&api.node);
    let (objects, version) = T::all(&api.node, scope.namespace());
    let bookmark = params.flag("sendInitialEvents")?;
    let contained: Vec<&T> =
        objects.iter().map(Arc::as_ref).filter(|object| scope.contains(*object)).collect();
    let mut first = Vec::new();
    match params.text("resourceVersion") {
        Some(from) if from != "0" && !bookmark => {
            if from != version.to_string() {
                return Err(Failure::expired(format!(
                    "too old resource version: {from} ({version}); list again"
                )));
            }
        }
        _ => {
            for object in &contained {
                push_line(&mut first, "ADDED", *object);
            }
            if bookmark {
                push_line(&mut first, "BOOKMARK", &bookmark_at::<T>(version));
            }
        }
    }
    let selected =
        scope.selects().then(|| contained.iter().map(|object| Key::of(*object)).collect());
    let limit = params.parsed("timeoutSeconds")?.map_or(FOREVER, Duration::from_secs);
    let watch = Watch {
        changes,
        scope,
        selected,
        seen: version,
        deadline: Instant::now() + limit.min(FOREVER),
        shutdown: api.shutdown.clone(),
        failed: false,
    };
    let first = stream::iter((!first.is_empty()).then(|| Bytes::from(first)));
    let rest =
        stream::unfold(
            watch,
            |mut watch| async move { watch.next().await.map(|line| (line, watch)) },
        );
    let body = Body::from_stream(first.chain(rest).map(Ok::<_, Infallible>));
    Ok(([(CONTENT_TYPE, "application/json;stream=watch")], body).into_response())
}

struct Watch<T> {
    changes: broadcast::Receiver<Arc<Change<T>>>,
    scope: Scope,
    /// The objects that the client has, where they may come and go by what they are.
    selected: Option<BTreeSet<Key>>,
    /// Version of the last change that the client knows.
    seen: u64,
    deadline: Instant,
    shutdown: CancellationToken,
    /// Whether the client was told that it missed something.
    failed: bool,
}

impl<T: Observed> Watch<T> {
    /// The next change that is news to the client.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.failed {
            let change = tokio::select! {
                change = self.changes.recv() => change,
                () = self.shutdown.cancelled() => return None,
                () = tokio::time::sleep_until(self.deadline) => return None,
            };
            let mut line = Vec::new();
            match change {
                Ok(change) if change.resource_version <= self.seen => continue,
                Ok(change) => {
                    self.seen = change.resource_version;
                    let Some(kind) = self.news(&change) else { continue };
                    push_line(&mut line, name(kind), &*change.object);
                }
                Err(RecvError::Lagged(missed)) => {
                    self.failed = true;
                    let failure =
                        Failure::expired(format!("{missed} changes were missed; list again"));
                    push_line(&mut line, "ERROR", &failure.into_status());
                }
                Err(RecvError::Closed) => return None,
            }
            return Some(line.into());
        }
        None
    }

    /// What a change is to the client, if it is anything: an object that is not selected any more is
    /// gone, and one that is from now on is new.
    fn news(&mut self, change: &Change<T>) -> Option<ChangeKind> {
        let is_contained = self.scope.contains(&*change.object);
        let Some(selected) = &mut self.selected else {
            return is_contained.then_some(change.kind);
        };
        let is_there = is_contained && change.kind != ChangeKind::Deleted;
        let key = Key::of(&*change.object);
        let was_there = if is_there { !selected.insert(key) } else { selected.remove(&key) };
        match (was_there, is_there) {
            (false, true) => Some(ChangeKind::Added),
            (true, true) => Some(ChangeKind::Modified),
            (true, false) => Some(ChangeKind::Deleted),
            (false, false) => None,
        }
    }
}

fn name(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added => "ADDED",
        ChangeKind::Modified => "MODIFIED",
        ChangeKind::Deleted => "DELETED",
    }
}

/// Tells that all objects which existed at the beginning have been sent.
fn bookmark_at<T: Observed>(version: u64) -> T {
    let mut object = T::default();
    let metadata = object.metadata_mut();
    metadata.resource_version = Some(version.to_string());
    let end = ("k8s.io/initial-events-end".to_owned(), "true".to_owned());
    metadata.annotations = Some([end].into());
    object
}

fn push_line(buffer: &mut Vec<u8>, kind: &str, object: &impl Serialize) {
    #[derive(Serialize)]
    struct Line<'a, T> {
        r#type: &'a str,
        object: &'a T,
    }
    let start = buffer.len();
    if let Err(error) = serde_json::to_writer(&mut *buffer, &Line { r#type: kind, object }) {
        buffer.truncate(start);
        let failure = Failure::internal(error.to_string()).into_status();
        let line = json!({"type": "ERROR", "object": failure});
        buffer.extend_from_slice(line.to_string().as_bytes());
    }
    buffer.push(b'\n');
}

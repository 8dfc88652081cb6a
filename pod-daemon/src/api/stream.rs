//! What happens in pods, as lines of JSON; see docs/events.md.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Api, Failure, Operations,
    params::{Names, Params},
};
use crate::events::{Detail, Event, Filter, Ring, Told, Trace};

/// What can be asked for with `kind`.
const KINDS: [&str; 6] = ["exec", "exit", "oom", "connect_failure", "limit", "lifecycle"];

/// How long a trace lasts unless the client says otherwise, and at most.
const TRACE_SECONDS: (u64, u64) = (60, 3600);

/// The content type of lines of JSON.
const LINES: &str = "application/x-ndjson";

pub(super) async fn events<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
) -> Result<Response, Failure> {
    let some = |name: &str| Some(name.to_owned()).filter(|name| !name.is_empty());
    let filter = Filter {
        namespace: some(&names.namespace),
        pod: some(&names.name),
        container: params.text("container").map(str::to_owned),
        kinds: kinds(&params)?,
    };
    let follow = params.flag("follow")?;
    // What has happened by now is part of the past.
    api.node.chronicle().settle(Ring::Events).await;
    let subscription = api.node.chronicle().subscribe(&filter);
    if let Some(pod) = &filter.pod
        && subscription.past.is_empty()
        && !follow
    {
        // It may be there and have nothing to tell.
        api.node.pod(&names.namespace, pod)?;
    }
    let lines = Lines {
        past: subscription.past.into(),
        told: follow.then_some(subscription.future),
        traced: None,
        filter,
        deadline: None,
        shutdown: api.shutdown.clone(),
        _trace: None,
    };
    Ok(lines.answer())
}

pub(super) async fn trace<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
) -> Result<Response, Failure> {
    let wanted = [params.flag("exec")?, params.flag("file")?, params.flag("net")?];
    // Nothing in particular is everything.
    let [exec, file, net] = if wanted == [false; 3] { [true; 3] } else { wanted };
    let (usual, most) = TRACE_SECONDS;
    let seconds = params.parsed("seconds")?.unwrap_or(usual).min(most);
    let container = params.text("container");
    let kinds = [(exec, &["exec", "exit", "oom"][..]), (file, &["open"])];
    let kinds = kinds.into_iter().chain([(net, &["connect", "accept", "connect_failure"][..])]);
    let kinds = kinds.filter(|(wanted, _)| *wanted).flat_map(|(_, kinds)| kinds);
    let chronicle = api.node.chronicle();
    // What has happened by now is no part of the trace.
    chronicle.settle(Ring::Events).await;
    chronicle.settle(Ring::Traces).await;
    // First the ears, then what they are to hear.
    let (told, traced) = (chronicle.subscribe(&Filter::default()).future, chronicle.traced());
    let detail = Detail { files: file, connections: net };
    let trace = api.node.trace(&names.namespace, &names.name, container, detail)?;
    let lines = Lines {
        past: VecDeque::new(),
        told: (exec || net).then_some(told),
        traced: (file || net).then_some(traced),
        filter: Filter {
            namespace: Some(names.namespace),
            pod: Some(names.name),
            container: container.map(str::to_owned),
            kinds: kinds.map(|kind| (*kind).to_owned()).collect(),
        },
        deadline: Some(Instant::now() + Duration::from_secs(seconds)),
        shutdown: api.shutdown.clone(),
        _trace: Some(trace),
    };
    Ok(lines.answer())
}

fn kinds(params: &Params) -> Result<Vec<String>, Failure> {
    let words = params.all("kind").flat_map(|value| value.split(','));
    let words: Vec<String> =
        words.map(|word| word.replace('-', "_")).filter(|word| !word.is_empty()).collect();
    match words.iter().find(|word| !KINDS.contains(&word.as_str())) {
        Some(word) => {
            Err(Failure::bad_request(format!("kind: `{word}` is not one of {}", KINDS.join(", "))))
        }
        None => Ok(words),
    }
}

pub(super) async fn explain<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
) -> Result<Response, Failure> {
    let report = api.node.explain(&names.namespace, &names.name).await?;
    Ok(axum::Json(report).into_response())
}

/// Events as lines, for as long as the client listens.
struct Lines {
    past: VecDeque<Arc<Event>>,
    told: Option<broadcast::Receiver<Told>>,
    traced: Option<broadcast::Receiver<Told>>,
    filter: Filter,
    deadline: Option<Instant>,
    shutdown: CancellationToken,
    /// Ends when nobody listens any more.
    _trace: Option<Trace>,
}

impl Lines {
    fn answer(self) -> Response {
        let lines = stream::unfold(self, |mut lines| async move {
            lines.next().await.map(|line| (Ok::<_, Infallible>(line), lines))
        });
        ([(CONTENT_TYPE, LINES)], Body::from_stream(lines)).into_response()
    }

    async fn next(&mut self) -> Option<Bytes> {
        if !self.past.is_empty() {
            let lines: Vec<Vec<u8>> = self.past.drain(..).map(|event| line(&*event)).collect();
            return Some(lines.concat().into());
        }
        if self.told.is_none() && self.traced.is_none() {
            return None;
        }
        let end = self.deadline;
        loop {
            let told = tokio::select! {
                told = heard(&mut self.told) => told,
                told = heard(&mut self.traced) => told,
                () = self.shutdown.cancelled() => return None,
                () = tokio::time::sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {
                    return None;
                }
            };
            match told {
                Ok(Told::Event(event)) if self.filter.accepts(&event) => {
                    return Some(line(&*event).into());
                }
                Ok(Told::Event(_)) => {}
                Ok(Told::Lost(counts)) => return Some(lost(&json!(*counts))),
                Err(RecvError::Lagged(count)) => return Some(lost(&json!({"slow_reader": count}))),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// What comes next; nothing ever does where nobody listens.
async fn heard(ear: &mut Option<broadcast::Receiver<Told>>) -> Result<Told, RecvError> {
    match ear {
        Some(ear) => ear.recv().await,
        None => std::future::pending().await,
    }
}

fn lost(counts: &Value) -> Bytes {
    line(&json!({"time": Timestamp::now(), "kind": "lost", "lost": counts})).into()
}

fn line(value: &impl serde::Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

//! What has happened to pods lately, as Kubernetes' events.
//!
//! Kept in memory and bounded in number and age: they help people, and nothing depends on them. What
//! the change of a pod means is [`between`]'s business; others may add what no pod shows.

mod between;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use tokio::sync::broadcast;

pub(super) use self::between::Seen;
use self::between::between;
use super::{Change, ChangeKind, Error, Node, Shared};
use crate::pod::Key;

/// How many events are kept.
const MOST: usize = 1000;

/// How long an event is kept after it last happened; what Kubernetes' API server does by itself.
const AGE: SignedDuration = SignedDuration::from_hours(1);

/// Events that differ in nothing but their message, until the others become one; as in Kubernetes.
const MOST_SIMILAR: usize = 10;

/// What that one says first.
const COMBINED: &str = "(combined from similar events): ";

/// Bytes of a message, as Kubernetes has it.
const MOST_BYTES: usize = 1024;

/// Changes that a slow watcher may be behind before it has to list again.
const BACKLOG: usize = 1024;

/// The events, and who is told about them.
#[derive(Debug)]
pub(super) struct Events {
    /// The node's name.
    host: String,
    contents: Mutex<Contents>,
    changes: broadcast::Sender<Arc<Change<Event>>>,
}

#[derive(Debug)]
struct Contents {
    /// Grows with every change. Not the pods' version: else the list that a watch goes on from
    /// would be outdated whenever a pod changes.
    version: u64,
    /// By version, and so by the time when they last happened.
    events: VecDeque<Arc<Event>>,
}

/// What has happened to a pod, or to one of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Draft {
    container: Option<String>,
    kind: EventType,
    reason: String,
    message: String,
}

/// Whether somebody should look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventType {
    /// That is how it should be.
    Normal,
    /// Something is not as it should be.
    Warning,
}

impl Draft {
    fn new(
        container: Option<&str>,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) -> Self {
        let container = container.map(str::to_owned);
        Self { container, kind, reason: reason.to_owned(), message: message.into() }
    }
}

impl EventType {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

impl Events {
    /// No events yet, on the node `host`.
    pub(super) fn new(host: &str) -> Self {
        // Versions grow from one daemon to the next, too.
        let version = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(0);
        Self {
            host: host.to_owned(),
            contents: Mutex::new(Contents { version, events: VecDeque::new() }),
            changes: broadcast::channel(BACKLOG).0,
        }
    }

    /// Never held across an await.
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells watchers. Under the lock, so that changes come in the order of their versions.
    fn tell(&self, kind: ChangeKind, object: Arc<Event>, resource_version: u64) {
        // Nobody watching is fine.
        self.changes.send(Arc::new(Change { kind, object, resource_version })).ok();
    }

    pub(super) fn watch(&self) -> broadcast::Receiver<Arc<Change<Event>>> {
        self.changes.subscribe()
    }

    /// Takes note of what has become of a pod.
    pub(super) fn observe(&self, old: Seen<'_>, new: Seen<'_>) {
        for draft in between(&self.host, old, new) {
            self.add(&new.pod.metadata, draft);
        }
    }

    /// Takes note of what has happened to a pod.
    fn add(&self, pod: &ObjectMeta, draft: Draft) {
        self.add_at(pod, draft, Timestamp::now());
    }

    fn add_at(&self, pod: &ObjectMeta, mut draft: Draft, now: Timestamp) {
        crop(&mut draft.message);
        let field_path = draft.container.map(|name| format!("spec.containers{{{name}}}"));
        let mut contents = self.contents();
        let similar: Vec<usize> = (0..contents.events.len())
            .filter(|at| {
                let event = &contents.events[*at];
                event.involved_object.uid == pod.uid
                    && event.involved_object.field_path == field_path
                    && event.reason.as_deref() == Some(&draft.reason)
            })
            .collect();
        let says = |at: &usize, what: &dyn Fn(&str) -> bool| {
            contents.events[*at].message.as_deref().is_some_and(what)
        };
        let mut same = similar.iter().find(|at| says(at, &|text| text == draft.message));
        if same.is_none() && similar.len() >= MOST_SIMILAR {
            draft.message.insert_str(0, COMBINED);
            same = similar.iter().find(|at| says(at, &|text| text.starts_with(COMBINED)));
        }
        let old = same.copied().and_then(|at| contents.events.remove(at));
        let version = contents.next_version();
        let kind = if old.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
        let mut event = old.map_or_else(
            || self.first(pod, field_path, draft.kind, draft.reason, version, now),
            Arc::unwrap_or_clone,
        );
        event.message = Some(draft.message);
        event.count = Some(event.count.unwrap_or(0).saturating_add(1));
        event.last_timestamp = Some(Time(now));
        event.metadata.resource_version = Some(version.to_string());
        let event = Arc::new(event);
        contents.events.push_back(Arc::clone(&event));
        self.tell(kind, event, version);
        self.expire(&mut contents, now);
    }

    /// What does not change when it happens again.
    fn first(
        &self,
        pod: &ObjectMeta,
        field_path: Option<String>,
        kind: EventType,
        reason: String,
        version: u64,
        now: Timestamp,
    ) -> Event {
        let name = pod.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{version:x}")),
                namespace: pod.namespace.clone(),
                uid: Some(uuid::Uuid::new_v4().to_string()),
                creation_timestamp: Some(Time(now)),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                field_path,
                ..ObjectReference::default()
            },
            type_: Some(kind.name().to_owned()),
            reason: Some(reason),
            first_timestamp: Some(Time(now)),
            source: Some(EventSource {
                component: Some("podscope".to_owned()),
                host: Some(self.host.clone()),
            }),
            reporting_component: Some("podscope".to_owned()),
            reporting_instance: Some(self.host.clone()),
            ..Event::default()
        }
    }

    /// Forgets what is too old, and the oldest of what is too much.
    fn expire(&self, contents: &mut Contents, now: Timestamp) {
        while let Some(oldest) = contents.events.front() {
            let last = oldest.last_timestamp.as_ref().map_or(now, |time| time.0);
            if contents.events.len() <= MOST && now.duration_since(last) < AGE {
                return;
            }
            let version = contents.next_version();
            if let Some(gone) = contents.events.pop_front() {
                let mut gone = Arc::unwrap_or_clone(gone);
                gone.metadata.resource_version = Some(version.to_string());
                self.tell(ChangeKind::Deleted, Arc::new(gone), version);
            }
        }
    }

    /// All events, or those of a namespace, oldest first; and the version of that list.
    pub(super) fn list(&self, namespace: Option<&str>) -> (Vec<Arc<Event>>, u64) {
        self.list_at(namespace, Timestamp::now())
    }

    fn list_at(&self, namespace: Option<&str>, now: Timestamp) -> (Vec<Arc<Event>>, u64) {
        let mut contents = self.contents();
        self.expire(&mut contents, now);
        let wanted = |event: &&Arc<Event>| {
            namespace.is_none_or(|name| event.metadata.namespace.as_deref() == Some(name))
        };
        (contents.events.iter().filter(wanted).cloned().collect(), contents.version)
    }

    fn get(&self, key: &Key) -> Result<Arc<Event>, Error> {
        let (events, _) = self.list(Some(&key.namespace));
        let named = |event: &Arc<Event>| event.metadata.name.as_ref() == Some(&key.name);
        events.into_iter().find(named).ok_or_else(|| key.not_found::<Event>())
    }
}

impl Contents {
    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }
}

/// Shortens a message that is longer than messages may be.
fn crop(message: &mut String) {
    const END: &str = "...";
    if message.len() > MOST_BYTES {
        message.truncate(message.floor_char_boundary(MOST_BYTES - COMBINED.len() - END.len()));
        message.push_str(END);
    }
}

impl Shared {
    /// Takes note of something that no state of the pod shows.
    pub(crate) fn event(
        &self,
        key: &Key,
        container: Option<&str>,
        kind: EventType,
        reason: &'static str,
        message: String,
    ) {
        if let Some(pod) = self.table.metadata(key) {
            self.table.events().add(&pod, Draft::new(container, kind, reason, message));
        }
    }
}

impl Node {
    /// All events, or those of a namespace, oldest first; and the version of that list.
    #[must_use]
    pub fn events(&self, namespace: Option<&str>) -> (Vec<Arc<Event>>, u64) {
        self.shared.table.events().list(namespace)
    }

    /// One event.
    pub fn event(&self, namespace: &str, name: &str) -> Result<Arc<Event>, Error> {
        self.shared.table.events().get(&Key::new(namespace, name))
    }

    /// Changes of events from now on.
    #[must_use]
    pub fn watch_events(&self) -> broadcast::Receiver<Arc<Change<Event>>> {
        self.shared.table.events().watch()
    }
}

//! Who is told what, and what is remembered.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::sync::{broadcast, mpsc, oneshot};

use super::{Event, What};

/// How many events of each kind are remembered of a container.
const MOST_OF_A_KIND: usize = 16;

/// How many deleted pods are remembered.
const MOST_DELETED: usize = 64;

/// How many owners that are gone are still known, for what is read late.
const MOST_GONE: usize = 4096;

/// Events that a slow reader may be behind before it loses some.
const BACKLOG: usize = 4096;

/// How long somebody waits for the end of the story.
const PATIENCE: Duration = Duration::from_millis(500);

/// The kind of losses of what is told of traced pods.
const TRACE: &str = "trace";

/// What the kernel tells of events in.
#[derive(Clone, Copy, Debug)]
pub enum Ring {
    /// What is rare, of all pods.
    Events,
    /// Everything, of pods that are traced.
    Traces,
}

/// Whose event it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whose {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Uid of the pod.
    pub uid: String,
    /// Name of the container.
    pub container: String,
}

/// What a subscriber is told.
#[derive(Clone, Debug)]
pub enum Told {
    /// Something has happened.
    Event(Arc<Event>),
    /// The kernel had no room for as many events, by kind.
    Lost(Arc<BTreeMap<&'static str, u64>>),
}

/// Which events somebody wants to know. What is not given does not matter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Namespace of the pod.
    pub namespace: Option<String>,
    /// Name of the pod.
    pub pod: Option<String>,
    /// Name of the container; of what is about the whole pod there is none.
    pub container: Option<String>,
    /// Kinds, all if there are none.
    pub kinds: Vec<String>,
}

impl Filter {
    /// Whether an event is wanted.
    #[must_use]
    pub fn accepts(&self, event: &Event) -> bool {
        let is = |wanted: &Option<String>, value: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == value)
        };
        is(&self.namespace, &event.namespace)
            && is(&self.pod, &event.pod)
            && is(&self.container, event.container.as_deref().unwrap_or_default())
            && (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == event.what.kind()))
    }
}

/// What was remembered when somebody asked, and what happens from then on: nothing is in both.
#[derive(Debug)]
pub struct Subscription {
    /// The past, by time.
    pub past: Vec<Arc<Event>>,
    /// The future.
    pub future: broadcast::Receiver<Told>,
}

/// What happens, and what has happened lately.
#[derive(Debug)]
pub struct Chronicle {
    contents: Mutex<Contents>,
    told: broadcast::Sender<Told>,
    traced: broadcast::Sender<Told>,
    /// To the reader of each [`Ring`], once there is one.
    readers: [OnceLock<mpsc::UnboundedSender<oneshot::Sender<()>>>; 2],
}

#[derive(Debug, Default)]
struct Contents {
    owners: HashMap<u32, Arc<Whose>>,
    /// Owners that are gone, the first to go first.
    gone: VecDeque<u32>,
    /// Uids of pods that are not deleted.
    living: HashSet<String>,
    pods: HashMap<String, Trail>,
    /// Uids of pods that are deleted, the first to go first.
    deleted: VecDeque<String>,
}

/// The last events of a pod, by container and kind.
#[derive(Debug, Default)]
struct Trail(HashMap<(Option<String>, &'static str), VecDeque<Arc<Event>>>);

impl Trail {
    fn push(&mut self, event: Arc<Event>) {
        let events = self.0.entry((event.container.clone(), event.what.kind())).or_default();
        // One that has happened again takes its own place.
        if let Some(at) = events.iter().position(|old| old.what.is_repeated_by(&event.what)) {
            events.remove(at);
        }
        if events.len() == MOST_OF_A_KIND {
            events.pop_front();
        }
        events.push_back(event);
    }

    fn events(&self) -> impl Iterator<Item = &Arc<Event>> {
        self.0.values().flatten()
    }
}

impl Default for Chronicle {
    fn default() -> Self {
        Self {
            contents: Mutex::default(),
            told: broadcast::channel(BACKLOG).0,
            traced: broadcast::channel(BACKLOG).0,
            readers: Default::default(),
        }
    }
}

impl Chronicle {
    /// Never held across an await.
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod begins: what happens to it is remembered from now on.
    pub fn begin(&self, uid: &str) {
        self.contents().living.insert(uid.to_owned());
    }

    /// Takes note of who an owner is, before anything happens there.
    pub fn introduce(&self, owner: u32, whose: Whose) {
        let mut contents = self.contents();
        contents.living.insert(whose.uid.clone());
        contents.owners.insert(owner, Arc::new(whose));
    }

    /// Who an owner is, or was.
    #[must_use]
    pub fn whose(&self, owner: u32) -> Option<Arc<Whose>> {
        self.contents().owners.get(&owner).map(Arc::clone)
    }

    /// A pod is gone: what it did is remembered as long as others have not taken its place.
    pub fn retire(&self, uid: &str) {
        let mut contents = self.contents();
        let contents = &mut *contents;
        let own = contents.owners.iter().filter(|(_, whose)| whose.uid == uid);
        let own: Vec<u32> = own.map(|(owner, _)| *owner).collect();
        contents.gone.extend(own);
        contents.living.remove(uid);
        while contents.gone.len() > MOST_GONE {
            if let Some(owner) = contents.gone.pop_front() {
                contents.owners.remove(&owner);
            }
        }
        contents.deleted.push_back(uid.to_owned());
        while contents.deleted.len() > MOST_DELETED {
            if let Some(uid) = contents.deleted.pop_front() {
                contents.pods.remove(&uid);
            }
        }
    }

    /// Tells of an event in the pod `uid`, and remembers it. A pod of which nothing is remembered when
    /// it is gone is not remembered later: nobody would forget it.
    pub fn tell(&self, uid: &str, event: Event) {
        let event = Arc::new(event);
        let mut contents = self.contents();
        let contents = &mut *contents;
        if let Some(trail) = contents.pods.get_mut(uid) {
            trail.push(Arc::clone(&event));
        } else if contents.living.contains(uid) {
            contents.pods.entry(uid.to_owned()).or_default().push(Arc::clone(&event));
        }
        // Under the lock, so that it is either past or future to whoever subscribes. Nobody listening
        // is fine.
        self.told.send(Told::Event(event)).ok();
    }

    /// Tells those who trace a pod.
    pub fn tell_traced(&self, event: Event) {
        self.traced.send(Told::Event(Arc::new(event))).ok();
    }

    /// Tells everybody whom it concerns how much could not be told.
    pub fn tell_lost(&self, mut lost: BTreeMap<&'static str, u64>) {
        if let Some(entry) = lost.remove_entry(TRACE) {
            self.traced.send(Told::Lost(Arc::new([entry].into()))).ok();
        }
        if !lost.is_empty() {
            self.told.send(Told::Lost(Arc::new(lost))).ok();
        }
    }

    /// What has happened, as far as it is remembered and wanted, and what happens from now on.
    #[must_use]
    pub fn subscribe(&self, filter: &Filter) -> Subscription {
        let contents = self.contents();
        let events = contents.pods.values().flat_map(Trail::events);
        let mut past: Vec<_> = events.filter(|event| filter.accepts(event)).cloned().collect();
        past.sort_by_key(|event| event.time);
        Subscription { past, future: self.told.subscribe() }
    }

    /// What the reader of a ring is asked; for the first one that wants to know.
    pub(super) fn requests(&self, ring: Ring) -> mpsc::UnboundedReceiver<oneshot::Sender<()>> {
        let (sender, requests) = mpsc::unbounded_channel();
        self.readers[ring as usize].set(sender).ok();
        requests
    }

    /// Waits until all is told that the kernel has told in a ring so far.
    pub async fn settle(&self, ring: Ring) {
        let (asked, answer) = oneshot::channel();
        let Some(reader) = self.readers[ring as usize].get() else { return };
        if reader.send(asked).is_ok() {
            // A story with a gap is better than none.
            tokio::time::timeout(PATIENCE, answer).await.ok();
        }
    }

    /// Whether anybody is told of events as they come.
    pub(super) fn is_heard(&self) -> bool {
        self.told.receiver_count() > 0
    }

    /// Whether anybody is told of traced pods.
    pub(super) fn is_tracing(&self) -> bool {
        self.traced.receiver_count() > 0
    }

    /// What is told of traced pods from now on.
    #[must_use]
    pub fn traced(&self) -> broadcast::Receiver<Told> {
        self.traced.subscribe()
    }

    /// The last events of the pod `uid`, by time.
    #[must_use]
    pub fn trail(&self, uid: &str) -> Vec<Event> {
        let contents = self.contents();
        let events = contents.pods.get(uid).into_iter().flat_map(Trail::events);
        let mut events: Vec<Event> = events.map(|event| Event::clone(event)).collect();
        events.sort_by_key(|event| event.time);
        events
    }

    /// Gives an event of a process its name, if its exec is remembered and the kernel did not tell.
    pub(super) fn name(&self, uid: &str, what: &mut What) {
        let What::Oom { pid, name } = what else { return };
        if !name.is_empty() {
            return;
        }
        let contents = self.contents();
        let events = contents.pods.get(uid).into_iter().flat_map(Trail::events);
        let program = events.filter_map(|event| match &event.what {
            What::Exec { pid: own, argv, .. } if own == pid => argv.first(),
            _ => None,
        });
        if let Some(program) = program.last() {
            *name = program.rsplit('/').next().unwrap_or(program).to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn exit(pod: &str, container: &str, pid: u32) -> Event {
        Event {
            time: Timestamp::from_second(pid.into()).unwrap(),
            namespace: "default".to_owned(),
            pod: pod.to_owned(),
            container: Some(container.to_owned()),
            what: What::Exit {
                pid,
                name: String::new(),
                code: Some(0),
                signal: None,
                seconds: 0.0,
            },
        }
    }

    fn whose(uid: &str) -> Whose {
        Whose {
            namespace: "default".to_owned(),
            pod: "web".to_owned(),
            uid: uid.to_owned(),
            container: "a".to_owned(),
        }
    }

    fn pids(events: &[Arc<Event>]) -> Vec<u32> {
        let pid = |event: &Arc<Event>| match event.what {
            What::Exit { pid, .. } => pid,
            _ => 0,
        };
        events.iter().map(pid).collect()
    }

    #[test]
    fn the_last_of_each_container_are_remembered_in_order() {
        let chronicle = Chronicle::default();
        chronicle.introduce(1, whose("u"));
        for pid in 0..40 {
            chronicle.tell("u", exit("web", if pid % 2 == 0 { "a" } else { "b" }, pid));
        }
        let all = chronicle.subscribe(&Filter::default()).past;
        assert_eq!(pids(&all), (8..40).collect::<Vec<_>>());
        let filter = Filter { container: Some("a".to_owned()), ..Filter::default() };
        let own = chronicle.subscribe(&filter).past;
        assert_eq!(pids(&own), (8..40).step_by(2).collect::<Vec<_>>());
        let filter = Filter { kinds: vec!["exec".to_owned()], ..Filter::default() };
        assert!(chronicle.subscribe(&filter).past.is_empty());
    }

    #[test]
    fn a_pod_that_never_got_its_place_is_remembered_and_what_happens_again_once() {
        let chronicle = Chronicle::default();
        let waits = |message: &str, count| Event {
            what: What::Lifecycle {
                kind: "Warning".to_owned(),
                reason: "FailedScheduling".to_owned(),
                message: message.to_owned(),
                count,
            },
            ..exit("web", "a", 0)
        };
        chronicle.tell("u", waits("too soon", 1));
        chronicle.begin("u");
        for count in 1..=3 {
            chronicle.tell("u", waits("no room", count));
        }
        chronicle.tell("u", waits("other", 1));
        chronicle.retire("u");

        let told: Vec<What> = chronicle.trail("u").into_iter().map(|event| event.what).collect();
        assert_eq!(told, [waits("no room", 3).what, waits("other", 1).what]);
    }

    #[test]
    fn an_event_is_either_past_or_future() {
        let chronicle = Chronicle::default();
        chronicle.introduce(1, whose("u"));
        chronicle.tell("u", exit("web", "a", 1));
        let mut subscription = chronicle.subscribe(&Filter::default());
        chronicle.tell("u", exit("web", "a", 2));
        assert_eq!(pids(&subscription.past), [1]);
        let Ok(Told::Event(event)) = subscription.future.try_recv() else { panic!("no event") };
        assert_eq!(pids(&[event]), [2]);
        subscription.future.try_recv().unwrap_err();
    }

    #[test]
    fn pods_that_are_gone_are_remembered_until_there_are_many() {
        let chronicle = Chronicle::default();
        for pod in 0..10_000 {
            let uid = pod.to_string();
            chronicle.introduce(pod, whose(&uid));
            chronicle.tell(&uid, exit("web", "a", pod));
            chronicle.retire(&uid);
            chronicle.tell("unknown", exit("web", "a", pod));
        }
        assert!(chronicle.trail("unknown").is_empty());
        assert!(chronicle.trail("9935").is_empty());
        assert_eq!(chronicle.trail("9936").len(), 1);
        assert!(chronicle.whose(5000).is_none());
        assert_eq!(chronicle.whose(9999).unwrap().uid, "9999");
    }
}

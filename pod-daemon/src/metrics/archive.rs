//! What was counted for pods that are gone: held until it was read, then added up.
//!
//! When the last process of a pod is dead and before its cgroups and counters go, its series are read
//! once more and kept, in memory and on disk. They stay on the page for as long as the owner says and
//! until a scrape has shown them. Then every counter is added to the total of its namespace, so that
//! the sum of both never drops.
//!
//! A pod for which there are too many series is one of the others from its beginning to its end, and what
//! it came to is added to theirs.
//!
//! Where a scrape looks is decided under one lock: a pod is either read, or held, or in the totals. A
//! scrape that reads the pods' counters keeps [`Archive::reading`]; what is to be removed waits for it.

mod files;
mod room;
mod row;
#[cfg(test)]
mod tests;
mod totals;

use std::{
    collections::{HashMap, HashSet},
    mem,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use jiff::Timestamp;

use self::{
    files::{Completed, Files},
    row::Rows,
};
pub(super) use self::{
    row::{Kept, is_summed, summed_labels},
    totals::{MOST_NAMESPACES, Sums},
};
use super::{
    base::Base,
    bound::Bound,
    family::{Family, Part},
    netns::{Netns, Outside},
    reading::{self, Reading},
    sheet::{self, Sheet},
};
use crate::{
    cgroup::file::Reader,
    node::{Keeper, PodSnapshot},
    probes::{Batches, ProbeStatus, Probes},
};

/// What the owner decides.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    /// How long the series of a pod that is gone stay; they are not held at all if this is zero.
    pub time: Duration,
    /// The most pods that are held at a time; of more, the oldest are added up early.
    pub pods: usize,
    /// The most series that they may have together; likewise.
    pub series: usize,
    /// The most series that living and held pods may have on a page, as Prometheus counts them; 0 is
    /// any number.
    pub ceiling: usize,
}

impl Hold {
    /// What a ceiling must leave for those pods that have no series of their own.
    #[must_use]
    pub fn least_ceiling() -> usize {
        Bound::new().other
    }
}

impl Default for Hold {
    fn default() -> Self {
        let time = Duration::from_secs(300);
        Self { time, pods: 4096, series: 100_000, ceiling: 1_500_000 }
    }
}

/// The pods that are gone.
pub struct Archive {
    probes: Arc<Probes>,
    hold: Hold,
    bound: Bound,
    files: Files,
    state: Mutex<State>,
    /// Held for writing by whoever waits for those who read counters.
    readers: RwLock<()>,
}

struct State {
    /// Of pods that are being ended.
    netns: HashMap<String, Netns>,
    /// Oldest first.
    held: Vec<Entry>,
    completed: Completed,
    /// Pods that were added up before their time.
    early: u64,
    /// Living pods that have series of their own, by uid, and the most that each can come to.
    own: HashMap<String, usize>,
}

struct Entry {
    pod: Arc<Held>,
    /// Whether the pod is wholly gone; before that the node still has it.
    is_retired: bool,
    /// Whether a scrape has shown it.
    is_shown: bool,
}

/// A pod that is gone, and what was counted for it.
#[derive(Debug)]
pub(super) struct Held {
    uid: String,
    namespace: String,
    name: String,
    died: Timestamp,
    rows: Rows,
    /// Series that it has on a page.
    lines: usize,
}

/// What a page shows.
pub(super) struct View {
    /// Pods whose counters are to be read, and whether they have no series of their own.
    pub(super) living: Vec<(Arc<PodSnapshot>, bool)>,
    pub(super) held: Vec<Arc<Held>>,
    pub(super) completed: Arc<Sums>,
    /// Pods that were added up before their time.
    pub(super) early: u64,
    pub(super) others: Others,
}

/// Pods that have no series of their own, beside those that live.
#[derive(Default)]
pub(super) struct Others {
    /// Those that are gone and not in the sum yet.
    pub(super) held: Vec<Arc<Held>>,
    /// The sum over those that are gone.
    pub(super) ended: Arc<Sums>,
    /// How many there are and were, with those that live.
    pub(super) folded: u64,
    /// The most series that pods may have; 0 is any number.
    pub(super) ceiling: usize,
    /// The most that they can come to now.
    pub(super) reserved: usize,
}

impl Archive {
    /// What an earlier daemon has left in `data_dir`.
    #[must_use]
    pub fn open(data_dir: &Path, hold: Hold, probes: Arc<Probes>) -> Self {
        let files = Files::new(data_dir);
        let (completed, mut pods) = files.read();
        pods.sort_by_key(|pod| pod.died);
        let held = pods.into_iter().map(|pod| Entry {
            is_retired: !files.is_there(&pod.uid),
            is_shown: false,
            pod: Arc::new(pod),
        });
        let held = held.collect();
        let state = Mutex::new(State {
            netns: HashMap::new(),
            own: HashMap::new(),
            held,
            completed,
            early: 0,
        });
        Self { probes, hold, bound: Bound::new(), files, state, readers: RwLock::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted for the network namespace of a pod that is being ended.
    pub(super) fn last_netns(&self, uid: &str) -> Option<Netns> {
        self.state().netns.get(uid).copied()
    }

    /// Keeps what is read from being removed.
    pub(super) fn reading(&self) -> RwLockReadGuard<'_, ()> {
        self.readers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to show, given what the node has at that instant.
    pub(super) fn view(&self, node: impl FnOnce() -> Vec<Arc<PodSnapshot>>) -> View {
        let mut state = self.state();
        let mut living = node();
        let now = Timestamp::now();
        let there: HashSet<&str> = living.iter().map(|pod| &*pod.uid).collect();
        let names: HashSet<_> = living.iter().map(|pod| (&*pod.namespace, &*pod.name)).collect();
        let others = state.completed.others.clone();
        self.fold(&mut state, |entry| {
            let age = Duration::try_from(now.duration_since(entry.pod.died)).unwrap_or_default();
            let is_due = age >= self.hold.time && (entry.is_shown || self.hold.time.is_zero())
                || others.contains(&entry.pod.uid);
            // Two series of the same labels would make Prometheus refuse the whole scrape.
            let name = (&*entry.pod.namespace, &*entry.pod.name);
            !there.contains(&*entry.pod.uid) && (is_due || names.contains(&name))
        });
        let gone: HashSet<&str> = state.held.iter().map(|entry| &*entry.pod.uid).collect();
        living.retain(|pod| !gone.contains(&*pod.uid));
        self.admit_all(&mut state, &living);
        let is_other = |uid: &String| state.completed.others.contains(uid);
        let held = state.held.iter().map(|entry| Arc::clone(&entry.pod));
        let (gone_others, held): (Vec<_>, Vec<_>) = held.partition(|pod| is_other(&pod.uid));
        let others = Others {
            held: gone_others,
            ended: Arc::clone(&state.completed.other),
            folded: state.folded(),
            ceiling: self.hold.ceiling,
            reserved: state.reserved() + self.bound.other,
        };
        let living = living.into_iter().map(|pod| {
            let is_other = is_other(&pod.uid);
            (pod, is_other)
        });
        View {
            living: living.collect(),
            held,
            completed: Arc::clone(&state.completed.namespaces),
            early: state.early,
            others,
        }
    }

    /// Takes note that a scrape has shown these.
    pub(super) fn shown(&self, held: &[Arc<Held>]) {
        let shown: HashSet<&str> = held.iter().map(|pod| &*pod.uid).collect();
        let mut state = self.state();
        for entry in &mut state.held {
            entry.is_shown |= shown.contains(&*entry.pod.uid);
        }
    }

    /// Adds up what is held of the pods for which `is_due` says so.
    fn fold(&self, state: &mut State, is_due: impl Fn(&Entry) -> bool) {
        let (due, held) = mem::take(&mut state.held).into_iter().partition(is_due);
        let due: Vec<Entry> = due;
        state.held = held;
        if due.is_empty() {
            return;
        }
        let completed = &mut state.completed;
        for Entry { pod, .. } in &due {
            if completed.others.remove(&pod.uid) {
                Arc::make_mut(&mut completed.other).add_other(&pod.rows.rows);
            } else {
                pod.add_to(Arc::make_mut(&mut completed.namespaces));
            }
            completed.folded.insert(pod.uid.clone());
        }
        if let Err(error) = self.files.fold(&mut state.completed) {
            tracing::error!(%error, "totals of deleted pods are not stored; the next daemon has to add them up");
        }
    }
}

impl Keeper for Archive {
    fn look(&self, about: &PodSnapshot) {
        let mut pod = reading::Pod::new(Arc::new(about.clone()));
        // Nothing is known of it that could do instead.
        pod.read_netns(&Outside::default(), &mut Reader::new());
        if let Some(netns) = pod.netns {
            self.state().netns.insert(about.uid.clone(), netns);
        }
    }

    fn hold(&self, about: PodSnapshot, refused_connections: u64) {
        let (is_known, netns) = {
            let state = self.state();
            let is_held = state.held.iter().any(|entry| entry.pod.uid == about.uid);
            let is_known = is_held || state.completed.folded.contains(&about.uid);
            (is_known, state.netns.get(&about.uid).copied())
        };
        let uid = about.uid.clone();
        // An earlier daemon got as far as this, and its reading is the one that was shown.
        if !is_known {
            let mut pod = reading::Pod::new(Arc::new(about));
            pod.refused_connections = refused_connections;
            pod.deleted = Some(Timestamp::now());
            pod.netns = netns;
            let status = self.probes.status();
            pod.read(&mut Batches::new(&self.probes, &status, false), &mut Reader::new());
            let pod = Held::of(&pod, &status);
            if let Err(error) = self.files.hold(&pod) {
                tracing::error!(uid = pod.uid, %error, "what the pod did will not outlive this daemon");
            }
            let mut state = self.state();
            let entry = Entry { pod: Arc::new(pod), is_retired: false, is_shown: false };
            // Another of that name has been retired before this one was made.
            let is_earlier = |other: &Entry| {
                let (pod, new) = (&other.pod, &entry.pod);
                (&pod.namespace, &pod.name) == (&new.namespace, &new.name)
            };
            self.fold(&mut state, is_earlier);
            self.admit_last(&mut state, &entry.pod);
            state.held.push(entry);
        }
        // Those that began before have read what is now going to be removed.
        drop(self.readers.write().unwrap_or_else(PoisonError::into_inner));
        self.state().netns.remove(&uid);
    }

    fn retire(&self, uid: &str) {
        let mut state = self.state();
        if let Some(entry) = state.held.iter_mut().find(|entry| entry.pod.uid == uid) {
            entry.is_retired = true;
        }
        self.fold_early(&mut state);
    }
}

impl Held {
    fn new(
        (uid, namespace, name): (String, String, String),
        died: Timestamp,
        mut rows: Rows,
    ) -> Self {
        rows.sort();
        let lines = rows.rows.iter().map(row::Row::lines).sum();
        Self { uid, namespace, name, died, rows, lines }
    }

    /// What is to be held of a pod, given the state of the probes.
    pub(super) fn of(pod: &reading::Pod, probes: &[ProbeStatus]) -> Self {
        let mut rows = Rows::default();
        for family in row::FAMILIES.iter().filter(|family| reading::has(probes, family)) {
            family.source.each_of(pod, &mut |base, write| {
                write(&mut Sheet::new(family.shape(), base, &mut rows));
            });
        }
        let about = &pod.about;
        let names = (about.uid.clone(), about.namespace.clone(), about.name.clone());
        Self::new(names, pod.deleted.unwrap_or_default(), rows)
    }

    /// Adds it to the totals of its namespace.
    pub(super) fn add_to(&self, totals: &mut Sums) {
        totals.add(&self.namespace, &self.rows.rows, self.died);
    }

    /// Writes what is held of the series of one family.
    pub(super) fn write(&self, family: &Family, part: Part<'_>) {
        let Some(index) = row::index(family.name) else { return };
        let Rows { containers, rows } = &self.rows;
        let from = rows.partition_point(|row| row.family < index);
        for row in rows[from..].iter().take_while(|row| row.family == index) {
            let container = row.container.and_then(|index| containers.get(usize::from(index)));
            let base = [&*self.namespace, &*self.name, container.map_or("", String::as_str)];
            let base = if container.is_some() { &base[..] } else { &base[..2] };
            part(Base::Values(base), &|sheet| {
                row.value.with(family.kind, |value| {
                    let labels: Vec<&str> = row.labels.iter().map(|value| &**value).collect();
                    sheet.add(&labels, value);
                });
            });
        }
    }
}

/// Writes the totals: for each family whose series are added up, one with the namespace in the place of
/// pod and container.
pub(super) fn write_totals(reading: &Reading, sink: &mut dyn sheet::Sink) {
    for family in row::FAMILIES.iter().filter(|family| is_summed(family)) {
        let sums = reading.completed.sums(family);
        let (name, help) = (completed_name(family.name), completed_help(family.name));
        let labels: Vec<_> = summed_labels(family).copied().collect();
        let shape = sheet::Shape {
            name: &name,
            help: &help,
            kind: family.kind,
            implied: &["namespace"],
            labels: &labels,
        };
        let mut sink = sheet::Lazy::new(sink);
        for (values, sum) in sums {
            let (base, own) = values.split_at(1);
            sum.with(family.kind, |value| {
                Sheet::new(shape, Base::Values(base), &mut sink).add(own, value);
            });
        }
        sink.finish(&shape);
    }
}

/// What the sums of a family are called.
pub(super) fn completed_name(name: &str) -> String {
    let rest = name.strip_prefix("podscope_").unwrap_or(name);
    let rest = ["container_", "pod_"].iter().find_map(|of| rest.strip_prefix(of)).unwrap_or(rest);
    format!("podscope_completed_{rest}")
}

/// What the sums of a family mean.
pub(super) fn completed_help(name: &str) -> String {
    format!("The sum of {name} over pods that were deleted and are held no longer.")
}

/// Reads what an earlier daemon may have stored.
#[cfg(feature = "fuzzing")]
pub(super) fn stored(data_dir: &Path) -> impl Sized + use<> {
    Files::new(data_dir).read()
}

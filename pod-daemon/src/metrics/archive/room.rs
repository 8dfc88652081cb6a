//! Who has series of its own, so that all together stay below the ceiling.
//!
//! What is counted of a living pod is not what it has, but the most that it can come to: a pod that has
//! series keeps them, whatever else it does. Those that are held give way to it.

use std::{collections::HashSet, sync::Arc};

use super::{Archive, Entry, Held, State};
use crate::node::PodSnapshot;

impl State {
    /// Pods that are, or were, without series of their own.
    pub(super) fn folded(&self) -> u64 {
        let ended: u64 = self.completed.other.pods().map(|(_, pods)| pods).sum();
        self.completed.others.len() as u64 + ended
    }

    /// Series that pods can come to that have their own.
    pub(super) fn reserved(&self) -> usize {
        self.own.values().sum::<usize>() + self.lines(|_| true)
    }

    /// The same without those that could be added up now.
    fn taken(&self) -> usize {
        self.own.values().sum::<usize>() + self.lines(|entry| !entry.is_retired)
    }

    fn lines(&self, is_meant: impl Fn(&Entry) -> bool) -> usize {
        let held = self.held.iter().filter(|entry| !self.is_other(entry) && is_meant(entry));
        held.map(|entry| entry.pod.lines).sum()
    }

    fn is_other(&self, entry: &Entry) -> bool {
        self.completed.others.contains(&entry.pod.uid)
    }
}

impl Archive {
    /// Decides who of the living has series of its own, as far as that is not decided.
    pub(super) fn admit_all(&self, state: &mut State, living: &[Arc<PodSnapshot>]) {
        let there: HashSet<&str> = living.iter().map(|pod| &*pod.uid).collect();
        state.own.retain(|uid, _| there.contains(&**uid));
        let is_new = |pod: &&Arc<PodSnapshot>| {
            !state.own.contains_key(&pod.uid) && !state.completed.others.contains(&pod.uid)
        };
        let mut new: Vec<&Arc<PodSnapshot>> = living.iter().filter(is_new).collect();
        // An earlier daemon has seen the older ones first.
        new.sort_by_key(|pod| pod.created);
        let new: Vec<_> = new.into_iter().map(|pod| (&*pod.uid, self.bound.of(pod))).collect();
        self.admit(state, &new);
    }

    /// Decides the same of a pod that is going to be held, if it was never seen alive.
    pub(super) fn admit_last(&self, state: &mut State, pod: &Held) {
        let is_known =
            state.own.contains_key(&pod.uid) || state.completed.others.contains(&pod.uid);
        if !is_known {
            self.admit(state, &[(&pod.uid, pod.lines)]);
        }
        state.own.remove(&pod.uid);
    }

    /// Finds room for pods that can come to so many series; who gets none is one of the others.
    fn admit(&self, state: &mut State, new: &[(&str, usize)]) {
        if new.is_empty() {
            return;
        }
        let mut free = self.free(state);
        let others = state.completed.others.len();
        for (uid, most) in new {
            if let Some(rest) = free.checked_sub(*most) {
                free = rest;
                state.own.insert((*uid).to_owned(), *most);
            } else {
                state.completed.others.insert((*uid).to_owned());
            }
        }
        self.fold_early(state);
        // Before a page shows it: the next daemon must not give it series of its own.
        if state.completed.others.len() > others
            && let Err(error) = self.files.store(&state.completed)
        {
            tracing::error!(%error, "who has no series of its own will not outlive this daemon");
        }
    }

    /// Series that are left for pods, if those that are held give way.
    fn free(&self, state: &State) -> usize {
        match self.hold.ceiling {
            0 => usize::MAX,
            ceiling => ceiling.saturating_sub(self.bound.other + state.taken()),
        }
    }

    /// Adds up pods that are gone for good as long as there are too many, or all if none are held.
    pub(super) fn fold_early(&self, state: &mut State) {
        let is_held = !self.hold.time.is_zero();
        let rows = |entry: &Entry| entry.pod.rows.rows.len();
        let mut pods = state.held.len();
        let mut sum: usize = state.held.iter().map(rows).sum();
        let mut lines = state.lines(|entry| entry.is_retired);
        let free = self.free(state);
        let (mut due, mut early) = (HashSet::new(), 0);
        for entry in state.held.iter().filter(|entry| entry.is_retired) {
            let is_other = state.is_other(entry);
            let is_room = pods <= self.hold.pods && sum <= self.hold.series && lines <= free;
            if is_held && is_room && !is_other {
                continue;
            }
            pods -= 1;
            sum -= rows(entry);
            if !is_other {
                lines -= entry.pod.lines;
                early += u64::from(is_held);
            }
            due.insert(entry.pod.uid.clone());
        }
        state.early += early;
        self.fold(state, |entry| due.contains(&entry.pod.uid));
    }
}

//! What the last scrape has found of each pod: an idle one's is not all read again.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, PoisonError},
};

use super::netns;
use crate::cgroup::stats;

/// A look at one pod.
#[derive(Default)]
pub(super) struct Look {
    /// At its network namespace.
    pub(super) netns: Option<netns::Look>,
    /// At the pod's cgroup, before those of its containers.
    pub(super) used: Option<stats::Used>,
    /// At the cgroup of each container that has one.
    pub(super) cgroups: Vec<Option<stats::Last>>,
}

/// The last look at each pod, by uid.
#[derive(Default)]
pub(super) struct Looks(Mutex<HashMap<String, Look>>);

impl Looks {
    /// Hands them over: a scrape at the same time begins without.
    pub(super) fn last(&self) -> HashMap<String, Look> {
        mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps them for the next scrape.
    pub(super) fn keep(&self, looks: HashMap<String, Look>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = looks;
    }
}

//! Asking what may never answer, without waiting for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

/// How long a scrape waits for all answers together.
const PATIENCE: Duration = Duration::from_millis(250);

/// Asks, and remembers who has not answered yet.
pub(super) struct Patience<K> {
    stuck: Arc<Mutex<BTreeSet<K>>>,
}

impl<K> Default for Patience<K> {
    fn default() -> Self {
        Self { stuck: Arc::default() }
    }
}

impl<K: Clone + Ord + Send + 'static> Patience<K> {
    /// The answers that come in time. Who does not answer is not asked again before it has: so it holds
    /// one thread, however many scrapes there are.
    pub(super) fn ask<V: Send + 'static>(
        &self,
        all: &BTreeSet<K>,
        ask: fn(&K) -> Option<V>,
    ) -> BTreeMap<K, V> {
        let deadline = Instant::now() + PATIENCE;
        let mut rest: Vec<K> = all.difference(&lock(&self.stuck)).cloned().collect();
        let mut found = BTreeMap::new();
        while !rest.is_empty() {
            let (sender, receiver) = mpsc::channel();
            let (asked, stuck) = (rest.clone(), Arc::clone(&self.stuck));
            let started = thread::Builder::new().name("patience".to_owned()).spawn(move || {
                for key in asked {
                    let answer = ask(&key);
                    let is_late = sender.send((key.clone(), answer)).is_err();
                    // After that, and the other way round below, so that nobody is left there.
                    let was_stuck = lock(&stuck).remove(&key);
                    // Nobody waits any more: others are asked by another thread.
                    if is_late || was_stuck {
                        return;
                    }
                }
            });
            if started.is_err() {
                break;
            }
            // Answers come in the order of the questions.
            let mut answered = 0;
            let share = deadline.saturating_duration_since(Instant::now()) / 2;
            let until = Instant::now() + share;
            while answered < rest.len() {
                let patience = until.saturating_duration_since(Instant::now());
                let Ok((key, answer)) = receiver.recv_timeout(patience) else { break };
                found.extend(answer.map(|answer| (key, answer)));
                answered += 1;
            }
            if answered == rest.len() {
                break;
            }
            let late = &rest[answered];
            lock(&self.stuck).insert(late.clone());
            if let Ok((key, answer)) = receiver.try_recv() {
                lock(&self.stuck).remove(late);
                found.extend(answer.map(|answer| (key, answer)));
            }
            rest.drain(..=answered);
        }
        found
    }
}

fn lock<K>(stuck: &Mutex<BTreeSet<K>>) -> MutexGuard<'_, BTreeSet<K>> {
    stuck.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_answer_is_left_out_and_not_asked_again() {
        let patience = Patience::default();
        let names = ["first", "never", "second"].into();
        let ask: fn(&&str) -> Option<usize> = |name| {
            if *name == "never" {
                thread::sleep(Duration::from_secs(3600));
            }
            Some(name.len())
        };
        let began = Instant::now();
        let found = patience.ask(&names, ask);
        assert_eq!(found, [("first", 5), ("second", 6)].into());
        assert!(began.elapsed() < 2 * PATIENCE);
        assert_eq!(lock(&patience.stuck).len(), 1);
        assert_eq!(patience.ask(&names, ask).len(), 2);
        assert_eq!(lock(&patience.stuck).len(), 1);
    }
}

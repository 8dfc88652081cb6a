//! How large and how full file systems are, without waiting for one that does not answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

/// How long a scrape waits for all of them together: a file system of the network may never answer.
const PATIENCE: Duration = Duration::from_millis(250);

/// One file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    pub(super) bytes: u64,
    pub(super) used_bytes: u64,
    /// What those who are not root may still use.
    pub(super) available_bytes: u64,
    /// None where they are made as needed.
    pub(super) inodes: Option<u64>,
    pub(super) inodes_used: u64,
}

/// Asks file systems, and remembers which have not answered yet.
#[derive(Default)]
pub(super) struct Capacities {
    stuck: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Capacities {
    /// The capacity at each of these paths that answers in time. One that does not is not asked again
    /// before it has: so it holds one thread, however many scrapes there are.
    pub(super) fn read(&self, paths: BTreeSet<PathBuf>) -> BTreeMap<PathBuf, Capacity> {
        self.read_with(paths, of)
    }

    fn read_with(
        &self,
        paths: BTreeSet<PathBuf>,
        of: fn(&PathBuf) -> Option<Capacity>,
    ) -> BTreeMap<PathBuf, Capacity> {
        let deadline = Instant::now() + PATIENCE;
        let mut rest: Vec<PathBuf> = paths.difference(&lock(&self.stuck)).cloned().collect();
        let mut found = BTreeMap::new();
        while !rest.is_empty() {
            let (sender, receiver) = mpsc::channel();
            let (asked, stuck) = (rest.clone(), Arc::clone(&self.stuck));
            let started = thread::Builder::new().name("capacity".to_owned()).spawn(move || {
                for path in asked {
                    let capacity = of(&path);
                    let is_late = sender.send((path.clone(), capacity)).is_err();
                    // After that, and the other way round below, so that no path is left there.
                    let was_stuck = lock(&stuck).remove(&path);
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
                let Ok((path, capacity)) = receiver.recv_timeout(patience) else { break };
                found.extend(capacity.map(|capacity| (path, capacity)));
                answered += 1;
            }
            if answered == rest.len() {
                break;
            }
            let late = &rest[answered];
            lock(&self.stuck).insert(late.clone());
            if let Ok((path, capacity)) = receiver.try_recv() {
                lock(&self.stuck).remove(late);
                found.extend(capacity.map(|capacity| (path, capacity)));
            }
            rest.drain(..=answered);
        }
        found
    }
}

fn lock(stuck: &Mutex<BTreeSet<PathBuf>>) -> MutexGuard<'_, BTreeSet<PathBuf>> {
    stuck.lock().unwrap_or_else(PoisonError::into_inner)
}

fn of(path: &PathBuf) -> Option<Capacity> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(Capacity {
        bytes: stat.f_blocks * stat.f_frsize,
        used_bytes: stat.f_blocks.saturating_sub(stat.f_bfree) * stat.f_frsize,
        available_bytes: stat.f_bavail * stat.f_frsize,
        inodes: (stat.f_files > 0).then_some(stat.f_files),
        inodes_used: stat.f_files.saturating_sub(stat.f_ffree),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_answer_is_left_out_and_not_asked_again() {
        let capacities = Capacities::default();
        let paths = || ["/", "/never", "/tmp"].map(PathBuf::from).into();
        let of: fn(&PathBuf) -> Option<Capacity> = |path| {
            if path.ends_with("never") {
                thread::sleep(Duration::from_secs(3600));
            }
            of(path)
        };
        let began = Instant::now();
        let found = capacities.read_with(paths(), of);
        assert!(found.keys().eq([&PathBuf::from("/"), &PathBuf::from("/tmp")]), "{found:?}");
        assert!(began.elapsed() < 2 * PATIENCE);
        assert_eq!(lock(&capacities.stuck).len(), 1);
        assert_eq!(capacities.read_with(paths(), of).len(), 2);
        assert_eq!(lock(&capacities.stuck).len(), 1);
    }

    #[test]
    fn sizes_are_those_of_the_file_system() {
        let capacity = of(&PathBuf::from("/tmp")).unwrap();
        assert!(capacity.bytes >= capacity.used_bytes + capacity.available_bytes);
        assert_eq!(of(&PathBuf::from("/not-there")), None);
    }
}

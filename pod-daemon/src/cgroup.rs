//! The cgroup v2 tree below Podscope's own root, one directory at a time.
//!
//! The only module that writes under the cgroup filesystem. It knows nothing of pods or probes.

pub mod device;
pub mod file;
pub mod hierarchy;
pub mod limits;
pub mod stats;

use std::{
    collections::BTreeSet,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use serde::{Deserialize, Serialize};

pub use self::{device::Device, hierarchy::Hierarchy, limits::Limits};

/// A cgroup that this daemon created. It is removed by [`Cgroup::remove`] only, never by dropping.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
    id: u64,
}

/// Where the controllers stand that the cgroups below one have.
const DELEGATED: &str = "cgroup.subtree_control";

/// How often memory ran out; all 0 without the `memory` controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OomCounts {
    /// Allocations that failed at the limit of this very cgroup.
    pub own_limit: u64,
    /// Processes of this cgroup and those below it that the kernel killed, whatever limit it was,
    /// or the node's.
    pub killed: u64,
}

/// An operation on a cgroup failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} `{}`", path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Cgroup {
    /// Creates the cgroup `name` below `parent`, which must exist.
    pub fn create(parent: &Path, name: &str) -> Result<Self, Error> {
        let path = parent.join(name);
        fs::create_dir(&path).map_err(failed_to("create cgroup", &path))?;
        Self::open(path)
    }

    /// Opens a cgroup that exists.
    pub fn open(path: PathBuf) -> Result<Self, Error> {
        let directory = fs::File::open(&path).map_err(failed_to("open cgroup", &path))?;
        let id = directory.metadata().map_err(failed_to("stat cgroup", &path))?.ino();
        Ok(Self { path, directory: directory.into(), id })
    }

    /// The id that the kernel and the probes know this cgroup by: its inode number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one control, e.g. `set("pids.max", "64")`.
    pub fn set(&self, control: &str, value: &str) -> Result<(), Error> {
        let path = self.path.join(control);
        fs::write(&path, value).map_err(failed_to("write", &path))
    }

    /// What the kernel did in this cgroup for want of memory, so far.
    #[must_use]
    pub fn oom_counts(&self) -> OomCounts {
        let count = |file: &str, key: &str| {
            let events = fs::read_to_string(self.path.join(file)).unwrap_or_default();
            let pairs = events.lines().filter_map(|line| line.split_once(' '));
            let count = pairs.filter(|(name, _)| *name == key).find_map(|(_, n)| n.parse().ok());
            count.unwrap_or(0)
        };
        OomCounts {
            own_limit: count("memory.events.local", "oom"),
            killed: count("memory.events", "oom_kill"),
        }
    }

    /// The most memory that was ever charged at once (Linux 5.19, `memory` controller).
    #[must_use]
    pub fn memory_peak(&self) -> Option<u64> {
        fs::read_to_string(self.path.join("memory.peak")).ok()?.trim().parse().ok()
    }

    /// Kills every process in this cgroup and below, and waits until they are gone or `patience`
    /// is over.
    pub fn kill(&self, patience: Duration) -> Result<(), Error> {
        kill_all(&self.path, patience)
    }

    /// Makes the cgroup as it was before a workload made others below it and moved its processes there.
    /// Everything in them must be dead.
    pub fn clear(&self) -> Result<(), Error> {
        for child in children(&self.path) {
            remove_tree(&child)?;
        }
        for controller in self.delegated() {
            self.set(DELEGATED, &format!("-{controller}"))?;
        }
        Ok(())
    }

    /// The cgroup among those below this one that a process is in, if a workload has given them
    /// controllers: then the kernel lets no process into this one itself.
    #[must_use]
    pub fn nested(&self, process: Pid) -> Option<Self> {
        if self.delegated().is_empty() {
            return None;
        }
        children(&self.path).into_iter().find_map(|child| find(child, process))
    }

    fn delegated(&self) -> BTreeSet<String> {
        hierarchy::read_set(&self.path.join(DELEGATED))
    }

    /// Removes the cgroup and those that a workload made below it. Everything in them must be dead.
    pub fn remove(self) -> Result<(), Error> {
        remove_tree(&self.path)
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Whether any process lives in this cgroup or below.
pub fn is_populated(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// Kills every process in `path` and below; see [`Cgroup::kill`].
pub fn kill_all(path: &Path, patience: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_micros(50);
    let mut result = Ok(());
    let mut frozen = false;
    // Not through cgroup.kill: since Linux 6.14 (seen on 6.18), whatever clone3 then starts in the
    // cgroup with CLONE_INTO_CGROUP is killed at birth, for as long as the cgroup exists.
    while is_populated(path) {
        for pid in processes(path) {
            // A process that is gone already is what we want.
            kill(pid, Signal::SIGKILL).ok();
        }
        if Instant::now() > deadline {
            result = Err(failed_to("kill the processes of", path)(io::ErrorKind::TimedOut.into()));
            break;
        }
        thread::sleep(pause);
        // What is frozen does not fork, and still dies.
        if !frozen && pause > Duration::from_millis(1) {
            frozen = fs::write(path.join("cgroup.freeze"), "1").is_ok();
        }
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    if frozen {
        fs::write(path.join("cgroup.freeze"), "0").map_err(failed_to("thaw", path))?;
    }
    result
}

/// The processes of a cgroup and of those below it.
pub fn processes(path: &Path) -> Vec<Pid> {
    let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<Pid> = pids(&procs).collect();
    for child in children(path) {
        pids.extend(processes(&child));
    }
    pids
}

/// The processes in the text of a `cgroup.procs`.
pub(crate) fn pids(procs: &str) -> impl Iterator<Item = Pid> {
    // The kernel writes 0 for one that has no number here, or that is reaped this moment; and to kill 0 is
    // to kill who kills, with all of its process group.
    let pids = procs.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0);
    pids.map(Pid::from_raw)
}

/// The cgroup at `path` or below that a process is in.
fn find(path: PathBuf, process: Pid) -> Option<Cgroup> {
    let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    if pids(&procs).any(|pid| pid == process) {
        return Cgroup::open(path).ok();
    }
    children(&path).into_iter().find_map(|child| find(child, process))
}

/// The cgroups directly below `path`.
pub fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a cgroup and everything below it, deepest first.
pub fn remove_tree(path: &Path) -> Result<(), Error> {
    for child in children(path) {
        remove_tree(&child)?;
    }
    // A cgroup stays busy for a moment after its last process has been reaped.
    let mut pause = Duration::from_micros(50);
    for _ in 0..12 {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => thread::sleep(pause),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => return result.map_err(failed_to("remove cgroup", path)),
        }
        pause *= 2;
    }
    fs::remove_dir(path).map_err(failed_to("remove cgroup", path))
}

fn failed_to(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let error = Cgroup::create(&directory.path().join("absent"), "pod").unwrap_err();
        assert!(error.to_string().ends_with("absent/pod`"), "{error}");
    }

    #[test]
    fn the_limit_that_was_hit_and_the_processes_that_died_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::create(directory.path(), "pod").unwrap();
        assert_eq!(cgroup.oom_counts(), OomCounts::default());
        let write = |file: &str, text: &str| fs::write(cgroup.path().join(file), text).unwrap();
        write("memory.events", "max 9\noom 3\noom_kill 2\noom_group_kill 1\n");
        write("memory.events.local", "max 4\noom 1\noom_kill 0\n");
        assert_eq!(cgroup.oom_counts(), OomCounts { own_limit: 1, killed: 2 });
    }

    #[test]
    fn a_process_without_a_number_is_none() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cgroup.procs"), "0\n4711\n0\n").unwrap();
        assert_eq!(processes(directory.path()), [Pid::from_raw(4711)]);
    }

    #[test]
    fn the_id_is_the_inode() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::create(directory.path(), "pod").unwrap();
        assert_eq!(cgroup.id(), fs::metadata(cgroup.path()).unwrap().ino());
    }
}

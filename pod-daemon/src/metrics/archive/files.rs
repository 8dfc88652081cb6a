//! What of the archive is on disk, so that it outlives the daemon.
//!
//! ```text
//! held/UID.json    the last counts of a pod, from before its counters go until they are in the totals
//! completed.json   the totals, and the uids of the pods that are in them and whose file may be there;
//!                  the sum over pods that had no series of their own, and who else has none
//! ```

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Held,
    row::{Rows, Stored},
    totals::Sums,
};
use crate::pod::record::{self, Durability};

/// The files of one daemon.
pub(super) struct Files {
    data_dir: PathBuf,
}

/// What is stored of a pod.
#[derive(Deserialize, Serialize)]
struct StoredPod {
    uid: String,
    namespace: String,
    name: String,
    died: Timestamp,
    rows: Vec<Stored>,
}

/// The totals, and whose counts are in them.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Completed {
    pub(super) namespaces: Arc<Sums>,
    /// Also in the first layout, of pods that were being removed.
    #[serde(alias = "removing")]
    pub(super) folded: BTreeSet<String>,
    /// Pods that live or are held and have no series of their own, by uid.
    pub(super) others: BTreeSet<String>,
    /// What such pods came to that are gone, as one namespace.
    pub(super) other: Arc<Sums>,
}

impl Files {
    pub(super) fn new(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_path_buf() }
    }

    /// What an earlier daemon has left.
    pub(super) fn read(&self) -> (Completed, Vec<Held>) {
        let mut completed: Completed = or_warn(&self.completed()).unwrap_or_default();
        let mut pods = Vec::new();
        for entry in fs::read_dir(self.held()).into_iter().flatten().flatten() {
            let path = entry.path();
            let uid = path.file_stem().unwrap_or_default().to_string_lossy();
            if path.extension().is_none_or(|extension| extension != "json") {
                remove(&path);
            } else if completed.folded.contains(&*uid) {
                // The daemon ended before it could.
                remove(&path);
            } else if let Some(stored) = or_warn::<StoredPod>(&path).filter(|pod| pod.uid == uid) {
                pods.push(stored.into());
            }
        }
        // Those that an earlier daemon of the first layout has not wholly removed.
        completed.folded.retain(|uid| self.is_there(uid));
        (completed, pods)
    }

    /// Whether a pod is not wholly removed.
    pub(super) fn is_there(&self, uid: &str) -> bool {
        self.data_dir.join("pods").join(uid).exists()
    }

    /// Stores the last counts of a pod.
    pub(super) fn hold(&self, pod: &Held) -> io::Result<()> {
        fs::create_dir_all(self.held())?;
        let stored = StoredPod {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            died: pod.died,
            rows: pod.rows.rows.iter().map(|row| row.stored(&pod.rows.containers)).collect(),
        };
        record::replace(&self.pod(&pod.uid), &stored, Durability::Cache)
    }

    /// Stores totals, and after that removes what is in them.
    pub(super) fn fold(&self, completed: &mut Completed) -> io::Result<()> {
        self.store(completed)?;
        completed.folded.iter().for_each(|uid| remove(&self.pod(uid)));
        completed.folded.retain(|uid| self.is_there(uid));
        Ok(())
    }

    /// Stores who has no series of their own, beside the totals.
    pub(super) fn store(&self, completed: &Completed) -> io::Result<()> {
        record::replace(&self.completed(), completed, Durability::Cache)
    }

    fn completed(&self) -> PathBuf {
        self.data_dir.join("completed.json")
    }

    fn held(&self) -> PathBuf {
        self.data_dir.join("held")
    }

    #[cfg(test)]
    pub(super) fn pod_file(&self, pod: &Held) -> PathBuf {
        self.pod(&pod.uid)
    }

    fn pod(&self, uid: &str) -> PathBuf {
        self.held().join(format!("{uid}.json"))
    }
}

impl From<StoredPod> for Held {
    fn from(stored: StoredPod) -> Self {
        let names = (stored.uid, stored.namespace, stored.name);
        Self::new(names, stored.died, Rows::restored(stored.rows))
    }
}

/// What is in a file; `None` if it is not there, or if it cannot be read, which is reported.
fn or_warn<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    match record::read(path) {
        Ok(value) => Some(value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "counts of earlier pods are left out");
            None
        }
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "it stays");
        }
        _ => {}
    }
}

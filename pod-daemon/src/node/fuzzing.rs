//! Doors for the fuzz targets.

use std::fs;

use super::store::Store;
use crate::probes;

const UID: &str = "00000000-0000-4000-8000-000000000000";

/// Reads `bytes` as each of the files that an earlier daemon may have left on the disk.
///
/// # Panics
/// When totals that were read do not outlive the next write.
pub fn stored(bytes: &[u8]) {
    let Ok(place) = tempfile::tempdir() else { return };
    let path = |name: &str| place.path().join(name);
    for directory in ["config-maps", &format!("pods/{UID}")] {
        fs::create_dir_all(path(directory)).expect("make the directories");
    }
    let files = ["completed.json", "config-maps/default_a.json", &format!("pods/{UID}/pod.json")];
    for file in files {
        fs::write(path(file), bytes).expect("write the file");
    }
    drop(probes::Installed::parse(bytes));
    let store = Store::new(place.path());
    assert!(store.pods().iter().all(|(uid, _)| uid == UID), "a pod has another's uid");
    store.config_maps();
    store.fold(
        "default",
        UID,
        super::Completed { pods: 1, execs: 2, ..super::Completed::default() },
    );
    assert_eq!(Store::new(place.path()).completed(), store.completed(), "totals are lost");
}

//! Doors for the fuzz targets.

use std::fs;

use super::store::Store;
use crate::{metrics, probes};

const UID: &str = "00000000-0000-4000-8000-000000000000";

/// Reads `bytes` as each of the files that an earlier daemon may have left on the disk.
///
/// # Panics
/// When a pod has another's uid.
pub fn stored(bytes: &[u8]) {
    let Ok(place) = tempfile::tempdir() else { return };
    let path = |name: &str| place.path().join(name);
    for directory in ["config-maps", "held", &format!("pods/{UID}")] {
        fs::create_dir_all(path(directory)).expect("make the directories");
    }
    let files = [
        "completed.json",
        &format!("held/{UID}.json"),
        "config-maps/default_a.json",
        &format!("pods/{UID}/pod.json"),
    ];
    for file in files {
        fs::write(path(file), bytes).expect("write the file");
    }
    drop(probes::Installed::parse(bytes));
    let store = Store::new(place.path());
    assert!(store.pods().iter().all(|(uid, _)| uid == UID), "a pod has another's uid");
    store.config_maps();
    drop(metrics::stored(place.path()));
}

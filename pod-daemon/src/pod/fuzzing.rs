//! Doors for the fuzz targets.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodSpec;

use super::{
    About, Key,
    container::{Container, Ended},
    record::Record,
};

/// The first pause between restarts.
const BASE: Duration = Duration::from_secs(10);

/// Reads `json` as the record of a pod, and lets each of its containers go on from there.
///
/// # Panics
/// When what was read cannot be written and read again.
pub fn record(json: &[u8]) {
    let Ok(record) = Record::parse(json) else { return };
    let written = serde_json::to_vec(&record).expect("a record can be written");
    Record::parse(&written).expect("and read");
    let about = Arc::new(About {
        key: Key::new("default", "web"),
        uid: String::new(),
        spec: PodSpec { containers: vec![Default::default()], ..PodSpec::default() }.into(),
        created: Timestamp::UNIX_EPOCH,
    });
    for record in record.containers {
        let container = Container::new(Arc::clone(&about), 0, BASE);
        let mut container = container.adopt(record, BASE);
        container.pause();
        for policy in ["Always", "OnFailure", "Never"] {
            container.finish(Ended::unknown(), policy);
            container.snapshot(None);
            container.record();
        }
    }
}

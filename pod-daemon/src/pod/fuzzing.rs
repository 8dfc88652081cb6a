//! Doors for the fuzz targets.

use std::time::Duration;

use super::{
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
    for (index, record) in record.containers.into_iter().enumerate() {
        let mut container = Container::new(index, Default::default(), BASE).adopt(record, BASE);
        container.pause();
        for policy in ["Always", "OnFailure", "Never"] {
            container.finish(Ended::unknown(), policy);
            container.snapshot(None);
            container.record();
        }
    }
}

//! Validation of config maps.

use k8s_openapi::api::core::v1::ConfigMap;

use super::{names, problem::Problems, validate};

/// As in Kubernetes: what fits one object of its store.
const MAX_BYTES: usize = 1 << 20;

pub(super) fn validate(map: &ConfigMap, problems: &mut Problems) {
    validate::metadata(&map.metadata, problems);
    let texts = map.data.iter().flatten();
    let blobs = map.binary_data.iter().flatten();
    for (field, key) in texts
        .clone()
        .map(|(key, _)| ("data", key))
        .chain(blobs.clone().map(|(key, _)| ("binaryData", key)))
    {
        if let Some(verdict) = names::config_key(key) {
            problems.invalid(format!("{field}[{key}]"), verdict);
        }
        if field == "binaryData" && map.data.as_ref().is_some_and(|data| data.contains_key(key)) {
            problems.duplicate(format!("{field}[{key}]"), key);
        }
    }
    let size = texts.map(|(_, text)| text.len()).sum::<usize>()
        + blobs.map(|(_, blob)| blob.0.len()).sum::<usize>();
    if size > MAX_BYTES {
        problems
            .invalid("data", format!("is {size} bytes, and {MAX_BYTES} is the most there may be"));
    }
}

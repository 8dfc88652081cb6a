//! Volumes that show what is in a config map or in a secret.

use std::{collections::BTreeMap, path::Path};

use k8s_openapi::api::core::v1::{KeyToPath, Volume};

use super::{
    super::About,
    Error, directory,
    versions::{self, Entry},
};
use crate::node::Shared;

/// What a volume wants of an object.
struct Wanted<'a> {
    volume: &'a str,
    kind: &'static str,
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    default_mode: u32,
    optional: bool,
}

/// Writes the entries of the volume's object to `path`. While there is no such object, a volume that
/// was filled before stays as it is.
pub(super) fn fill(
    shared: &Shared,
    about: &About,
    volume: &Volume,
    path: &Path,
) -> Result<(), Error> {
    let namespace = &about.key.namespace;
    let mode = |mode: Option<i32>, default| mode.map_or(default, permissions);
    let (wanted, data) = if let Some(source) = &volume.secret {
        let wanted = Wanted {
            volume: &volume.name,
            kind: "secret",
            name: source.secret_name.as_deref().unwrap_or_default(),
            items: source.items.as_deref(),
            default_mode: mode(source.default_mode, 0o600),
            optional: source.optional.unwrap_or(false),
        };
        let data = shared.secret_data(namespace, wanted.name);
        (wanted, data)
    } else if let Some(source) = &volume.config_map {
        let wanted = Wanted {
            volume: &volume.name,
            kind: "configmap",
            name: &source.name,
            items: source.items.as_deref(),
            default_mode: mode(source.default_mode, 0o644),
            optional: source.optional.unwrap_or(false),
        };
        let map = shared.config_map(namespace, wanted.name);
        let data = map.map(|map| {
            let texts = map.data.unwrap_or_default().into_iter();
            let blobs = map.binary_data.unwrap_or_default().into_iter();
            texts
                .map(|(key, text)| (key, text.into_bytes()))
                .chain(blobs.map(|(key, blob)| (key, blob.0)))
                .collect()
        });
        (wanted, data)
    } else {
        return Ok(());
    };
    let group = about.spec.security_context.as_ref().and_then(|context| context.fs_group);
    let group = group.and_then(|group| u32::try_from(group).ok());
    match data {
        Some(data) => {
            let entries = wanted.entries(&data)?;
            versions::publish(&volume.name, path, &entries, group)
        }
        None if versions::is_published(path) => Ok(()),
        None if wanted.optional => directory(&volume.name, path, 0o755),
        None => Err(Error::NoObject {
            volume: volume.name.clone(),
            kind: wanted.kind,
            name: wanted.name.to_owned(),
        }),
    }
}

impl Wanted<'_> {
    /// The files, of what the object holds.
    fn entries<'d>(&self, data: &'d BTreeMap<String, Vec<u8>>) -> Result<Vec<Entry<'d>>, Error>
    where
        Self: 'd,
    {
        let Some(items) = self.items else {
            let entry = |(key, data): (&String, &'d Vec<u8>)| Entry {
                path: key.clone(),
                data,
                mode: self.default_mode,
            };
            return Ok(data.iter().map(entry).collect());
        };
        let mut entries = Vec::new();
        for item in items {
            match data.get(&item.key) {
                Some(data) => entries.push(Entry {
                    path: item.path.clone(),
                    data,
                    mode: item.mode.map_or(self.default_mode, permissions),
                }),
                None if self.optional => {}
                None => {
                    return Err(Error::NoKey {
                        volume: self.volume.to_owned(),
                        kind: self.kind,
                        name: self.name.to_owned(),
                        key: item.key.clone(),
                    });
                }
            }
        }
        Ok(entries)
    }
}

/// Validation has let nothing else through.
fn permissions(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or_default() & 0o777
}

//! Finds an image in what `docker save` writes, of old (`<id>/layer.tar`) and new (`blobs/sha256/`).

use serde::Deserialize;

use super::{
    digest::Digest,
    error::Error,
    files::{Files, Found, Layer},
    unpack::Expected,
};

const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Finds the image called `tag`, or the only one.
pub(super) fn find(files: &Files, tag: Option<&str>) -> Result<Found, Error> {
    let items = items(files)?;
    image(files, choose(files, &items, tag)?)
}

/// The images in an archive and the names that they have there.
pub(super) fn all(files: &Files) -> Result<Vec<(Vec<String>, Found)>, Error> {
    let items = items(files)?.into_iter();
    items
        .map(|item| Ok((item.repo_tags.clone().unwrap_or_default(), image(files, &item)?)))
        .collect()
}

fn items(files: &Files) -> Result<Vec<Item>, Error> {
    let Some(json) = files.document(MANIFEST, None)? else {
        let other = files.open("index.json")?.is_some();
        return Err(files.invalid(if other {
            "it has no manifest.json but an index.json; use oci-archive: instead"
        } else {
            "it has no manifest.json, so it is not a docker archive"
        }));
    };
    files.json(MANIFEST, &json)
}

fn image(files: &Files, item: &Item) -> Result<Found, Error> {
    let missing = |name: &str| files.invalid(format!("{name} is missing; was it cut off?"));
    let Some(json) = files.document(&item.config, None)? else {
        return Err(missing(&item.config));
    };
    let id = Digest::of(&json);
    let name = item.config.rsplit('/').next().unwrap_or_default();
    let name = name.strip_suffix(".json").unwrap_or(name);
    if format!("sha256:{name}").parse::<Digest>().is_ok_and(|named| named != id) {
        return Err(files.invalid(format!(
            "{} has the digest {id}; the image is damaged or was changed",
            item.config,
        )));
    }

    let document = files.config(&item.config, &json)?;
    let layers = item.layers.as_deref().unwrap_or_default();
    if layers.len() != document.diff_ids.len() {
        return Err(files.invalid(format!(
            "its manifest lists {} layers but its config {}",
            layers.len(),
            document.diff_ids.len(),
        )));
    }
    let layers = layers.iter().zip(&document.diff_ids).map(|(file, diff_id)| Layer {
        file: file.clone(),
        expected: Expected { diff_id: diff_id.clone(), blob: None },
    });
    let layers = layers.collect();
    Ok(Found { id, document, layers })
}

fn choose<'a>(files: &Files, items: &'a [Item], tag: Option<&str>) -> Result<&'a Item, Error> {
    let tags_of = |item: &'a Item| item.repo_tags.as_deref().unwrap_or_default();
    let tags = || {
        let tags: Vec<_> = items.iter().flat_map(tags_of).map(String::as_str).collect();
        if tags.is_empty() { String::from("no tags") } else { tags.join(", ") }
    };
    match (tag, items) {
        (None, [item]) => Ok(item),
        (None, []) => Err(files.invalid("its manifest.json lists no image")),
        (None, _) => {
            Err(files
                .invalid(format!("it contains several images; add one of its tags: {}", tags(),)))
        }
        (Some(tag), _) => {
            let is_meant = |own: &String| full_name(own) == full_name(tag);
            let found = items.iter().find(|item| tags_of(item).iter().any(is_meant));
            found.ok_or_else(|| files.invalid(format!("no tag {tag:?}; it has: {}", tags())))
        }
    }
}

/// docker writes `busybox:1.36`, skopeo `docker.io/library/busybox:1.36`; people leave out `:latest`.
fn full_name(name: &str) -> String {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    let last = name.rsplit('/').next().unwrap_or_default();
    if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

//! Finds an image in an OCI image layout: index, manifest, config, layers.
//!
//! A document is what its descriptor says it is or nothing: one that could be read as another kind
//! too is refused, since two readers might then run two different images of the same digest.

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    config::architecture,
    digest::Digest,
    error::Error,
    files::{Files, Found, Layer},
    unpack::Expected,
};

const INDEX: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFEST: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Variants that every machine of their platform has: of amd64 and of arm64.
const LEAST_VARIANTS: [&str; 2] = ["v1", "v8"];
const CONFIG: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYER: [&str; 10] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// By which containerd tells images apart in an archive.
const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// On buildx's attestations, which stand beside the images in an index.
const ATTESTATION: &str = "vnd.docker.reference.type";
/// Indexes within indexes.
pub(super) const MAX_NESTING: usize = 4;

/// What kind of document this is, by its own account.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
}

/// Finds the image called `tag`, or the only one, for this machine.
pub(super) fn find(files: &Files, tag: Option<&str>) -> Result<Found, Error> {
    let Some(json) = files.document("index.json", None)? else {
        let other = files.open("manifest.json")?.is_some();
        return Err(files.invalid(if other {
            "it has no index.json but a manifest.json; use docker-archive: instead"
        } else {
            "it has no index.json, so it is not an OCI image layout"
        }));
    };
    let index = parse(files, "index.json", &json, None, &INDEX)?;
    follow(files, index, tag)
}

/// Goes from index to index until there is an image.
fn follow(files: &Files, mut index: ImageIndex, mut tag: Option<&str>) -> Result<Found, Error> {
    for _ in 0..MAX_NESTING {
        let descriptor = choose(files, &index, tag.take())?;
        let media_type = descriptor.media_type().to_string();
        let (name, json) = blob(files, descriptor)?;
        if !INDEX.contains(&&*media_type) {
            let manifest = parse(files, &name, &json, Some(&media_type), &MANIFEST)?;
            return image(files, &manifest);
        }
        index = parse(files, &name, &json, Some(&media_type), &INDEX)?;
    }
    Err(files.invalid(format!("its indexes are nested more than {MAX_NESTING} deep")))
}

/// A document that leads to an image, or to several.
pub(super) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

/// Reads a document that a registry has; `media_type` is what the registry calls it.
pub(super) fn document(
    files: &Files,
    name: &str,
    json: &[u8],
    media_type: Option<&str>,
) -> Result<Document, Error> {
    let shape: Shape = files.json(name, json)?;
    let known = |kind: &&str| INDEX.contains(kind) || MANIFEST.contains(kind);
    // Some registries call every document `application/json`.
    let media_type = media_type.filter(known);
    let own = shape.media_type.as_deref();
    let is_index = match own.or(media_type) {
        Some(kind) => INDEX.contains(&kind),
        None => shape.manifests.is_some(),
    };
    if is_index {
        parse(files, name, json, media_type, &INDEX).map(Box::new).map(Document::Index)
    } else {
        parse(files, name, json, media_type, &MANIFEST).map(Box::new).map(Document::Manifest)
    }
}

/// The images in a layout and the names that they have there.
pub(super) fn all(files: &Files) -> Result<Vec<(Option<String>, Found)>, Error> {
    let Some(json) = files.document("index.json", None)? else {
        return Err(files.invalid("it has no index.json, so it is not an OCI image layout"));
    };
    let index: ImageIndex = parse(files, "index.json", &json, None, &INDEX)?;
    let mut names = Vec::new();
    let mut others = Vec::new();
    for descriptor in index.manifests() {
        match annotation(descriptor, REF_NAME) {
            Some(tag) => {
                let name = (annotation(descriptor, FULL_NAME).unwrap_or(tag), tag);
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            None if is_image(descriptor) => others.push(descriptor.clone()),
            None => {}
        }
    }
    let mut found = Vec::new();
    for (name, tag) in names {
        found.push((Some(name.to_owned()), follow(files, index.clone(), Some(tag))?));
    }
    if others.is_empty() && !found.is_empty() {
        return Ok(found);
    }
    let among = |descriptors: Vec<Descriptor>| {
        let mut index = index.clone();
        index.set_manifests(descriptors);
        follow(files, index, None)
    };
    match among(others.clone()) {
        Ok(image) => found.push((None, image)),
        Err(error) if found.is_empty() => return Err(error),
        // They are several. None of them keeps those with names from being loaded.
        Err(_) => {
            for descriptor in others {
                let digest = descriptor.digest().to_string();
                match among(vec![descriptor]) {
                    Ok(image) => found.push((None, image)),
                    Err(error) => {
                        tracing::warn!(digest, %error, "an image without a name is skipped");
                    }
                }
            }
        }
    }
    Ok(found)
}

/// Whether this is an image or an index of some, and not what is said about one.
fn is_image(descriptor: &Descriptor) -> bool {
    let media_type = descriptor.media_type().to_string();
    (INDEX.contains(&&*media_type) || MANIFEST.contains(&&*media_type))
        && annotation(descriptor, ATTESTATION).is_none()
}

/// The one manifest or index in `index` that is meant.
pub(super) fn choose<'a>(
    files: &Files,
    index: &'a ImageIndex,
    tag: Option<&str>,
) -> Result<&'a Descriptor, Error> {
    let mut images: Vec<&Descriptor> =
        index.manifests().iter().filter(|descriptor| is_image(descriptor)).collect();
    let tags = |images: &[&Descriptor]| {
        let mut tags: Vec<_> =
            images.iter().filter_map(|image| annotation(image, REF_NAME)).collect();
        tags.sort_unstable();
        tags.dedup();
        if tags.is_empty() { String::from("no tags") } else { tags.join(", ") }
    };
    if let Some(tag) = tag {
        let tagged: Vec<_> = images
            .iter()
            .copied()
            .filter(|image| annotation(image, REF_NAME) == Some(tag))
            .collect();
        if tagged.is_empty() {
            return Err(files.invalid(format!("no tag {tag:?}; it has: {}", tags(&images))));
        }
        images = tagged;
    }

    let for_this_machine = |image: &Descriptor| {
        image.platform().as_ref().is_none_or(|platform| {
            platform.os().to_string() == "linux"
                && platform.architecture().to_string() == architecture()
        })
    };
    let mut fitting: Vec<_> =
        images.iter().copied().filter(|image| for_this_machine(image)).collect();
    // The platforms of an image index, beside a copy without one.
    if fitting.iter().any(|image| image.platform().is_some()) {
        fitting.retain(|image| image.platform().is_some());
    }
    fitting.dedup_by_key(|image| image.digest());
    let tag = fitting.first().and_then(|image| annotation(image, REF_NAME));
    if fitting.iter().all(|image| image.platform().is_some() && annotation(image, REF_NAME) == tag)
    {
        // One image for several variants of this platform: what every machine of the platform runs.
        // Of what is there in several compressions, the first.
        fitting.sort_by_key(|image| variant(image));
        fitting.truncate(1);
    }
    match fitting[..] {
        [image] => Ok(image),
        [] if images.is_empty() => Err(files.invalid("its index lists no image")),
        [] => {
            let platforms: Vec<_> = images
                .iter()
                .filter_map(|image| image.platform().as_ref())
                .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
                .collect();
            Err(files.invalid(format!(
                "no image for linux/{}; it has: {}",
                architecture(),
                platforms.join(", "),
            )))
        }
        _ => Err(files.invalid(format!(
            "it contains several images; add one of its tags: {}",
            tags(&fitting),
        ))),
    }
}

/// The variant of the platform that an image is for; none of it if that is the least that there is.
fn variant(image: &Descriptor) -> Option<&str> {
    let variant = image.platform().as_ref()?.variant().as_deref()?;
    Some(variant).filter(|variant| !variant.is_empty() && !LEAST_VARIANTS.contains(variant))
}

/// The image of a manifest whose config is among the files.
pub(super) fn image(files: &Files, manifest: &ImageManifest) -> Result<Found, Error> {
    let media_type = manifest.config().media_type().to_string();
    if !CONFIG.contains(&&*media_type) {
        return Err(files
            .invalid(format!("it is not a container image: its config is of type {media_type}",)));
    }
    let (name, json) = blob(files, manifest.config())?;
    let document = files.config(&name, &json)?;
    let (layers, diff_ids) = (manifest.layers(), &document.diff_ids);
    if layers.len() != diff_ids.len() {
        return Err(files.invalid(format!(
            "its manifest lists {} layers but its config {}",
            layers.len(),
            diff_ids.len(),
        )));
    }
    let layers = layers.iter().zip(diff_ids).map(|(layer, diff_id)| {
        let media_type = layer.media_type().to_string();
        if !LAYER.contains(&&*media_type) {
            return Err(files.invalid(format!("a layer of type {media_type} is not supported")));
        }
        let digest = digest(files, layer)?;
        Ok(Layer {
            file: blob_name(&digest),
            expected: Expected { diff_id: diff_id.clone(), blob: Some((digest, layer.size())) },
        })
    });
    let layers = layers.collect::<Result<_, _>>()?;
    Ok(Found { id: digest(files, manifest.config())?, document, layers })
}

/// Parses a document after checking that it is of the kind it should be, and of no other.
fn parse<T: serde::de::DeserializeOwned>(
    files: &Files,
    name: &str,
    json: &[u8],
    media_type: Option<&str>,
    kinds: &[&str],
) -> Result<T, Error> {
    let shape: Shape = files.json(name, json)?;
    let is_index = shape.manifests.is_some();
    let is_manifest = shape.layers.is_some() || shape.config.is_some();
    let should_be_index = *kinds == INDEX;
    if shape.schema_version != 2 || is_index != should_be_index || is_manifest == should_be_index {
        let kind = if should_be_index { "image index" } else { "image manifest" };
        return Err(files.invalid(format!("{name} is not an {kind} of version 2")));
    }
    if let Some(own) = &shape.media_type
        && (!kinds.contains(&&**own) || media_type.is_some_and(|given| given != own))
    {
        return Err(files.invalid(format!(
            "{name} says it is of type {own} but should be {}",
            media_type.unwrap_or(kinds[0]),
        )));
    }
    files.json(name, json)
}

/// Name and verified content of what `descriptor` describes.
fn blob(files: &Files, descriptor: &Descriptor) -> Result<(String, Vec<u8>), Error> {
    let digest = digest(files, descriptor)?;
    let name = blob_name(&digest);
    match files.document(&name, Some((&digest, descriptor.size())))? {
        Some(json) => Ok((name, json)),
        None => Err(files.invalid(format!("{name} is missing; was the image copied in part?"))),
    }
}

/// Where a blob is in a layout.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The digest of what is described.
pub(super) fn digest(files: &Files, descriptor: &Descriptor) -> Result<Digest, Error> {
    descriptor.digest().as_ref().parse().map_err(|error| files.invalid(format!("{error}")))
}

fn annotation<'a>(descriptor: &'a Descriptor, name: &str) -> Option<&'a str> {
    descriptor.annotations().as_ref()?.get(name).map(String::as_str)
}

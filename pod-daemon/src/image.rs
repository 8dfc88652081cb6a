//! Images on disk: found in directories and archives, verified, unpacked layer by layer.
//!
//! Blocking, and knows neither HTTP nor pods. An image is read only, for good: what a container
//! writes goes to an upper directory of its own, which is not here.

mod config;
mod digest;
mod docker;
mod entries;
mod error;
mod fields;
mod files;
mod layers;
mod layout;
mod metadata;
mod records;
mod reference;
mod remove;
mod resolve;
mod settle;
mod sparse;
#[cfg(test)]
mod tests;
mod tree;
mod unpack;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use digest::Digest;
use error::failed_to;
use files::{Files, Found};
use layers::Layers;
use records::{Record, Records, Stamp};

pub use config::Config;
pub use error::Error;
pub use reference::Reference;
pub use unpack::Limits;

/// As many as overlayfs takes.
const MAX_LAYERS: usize = 500;

/// Images on disk; layers are unpacked once and shared by every container through overlayfs.
#[derive(Debug)]
pub struct Store {
    layers: Layers,
    records: Records,
    limits: Limits,
}

/// An image that is ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The digest of its config, or `dir:PATH`.
    pub id: String,
    /// The directories to stack, lowest first. They must never be written to.
    pub layers: Vec<PathBuf>,
    /// How to run it.
    pub config: Config,
}

impl Store {
    /// Opens the store in `dir`, which is created with mode 0700; what an interrupted unpack has
    /// left behind is removed.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let layers = Layers::open(dir)?;
        let records = Records::open(&dir.join("images"))?;
        Ok(Self { layers, records, limits: Limits::default() })
    }

    /// Sets what a layer may cost.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Makes `reference` ready to run: unpacks the layers that are missing.
    ///
    /// May be called again and from several threads: a layer that two of them need is unpacked by
    /// one, and the other waits. A layer that is there already is neither read nor hashed again.
    pub fn prepare(&self, reference: &Reference) -> Result<Image, Error> {
        if let Reference::Dir(directory) = reference {
            return of_directory(reference, directory);
        }
        if let Some(image) = self.known(reference)? {
            return Ok(image);
        }
        let stamp = Stamp::of(reference);
        let (files, found) = self.find(reference)?;
        let (chain_ids, layers) = self.unpack(reference, &files, &found)?;
        let Found { id, document, .. } = found;
        let (image, config) = (id.to_string(), document.config);
        if let Some(stamp) = stamp {
            let (reference_text, config) = (reference.to_string(), config.clone());
            let record = Record { reference: reference_text, stamp, id, chain_ids, config };
            // The image is ready all the same; the next time takes a little longer.
            if let Err(error) = self.records.put(reference, &record) {
                let cause = std::error::Error::source(&error);
                tracing::warn!(image = %reference, %error, cause, "what it led to is not recorded");
            }
        }
        Ok(Image { id: image, layers, config })
    }

    /// The image of an archive that has not changed, if its layers are still there.
    fn known(&self, reference: &Reference) -> Result<Option<Image>, Error> {
        let Some(record) = self.records.get(reference) else { return Ok(None) };
        let layers = record.chain_ids.iter().map(|chain_id| self.layers.get(chain_id));
        let layers = layers.collect::<Result<Option<_>, _>>()?;
        let (id, config) = (record.id.to_string(), record.config);
        Ok(layers.map(|layers| Image { id, layers, config }))
    }

    fn find(&self, reference: &Reference) -> Result<(Files, Found), Error> {
        let name = reference.to_string();
        let in_tar =
            |name, file: &Path| Files::in_tar(name, file, || self.layers.scratch(), self.limits);
        let (files, found) = match reference {
            Reference::Dir(_) => unreachable!("a directory is not searched for images"),
            Reference::Oci { dir, tag } => {
                let files = Files::in_directory(name, dir);
                let found = layout::find(&files, tag.as_deref())?;
                (files, found)
            }
            Reference::OciArchive { file, tag } => {
                let files = in_tar(name, file)?;
                let found = layout::find(&files, tag.as_deref())?;
                (files, found)
            }
            Reference::DockerArchive { file, tag } => {
                let files = in_tar(name, file)?;
                let found = docker::find(&files, tag.as_deref())?;
                (files, found)
            }
        };

        let document = &found.document;
        match found.layers.len() {
            1..=MAX_LAYERS => {}
            0 => return Err(files.invalid("it has no layers, so there is nothing to run")),
            more => {
                let problem = format!("it has {more} layers; overlayfs takes {MAX_LAYERS}");
                return Err(files.invalid(problem));
            }
        }
        if !matches!(&*document.os, "" | "linux") {
            return Err(files.invalid(format!("it is for {}, not for linux", document.os)));
        }
        if !document.architecture.is_empty() && document.architecture != config::architecture() {
            // An emulator may be registered for it.
            let architecture = &document.architecture;
            tracing::warn!(image = %reference, architecture, "image for another architecture");
        }
        Ok((files, found))
    }

    fn unpack(
        &self,
        reference: &Reference,
        files: &Files,
        found: &Found,
    ) -> Result<(Vec<Digest>, Vec<PathBuf>), Error> {
        let mut chain_ids: Vec<Digest> = Vec::new();
        let mut layers = Vec::new();
        for layer in &found.layers {
            let diff_id = &layer.expected.diff_id;
            let chain_id = match chain_ids.last() {
                Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
                None => diff_id.clone(),
            };
            let path = self.layers.get_or_make(&chain_id, |root| {
                let Some(input) = files.open(&layer.file)? else {
                    let problem =
                        format!("{} is missing; was the image copied in part?", layer.file);
                    return Err(files.invalid(problem));
                };
                unpack::unpack(input, &layer.expected, root, self.limits)
                    .and_then(|grown| grown.settle(root, &layers).map_err(unpack::Error::Settle))
                    .map_err(|source| Error::Layer {
                        image: reference.to_string(),
                        layer: layer.file.clone(),
                        source,
                    })
            })?;
            chain_ids.push(chain_id);
            layers.push(path);
        }
        Ok((chain_ids, layers))
    }
}

fn of_directory(reference: &Reference, directory: &Path) -> Result<Image, Error> {
    let metadata = fs::metadata(directory).map_err(failed_to("open", directory))?;
    if !metadata.is_dir() {
        return Err(failed_to("open", directory)(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    let layers = vec![directory.to_owned()];
    Ok(Image { id: reference.to_string(), layers, config: Config::default() })
}

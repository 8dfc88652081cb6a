//! Images on disk: found in directories and archives or pulled from registries, verified, unpacked
//! layer by layer, and removed when there is no room for them.
//!
//! Knows nothing of pods. The [`Store`] is blocking; [`Images`] decides when to pull. An image is
//! read only, for good: what a container writes goes to an upper directory of its own, which is
//! not here.

mod blobs;
mod collect;
mod config;
mod digest;
mod disk;
mod docker;
mod entries;
mod error;
mod fields;
mod files;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod images;
mod inventory;
mod layers;
mod layout;
mod load;
pub(crate) mod merged;
mod metadata;
mod name;
mod progress;
mod pull;
mod records;
mod reference;
mod registry;
mod remove;
mod resolve;
mod settle;
mod sizes;
mod sparse;
#[cfg(test)]
mod tests;
mod tree;
mod unpack;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::SystemTime,
};

use tokio::sync::oneshot;

use blobs::Blobs;
use digest::Digest;
use error::failed_to;
use files::{Files, Found};
use layers::Layers;
use records::{Record, Records, Stamp, seconds_since_1970};

pub use collect::{Thresholds, Usage};
pub use config::Config;
pub use error::Error;
pub use images::{Images, PullError, PullPolicy, Pulling, Settings, Totals, Upload};
pub use inventory::Summary;
pub use name::Name;
pub use progress::{Layer, Phase, Progress};
pub use reference::Reference;
pub use registry::{Malformed, Registries, Registry, RegistryAuth, parse_docker_config};
pub use sizes::{ImageSize, LayerSize, Sizes};
pub use unpack::Limits;

/// As many as overlayfs takes.
const MAX_LAYERS: usize = 500;

/// Images on disk; layers are unpacked once and shared by every container through overlayfs.
#[derive(Debug)]
pub struct Store {
    layers: Layers,
    records: Records,
    blobs: Blobs,
    limits: Limits,
    /// Layers that an image is being made of, with how many; no record protects them yet.
    pinned: Arc<Mutex<HashMap<Digest, usize>>>,
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

/// Keeps layers from being removed before there is a record of their image.
struct Pin {
    pinned: Arc<Mutex<HashMap<Digest, usize>>>,
    chain_ids: Vec<Digest>,
}

/// What to do before and after each layer, by its number.
struct Steps<R, D> {
    /// Returns when the layer's file is there.
    ready: R,
    done: D,
}

impl Store {
    /// Opens the store in `dir`, which is created with mode 0700; what an interrupted unpack has
    /// left behind is removed.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let layers = Layers::open(dir)?;
        let records = Records::open(&dir.join("images"))?;
        let blobs = Blobs::open(dir)?;
        let (limits, pinned) = (Limits::default(), Arc::default());
        Ok(Self { layers, records, blobs, limits, pinned })
    }

    /// Sets what a layer may cost.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Makes an image of this machine ready to run: unpacks the layers that are missing.
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
        let _pin = self.pin(found.chain_ids());
        let steps = Steps { ready: |_| Ok(()), done: |_| {} };
        self.keep(reference, stamp, &files, &found, &[], steps)
    }

    /// The image that is known by this reference, if its layers are still there; it counts as used.
    fn known(&self, reference: &Reference) -> Result<Option<Image>, Error> {
        let Some(record) = self.records.get(reference) else { return Ok(None) };
        self.ready(&record)
    }

    fn ready(&self, record: &Record) -> Result<Option<Image>, Error> {
        let layers = record.chain_ids.iter().map(|chain_id| self.layers.get(chain_id));
        let layers = layers.collect::<Result<Option<_>, _>>()?;
        if layers.is_some() {
            self.records.touch(record);
        }
        let (id, config) = (record.id.to_string(), record.config.clone());
        Ok(layers.map(|layers| Image { id, layers, config }))
    }

    fn find(&self, reference: &Reference) -> Result<(Files, Found), Error> {
        let name = reference.to_string();
        let (files, found) = match reference {
            Reference::Dir(_) | Reference::Registry(_) => {
                let problem = String::from("it is in a registry, and not here any more");
                return Err(Error::Image { image: name, problem });
            }
            Reference::Oci { dir, tag } => {
                let files = Files::in_directory(name, dir);
                let found = layout::find(&files, tag.as_deref())?;
                (files, found)
            }
            Reference::OciArchive { file, tag } => {
                let files = self.archive(name, file)?;
                let found = layout::find(&files, tag.as_deref())?;
                (files, found)
            }
            Reference::DockerArchive { file, tag } => {
                let files = self.archive(name, file)?;
                let found = docker::find(&files, tag.as_deref())?;
                (files, found)
            }
        };
        check(&reference.to_string(), &files, &found)?;
        Ok((files, found))
    }

    fn archive(&self, name: String, file: &Path) -> Result<Files, Error> {
        Files::in_tar(name, file, || self.layers.scratch(), self.limits)
    }

    /// Unpacks the layers that are missing, which must be pinned, and records the image.
    fn keep(
        &self,
        reference: &Reference,
        stamp: Option<Stamp>,
        files: &Files,
        found: &Found,
        manifests: &[Digest],
        steps: Steps<impl FnMut(usize) -> Result<(), Error>, impl Fn(usize)>,
    ) -> Result<Image, Error> {
        let chain_ids = found.chain_ids();
        let layers = self.unpack(reference, files, found, &chain_ids, steps)?;
        let config = found.document.config.clone();
        let blobs = found.layers.iter().filter_map(|layer| layer.expected.blob.as_ref());
        let record = Record {
            reference: reference.to_string(),
            stamp,
            id: found.id.clone(),
            manifests: manifests.to_vec(),
            chain_ids,
            config: config.clone(),
            download_bytes: blobs.map(|(_, size)| size).sum(),
            since: seconds_since_1970(),
            replaced: false,
        };
        self.records.put(reference, record)?;
        Ok(Image { id: found.id.to_string(), layers, config })
    }

    fn unpack(
        &self,
        reference: &Reference,
        files: &Files,
        found: &Found,
        chain_ids: &[Digest],
        mut steps: Steps<impl FnMut(usize) -> Result<(), Error>, impl Fn(usize)>,
    ) -> Result<Vec<PathBuf>, Error> {
        let mut layers = Vec::new();
        for (index, (layer, chain_id)) in found.layers.iter().zip(chain_ids).enumerate() {
            let ready = &mut steps.ready;
            let path = self.layers.get_or_make(chain_id, |root| {
                ready(index)?;
                let Some(input) = files.open(&layer.file)? else {
                    let problem =
                        format!("{} is missing; was the image copied in part?", layer.file);
                    return Err(files.invalid(problem));
                };
                let settle = |grown: settle::Grown| {
                    let bytes = grown.bytes;
                    grown.settle(root, &layers).map_err(unpack::Error::Settle)?;
                    Ok(bytes)
                };
                unpack::unpack(input, &layer.expected, root, self.limits).and_then(settle).map_err(
                    |source| Error::Layer {
                        image: reference.to_string(),
                        layer: layer.file.clone(),
                        source,
                    },
                )
            })?;
            (steps.done)(index);
            layers.push(path);
        }
        Ok(layers)
    }

    /// Where nothing is yet, and nothing stays when the daemon starts anew.
    fn upload_path(&self) -> PathBuf {
        self.layers.upload_path()
    }

    /// When an image or a layer last came or went.
    fn changed(&self) -> io::Result<[SystemTime; 2]> {
        Ok([self.records.changed()?, self.layers.changed()?])
    }

    /// Whether a layer is here.
    fn has_layer(&self, chain_id: &Digest) -> Result<bool, Error> {
        Ok(self.layers.get(chain_id)?.is_some())
    }

    fn pin(&self, chain_ids: Vec<Digest>) -> Pin {
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        for chain_id in &chain_ids {
            *pinned.entry(chain_id.clone()).or_default() += 1;
        }
        Pin { pinned: Arc::clone(&self.pinned), chain_ids }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        for chain_id in &self.chain_ids {
            if let Some(count) = pinned.get_mut(chain_id) {
                *count -= 1;
                if *count == 0 {
                    pinned.remove(chain_id);
                }
            }
        }
    }
}

impl Found {
    /// What each layer is together with those below it.
    fn chain_ids(&self) -> Vec<Digest> {
        let mut chain_ids: Vec<Digest> = Vec::new();
        for layer in &self.layers {
            let diff_id = &layer.expected.diff_id;
            chain_ids.push(match chain_ids.last() {
                Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
                None => diff_id.clone(),
            });
        }
        chain_ids
    }
}

/// Whether this node can run the image at all.
fn check(image: &str, files: &Files, found: &Found) -> Result<(), Error> {
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
        tracing::warn!(image, architecture, "image for another architecture");
    }
    Ok(())
}

/// Runs what blocks on a thread of its own: pulls wait for each other, and on a pool of few threads
/// those that are waited for might not get one.
/// The thread starts at once, not when somebody waits for it.
fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> impl Future<Output = Result<T, Error>> + Send {
    let (sender, receiver) = oneshot::channel();
    let work = move || drop(sender.send(work()));
    let spawned = thread::Builder::new().name(String::from("image")).spawn(work);
    let spawned = spawned.map_err(failed_to("start a thread for", Path::new("images")));
    async move {
        spawned?;
        receiver.await.map_err(|_gone| Error::Panicked)?
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

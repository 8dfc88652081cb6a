//! What images there are, and how they go.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::PoisonError,
    time::SystemTime,
};

use super::{
    Config, Error, Image, Store,
    digest::Digest,
    layers::Gone,
    name::Name,
    records::{Kept, Record},
    reference::Reference,
};

/// An image that is here.
#[derive(Clone, Debug)]
pub struct Summary {
    /// What it is called; the same image may be here under several names.
    pub reference: String,
    /// The name leads to another image by now; this one may still run in pods.
    pub replaced: bool,
    /// Digest of its config.
    pub id: String,
    /// Digests by which the registry knows it.
    pub manifests: Vec<String>,
    /// How to run it.
    pub config: Config,
    /// Its layers' directories, lowest first.
    pub layers: Vec<PathBuf>,
    /// Of its files, with what it shares with other images.
    pub bytes: u64,
    /// Of its compressed layers in the registry; 0 if it is not from one.
    pub download_bytes: u64,
    /// When it came here, in seconds since 1970.
    pub since: u64,
    /// When it was last used.
    pub used: SystemTime,
}

/// What a removal did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Freed {
    pub(super) images: u64,
    pub(super) bytes: u64,
}

impl Store {
    /// All images but those that are directories, by name.
    pub fn list(&self) -> Result<Vec<Summary>, Error> {
        let bytes = self.layer_bytes()?;
        self.records.all()?.into_iter().map(|kept| self.summary(kept, &bytes)).collect()
    }

    /// The images that are meant by a reference, by an id or by the beginning of one.
    pub fn find_all(&self, text: &str) -> Result<Vec<Summary>, Error> {
        let reference = text.parse::<Reference>().ok();
        let full = reference.map(|reference| reference.to_string());
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let is_id = hex.len() >= 6 && hex.bytes().all(|b| b.is_ascii_hexdigit());
        let mut found = self.list()?;
        found.retain(|image| {
            let is_named = !image.replaced && Some(&image.reference) == full.as_ref();
            let has_id = is_id && image.id.trim_start_matches("sha256:").starts_with(hex);
            is_named || has_id
        });
        // A name is what it says, even if it looks like an id.
        if found.iter().any(|image| Some(&image.reference) == full.as_ref()) {
            found.retain(|image| Some(&image.reference) == full.as_ref());
        }
        Ok(found)
    }

    /// The image that a container runs which was started with this reference: the one of this id,
    /// whatever the reference leads to by now. It is neither pulled nor waited for.
    pub fn of_container(&self, reference: &Reference, id: &str) -> Result<Image, Error> {
        for kept in self.records.all()? {
            if kept.record.id.to_string() == id
                && let Some(image) = self.ready(&kept.record)?
            {
                return Ok(image);
            }
        }
        self.prepare(reference)
    }

    /// The image of that name whose manifest is one of these. If another name led to it, it is
    /// recorded under this one, too.
    pub(super) fn known_as(&self, name: &Name, manifests: &[Digest]) -> Option<Image> {
        let manifest = manifests.last()?;
        let all = self.records.all().ok()?;
        let same = all.iter().find(|kept| kept.record.manifests.last() == Some(manifest))?;
        let image = self.ready(&same.record).ok()??;
        let reference = Reference::Registry(name.clone());
        let is_recorded = self
            .records
            .get(&reference)
            .is_some_and(|record| record.id == same.record.id && record.manifests == manifests);
        if !is_recorded {
            let record = Record {
                reference: reference.to_string(),
                manifests: manifests.to_vec(),
                stamp: None,
                replaced: false,
                since: super::seconds_since_1970(),
                ..same.record.clone()
            };
            self.records.put(&reference, record).ok()?;
        }
        Some(image)
    }

    /// The image that a name with a digest stands for, whatever other name it came by.
    pub(super) fn known_by_digest(&self, name: &Name) -> Option<Image> {
        let digest = name.digest()?;
        let all = self.records.all().ok()?;
        let same = all.iter().find(|kept| {
            let own = kept.record.reference.parse::<Name>();
            own.is_ok_and(|own| own.family() == name.family())
                && kept.record.manifests.contains(digest)
        })?;
        self.ready(&same.record).ok()?
    }

    /// Forgets the images that `which` chooses, and removes the layers that no other has.
    pub(super) fn remove(&self, mut which: impl FnMut(&Kept) -> bool) -> Result<Freed, Error> {
        let mut freed = Freed::default();
        let mut chain_ids = HashSet::new();
        for kept in self.records.all()? {
            if which(&kept) {
                self.records.remove(&kept.record)?;
                freed.images += 1;
                chain_ids.extend(kept.record.chain_ids);
            }
        }
        freed.bytes = self.remove_layers(|chain_id| chain_ids.contains(chain_id))?;
        Ok(freed)
    }

    /// Removes those of the chosen layers that no image has; returns their bytes. What cannot be
    /// removed stays for the next time: whoever makes room needs the room of the others.
    pub(super) fn remove_layers(&self, which: impl Fn(&Digest) -> bool) -> Result<u64, Error> {
        let mut freed = 0;
        for (gone, bytes) in self.take_layers(which)? {
            match gone.delete() {
                Ok(()) => freed += bytes,
                Err(error) => warn_of_rest(&error),
            }
        }
        Ok(freed)
    }

    /// Takes the names of those of the chosen layers that no image has; returns them with their
    /// bytes.
    pub(super) fn take_layers(
        &self,
        which: impl Fn(&Digest) -> bool,
    ) -> Result<Vec<(Gone, u64)>, Error> {
        let mut taken = Vec::new();
        // With the lock held, so that nobody counts on a layer while it goes. Who pins one later
        // finds it gone and makes it again. Trees are deleted without it: pulls would wait.
        let pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let used: HashSet<Digest> =
            self.records.all()?.into_iter().flat_map(|kept| kept.record.chain_ids).collect();
        for layer in self.layers.all()? {
            let chain_id = &layer.chain_id;
            if which(chain_id) && !used.contains(chain_id) && !pinned.contains_key(chain_id) {
                match self.layers.take(chain_id) {
                    Ok(gone) => taken.extend(gone.map(|gone| (gone, layer.bytes))),
                    Err(error) => warn_of_rest(&error),
                }
            }
        }
        Ok(taken)
    }

    /// Bytes of each layer.
    pub(super) fn layer_bytes(&self) -> Result<HashMap<Digest, u64>, Error> {
        let layers = self.layers.all()?;
        Ok(layers.into_iter().map(|layer| (layer.chain_id, layer.bytes)).collect())
    }

    /// All records.
    pub(super) fn kept(&self) -> Result<Vec<Kept>, Error> {
        self.records.all()
    }

    /// Notes that pods use an image now.
    pub(super) fn touch(&self, record: &Record) {
        self.records.touch(record);
    }

    fn summary(&self, kept: Kept, bytes: &HashMap<Digest, u64>) -> Result<Summary, Error> {
        let Kept { record, used } = kept;
        let layers = record.chain_ids.iter().map(|chain_id| self.layers.get(chain_id));
        let layers = layers.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        Ok(Summary {
            bytes: record.bytes(bytes),
            reference: record.reference,
            replaced: record.replaced,
            id: record.id.to_string(),
            manifests: record.manifests.iter().map(ToString::to_string).collect(),
            layers,
            config: record.config,
            download_bytes: record.download_bytes,
            since: record.since,
            used,
        })
    }
}

fn warn_of_rest(error: &Error) {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::warn!(%error, cause, "a layer that no image has is not removed");
}

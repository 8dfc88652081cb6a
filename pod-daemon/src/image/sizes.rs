//! How large the images are that are here, and what of that is nobody else's.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use super::{
    digest::Digest,
    records::{Kept, Record},
};

/// Images and layers, the largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Each image once by each of its names.
    pub images: Vec<ImageSize>,
    /// Each layer once, whoever has it.
    pub layers: Vec<LayerSize>,
    /// Images, by whatever number of names.
    pub count: u64,
}

/// One image by one of its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSize {
    /// What it is called.
    pub reference: String,
    /// Digest of its config.
    pub id: String,
    /// Of its files, with what it shares with other images.
    pub bytes: u64,
    /// Of the layers that no other image has, whatever else this one is called.
    pub unique_bytes: u64,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSize {
    /// Digest of it and of what is below it.
    pub chain_id: String,
    /// Of its files.
    pub bytes: u64,
}

impl Sizes {
    /// Of the images with these records, and of layers of so many bytes.
    pub(super) fn of(kept: &[Kept], layers: &HashMap<Digest, u64>) -> Self {
        // The image that has a layer; `None` if there are several.
        let mut owners: HashMap<&Digest, Option<&Digest>> = HashMap::new();
        for record in kept.iter().map(|kept| &kept.record) {
            for chain_id in &record.chain_ids {
                let owner = owners.entry(chain_id).or_insert(Some(&record.id));
                *owner = owner.filter(|owner| **owner == record.id);
            }
        }
        let size = |record: &Record| {
            let own = record.chain_ids.iter().filter(|chain_id| owners[chain_id].is_some());
            ImageSize {
                reference: record.reference.clone(),
                id: record.id.to_string(),
                bytes: record.bytes(layers),
                unique_bytes: own.filter_map(|chain_id| layers.get(chain_id)).sum(),
            }
        };
        // A name that led elsewhere for a while has two records of the same image.
        let mut names = HashSet::new();
        let records = kept.iter().map(|kept| &kept.record);
        let records = records.filter(|record| names.insert((&record.reference, &record.id)));
        let mut images: Vec<_> = records.map(size).collect();
        images.sort_by_key(|image| Reverse(image.bytes));
        let layers = layers.iter();
        let layers =
            layers.map(|(id, bytes)| LayerSize { chain_id: id.to_string(), bytes: *bytes });
        let mut layers: Vec<_> = layers.collect();
        layers.sort_by_key(|layer| Reverse(layer.bytes));
        let ids: HashSet<_> = kept.iter().map(|kept| &kept.record.id).collect();
        Self { images, layers, count: ids.len() as u64 }
    }

    /// Of all layers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes).sum()
    }
}

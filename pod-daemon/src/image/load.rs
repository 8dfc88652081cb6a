//! Images from archives that are not kept: what `docker save` and others write.

use std::{path::Path, sync::Arc};

use super::{
    Error, Images, Steps, Store, blocking, check, docker,
    files::{Files, Found},
    layout,
    name::Name,
    progress::{Phase, Progress, short},
    reference::Reference,
};

impl Images {
    /// Keeps the images of an archive under the names that they have there, or its only image under
    /// `name`; returns the names. `progress` tells of images that have none.
    pub async fn load(
        &self,
        archive: &Path,
        name: Option<Name>,
        progress: Progress,
    ) -> Result<Vec<String>, Error> {
        let (store, archive) = (Arc::clone(self.store()), archive.to_owned());
        blocking(move || store.load(&archive, name.as_ref(), &progress)).await
    }
}

impl Store {
    fn load(
        &self,
        archive: &Path,
        name: Option<&Name>,
        progress: &Progress,
    ) -> Result<Vec<String>, Error> {
        let files = self.archive(String::from("archive"), archive)?;
        let mut images = named(&files)?;
        if let Some(name) = name {
            let [(_, names)] = &mut images[..] else {
                let problem = "it has several images, so they cannot all have the given name";
                return Err(files.invalid(problem));
            };
            *names = vec![name.clone()];
        }
        let (images, others): (Vec<_>, Vec<_>) =
            images.into_iter().partition(|(_, names)| !names.is_empty());
        if images.is_empty() {
            let problem =
                "no image has a name there; if it is the only one, give it one with --name";
            return Err(files.invalid(problem));
        }
        let mut loaded = Vec::new();
        for (found, names) in &images {
            progress.begin(found.layers.iter().map(|layer| (short(&layer.expected.diff_id), 0)));
            for name in names {
                let reference = Reference::Registry(name.clone());
                check(&reference.to_string(), &files, found)?;
                let _pin = self.pin(found.chain_ids());
                let steps = Steps {
                    ready: |index| {
                        progress.phase(index, Phase::Unpacking);
                        Ok(())
                    },
                    done: |index| progress.phase(index, Phase::Done),
                };
                self.keep(&reference, None, &files, found, &[], steps)?;
                loaded.push(reference.to_string());
            }
        }
        for (other, _) in others {
            if images.iter().all(|(image, _)| image.id != other.id) {
                tracing::warn!(image = %other.id, "an image without a name is not loaded");
                progress.skip(short(&other.id));
            }
        }
        Ok(loaded)
    }
}

/// The images and those of their names that are names in registries.
fn named(files: &Files) -> Result<Vec<(Found, Vec<Name>)>, Error> {
    // docker writes both, and only its own has all names.
    let images: Vec<(Vec<String>, Found)> = if files.open("manifest.json")?.is_some() {
        docker::all(files)?
    } else {
        let images = layout::all(files)?;
        images.into_iter().map(|(name, found)| (name.into_iter().collect(), found)).collect()
    };
    let names = |texts: Vec<String>| {
        // A bare `v1` is a tag of nothing, not docker.io/library/v1.
        let full = texts.into_iter().filter(|text| text.contains([':', '/']));
        full.filter_map(|text| text.parse().ok()).collect()
    };
    Ok(images.into_iter().map(|(texts, found)| (found, names(texts))).collect())
}

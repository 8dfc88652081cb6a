//! An image from a registry to the store: manifest, config, then layers, several at a time.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use futures_util::{StreamExt as _, stream};
use tokio::sync::oneshot;

use super::{
    Error, Image, Steps, Store,
    blobs::Lease,
    blocking,
    digest::Digest,
    files::{Files, Found},
    layout::{self, Document, MAX_NESTING},
    name::Name,
    progress::{Phase, Progress, short},
    reference::Reference,
    registry::{self, Kind, Registries, RegistryAuth, Session, candidates, download},
    unpack::Expected,
};

/// As kubelet and containerd have it: more would only share the same line.
const PARALLEL: usize = 3;

/// What a manifest led to, and what keeps its documents here.
struct Plan {
    files: Files,
    found: Found,
    manifests: Vec<Digest>,
    leases: Vec<Lease>,
}

/// Pulls an image, unless what the registry has is here already.
///
/// Mirrors are asked first, and each with all credentials that are meant for it.
pub(super) async fn pull(
    store: &Arc<Store>,
    registries: &Registries,
    name: &Name,
    secrets: &[RegistryAuth],
    progress: &Progress,
) -> Result<Image, Error> {
    let mut failures = Vec::new();
    let endpoints = registries.endpoints(name);
    let own = endpoints.len() - 1;
    for (number, endpoint) in endpoints.iter().enumerate() {
        let failure = match from_endpoint(store, registries, endpoint, name, secrets, progress)
            .await
        {
            Ok(image) => return Ok(image),
            // It does not answer, or has not what it should.
            Err(error @ (Error::Registry(_) | Error::Image { .. } | Error::Json { .. })) => error,
            // Another host would not help.
            Err(error) => return Err(error),
        };
        if number < own {
            tracing::warn!(image = %name, mirror = endpoint.host, error = %failure, "a mirror failed");
        }
        failures.push(failure);
    }
    // The registry's own word says more than a mirror's.
    Err(failures.pop().unwrap_or_else(|| Error::GivenUp { image: name.to_string() }))
}

async fn from_endpoint(
    store: &Arc<Store>,
    registries: &Registries,
    endpoint: &registry::Endpoint,
    name: &Name,
    secrets: &[RegistryAuth],
    progress: &Progress,
) -> Result<Image, Error> {
    let known = candidates(endpoint, secrets, registries.auth_file.as_deref())?;
    let mut candidates: VecDeque<_> = known.iter().map(Some).collect();
    if candidates.is_empty() {
        candidates.push_back(None);
    }
    loop {
        let auth = candidates.pop_front().flatten();
        let attempt = async {
            let session = Session::open(endpoint, auth).await?;
            attempt(store, &session, name, progress).await
        };
        match attempt.await {
            Err(Error::Registry(error)) if error.kind == Kind::Denied && !candidates.is_empty() => {
                tracing::debug!(image = %name, %error, "other credentials are tried");
            }
            result => return result,
        }
    }
}

/// Pulls in one session. A blob of an earlier pull that turns out to be damaged is fetched anew.
async fn attempt(
    store: &Arc<Store>,
    session: &Session,
    name: &Name,
    progress: &Progress,
) -> Result<Image, Error> {
    if let Some(image) = unmoved(store, session, name, progress).await {
        return Ok(image);
    }
    let plan = plan(store, session, name).await?;
    if let Some(image) = store.known_as(name, &plan.manifests) {
        progress.begin(layers(&plan));
        for index in 0..plan.found.layers.len() {
            progress.phase(index, Phase::Present);
        }
        return Ok(image);
    }
    let plan = Arc::new(plan);
    let mut reused = reused(store, &plan);
    let image = loop {
        let result = fetch(store, session, name, &plan, progress).await;
        // Each once: what comes now is what the registry has.
        if let Err(Error::Layer { layer, source, .. }) = &result
            && source.is_damage()
            && let Some(digest) = reused.remove(layer)
            && store.blobs.discard_unshared(&digest)
        {
            tracing::info!(image = %name, %digest, "what was here of a layer was damaged");
            continue;
        }
        break result?;
    };
    if let Some(plan) = Arc::into_inner(plan) {
        plan.leases.into_iter().for_each(Lease::done);
    }
    Ok(image)
}

/// The image that is here under this name, if the registry still has that one. Asked so that the
/// answer is no pull where those are limited.
async fn unmoved(
    store: &Store,
    session: &Session,
    name: &Name,
    progress: &Progress,
) -> Option<Image> {
    let record = store.records.get(&Reference::Registry(name.clone()))?;
    let known = record.manifests.first()?;
    if session.digest(&tag_or_digest(name)).await? != *known {
        return None;
    }
    let image = store.ready(&record).ok()??;
    progress.begin(record.chain_ids.iter().map(|chain_id| (short(chain_id), 0)));
    for index in 0..record.chain_ids.len() {
        progress.phase(index, Phase::Present);
    }
    Some(image)
}

fn tag_or_digest(name: &Name) -> String {
    match (name.digest(), name.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    }
}

/// Reads manifest and config, for this machine if there are several.
async fn plan(store: &Arc<Store>, session: &Session, name: &Name) -> Result<Plan, Error> {
    let files = Files::in_directory(name.to_string(), store.blobs.layout());
    let mut leases = Vec::new();
    let mut manifests = Vec::new();
    let mut next = tag_or_digest(name);
    for _ in 0..=MAX_NESTING {
        let answer = session.manifest(&next).await?;
        let digest = answer.digest.clone();
        let title = format!("manifest {digest}");
        manifests.push(digest);
        let media_type = answer.media_type.as_deref();
        let manifest = match layout::document(&files, &title, &answer.json, media_type)? {
            Document::Index(index) => {
                let chosen = layout::choose(&files, &index, None)?;
                next = layout::digest(&files, chosen)?.to_string();
                continue;
            }
            Document::Manifest(manifest) => *manifest,
        };
        let config = layout::digest(&files, manifest.config())?;
        let size = manifest.config().size();
        if size > super::files::MAX_DOCUMENT {
            return Err(
                files.invalid(format!("its config has {size} bytes; no config is that large"))
            );
        }
        leases.push(store.blobs.lease(vec![config.clone()]));
        let report: registry::Report = Arc::new(|_| {});
        download(session, &store.blobs, &config, size, &report).await?;
        let document = files.document(&layout::blob_name(&config), Some((&config, size)));
        if document.is_err() {
            // One that an earlier pull has left, and the disk has damaged.
            store.blobs.discard_unshared(&config);
            download(session, &store.blobs, &config, size, &report).await?;
        }
        let found = layout::image(&files, &manifest)?;
        super::check(&name.to_string(), &files, &found)?;
        let blobs = found.layers.iter().filter_map(|layer| layer.expected.blob.as_ref());
        leases.push(store.blobs.lease(blobs.map(|(digest, _)| digest.clone()).collect()));
        return Ok(Plan { files, found, manifests, leases });
    }
    Err(files.invalid(format!("its indexes are nested more than {MAX_NESTING} deep")))
}

/// The layers' blobs that an earlier pull has left, by their files.
fn reused(store: &Store, plan: &Plan) -> HashMap<String, Digest> {
    let blobs = plan.found.layers.iter().filter_map(|layer| {
        let (digest, size) = layer.expected.blob.as_ref()?;
        store.blobs.has(digest, *size).then(|| (layer.file.clone(), digest.clone()))
    });
    blobs.collect()
}

fn layers(plan: &Plan) -> Vec<(String, u64)> {
    let blobs = plan.found.layers.iter().filter_map(|layer| layer.expected.blob.as_ref());
    blobs.map(|(digest, size)| (short(digest), *size)).collect()
}

/// Downloads the layers that are missing, and unpacks each as soon as those below it are there.
async fn fetch(
    store: &Arc<Store>,
    session: &Session,
    name: &Name,
    plan: &Arc<Plan>,
    progress: &Progress,
) -> Result<Image, Error> {
    progress.begin(layers(plan));
    let pin = store.pin(plan.found.chain_ids());
    let mut arrivals = Vec::new();
    let mut downloads = Vec::new();
    for (index, layer) in plan.found.layers.iter().enumerate() {
        let Expected { blob: Some((digest, size)), .. } = &layer.expected else { continue };
        if store.has_layer(&pin.chain_ids[index])? {
            progress.phase(index, Phase::Present);
            arrivals.push(None);
            continue;
        }
        let (arrived, arrival) = oneshot::channel();
        arrivals.push(Some(arrival));
        downloads.push(async move {
            progress.phase(index, Phase::Downloading);
            let listener = progress.clone();
            let report: registry::Report = Arc::new(move |bytes| listener.bytes(index, bytes));
            download(session, &store.blobs, digest, *size, &report).await?;
            progress.phase(index, Phase::Downloaded);
            // Nobody waits for it if unpacking failed, which is told elsewhere.
            arrived.send(()).ok();
            Ok::<(), Error>(())
        });
    }

    let unpacking = {
        let (store, plan, name) = (Arc::clone(store), Arc::clone(plan), name.clone());
        let progress = progress.clone();
        blocking(move || {
            let ready = |index: usize| {
                if let Some(arrival) = arrivals.get_mut(index).and_then(Option::take) {
                    let given_up = |_gone| Error::GivenUp { image: name.to_string() };
                    arrival.blocking_recv().map_err(given_up)?;
                }
                progress.phase(index, Phase::Unpacking);
                Ok(())
            };
            let steps = Steps { ready, done: |index| progress.phase(index, Phase::Done) };
            let reference = Reference::Registry(name.clone());
            let Plan { files, found, manifests, .. } = &*plan;
            let image = store.keep(&reference, None, files, found, manifests, steps);
            drop(pin);
            image
        })
    };
    let downloading = async {
        let mut results = stream::iter(downloads).buffer_unordered(PARALLEL);
        while let Some(result) = results.next().await {
            result?;
        }
        Ok(())
    };
    let mut unpacking = std::pin::pin!(unpacking);
    tokio::select! {
        image = &mut unpacking => image,
        downloaded = downloading => match downloaded {
            Ok(()) => unpacking.await,
            // What waits for the others is told that they do not come.
            Err(error) => {
                drop(unpacking.await);
                Err(error)
            }
        },
    }
}

//! The image of a container: pulled, unpacked or found, as the manifest says.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Container as Spec;

use super::chain;
use crate::{
    image::{Image, PullError, PullPolicy, Reference, RegistryAuth, parse_docker_config},
    node::Shared,
};

/// Makes a container's image ready to run; may take as long as a download does.
///
/// `secrets` are what the pod's `imagePullSecrets` hold, in the form of docker's `config.json`.
/// After a failure the caller may ask again as often as it likes: it is answered at once while the
/// pause before the next attempt is on.
pub(super) async fn prepare(
    shared: &Shared,
    spec: &Spec,
    secrets: &[String],
) -> Result<Arc<Image>, PullError> {
    let reference = reference(spec)?;
    let secrets: Vec<RegistryAuth> = secrets.iter().flat_map(|text| read(text)).collect();
    shared.images.ensure(&reference, policy(spec), &secrets).await.map(Arc::new)
}

/// The image that a running container was started with, if it is still here; blocks, but not for a
/// pull.
pub(super) fn again(shared: &Shared, spec: &Spec, id: &str) -> Result<Image, PullError> {
    let reference = reference(spec)?;
    let found = shared.images.store().of_container(&reference, id);
    found.map_err(|error| PullError { reason: "ErrImagePull", message: chain(&error) })
}

/// Whether a restart may use the image of the run before it without asking the registry again.
pub(super) fn is_kept(spec: &Spec) -> bool {
    policy(spec) != PullPolicy::Always || !matches!(reference(spec), Ok(Reference::Registry(_)))
}

fn reference(spec: &Spec) -> Result<Reference, PullError> {
    let text = spec.image.as_deref().unwrap_or_default();
    text.parse().map_err(|error| PullError::invalid_name(&error))
}

/// A secret that cannot be read helps nobody, but the image may be had without it.
fn read(text: &str) -> Vec<RegistryAuth> {
    parse_docker_config(text).unwrap_or_else(|error| {
        tracing::warn!(%error, "an image pull secret cannot be read");
        Vec::new()
    })
}

fn policy(spec: &Spec) -> PullPolicy {
    PullPolicy::parse(spec.image_pull_policy.as_deref().unwrap_or_default())
}

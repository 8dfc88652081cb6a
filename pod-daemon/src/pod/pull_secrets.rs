//! What a pod may show to registries.

use super::About;
use crate::{manifest, node::Shared};

/// The texts in the form of docker's `config.json` that the pod's `imagePullSecrets` name, in their
/// order. As kubelet does, one that is not there is passed over: the image may need none.
pub(super) fn pull_secrets(shared: &Shared, about: &About) -> Vec<String> {
    let mut texts = Vec::new();
    for reference in about.spec.image_pull_secrets.iter().flatten() {
        let Some(secret) = shared.secret(&about.key.namespace, &reference.name) else {
            tracing::warn!(pod = %about.key, secret = reference.name, "there is no such pull secret");
            continue;
        };
        let data = secret.data.unwrap_or_default();
        let (new, old) = (data.get(manifest::DOCKER_CONFIG), data.get(manifest::OLD_DOCKER_CONFIG));
        let text = match (new, old) {
            (Some(new), _) => String::from_utf8(new.0.clone()).ok(),
            // The older form is what the newer one has below `auths`.
            (None, Some(old)) => {
                str::from_utf8(&old.0).ok().map(|old| format!("{{\"auths\":{old}}}"))
            }
            (None, None) => None,
        };
        match text {
            Some(text) => texts.push(text),
            None => tracing::warn!(
                pod = %about.key,
                secret = reference.name,
                "the pull secret has no .dockerconfigjson"
            ),
        }
    }
    texts
}

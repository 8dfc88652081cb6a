//! What a pod may show to registries.

use k8s_openapi::api::core::v1::Secret;

use super::About;
use crate::{manifest, node::Shared};

/// The texts in the form of docker's `config.json` that the pod's `imagePullSecrets` name, in their
/// order. As kubelet does, one that is not there is passed over: the image may need none.
pub(super) fn pull_secrets(shared: &Shared, about: &About) -> Vec<String> {
    let mut texts = Vec::new();
    for reference in about.spec.image_pull_secrets.iter().flatten() {
        let name = &reference.name;
        let Some(secret) = shared.secret(&about.key.namespace, name) else {
            tracing::warn!(pod = %about.key, secret = name, "there is no such pull secret");
            continue;
        };
        match text(&secret) {
            Some(text) => texts.push(text),
            None => tracing::warn!(
                pod = %about.key,
                secret = name,
                "the pull secret has no .dockerconfigjson"
            ),
        }
    }
    texts
}

/// What a secret holds for registries, if it does.
fn text(secret: &Secret) -> Option<String> {
    let value = |key: &str| {
        let value = secret.data.as_ref()?.get(key)?;
        str::from_utf8(&value.0).ok()
    };
    // The older form is what the newer one has below `auths`.
    let old = || value(manifest::OLD_DOCKER_CONFIG).map(|old| format!("{{\"auths\":{old}}}"));
    value(manifest::DOCKER_CONFIG).map(str::to_owned).or_else(old)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn both_forms_are_the_same_in_the_end() {
        let secret = |key: &str, value: &str| Secret {
            data: Some([(key.to_owned(), ByteString(value.into()))].into()),
            ..Secret::default()
        };
        let expected = Some("{\"auths\":{\"a\":{}}}".to_owned());
        assert_eq!(text(&secret(".dockerconfigjson", "{\"auths\":{\"a\":{}}}")), expected);
        assert_eq!(text(&secret(".dockercfg", "{\"a\":{}}")), expected);
        assert_eq!(text(&secret("other", "{}")), None);
    }
}

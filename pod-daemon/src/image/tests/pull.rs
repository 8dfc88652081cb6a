//! Pulls from a registry that is slow, ill, or lies.

mod broken;

use std::{fs, path::Path, time::Duration};

use serde_json::json;

use super::{
    fixtures::{INDEX, Layer, MANIFEST, Tar, assert_is_two_layers, two_layers},
    hub::{Access, Hub, Lie, Rules},
};
use crate::image::{
    Image, Images, Limits, PullError, PullPolicy, Reference, Registries, Registry, RegistryAuth,
    Settings, Store, config::architecture, digest::Digest,
};

/// A node's images in a directory of their own.
struct Node {
    dir: tempfile::TempDir,
    images: Images,
}

impl Node {
    fn new() -> Self {
        Self::with(Vec::new())
    }

    fn with(registries: Vec<Registry>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = open(dir.path(), registries);
        Self { dir, images }
    }

    async fn ensure(&self, name: &str, policy: PullPolicy) -> Result<Image, PullError> {
        self.images.ensure(&name.parse().unwrap(), policy, &[]).await
    }

    async fn pull(&self, name: &str, secrets: &[RegistryAuth]) -> Result<Image, PullError> {
        self.images.pull(&name.parse().unwrap(), secrets).result().await
    }

    /// How many layers, records of layers, unfinished layers and images there are.
    fn counts(&self) -> [usize; 4] {
        ["layers", "records", "tmp", "images"]
            .map(|name| fs::read_dir(self.dir.path().join(name)).unwrap().count())
    }

    fn blobs(&self) -> Vec<String> {
        let blobs = fs::read_dir(self.dir.path().join("blobs/sha256")).unwrap();
        blobs.map(|blob| blob.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn open(dir: &Path, registries: Vec<Registry>) -> Images {
    Images::new(Store::open(dir).unwrap(), settings(dir, registries))
}

fn settings(dir: &Path, registries: Vec<Registry>) -> Settings {
    // Not this machine's own credentials.
    let auth_file = dir.join("auth.json");
    if !auth_file.exists() {
        fs::write(&auth_file, "{\"auths\":{}}").unwrap();
    }
    let registries = Registries { registries, auth_file: Some(auth_file) };
    Settings { registries, backoff: Duration::from_millis(300) }
}

fn big_layer(seed: u64, bytes: usize) -> Layer {
    let mut state = seed;
    let noise = (0..bytes).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    Layer::gzip(&Tar::new().file(format!("big-{seed}"), noise.collect::<Vec<u8>>()).done())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_once_and_survives_a_restart() {
    let (hub, node) = (Hub::start().await, Node::new());
    hub.push("team/app", "v1", &two_layers());
    let name = hub.name("team/app:v1");

    let image = node.ensure(&name, PullPolicy::IfNotPresent).await.unwrap();
    assert_is_two_layers(&image);
    assert!(node.blobs().is_empty(), "{:?}", node.blobs());
    assert_eq!(hub.asked_blobs().len(), 3);

    assert_eq!(node.ensure(&name, PullPolicy::IfNotPresent).await.unwrap(), image);
    assert_eq!(node.ensure(&name, PullPolicy::Never).await.unwrap(), image);
    assert!(hub.asked().is_empty());
    // The registry is asked, and has nothing new.
    assert_eq!(node.ensure(&name, PullPolicy::Always).await.unwrap(), image);
    let asked = hub.asked();
    assert!(asked.iter().any(|asked| asked.path.ends_with("/manifests/v1")));

    let Node { dir, images } = node;
    drop(images);
    let images = open(dir.path(), Vec::new());
    let reference = name.parse().unwrap();
    let again = images.ensure(&reference, PullPolicy::IfNotPresent, &[]).await.unwrap();
    assert_eq!(again, image);
    assert!(hub.asked().is_empty());
    assert_eq!((images.totals().sizes.count, images.totals().pulled), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_did_not_move_costs_no_manifest() {
    let (hub, node) = (Hub::start().await, Node::new());
    let mine = hub.push("app", "v1", &two_layers());
    let entry = json!({"mediaType": MANIFEST, "digest": mine.to_string(),
        "size": hub.state_size("app", &mine)});
    let all = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    hub.document("app", "all", INDEX, all.to_string().as_bytes());
    let always = async |tag: &str| {
        let image = node.ensure(&hub.name(&format!("app:{tag}")), PullPolicy::Always).await;
        assert_is_two_layers(&image.unwrap());
        hub.asked_manifests()
    };
    assert_eq!(always("v1").await, [0, 1]);
    assert_eq!(always("v1").await, [1, 0]);
    // Of an index only its own digest counts.
    assert_eq!(always("all").await, [0, 2]);
    assert_eq!(always("all").await, [1, 0]);
    let progress = node.images.pull(&hub.name("app:all").parse().unwrap(), &[]);
    let told = progress.progress();
    progress.result().await.unwrap();
    assert!(told.borrow().iter().all(|layer| layer.phase.word() == "Already exists"));
    assert_eq!((told.borrow().len(), hub.asked_manifests()), (2, [1, 0]));

    // A registry that does not answer the question, or with nothing.
    hub.rules(Rules { no_head: true, ..Rules::default() });
    assert_eq!(always("v1").await, [1, 1]);
    hub.rules(Rules { digest_header: Some(String::from("none")), ..Rules::default() });
    assert_eq!(always("v1").await, [1, 1]);
    hub.rules(Rules::default());
    // What is not here any more is fetched.
    let image = node.ensure(&hub.name("app:v1"), PullPolicy::Never).await.unwrap();
    fs::remove_dir_all(&image.layers[1]).unwrap();
    hub.asked();
    assert_eq!(always("v1").await, [1, 1]);
    hub.push("app", "v1", &two_layers()[..1]);
    node.ensure(&hub.name("app:v1"), PullPolicy::Always).await.unwrap();
    assert_eq!(hub.asked_manifests(), [1, 1]);
    // The answer is for those who may have it.
    hub.rules(Rules { access: Access::Basic("right"), ..Rules::default() });
    let error = node.pull(&hub.name("app:v1"), &[]).await.unwrap_err();
    assert!(error.message.contains("authentication required"), "{error}");
    let secrets = [RegistryAuth::new(&hub.host, "user", "right")];
    hub.asked();
    node.pull(&hub.name("app:v1"), &secrets).await.unwrap();
    assert_eq!(hub.asked_manifests()[1], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn always_follows_a_tag_that_moved_and_keeps_what_pods_may_run() {
    let (hub, node) = (Hub::start().await, Node::new());
    hub.push("app", "latest", &two_layers()[..1]);
    let old = node.ensure(&hub.name("app"), PullPolicy::Always).await.unwrap();
    hub.push("app", "latest", &two_layers());
    let new = node.ensure(&hub.name("app"), PullPolicy::Always).await.unwrap();
    assert_is_two_layers(&new);
    assert_ne!(old.id, new.id);
    let list = node.images.store().list().unwrap();
    assert_eq!(list.len(), 2);
    assert!(list.iter().any(|image| image.id == old.id && image.replaced));
    assert!(old.layers[0].exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_this_machines_image_and_a_digest_to_its_own() {
    let (hub, node) = (Hub::start().await, Node::new());
    let mine = hub.push("app", "mine", &two_layers());
    let other = hub.push("app", "other", &two_layers()[..1]);
    let entry = |digest: &Digest, architecture: &str| {
        let size = hub.state_size("app", digest);
        json!({"mediaType": MANIFEST, "digest": digest.to_string(), "size": size,
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let manifests = [entry(&other, "s390x"), entry(&mine, architecture())];
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let index = hub.document("app", "all", INDEX, index.to_string().as_bytes());

    let image = node.ensure(&hub.name("app:all"), PullPolicy::IfNotPresent).await.unwrap();
    assert_is_two_layers(&image);
    // Both digests stand for what is here now, without asking.
    hub.asked();
    for digest in [&index, &mine] {
        let name = hub.name(&format!("app@{digest}"));
        assert_eq!(node.ensure(&name, PullPolicy::IfNotPresent).await.unwrap(), image);
    }
    assert!(hub.asked().is_empty());

    let foreign = json!({"schemaVersion": 2, "mediaType": INDEX,
        "manifests": [entry(&other, "s390x")]});
    hub.document("app", "foreign", INDEX, foreign.to_string().as_bytes());
    let error = node.pull(&hub.name("app:foreign"), &[]).await.unwrap_err();
    assert!(error.message.contains("it has: linux/s390x"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_with_the_registrys_words_and_then_waited_for() {
    for access in [Access::Basic("right"), Access::Token("right", None)] {
        let (hub, node) = (Hub::start().await, Node::new());
        hub.push("app", "v1", &two_layers());
        let is_token = matches!(access, Access::Token(..));
        hub.rules(Rules { access, ..Rules::default() });
        let reference: Reference = hub.name("app:v1").parse().unwrap();
        let ensure = async |password: &str| {
            let secrets = [RegistryAuth::new(&hub.host, "user", password)];
            node.images.ensure(&reference, PullPolicy::IfNotPresent, &secrets).await
        };

        let error = ensure("wrong").await.unwrap_err();
        assert_eq!(error.reason, "ErrImagePull", "{error}");
        let words = if is_token { "wrong password" } else { "authentication required" };
        assert!(error.message.contains(words), "{error}");
        hub.asked();
        let error = ensure("wrong").await.unwrap_err();
        assert_eq!(error.reason, "ImagePullBackOff");
        assert!(error.message.starts_with("Back-off pulling image"), "{error}");
        assert!(error.message.contains(words), "{error}");
        assert!(hub.asked().is_empty(), "it was asked during the back-off");

        // Whoever has the password does not wait for those who do not.
        assert_is_two_layers(&ensure("right").await.unwrap());
        tokio::time::sleep(Duration::from_millis(350)).await;
        assert_is_two_layers(&ensure("wrong").await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_double_and_end_with_success() {
    let (hub, node) = (Hub::start().await, Node::new());
    let name = hub.name("app:v1");
    let ensure = || node.ensure(&name, PullPolicy::IfNotPresent);
    let error = ensure().await.unwrap_err();
    assert_eq!(error.reason, "ErrImagePull");
    assert!(error.message.contains("HTTP 404: no such thing"), "{error}");
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert_eq!(ensure().await.unwrap_err().reason, "ErrImagePull");
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert_eq!(ensure().await.unwrap_err().reason, "ImagePullBackOff");
    hub.push("app", "v1", &two_layers());
    tokio::time::sleep(Duration::from_millis(350)).await;
    ensure().await.unwrap();
    assert_eq!((node.images.totals().pulled, node.images.totals().failed), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_credentials_are_tried_and_those_of_the_auth_file_last() {
    let (hub, node) = (Hub::start().await, Node::new());
    hub.push("app", "v1", &two_layers());
    hub.rules(Rules { access: Access::Basic("right"), ..Rules::default() });
    let auth = json!({"auths": {&hub.host: {"username": "user", "password": "right"}}});
    fs::write(node.dir.path().join("auth.json"), auth.to_string()).unwrap();
    let secrets = [RegistryAuth::new(&hub.host, "user", "stale")];
    node.pull(&hub.name("app:v1"), &secrets).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    for access in [Access::Basic("right"), Access::Token("right", None)] {
        let (hub, storage, node) = (Hub::start().await, Hub::start().await, Node::new());
        hub.push("app", "v1", &two_layers());
        storage.push("app", "v1", &two_layers());
        let redirect = Some(storage.host.clone());
        hub.rules(Rules { access, redirect, ..Rules::default() });
        let secrets = [RegistryAuth::new(&hub.host, "user", "right")];
        node.pull(&hub.name("app:v1"), &secrets).await.unwrap();
        assert!(hub.asked_blobs().iter().all(|asked| asked.authorization.is_some()));
        let strangers = storage.asked_blobs();
        assert_eq!(strangers.len(), 3);
        assert!(strangers.iter().all(|asked| asked.authorization.is_none()), "{strangers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_without_the_registrys_credentials() {
    let (hub, mirror) = (Hub::start().await, Hub::start().await);
    hub.push("app", "v1", &two_layers());
    mirror.push("copies/app", "v1", &two_layers());
    let own = Registry {
        host: hub.host.clone(),
        mirrors: vec![format!("{}/copies", mirror.host)],
        ..Registry::default()
    };
    let secrets = [RegistryAuth::new(&hub.host, "user", "right")];

    let node = Node::with(vec![own.clone()]);
    node.pull(&hub.name("app:v1"), &secrets).await.unwrap();
    assert!(hub.asked().is_empty());
    assert!(mirror.asked().iter().all(|asked| asked.authorization.is_none()));

    for ill in [
        Rules { status: Some(500), ..Rules::default() },
        Rules { lie: Some(|bytes| vec![0; bytes.len()]), ..Rules::default() },
        Rules { access: Access::Basic("other"), ..Rules::default() },
    ] {
        mirror.rules(ill);
        let node = Node::with(vec![own.clone()]);
        node.pull(&hub.name("app:v1"), &secrets).await.unwrap();
        assert!(!hub.asked().is_empty());
    }

    // What it has is nothing for this machine.
    mirror.rules(Rules::default());
    mirror.document("copies/app", "v1", INDEX, br#"{"schemaVersion": 2, "manifests": []}"#);
    let node = Node::with(vec![own]);
    node.pull(&hub.name("app:v1"), &secrets).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_share_a_pull_and_three_layers_come_at_a_time() {
    let (hub, node) = (Hub::start().await, Node::new());
    let layers: Vec<_> = (0..8).map(|seed| big_layer(seed, 20_000)).collect();
    hub.push("app", "v1", &layers);
    hub.rules(Rules { delay_ms: 30, ..Rules::default() });
    let reference: Reference = hub.name("app:v1").parse().unwrap();
    let pulling = node.images.pull(&reference, &[]);
    let mut progress = pulling.progress();
    let seen = tokio::spawn(async move {
        let mut phases = std::collections::BTreeSet::new();
        while progress.changed().await.is_ok() {
            phases.extend(progress.borrow().iter().map(|layer| layer.phase.word()));
        }
        (phases, progress.borrow().clone())
    });
    let callers = (0..6).map(|_| node.images.ensure(&reference, PullPolicy::Always, &[]));
    for result in futures_util::future::join_all(callers).await {
        assert_eq!(result.unwrap().layers.len(), 8);
    }
    drop(pulling);
    let manifests = hub.asked().into_iter().filter(|asked| asked.path.contains("/manifests/"));
    assert_eq!(manifests.count(), 1);
    assert_eq!(hub.state().most_open, 3);
    let (phases, last) = seen.await.unwrap();
    assert!(phases.contains("Downloading") && phases.contains("Done"), "{phases:?}");
    assert!(last.iter().all(|layer| layer.current == layer.total && layer.total > 20_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_images_that_share_a_layer_fetch_it_once() {
    let (hub, node) = (Hub::start().await, Node::new());
    let shared = big_layer(1, 50_000);
    hub.push("a", "v1", &[shared.clone(), big_layer(2, 1000)]);
    hub.push("b", "v1", &[shared.clone(), big_layer(3, 1000)]);
    hub.rules(Rules { delay_ms: 20, ..Rules::default() });
    let (a, b) = (hub.name("a:v1"), hub.name("b:v1"));
    let (a, b) = tokio::join!(node.pull(&a, &[]), node.pull(&b, &[]));
    assert_eq!(a.unwrap().layers[0], b.unwrap().layers[0]);
    let digest = Digest::of(&shared.blob).to_string();
    let times = hub.asked_blobs().iter().filter(|asked| asked.path.ends_with(&digest)).count();
    assert_eq!(times, 1);
    assert!(node.blobs().is_empty(), "{:?}", node.blobs());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_told_apart() {
    let node = Node::new();
    let error = node.ensure("127.0.0.1:1/app:v1", PullPolicy::Never).await.unwrap_err();
    assert_eq!(error.reason, "ErrImageNeverPull");
    let error = node.ensure("127.0.0.1:1/app:v1", PullPolicy::IfNotPresent).await.unwrap_err();
    assert_eq!(error.reason, "RegistryUnavailable");
    assert!(error.message.contains("cannot connect to 127.0.0.1:1"), "{error}");
    // Names are resolved without the C library.
    let hub = Hub::start().await;
    hub.push("app", "v1", &two_layers());
    let port = hub.host.rsplit_once(':').unwrap().1;
    node.pull(&format!("localhost:{port}/app:v1"), &[]).await.unwrap();
}

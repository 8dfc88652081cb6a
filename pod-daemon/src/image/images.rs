//! The node's images: which to pull and when, once for everybody who asks at the same time.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{Semaphore, watch};

use super::{
    Error, Image, Progress, Store, blocking,
    progress::Layer,
    pull::pull,
    reference::Reference,
    registry::{Kind, Registries, RegistryAuth},
    sizes::Sizes,
};

/// The longest pause after failures, as a multiple of the first: 10 s become 5 min.
const MAX_BACKOFF: u32 = 30;
/// Images that are pulled at the same time; more would only share the same line.
const PARALLEL: usize = 4;

/// The images of a node: a handle, cheap to clone.
#[derive(Clone)]
pub struct Images {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) store: Arc<Store>,
    settings: Settings,
    pulls: Mutex<HashMap<Key, Pulling>>,
    failures: Mutex<HashMap<Key, Failures>>,
    turns: Semaphore,
    pub(super) counters: Counters,
    sizes: Mutex<Option<Dated>>,
}

/// What the node's owner decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The registries.
    pub registries: Registries,
    /// The pause after the first failure; it doubles up to thirty times itself.
    pub backoff: Duration,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// The registry is asked each time; what it has and is here already is not fetched again.
    Always,
    /// Only what is not here.
    IfNotPresent,
    /// Nothing is pulled.
    Never,
}

/// An image is not here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PullError {
    /// As kubelet names it: `ErrImagePull`, `ImagePullBackOff`, `ErrImageNeverPull`,
    /// `RegistryUnavailable` or `InvalidImageName`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// A pull that goes on, whoever waits for it.
#[derive(Clone)]
pub struct Pulling {
    progress: Progress,
    result: watch::Receiver<Option<Result<Image, PullError>>>,
}

/// What was done, and what is here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// What is here.
    pub sizes: Arc<Sizes>,
    /// Pulls that succeeded.
    pub pulled: u64,
    /// Pulls that failed.
    pub failed: u64,
    /// Times that room had to be made.
    pub collections: u64,
    /// Images that went then.
    pub collected_images: u64,
    /// Bytes that went then.
    pub collected_bytes: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pulled: AtomicU64,
    failed: AtomicU64,
    pub(super) collections: AtomicU64,
    pub(super) collected_images: AtomicU64,
    pub(super) collected_bytes: AtomicU64,
}

/// Who asks for what: others' credentials may lead elsewhere.
type Key = (String, Vec<RegistryAuth>);

/// How often an image could not be had.
struct Failures {
    pause: Duration,
    until: Instant,
    last: PullError,
}

/// What is here, as of when the store's directories had these times.
struct Dated {
    as_of: [SystemTime; 2],
    sizes: Arc<Sizes>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { registries: Registries::default(), backoff: Duration::from_secs(10) }
    }
}

impl PullPolicy {
    /// Reads `imagePullPolicy`; the manifest's defaults have filled it in.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "Always" => Self::Always,
            "Never" => Self::Never,
            _ => Self::IfNotPresent,
        }
    }
}

impl PullError {
    fn of(reference: &Reference, error: &Error) -> Self {
        let reason = match error {
            Error::Registry(error) if error.kind == Kind::Unavailable => "RegistryUnavailable",
            _ => "ErrImagePull",
        };
        let mut text = error.to_string();
        let mut next = std::error::Error::source(error);
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        let message = match error {
            Error::Registry(_) => format!("failed to pull image \"{reference}\": {text}"),
            _ => text,
        };
        Self { reason, message }
    }

    /// The text names no image.
    #[must_use]
    pub fn invalid_name(error: &Error) -> Self {
        Self { reason: "InvalidImageName", message: error.to_string() }
    }
}

impl Images {
    /// The images in a store.
    #[must_use]
    pub fn new(store: Store, settings: Settings) -> Self {
        let inner = Inner {
            store: Arc::new(store),
            settings,
            pulls: Mutex::default(),
            failures: Mutex::default(),
            turns: Semaphore::new(PARALLEL),
            counters: Counters::default(),
            sizes: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The images on disk.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    /// Makes an image ready to run, pulling it if the policy says so.
    ///
    /// After a failure nothing is tried for a while, and the error is that one again; callers may
    /// ask as often as they like. `secrets` are tried before the node's own credentials.
    pub async fn ensure(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        secrets: &[RegistryAuth],
    ) -> Result<Image, PullError> {
        if let Reference::Registry(_) = reference
            && policy != PullPolicy::Always
        {
            let known = self.known(reference).await;
            if let Some(image) = known.map_err(|error| PullError::of(reference, &error))? {
                return Ok(image);
            }
            if policy == PullPolicy::Never {
                return Err(PullError {
                    reason: "ErrImageNeverPull",
                    message: format!(
                        "Container image \"{reference}\" is not present with pull policy of Never"
                    ),
                });
            }
        }
        let key = (reference.to_string(), secrets.to_vec());
        if let Some(failures) = lock(&self.inner.failures).get(&key)
            && failures.until > Instant::now()
        {
            let PullError { reason, message } = &failures.last;
            return Err(PullError {
                reason: "ImagePullBackOff",
                message: format!("Back-off pulling image \"{reference}\": {reason}: {message}"),
            });
        }
        self.pull(reference, secrets).result().await
    }

    /// Pulls an image, whatever is here or failed before; or goes along with a pull that began
    /// earlier. It goes on even if nobody waits for it.
    #[must_use]
    pub fn pull(&self, reference: &Reference, secrets: &[RegistryAuth]) -> Pulling {
        let key = (reference.to_string(), secrets.to_vec());
        let mut pulls = lock(&self.inner.pulls);
        if let Some(pulling) = pulls.get(&key) {
            return pulling.clone();
        }
        let (sender, result) = watch::channel(None);
        let pulling = Pulling { progress: Progress::default(), result };
        pulls.insert(key.clone(), pulling.clone());
        let (images, reference) = (self.clone(), reference.clone());
        let progress = pulling.progress.clone();
        tokio::spawn(async move {
            // Also if it panics: nobody must wait for ever.
            let flight = Flight { images: &images, key: &key };
            let result = images.run(&reference, &key.1, &progress).await;
            images.note(&key, &reference, result.as_ref().err());
            // Before anybody knows: who asks after this pull wants what the registry has then.
            drop(flight);
            sender.send_replace(Some(result));
        });
        pulling
    }

    async fn run(
        &self,
        reference: &Reference,
        secrets: &[RegistryAuth],
        progress: &Progress,
    ) -> Result<Image, PullError> {
        let inner = &self.inner;
        let began = Instant::now();
        let result = match reference {
            Reference::Registry(name) => {
                let _turn = inner.turns.acquire().await;
                let result =
                    pull(&inner.store, &inner.settings.registries, name, secrets, progress).await;
                let counter = match &result {
                    Ok(_) => &inner.counters.pulled,
                    Err(_) => &inner.counters.failed,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                result
            }
            _ => {
                let (store, reference) = (Arc::clone(&inner.store), reference.clone());
                blocking(move || store.prepare(&reference)).await
            }
        };
        result
            .inspect(|_| {
                let seconds = began.elapsed().as_secs_f64();
                tracing::debug!(image = %reference, seconds, "image is ready");
            })
            .map_err(|error| PullError::of(reference, &error))
    }

    /// The image, if it is here; it counts as used.
    async fn known(&self, reference: &Reference) -> Result<Option<Image>, Error> {
        let (store, reference) = (Arc::clone(&self.inner.store), reference.clone());
        blocking(move || {
            let by_digest = || match &reference {
                Reference::Registry(name) => store.known_by_digest(name),
                _ => None,
            };
            Ok(store.known(&reference)?.or_else(by_digest))
        })
        .await
    }

    /// Remembers how a pull ended.
    fn note(&self, key: &Key, reference: &Reference, error: Option<&PullError>) {
        let base = self.inner.settings.backoff;
        let longest = base * MAX_BACKOFF;
        let now = Instant::now();
        let mut failures = lock(&self.inner.failures);
        // Who has not asked for so long begins anew.
        failures.retain(|_, failures| now < failures.until + longest * 2);
        let Some(last) = error.cloned() else {
            failures.remove(key);
            return;
        };
        // Nobody is spared by waiting to look whether a directory is there.
        if matches!(reference, Reference::Dir(_)) {
            return;
        }
        let pause = failures.get(key).map_or(base, |before| (before.pause * 2).min(longest));
        failures.insert(key.clone(), Failures { pause, until: now + pause, last });
    }

    /// What was done, and what is here.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let counters = &self.inner.counters;
        Totals {
            sizes: self.sizes().unwrap_or_default(),
            pulled: counters.pulled.load(Ordering::Relaxed),
            failed: counters.failed.load(Ordering::Relaxed),
            collections: counters.collections.load(Ordering::Relaxed),
            collected_images: counters.collected_images.load(Ordering::Relaxed),
            collected_bytes: counters.collected_bytes.load(Ordering::Relaxed),
        }
    }

    /// What is here; read again only if something came or went.
    fn sizes(&self) -> Option<Arc<Sizes>> {
        let store = &self.inner.store;
        let as_of = store.changed().ok()?;
        let mut dated = lock(&self.inner.sizes);
        if let Some(dated) = &*dated
            && dated.as_of == as_of
        {
            return Some(Arc::clone(&dated.sizes));
        }
        let sizes = Arc::new(Sizes::of(&store.kept().ok()?, &store.layer_bytes().ok()?));
        *dated = Some(Dated { as_of, sizes: Arc::clone(&sizes) });
        Some(sizes)
    }

    /// An empty file for an archive that is on its way here.
    pub fn upload(&self) -> Result<Upload, Error> {
        let path = self.inner.store.upload_path();
        std::fs::File::create_new(&path).map_err(super::failed_to("create", &path))?;
        Ok(Upload(path))
    }
}

/// A file that goes when nobody needs it any more.
#[derive(Debug)]
pub struct Upload(PathBuf);

impl Upload {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "an upload stays until the next start");
        }
    }
}

impl Pulling {
    /// How far it is, now and later.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Vec<Layer>> {
        self.progress.listen()
    }

    /// Waits for its end.
    pub async fn result(mut self) -> Result<Image, PullError> {
        let gone = || {
            Err(PullError {
                reason: "ErrImagePull",
                message: String::from("the pull panicked; the daemon's log says where"),
            })
        };
        match self.result.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or_else(gone),
            Err(_gone) => gone(),
        }
    }
}

struct Flight<'a> {
    images: &'a Images,
    key: &'a Key,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        lock(&self.images.inner.pulls).remove(self.key);
    }
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Images").field("store", &self.inner.store).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

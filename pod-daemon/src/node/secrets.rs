//! The secrets: in memory, and in files on a file system that is in memory too.
//!
//! So they outlive the daemon and not the node, and no disk has ever seen them.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::Secret;

use super::{
    ByKey, Error,
    store::entries,
    table::{listed, stamp},
};
use crate::pod::Key;

/// A file that is being written. Names of secrets do not begin so.
const NEW: &str = ".new";

/// The secrets that exist.
pub(super) struct Secrets {
    /// A folder for each namespace, a file for each secret.
    directory: PathBuf,
    objects: Mutex<ByKey<Secret>>,
}

/// A file is not a secret.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// It is no JSON, or not a secret's.
    #[error("not a secret's JSON")]
    Json(#[source] serde_json::Error),
    /// It does not say whose it is.
    #[error("a secret without a name and a namespace")]
    Anonymous,
}

/// Reads a stored secret.
pub fn parse(json: &[u8]) -> Result<(Key, Secret), Malformed> {
    let secret: Secret = serde_json::from_slice(json).map_err(Malformed::Json)?;
    match (&secret.metadata.namespace, &secret.metadata.name) {
        (Some(namespace), Some(name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok((Key::new(namespace, name), secret))
        }
        _ => Err(Malformed::Anonymous),
    }
}

impl Secrets {
    /// Finds what an earlier daemon has stored in `directory`. What cannot be read is left out, and
    /// stays where it is.
    pub(super) fn open(directory: PathBuf) -> Self {
        let mut objects = BTreeMap::new();
        for namespace in entries(&directory) {
            for path in entries(&namespace).into_iter().filter(|path| !path.ends_with(NEW)) {
                let read = fs::read(&path).map_err(|error| error.to_string());
                match read.and_then(|json| parse(&json).map_err(|error| error.to_string())) {
                    Ok((key, secret)) => drop(objects.insert(key, secret)),
                    Err(error) => {
                        tracing::error!(path = %path.display(), error, "a secret cannot be read");
                    }
                }
            }
        }
        Self { directory, objects: Mutex::new(objects) }
    }

    fn objects(&self) -> MutexGuard<'_, ByKey<Secret>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a secret, new or changed, as of `version`.
    pub(super) fn apply(&self, mut secret: Secret, version: u64) -> Result<Secret, Error> {
        let mut objects = self.objects();
        let key = Key::of(&secret);
        stamp(&mut secret, objects.get(&key), version);
        self.store(&key, &secret).map_err(|error| Error::Internal {
            message: format!("secret {key} cannot be stored in memory: {error}"),
        })?;
        objects.insert(key, secret.clone());
        Ok(secret)
    }

    fn store(&self, key: &Key, secret: &Secret) -> io::Result<()> {
        let namespace = self.directory.join(&key.namespace);
        DirBuilder::new().recursive(true).mode(0o700).create(&namespace)?;
        let new = namespace.join(NEW);
        let json = serde_json::to_vec(secret)?;
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&json)?;
        fs::rename(new, namespace.join(&key.name))
    }

    /// One secret.
    pub(super) fn get(&self, key: &Key) -> Result<Secret, Error> {
        self.objects().get(key).cloned().ok_or_else(|| key.not_found::<Secret>())
    }

    /// All secrets, or those of a namespace.
    pub(super) fn list(&self, namespace: Option<&str>) -> Vec<Secret> {
        listed(&self.objects(), namespace).cloned().collect()
    }

    /// Removes a secret.
    pub(super) fn delete(&self, key: &Key) -> Result<Secret, Error> {
        let mut objects = self.objects();
        if !objects.contains_key(key) {
            return Err(key.not_found::<Secret>());
        }
        let namespace = self.directory.join(&key.namespace);
        match fs::remove_file(namespace.join(&key.name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Internal {
                    message: format!("secret {key} cannot be removed: {error}"),
                });
            }
            _ => {}
        }
        // Others may be in there.
        fs::remove_dir(namespace).ok();
        objects.remove(key).ok_or_else(|| key.not_found::<Secret>())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(namespace: &str, name: &str, value: &str) -> Secret {
        let mut secret = Secret::default();
        secret.metadata.namespace = Some(namespace.to_owned());
        secret.metadata.name = Some(name.to_owned());
        secret.data = Some([("key".to_owned(), ByteString(value.into()))].into());
        secret
    }

    #[test]
    fn the_next_daemon_finds_them() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("secrets");
        let secrets = Secrets::open(directory.clone());
        let first = secrets.apply(secret("a", "x", "1"), 1).unwrap();
        let second = secrets.apply(secret("a", "x", "2"), 2).unwrap();
        assert_eq!(first.metadata.uid, second.metadata.uid);
        secrets.apply(secret("b", "x", "3"), 3).unwrap();
        secrets.apply(secret("b", "y", "4"), 4).unwrap();
        secrets.delete(&Key::new("b", "x")).unwrap();
        assert!(matches!(secrets.delete(&Key::new("b", "x")), Err(Error::NotFound { .. })));

        let found = Secrets::open(directory.clone());
        assert_eq!(found.list(None), secrets.list(None));
        assert_eq!(found.get(&Key::new("a", "x")).unwrap(), second);
        assert_eq!(found.list(Some("b")).len(), 1);

        // With the last one of a namespace its folder goes.
        found.delete(&Key::new("b", "y")).unwrap();
        assert!(!directory.join("b").exists());
    }

    #[test]
    fn a_damaged_file_is_left_out() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().to_path_buf();
        Secrets::open(directory.clone()).apply(secret("a", "x", "1"), 1).unwrap();
        fs::write(directory.join("a/broken"), "{").unwrap();
        fs::write(directory.join("a").join(NEW), "half").unwrap();
        assert_eq!(Secrets::open(directory).list(None).len(), 1);
        assert!(matches!(parse(b"{}"), Err(Malformed::Anonymous)));
    }
}

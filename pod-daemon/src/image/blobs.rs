//! Compressed layers and documents on their way from a registry to the unpacker.
//!
//! ```text
//! blobs/sha256/<digest>          whole, with that digest
//! blobs/sha256/<digest>.partial  the beginning of one; nothing is promised about it
//! ```
//! A layer's blob goes once the layer is unpacked, since a small node has better uses for the room;
//! that of a pull which failed stays, so that the next one continues there.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedMutexGuard;

use super::{
    digest::Digest,
    disk,
    error::{Error, failed_to},
};

const BLOBS: &str = "blobs";
const PARTIAL: &str = "partial";

/// The blobs in a directory that is laid out as an OCI image.
#[derive(Clone, Debug)]
pub(super) struct Blobs {
    dir: PathBuf,
    in_use: Arc<Mutex<HashMap<Digest, Use>>>,
}

#[derive(Debug, Default)]
struct Use {
    leases: usize,
    writing: Arc<tokio::sync::Mutex<()>>,
}

/// Blobs that somebody needs and nobody may remove.
#[derive(Debug)]
pub(super) struct Lease {
    blobs: Blobs,
    digests: Vec<Digest>,
    /// They have become layers; the last one to need them removes them.
    done: bool,
}

/// The beginning of a blob, which is being continued.
pub(super) struct Partial {
    _writing: OwnedMutexGuard<()>,
    file: File,
    path: PathBuf,
    hash: Sha256,
    length: u64,
    limit: u64,
}

/// What was found instead of a whole blob, and its emptied beginning.
pub(super) type Verdict = Result<(), (Digest, Partial)>;

impl Blobs {
    /// Opens the blobs in `dir`, the directory of images.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let dir = std::path::absolute(dir).map_err(failed_to("resolve", dir))?;
        let blobs = Self { dir, in_use: Arc::default() };
        let place = blobs.place();
        fs::create_dir_all(&place).map_err(failed_to("create", &place))?;
        Ok(blobs)
    }

    /// The directory that is laid out as an OCI image.
    pub(super) fn layout(&self) -> &Path {
        &self.dir
    }

    /// Whether the whole blob is here.
    pub(super) fn has(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.path(digest)).is_ok_and(|metadata| metadata.len() == size)
    }

    /// Keeps these blobs from being removed.
    pub(super) fn lease(&self, mut digests: Vec<Digest>) -> Lease {
        // An image may have a layer twice, which is no second user of its blob.
        digests.sort_unstable();
        digests.dedup();
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in &digests {
            in_use.entry(digest.clone()).or_default().leases += 1;
        }
        Lease { blobs: self.clone(), digests, done: false }
    }

    /// Waits until nobody else writes this blob, which must be leased.
    pub(super) async fn write_lock(&self, digest: &Digest) -> OwnedMutexGuard<()> {
        let writing = {
            let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(&in_use.entry(digest.clone()).or_default().writing)
        };
        writing.lock_owned().await
    }

    /// Opens the beginning of a blob to continue it, and hashes what is there: after a power cut it
    /// may be anything. A beginning longer than the blob is none.
    pub(super) fn resume(
        &self,
        digest: &Digest,
        size: u64,
        writing: OwnedMutexGuard<()>,
    ) -> Result<Partial, Error> {
        let path = self.partial(digest);
        disk::step(&path)?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(failed_to("open", &path))?;
        let mut hash = Sha256::new();
        let mut length = 0;
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let read = file.read(&mut buffer).map_err(failed_to("read", &path))?;
            if read == 0 {
                break;
            }
            length += read as u64;
            hash.update(&buffer[..read]);
        }
        let mut partial = Partial { _writing: writing, file, path, hash, length, limit: size };
        if length > size {
            partial.restart()?;
        }
        Ok(partial)
    }

    /// Puts a blob in place if it is whole; else empties it, because no continuation would help,
    /// and says what it was instead.
    pub(super) fn finish(&self, mut partial: Partial, digest: &Digest) -> Result<Verdict, Error> {
        let found = Digest::from_hash(partial.hash.clone());
        if found != *digest || partial.length != partial.limit {
            partial.restart()?;
            return Ok(Err((found, partial)));
        }
        disk::sync(&partial.file, &partial.path)?;
        disk::rename(&partial.path, &self.path(digest))?;
        Ok(Ok(()))
    }

    /// Forgets a leased blob that turned out to be damaged, unless somebody else has a lease: they
    /// count on it being there, and find out for themselves. Says whether it is gone.
    pub(super) fn discard_unshared(&self, digest: &Digest) -> bool {
        // With the lock held, so that nobody gets a lease of what goes.
        let in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let is_shared = in_use.get(digest).is_some_and(|entry| entry.leases > 1);
        if !is_shared {
            self.discard(digest);
        }
        !is_shared
    }

    /// Forgets a blob that turned out to be damaged, and that nobody else may be writing.
    pub(super) fn discard(&self, digest: &Digest) {
        for path in [self.path(digest), self.partial(digest)] {
            if let Err(error) = disk::remove(&path) {
                tracing::warn!(%error, "a damaged blob stays");
            }
        }
    }

    /// Removes what nobody needs and nobody has written to for `age`; says how many bytes that was.
    pub(super) fn sweep(&self, age: Duration) -> u64 {
        let in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let mut freed = 0;
        for entry in fs::read_dir(self.place()).into_iter().flatten().flatten() {
            let path = entry.path();
            let hex = path.file_stem().unwrap_or_default().to_string_lossy();
            let is_leased =
                format!("sha256:{hex}").parse().is_ok_and(|digest| in_use.contains_key(&digest));
            let Ok(metadata) = entry.metadata() else { continue };
            let idle = metadata.modified().ok();
            let idle = idle.and_then(|time| SystemTime::now().duration_since(time).ok());
            if !is_leased && idle.is_some_and(|idle| idle >= age) && disk::remove(&path).is_ok() {
                freed += metadata.len();
            }
        }
        freed
    }

    fn place(&self) -> PathBuf {
        self.dir.join(BLOBS).join("sha256")
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.place().join(digest.hex())
    }

    fn partial(&self, digest: &Digest) -> PathBuf {
        self.path(digest).with_extension(PARTIAL)
    }
}

impl Lease {
    /// The blobs have served their purpose.
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut in_use = self.blobs.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in &self.digests {
            let Some(entry) = in_use.get_mut(digest) else { continue };
            entry.leases = entry.leases.saturating_sub(1);
            if entry.leases > 0 {
                continue;
            }
            in_use.remove(digest);
            if self.done
                && let Err(error) = disk::remove(&self.blobs.path(digest))
            {
                tracing::debug!(%error, "a blob stays until it is collected");
            }
        }
    }
}

impl Partial {
    /// How much is there.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Whether nothing is missing.
    pub(super) fn is_complete(&self) -> bool {
        self.length == self.limit
    }

    /// Begins at the beginning.
    pub(super) fn restart(&mut self) -> Result<(), Error> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(failed_to("empty", &self.path))?;
        self.hash = Sha256::new();
        self.length = 0;
        Ok(())
    }

    /// Adds bytes; `false` if those are more than the blob has.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<bool, Error> {
        let length = self.length + bytes.len() as u64;
        if length > self.limit {
            return Ok(false);
        }
        disk::step(&self.path)?;
        self.file.write_all(bytes).map_err(failed_to("write", &self.path))?;
        self.hash.update(bytes);
        self.length = length;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_blob_stays_while_another_pull_has_a_lease_of_it() {
        let place = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(place.path()).unwrap();
        let digest = Digest::of(b"blob");
        fs::write(blobs.path(&digest), "blot").unwrap();
        // Twice in one image, which is one user.
        let _own = blobs.lease(vec![digest.clone(), digest.clone()]);
        let other = blobs.lease(vec![digest.clone()]);

        assert!(!blobs.discard_unshared(&digest));
        assert!(blobs.has(&digest, 4));
        drop(other);
        assert!(blobs.discard_unshared(&digest));
        assert!(!blobs.has(&digest, 4));
    }
}

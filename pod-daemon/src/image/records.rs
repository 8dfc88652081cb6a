//! What references led to, so that an archive that has not changed is not read again.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{
    config::Config,
    digest::Digest,
    error::{Error, failed_to},
    reference::Reference,
};

/// Records in a directory, a file for each reference.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
    next: AtomicU64,
}

/// What a reference led to.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) reference: String,
    pub(super) stamp: Stamp,
    pub(super) id: Digest,
    pub(super) chain_ids: Vec<Digest>,
    pub(super) config: Config,
}

/// Which file it was, and as of when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of the file that decides what `reference` means, if it can be read.
    pub(super) fn of(reference: &Reference) -> Option<Self> {
        let metadata = match reference {
            Reference::Oci { dir, .. } => fs::metadata(dir.join("index.json")),
            _ => fs::metadata(reference.path()),
        };
        let metadata = metadata.ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Whether another change would have another time: the clock of files ticks some 250 times a
    /// second only.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.changed.0.max(self.modified.0) < now - 1
    }
}

impl Records {
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let dir = std::path::absolute(dir).map_err(failed_to("resolve", dir))?;
        fs::create_dir_all(&dir).map_err(failed_to("create", &dir))?;
        Ok(Self { dir, next: AtomicU64::new(0) })
    }

    /// What `reference` led to, unless its file has changed since.
    pub(super) fn get(&self, reference: &Reference) -> Option<Record> {
        let json = fs::read(self.path(reference)).ok()?;
        // Of a power cut or of another version: as good as none.
        let record: Record = serde_json::from_slice(&json).ok()?;
        let is_current = record.reference == reference.to_string()
            && Stamp::of(reference).as_ref() == Some(&record.stamp);
        is_current.then_some(record)
    }

    /// Remembers a record; one whose file changed a moment ago, or meanwhile, is not kept.
    pub(super) fn put(&self, reference: &Reference, record: &Record) -> Result<(), Error> {
        if !record.stamp.is_settled() || Stamp::of(reference).as_ref() != Some(&record.stamp) {
            return Ok(());
        }
        let path = self.path(reference);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let new = path.with_extension(format!("{}-{number}", process::id()));
        let json = serde_json::to_vec(record).map_err(failed_to("write", &new))?;
        fs::write(&new, json).map_err(failed_to("write", &new))?;
        fs::rename(&new, &path).map_err(failed_to("write", &path))
    }

    fn path(&self, reference: &Reference) -> PathBuf {
        let name = Digest::of(reference.to_string().as_bytes());
        self.dir.join(format!("{}.json", name.hex()))
    }
}

//! The images that are here: what each reference led to, which layers that needs, and when it was
//! last used.

use std::{
    collections::HashMap,
    fs::{self, File, FileTimes},
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
    disk,
    error::{Error, failed_to},
    reference::Reference,
};

/// Records in a directory, a file for each reference; its time is when the image was last used.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
    next: AtomicU64,
}

/// What a reference led to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) reference: String,
    /// Of a file on this machine; with it the record is good as long as the file is the same.
    pub(super) stamp: Option<Stamp>,
    /// Digest of the config.
    pub(super) id: Digest,
    /// Digests of the documents that led to it: the index's, if there was one, and the manifest's.
    #[serde(default)]
    pub(super) manifests: Vec<Digest>,
    pub(super) chain_ids: Vec<Digest>,
    pub(super) config: Config,
    /// Bytes of its layers as the registry has them.
    #[serde(default)]
    pub(super) download_bytes: u64,
    /// When it came here, in seconds since 1970.
    #[serde(default)]
    pub(super) since: u64,
    /// The reference leads to another image by now, but this one is still here.
    #[serde(default)]
    pub(super) replaced: bool,
}

impl Record {
    /// Bytes of the image's files, with what it shares with others, where layers have so many.
    pub(super) fn bytes(&self, layers: &HashMap<Digest, u64>) -> u64 {
        self.chain_ids.iter().filter_map(|chain_id| layers.get(chain_id)).sum()
    }
}

/// A record and when its image was last used.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) record: Record,
    pub(super) used: SystemTime,
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
            other => fs::metadata(other.path()?),
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
        let now = i64::try_from(seconds_since_1970()).unwrap_or(i64::MAX);
        self.changed.0.max(self.modified.0) < now - 1
    }
}

impl Record {
    /// Whether the record tells what its reference means now.
    fn is_current(&self, reference: &Reference) -> bool {
        let fresh = match reference {
            Reference::Registry(_) => true,
            local => self.stamp.is_some() && Stamp::of(local) == self.stamp,
        };
        !self.replaced && fresh && self.reference == reference.to_string()
    }

    /// The name of its file: a reference has one current record, and any number of old ones.
    fn file_name(&self) -> String {
        let key = match self.replaced {
            true => format!("{} {}", self.reference, self.id),
            false => self.reference.clone(),
        };
        format!("{}.json", Digest::of(key.as_bytes()).hex())
    }
}

impl Records {
    /// Opens `dir`, which is created, and removes what was never finished.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let dir = std::path::absolute(dir).map_err(failed_to("resolve", dir))?;
        fs::create_dir_all(&dir).map_err(failed_to("create", &dir))?;
        let records = Self { dir, next: AtomicU64::new(0) };
        for path in records.files()? {
            if path.extension().is_none_or(|extension| extension != "json") {
                disk::remove(&path)?;
            }
        }
        Ok(records)
    }

    /// What `reference` led to, unless its file has changed since.
    pub(super) fn get(&self, reference: &Reference) -> Option<Record> {
        let name = Digest::of(reference.to_string().as_bytes());
        let record = read(&self.dir.join(format!("{}.json", name.hex())))?;
        record.is_current(reference).then_some(record)
    }

    /// All records that can be read. One of another version is as good as none.
    pub(super) fn all(&self) -> Result<Vec<Kept>, Error> {
        let mut all = Vec::new();
        for path in self.files()? {
            let Some(record) = read(&path) else { continue };
            let used = fs::metadata(&path).and_then(|metadata| metadata.modified());
            all.push(Kept { record, used: used.unwrap_or(SystemTime::UNIX_EPOCH) });
        }
        all.sort_by(|a, b| a.record.reference.cmp(&b.record.reference));
        Ok(all)
    }

    /// Remembers a record. One of a file that changed a moment ago, or meanwhile, is kept for the
    /// sake of its layers but will not be believed.
    pub(super) fn put(&self, reference: &Reference, mut record: Record) -> Result<(), Error> {
        record.stamp = record
            .stamp
            .filter(|stamp| stamp.is_settled() && Stamp::of(reference).as_ref() == Some(stamp));
        // Pods may still run what the reference led to before.
        if let Some(mut old) = read(&self.dir.join(record.file_name()))
            && old.id != record.id
        {
            old.replaced = true;
            self.write(&old)?;
        }
        self.write(&record)
    }

    /// Forgets a record.
    pub(super) fn remove(&self, record: &Record) -> Result<(), Error> {
        disk::remove(&self.dir.join(record.file_name()))
    }

    /// Notes that an image is used now.
    pub(super) fn touch(&self, record: &Record) {
        let path = self.dir.join(record.file_name());
        let now = FileTimes::new().set_modified(SystemTime::now());
        if let Err(error) = File::open(&path).and_then(|file| file.set_times(now)) {
            tracing::debug!(%error, path = %path.display(), "the time of use is not noted");
        }
    }

    /// When a record last came or went.
    pub(super) fn changed(&self) -> std::io::Result<SystemTime> {
        fs::metadata(&self.dir)?.modified()
    }

    fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.dir.join(record.file_name());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let new = path.with_extension(format!("{}-{number}", process::id()));
        let json = serde_json::to_vec(record).map_err(failed_to("write", &new))?;
        disk::replace(&new, &path, &json)
    }

    fn files(&self) -> Result<Vec<PathBuf>, Error> {
        let list = fs::read_dir(&self.dir).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()
        });
        list.map_err(failed_to("list", &self.dir))
    }
}

/// The time in records.
pub(super) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn read(path: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

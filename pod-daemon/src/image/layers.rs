//! Unpacked layers on disk, each made once.
//!
//! ```text
//! layers/<id>          a layer, ready for overlayfs
//! records/<id>.json    whose it is; written before the layer gets its name
//! tmp/<pid>-<n>/       a layer in the making or on its way out, locked by whoever is at it
//! lock                 held while any of these gets or loses its name
//! ```
//! An id is the start of the layer's chain id: short, because the options of an overlay mount must
//! fit in a page for all layers together. A chain id also covers the layers below, because what a
//! layer looks like depends on them where it has no entry for a directory.

use std::{
    collections::HashSet,
    fs::{self, File, Permissions, TryLockError},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{
    digest::Digest,
    disk,
    error::{Error, failed_to},
    remove::remove_tree,
};

const LAYERS: &str = "layers";
const RECORDS: &str = "records";
const TMP: &str = "tmp";
const LOCK: &str = "lock";

/// 48 bits of the chain id; more if these are taken.
const SHORTEST_ID: usize = 12;

/// The layers in one directory.
#[derive(Debug)]
pub(super) struct Layers {
    dir: PathBuf,
    making: Mutex<HashSet<Digest>>,
    made: Condvar,
    next: AtomicU64,
}

/// Whose a layer is.
#[derive(Serialize, Deserialize)]
struct Record {
    chain_id: Digest,
    /// Of all its files.
    #[serde(default)]
    bytes: u64,
}

/// A layer that is there.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) chain_id: Digest,
    pub(super) bytes: u64,
}

enum Slot {
    Ready(PathBuf),
    Free(String),
}

/// The right to make a layer within this process.
struct Claim<'a> {
    layers: &'a Layers,
    chain_id: &'a Digest,
}

/// A directory that goes when its maker goes.
struct Workshop {
    tmp: File,
    name: String,
    path: PathBuf,
    _lock: File,
}

/// A layer that has no name any more; what is left of it goes with [`Gone::delete`].
#[derive(Debug)]
pub(super) struct Gone {
    tmp: File,
    name: String,
    path: PathBuf,
    /// Keeps other daemons from removing it at the same time.
    _lock: File,
}

impl Layers {
    /// Opens `dir`, which is created with mode 0700, and removes what nobody is making any more.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let dir = std::path::absolute(dir).map_err(failed_to("resolve", dir))?;
        for dir in [dir.clone(), dir.join(LAYERS), dir.join(RECORDS), dir.join(TMP)] {
            let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            created.map_err(failed_to("create", &dir))?;
        }
        // Set-uid programs of images lie below; nobody but root may get there.
        fs::set_permissions(&dir, Permissions::from_mode(0o700))
            .map_err(failed_to("set the mode of", &dir))?;
        let (making, made) = (Mutex::default(), Condvar::new());
        let layers = Self { dir, making, made, next: AtomicU64::new(0) };
        layers.sweep()?;
        Ok(layers)
    }

    /// The layer's directory, if it is there.
    pub(super) fn get(&self, chain_id: &Digest) -> Result<Option<PathBuf>, Error> {
        match self.slot(chain_id)? {
            Slot::Ready(path) => Ok(Some(path)),
            Slot::Free(_) => Ok(None),
        }
    }

    /// The layer's directory, which `make` fills if it is not there.
    ///
    /// Callers that ask for the same layer meanwhile wait for the first one. `make` says how many
    /// bytes its files have.
    pub(super) fn get_or_make(
        &self,
        chain_id: &Digest,
        make: impl FnOnce(BorrowedFd<'_>) -> Result<u64, Error>,
    ) -> Result<PathBuf, Error> {
        let _claim = self.claim(chain_id);
        if let Some(path) = self.get(chain_id)? {
            return Ok(path);
        }
        let workshop = self.workshop()?;
        let root = workshop.path.join("root");
        fs::create_dir(&root).map_err(failed_to("create", &root))?;
        fs::set_permissions(&root, Permissions::from_mode(0o755))
            .map_err(failed_to("set the mode of", &root))?;
        let opened = File::open(&root).map_err(failed_to("open", &root))?;
        let bytes = make(opened.as_fd())?;

        let record = workshop.path.join("record");
        let json = serde_json::to_vec(&Record { chain_id: chain_id.clone(), bytes })
            .map_err(failed_to("write", &record))?;
        disk::step(&record)?;
        fs::write(&record, json).map_err(failed_to("write", &record))?;
        // Only then may names appear that promise a whole layer.
        disk::sync_all(&opened, &root)?;

        let _lock = self.lock()?;
        let id = match self.slot(chain_id)? {
            // Another process was faster.
            Slot::Ready(path) => return Ok(path),
            Slot::Free(id) => id,
        };
        disk::rename(&record, &self.record(&id))?;
        let layer = self.dir.join(LAYERS).join(id);
        disk::rename(&root, &layer)?;
        Ok(layer)
    }

    /// All layers that are there.
    pub(super) fn all(&self) -> Result<Vec<Kept>, Error> {
        let mut all = Vec::new();
        for name in names(&self.dir.join(LAYERS))? {
            let record = fs::read(self.dir.join(RECORDS).join(&name).with_extension("json"));
            let record = record.ok().and_then(|json| serde_json::from_slice::<Record>(&json).ok());
            // Without a record a directory is nobody's, yet it may be in use.
            if let Some(Record { chain_id, bytes }) = record {
                all.push(Kept { chain_id, bytes });
            }
        }
        Ok(all)
    }

    /// Takes a layer's name away, which is quick; nobody may use or ask for it meanwhile.
    pub(super) fn take(&self, chain_id: &Digest) -> Result<Option<Gone>, Error> {
        let _claim = self.claim(chain_id);
        let Slot::Ready(layer) = self.slot(chain_id)? else { return Ok(None) };
        let _lock = self.lock()?;
        let opened = File::open(&layer).map_err(failed_to("open", &layer))?;
        opened.try_lock().map_err(failed_to("lock", &layer))?;
        let tmp = self.dir.join(TMP);
        let (name, path) = loop {
            let name = self.fresh();
            let path = tmp.join(&name);
            // Left by a daemon that had the same pid.
            if !path.exists() {
                break (name, path);
            }
        };
        let tmp = File::open(&tmp).map_err(failed_to("open", &tmp))?;
        // In one step, so that half a layer never has a name, and without a new directory, for
        // which a full disk has no room. Its record is worthless alone, and the next start removes
        // it if this process does not get there.
        disk::rename(&layer, &path)?;
        let id = layer.file_name().map(Path::new).unwrap_or(&layer);
        let record = self.dir.join(RECORDS).join(id).with_extension("json");
        if let Err(error) = disk::remove(&record) {
            tracing::warn!(%error, "a record of a layer that has gone stays");
        }
        Ok(Some(Gone { tmp, name, path, _lock: opened }))
    }

    /// A free name for a file that the next start removes.
    pub(super) fn upload_path(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.dir.join(TMP).join(format!("{}-{number}.upload", process::id()))
    }

    /// When a layer last came or went.
    pub(super) fn changed(&self) -> io::Result<SystemTime> {
        fs::metadata(self.dir.join(LAYERS))?.modified()
    }

    /// An empty file without a name, for bytes that are needed for a short time.
    pub(super) fn scratch(&self) -> Result<File, Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(TMP).join(format!("{}-{number}.scratch", process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(failed_to("create", &path))?;
        disk::remove(&path)?;
        Ok(file)
    }

    fn sweep(&self) -> Result<(), Error> {
        let _lock = self.lock()?;
        let tmp = self.dir.join(TMP);
        for name in names(&tmp)? {
            let path = tmp.join(&name);
            if !path.is_dir() {
                disk::remove(&path)?;
                continue;
            }
            let directory = File::open(&path).map_err(failed_to("open", &path))?;
            match directory.try_lock() {
                Ok(()) => {}
                // Another daemon is at work there.
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(failed_to("lock", &path)(error)),
            }
            tracing::info!(path = %path.display(), "removing a layer that was never finished or is not needed any more");
            let parent = File::open(&tmp).map_err(failed_to("open", &tmp))?;
            remove_tree(parent.as_fd(), name.as_encoded_bytes())
                .map_err(failed_to("remove", &path))?;
        }
        // Of a layer that did not get its name any more.
        let records = self.dir.join(RECORDS);
        for name in names(&records)? {
            let id = Path::new(&name).with_extension("");
            if !self.dir.join(LAYERS).join(id).is_dir() {
                disk::remove(&records.join(name))?;
            }
        }
        Ok(())
    }

    /// The layer's place: the shortest id that is its own or nobody's.
    fn slot(&self, chain_id: &Digest) -> Result<Slot, Error> {
        for length in (SHORTEST_ID..=chain_id.hex().len()).step_by(4) {
            let id = &chain_id.hex()[..length];
            let layer = self.dir.join(LAYERS).join(id);
            let record = self.record(id);
            match fs::read(&record) {
                Ok(json) => {
                    let record: Option<Record> = serde_json::from_slice(&json).ok();
                    if record.is_none_or(|record| record.chain_id != *chain_id) {
                        continue;
                    }
                    let is_there = layer.is_dir();
                    return Ok(if is_there { Slot::Ready(layer) } else { Slot::Free(id.into()) });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // Without a record a directory is nobody's, yet it may be in use.
                    if !layer.exists() {
                        return Ok(Slot::Free(id.into()));
                    }
                }
                Err(error) => return Err(failed_to("read", &record)(error)),
            }
        }
        let path = self.dir.join(LAYERS).join(chain_id.hex());
        Err(failed_to("use", &path)(io::Error::from(io::ErrorKind::AlreadyExists)))
    }

    fn record(&self, id: &str) -> PathBuf {
        self.dir.join(RECORDS).join(format!("{id}.json"))
    }

    fn claim<'a>(&'a self, chain_id: &'a Digest) -> Claim<'a> {
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let mut making = self
            .made
            .wait_while(making, |making| making.contains(chain_id))
            .unwrap_or_else(PoisonError::into_inner);
        making.insert(chain_id.clone());
        Claim { layers: self, chain_id }
    }

    fn workshop(&self) -> Result<Workshop, Error> {
        let _lock = self.lock()?;
        loop {
            let name = self.fresh();
            let tmp = self.dir.join(TMP);
            let path = tmp.join(&name);
            match fs::create_dir(&path) {
                // Left by a daemon that had the same pid.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                created => created.map_err(failed_to("create", &path))?,
            }
            let lock = File::open(&path).map_err(failed_to("open", &path))?;
            lock.lock().map_err(failed_to("lock", &path))?;
            let tmp = File::open(&tmp).map_err(failed_to("open", &tmp))?;
            return Ok(Workshop { tmp, name, path, _lock: lock });
        }
    }

    /// A name in `tmp` that nobody else in this process has.
    fn fresh(&self) -> String {
        format!("{}-{}", process::id(), self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Keeps other threads and other daemons out until dropped.
    fn lock(&self) -> Result<File, Error> {
        let path = self.dir.join(LOCK);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(failed_to("open", &path))?;
        file.lock().map_err(failed_to("lock", &path))?;
        Ok(file)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut making = self.layers.making.lock().unwrap_or_else(PoisonError::into_inner);
        making.remove(self.chain_id);
        self.layers.made.notify_all();
    }
}

impl Gone {
    /// Removes the files; may take long.
    pub(super) fn delete(self) -> Result<(), Error> {
        remove_tree(self.tmp.as_fd(), self.name.as_bytes()).map_err(failed_to("remove", &self.path))
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(self.tmp.as_fd(), self.name.as_bytes()) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "an unfinished layer stays until the next start");
        }
    }
}

fn names(directory: &Path) -> Result<Vec<std::ffi::OsString>, Error> {
    let listed = fs::read_dir(directory).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<_>>()
    });
    listed.map_err(failed_to("list", directory))
}

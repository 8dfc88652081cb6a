//! File systems in memory on the host: what must not be on a disk, and volumes that need not be.
//!
//! All of them are mounted below one directory, `<run-dir>/memory`, and named after the pod they are
//! for. So they outlive the daemon, the next one finds them, and what no pod needs any more can be
//! swept. The directory is itself such a file system, and private: what is mounted below it is
//! mounted nowhere else, in no service's own mount namespace.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::OFlags,
    mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags},
};

use super::{Error, failed_to, mount};

/// Directory below the run directory.
const DIRECTORY: &str = "memory";

/// Where pods' file systems are, below that.
const PODS: &str = "pods";

/// What may be stored beside the pods' file systems.
const OWN_BYTES: u64 = 256 << 20;

/// The file systems in memory of one daemon.
#[derive(Clone, Debug)]
pub struct Memory {
    root: PathBuf,
}

impl Memory {
    /// Mounts the directory, or finds it mounted by an earlier daemon.
    pub fn open(run: &Path) -> Result<Self, Error> {
        let root = run.join(DIRECTORY);
        make_directory(&root)?;
        if !is_mount(&root)? {
            mount_at(&root, "700", Some(OWN_BYTES))?;
        }
        let failed = failed_to("make private", &root);
        rustix::mount::mount_change(&root, MountPropagationFlags::PRIVATE)
            .map_err(|errno| failed(errno.into()))?;
        make_directory(&root.join(PODS))?;
        Ok(Self { root })
    }

    /// Where a directory in memory for the daemon's own use may be made.
    #[must_use]
    pub fn directory(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The file system `name` of the pod `uid`, made if there is none yet; of at most so many bytes,
    /// or half of the node's memory. Everybody may write in it.
    pub fn volume(&self, uid: &str, name: &str, bytes: Option<u64>) -> Result<PathBuf, Error> {
        let path = self.place(uid, name);
        make_directory(&path)?;
        if !is_mount(&path)? {
            mount_at(&path, "777", bytes)?;
        }
        Ok(path)
    }

    /// Removes the file systems of the pod `uid`, if it has any. A container that still has one
    /// keeps it until it ends.
    pub fn remove(&self, uid: &str) -> Result<(), Error> {
        let pod = self.pod(uid);
        for path in children(&pod)? {
            if is_mount(&path)? {
                let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                rustix::mount::unmount(&path, flags)
                    .map_err(|errno| failed_to("unmount", &path)(errno.into()))?;
            }
            fs::remove_dir(&path).map_err(failed_to("remove", &path))?;
        }
        match fs::remove_dir(&pod) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed_to("remove", &pod)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes the file systems of pods other than `living`.
    pub fn sweep(&self, living: &[&str]) -> Result<(), Error> {
        for pod in children(&self.root.join(PODS))? {
            let uid = pod.file_name().unwrap_or_default().to_string_lossy();
            if !living.contains(&&*uid) {
                self.remove(&uid)?;
            }
        }
        Ok(())
    }

    /// Where the file system `name` of the pod `uid` is, if there is one.
    #[must_use]
    pub fn place(&self, uid: &str, name: &str) -> PathBuf {
        self.pod(uid).join(name)
    }

    /// Unmounts the directory if nothing is stored in it. Otherwise it stays for the next daemon.
    pub fn close(&self) -> Result<(), Error> {
        for path in children(&self.root)? {
            // What is not empty is what it is kept for.
            fs::remove_dir(path).ok();
        }
        if !children(&self.root)?.is_empty() {
            fs::create_dir(self.root.join(PODS)).ok();
            return Ok(());
        }
        rustix::mount::unmount(&self.root, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|errno| failed_to("unmount", &self.root)(errno.into()))?;
        fs::remove_dir(&self.root).map_err(failed_to("remove", &self.root))
    }

    fn pod(&self, uid: &str) -> PathBuf {
        self.root.join(PODS).join(uid)
    }
}

/// Mounts a new tmpfs whose pages are not swapped out, where the kernel can promise that (6.4).
fn mount_at(path: &Path, mode: &str, bytes: Option<u64>) -> Result<(), Error> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let bytes = bytes.map(|bytes| bytes.to_string());
    let mut options = vec![("mode", mode)];
    // No bytes at all would mean no limit at all.
    options.extend(bytes.as_deref().filter(|bytes| *bytes != "0").map(|bytes| ("size", bytes)));
    let plain = options.clone();
    options.push(("noswap", ""));
    mount::new("tmpfs", &options, attributes)
        .or_else(|_unknown| mount::new("tmpfs", &plain, attributes))
        .and_then(|new| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
            mount::attach(new, target)
        })
        .map_err(failed_to("mount a tmpfs on", path))
}

/// Whether something is mounted there: it is then on another device than the directory around it.
fn is_mount(path: &Path) -> Result<bool, Error> {
    let device = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.dev());
    let parent = path.parent().unwrap_or(path);
    Ok(device(path).map_err(failed_to("stat", path))?
        != device(parent).map_err(failed_to("stat", parent))?)
}

fn make_directory(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed_to("make", path))
}

fn children(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed_to("list", path))?,
    };
    let list = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>();
    list.map_err(failed_to("list", path))
}

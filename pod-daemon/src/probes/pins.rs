//! What outlives the daemon: maps, programs and links, as files of the bpf filesystem.
//!
//! ```text
//! maps-LAYOUT/MAP           the counters and keys; kept for as long as their layout fits
//! object-ID/programs/NAME   the programs of one object on this kernel
//! object-ID/links/NAME      what of them is attached once per node
//! pods/UID/NAME             what is attached to a pod's cgroups
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use pod_ebpf::LAYOUT;

use super::Error;
use crate::sandbox;

/// `BPF_FS_MAGIC`.
const MAGIC: rustix::fs::FsWord = 0xcafe_4a11;

/// The bpf filesystem that distributions mount.
const USUAL: &str = "/sys/fs/bpf";

/// Folder of an object's programs.
const PROGRAMS: &str = "programs";

/// Prefix of the folders of objects.
const OBJECT: &str = "object-";

/// The pins of one daemon.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Makes the folders in `root`, and mounts the bpf filesystem where there is none.
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let usual = Path::new(USUAL);
        let mount = if root.starts_with(usual) { usual } else { root };
        fs::create_dir_all(mount).map_err(failed_to("make", mount))?;
        if !is_bpf(mount).map_err(failed_to("look at", mount))? {
            sandbox::mount_bpf(mount).map_err(failed_to("mount the bpf filesystem on", mount))?;
        }
        let pins = Self { root: root.to_path_buf() };
        for path in [root.to_path_buf(), pins.maps(), pins.pods()] {
            fs::create_dir_all(&path).map_err(failed_to("make", &path))?;
        }
        Ok(pins)
    }

    /// Where the maps of this daemon's layout are.
    pub(super) fn maps(&self) -> PathBuf {
        self.root.join(format!("maps-{LAYOUT}"))
    }

    /// Whether there are maps of this or of another layout.
    pub(super) fn earlier_maps(&self) -> (bool, bool) {
        let own = entries(&self.maps()).next().is_some();
        let other = self.others("maps-", &self.maps()).any(|path| entries(&path).next().is_some());
        (own, other)
    }

    /// Where the programs and links of the object `id` are.
    pub(super) fn object(&self, id: &str) -> PathBuf {
        self.root.join(format!("{OBJECT}{id}"))
    }

    /// Where its programs are.
    pub(super) fn programs(&self, id: &str) -> PathBuf {
        self.object(id).join(PROGRAMS)
    }

    /// Makes empty folders for the object `id`.
    pub(super) fn make_object(&self, id: &str) -> Result<(), Error> {
        let folder = self.object(id);
        remove(&folder);
        for name in [PROGRAMS, "links"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).map_err(failed_to("make", &path))?;
        }
        Ok(())
    }

    /// Detaches what the object `id` has attached under this name.
    pub(super) fn remove_link(&self, id: &str, name: &str) {
        let path = self.object(id).join("links").join(name);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "a program stays attached");
        }
    }

    /// Detaches what another object than `id` has attached under this name.
    pub(super) fn remove_link_of_others(&self, id: &str, name: &str) {
        for folder in self.others(OBJECT, &self.object(id)) {
            fs::remove_file(folder.join("links").join(name)).ok();
        }
    }

    /// Removes every other object, and the maps of other layouts.
    pub(super) fn remove_others(&self, id: &str) {
        for path in self.others(OBJECT, &self.object(id)).chain(self.others("maps-", &self.maps()))
        {
            remove(&path);
        }
    }

    fn others(&self, prefix: &'static str, own: &Path) -> impl Iterator<Item = PathBuf> + use<> {
        let own = own.to_path_buf();
        entries(&self.root).filter(move |path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(prefix) && *path != own
        })
    }

    fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// Where the links of a pod are.
    pub(super) fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// Detaches what is attached to pods that are not in `living`.
    pub(super) fn remove_pods_but(&self, living: &[&str]) {
        for path in entries(&self.pods()) {
            let uid = path.file_name().unwrap_or_default().to_string_lossy();
            if !living.contains(&&*uid) {
                remove(&path);
            }
        }
    }

    /// Removes everything, and the bpf filesystem if it was mounted for this daemon alone.
    pub(super) fn remove(&self) {
        // Beside these the kernel has files of its own there.
        for path in entries(&self.root).filter(|path| path.is_dir()) {
            remove(&path);
        }
        if !self.root.starts_with(USUAL)
            && let Err(error) = sandbox::unmount(&self.root)
        {
            tracing::warn!(path = %self.root.display(), %error, "the bpf filesystem stays mounted");
        }
        fs::remove_dir(&self.root).ok();
    }
}

/// What is in a folder; nothing if it is not there.
pub(super) fn entries(path: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Detaches what is pinned at `path`.
pub(super) fn remove_link(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a link stays");
    }
}

pub(super) fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "pins stay");
        }
        _ => {}
    }
}

fn is_bpf(path: &Path) -> io::Result<bool> {
    let kind = rustix::fs::statfs(path)?.f_type;
    Ok(kind == MAGIC)
}

fn failed_to(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Pin { action, path, source }
}

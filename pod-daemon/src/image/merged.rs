//! What a path of an image leads to, found in its layers as overlayfs would find it.
//!
//! For what has to be known before a container has a root. A link leads on from the image's root, whichever
//! layer it is in, and what an upper layer has removed is not there.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::unix::ffi::OsStringExt as _,
    path::{Component, Path},
};

use rustix::{
    fd::OwnedFd,
    fs::{FileType, Mode, OFlags, fgetxattr, fstat, openat, readlinkat},
};

use super::metadata::OVERLAY_OPAQUE;

/// As many links are followed as the kernel follows.
const MAX_LINKS: usize = 40;

/// The directories that make up one of the image's, topmost first.
type Merged = Vec<OwnedFd>;

/// What a directory has under a name.
enum Entry {
    Directory(Merged),
    File(OwnedFd),
    Link(OsString),
}

/// Opens a regular file of the image whose layers these are, lowest first.
pub(crate) fn open(layers: &[impl AsRef<Path>], path: &Path) -> Option<File> {
    let layers = layers.iter().rev();
    let root = layers.map(|layer| File::open(layer).map(OwnedFd::from)).collect::<Result<_, _>>();
    let mut at: Vec<Merged> = vec![root.ok()?];
    let mut rest = steps(path);
    let mut links = 0;
    while let Some(step) = rest.pop() {
        if step == ".." {
            // Above the root is the root.
            at.truncate((at.len() - 1).max(1));
            continue;
        }
        match look_up(at.last()?, &step)? {
            Entry::Directory(directory) => at.push(directory),
            Entry::File(file) => return rest.is_empty().then(|| file.into()),
            Entry::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                let target = Path::new(&target);
                if target.is_absolute() {
                    at.truncate(1);
                }
                rest.extend(steps(target));
            }
        }
    }
    None
}

/// The names on a path, the last one first.
fn steps(path: &Path) -> Vec<OsString> {
    let names = path.components().rev().filter_map(|component| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

fn look_up(directory_of_image: &Merged, name: &OsStr) -> Option<Entry> {
    let mut merged = Merged::new();
    for part in directory_of_image {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match openat(part, name, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => continue,
            found => found.ok()?,
        };
        let kind = FileType::from_raw_mode(fstat(&found).ok()?.st_mode);
        match kind {
            FileType::Directory => {
                let directory = directory(part, name)?;
                let is_opaque = fgetxattr(&directory, OVERLAY_OPAQUE, &mut [0_u8; 1]) == Ok(1);
                merged.push(directory);
                if is_opaque {
                    break;
                }
            }
            // What is below a directory and is none does not show, and neither does what is below that. A
            // device without a number is what overlayfs leaves of what was removed.
            _ if !merged.is_empty() => break,
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                return openat(part, name, flags, Mode::empty()).ok().map(Entry::File);
            }
            FileType::Symlink => {
                let target = readlinkat(&found, "", Vec::new()).ok()?;
                return Some(Entry::Link(OsString::from_vec(target.into_bytes())));
            }
            _ => return None,
        }
    }
    (!merged.is_empty()).then_some(Entry::Directory(merged))
}

fn directory(parent: &OwnedFd, name: &OsStr) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty()).ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _, os::unix::fs::symlink, path::PathBuf};

    use rustix::fs::{CWD, XattrFlags, makedev, mknodat, setxattr};

    use super::*;

    /// Layers of an image, lowest first.
    struct Layers(Vec<tempfile::TempDir>);

    impl Layers {
        fn new(count: usize) -> Self {
            Self((0..count).map(|_| tempfile::tempdir().unwrap()).collect())
        }

        fn path(&self, layer: usize, path: &str) -> PathBuf {
            let path = self.0[layer].path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        }

        fn write(&self, layer: usize, path: &str, text: &str) {
            fs::write(self.path(layer, path), text).unwrap();
        }

        fn remove(&self, layer: usize, path: &str) {
            let path = self.path(layer, path);
            mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).unwrap();
        }

        fn read(&self, path: &str) -> Option<String> {
            let paths: Vec<&Path> = self.0.iter().map(tempfile::TempDir::path).collect();
            let mut text = String::new();
            open(&paths, Path::new(path))?.read_to_string(&mut text).unwrap();
            Some(text)
        }
    }

    #[test]
    fn the_topmost_layer_decides() {
        let layers = Layers::new(3);
        layers.write(0, "etc/passwd", "lowest");
        layers.write(0, "etc/group", "lowest");
        layers.write(1, "etc/passwd", "upper");
        layers.remove(2, "etc/group");
        assert_eq!(layers.read("etc/passwd").as_deref(), Some("upper"));
        assert_eq!(layers.read("etc/group"), None);
        assert_eq!(layers.read("etc"), None);
        assert_eq!(layers.read("etc/passwd/x"), None);

        setxattr(layers.path(2, "etc"), OVERLAY_OPAQUE, b"y", XattrFlags::empty()).unwrap();
        assert_eq!(layers.read("etc/passwd"), None);
    }

    #[test]
    fn links_lead_into_every_layer_and_not_out_of_the_image() {
        let layers = Layers::new(2);
        layers.write(0, "nix/store/passwd", "found");
        for (link, target) in [
            ("etc/passwd", "/nix/store/passwd"),
            ("etc/relative", "../../../nix/store/passwd"),
            ("etc/folder", "../nix/./store"),
            ("etc/twice", "passwd"),
            ("etc/loop", "loop"),
            ("etc/away", "/proc/self/status"),
        ] {
            symlink(target, layers.path(1, link)).unwrap();
        }
        for path in ["etc/passwd", "/etc/relative", "etc/folder/passwd", "etc/twice"] {
            assert_eq!(layers.read(path).as_deref(), Some("found"), "{path}");
        }
        for path in ["etc/loop", "etc/away", "etc/none"] {
            assert_eq!(layers.read(path), None, "{path}");
        }
    }
}

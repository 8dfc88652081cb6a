//! Files that change all at once, for readers that look at any time.
//!
//! As kubelet lays them out: the files are in a directory of their version, `..data` is a link to
//! that directory, and what users see are links through `..data`. A new version is written beside
//! the old one and takes its place by the rename of one link.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
};

use super::{Error, directory, failed_to};

/// The link to the version that counts.
const DATA: &str = "..data";
/// The link before it takes the other's place.
const NEXT: &str = "..data_next";
/// What names of versions begin with.
const VERSION: &str = "..version-";

/// A file.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    /// Below the volume; may have directories.
    pub(super) path: String,
    pub(super) data: &'a [u8],
    pub(super) mode: u32,
}

/// Whether there is a version already.
pub(super) fn is_published(path: &Path) -> bool {
    path.join(DATA).is_dir()
}

/// Makes the files in `path` be these and no others, readable for `group`.
pub(super) fn publish(
    volume: &str,
    path: &Path,
    entries: &[Entry<'_>],
    group: Option<u32>,
) -> Result<(), Error> {
    directory(volume, path, 0o755)?;
    let current = fs::read_link(path.join(DATA)).ok();
    if let Some(current) = &current
        && contents(&path.join(current)).is_ok_and(|found| found == wanted(entries, group))
    {
        return Ok(());
    }
    let number = |name: &str| name.strip_prefix(VERSION)?.parse::<u64>().ok();
    let last = current.as_ref().and_then(|current| number(current.to_str()?)).unwrap_or(0);
    let name = format!("{VERSION}{}", last.wrapping_add(1));
    let version = path.join(&name);
    remove(volume, &version)?;
    write(volume, &version, entries, group)?;

    let (next, data) = (path.join(NEXT), path.join(DATA));
    remove(volume, &next)?;
    symlink(&name, &next).map_err(failed_to(volume, "link", &next))?;
    fs::rename(&next, &data).map_err(failed_to(volume, "rename", &next))?;
    link(volume, path, entries)?;
    // Also what a daemon that was killed has left half-written.
    for entry in fs::read_dir(path).map_err(failed_to(volume, "list", path))?.flatten() {
        let old = entry.file_name();
        if old != *name && old.to_string_lossy().starts_with(VERSION) {
            remove(volume, &entry.path())?;
        }
    }
    Ok(())
}

/// Makes the links that users see, and removes those to nothing.
fn link(volume: &str, path: &Path, entries: &[Entry<'_>]) -> Result<(), Error> {
    let tops: BTreeSet<PathBuf> = entries
        .iter()
        .filter_map(|entry| Some(Path::new(&entry.path).iter().next()?.into()))
        .collect();
    for top in &tops {
        let link = path.join(top);
        match symlink(Path::new(DATA).join(top), &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed_to(volume, "link", &link)(error));
            }
            _ => {}
        }
    }
    for entry in fs::read_dir(path).map_err(failed_to(volume, "list", path))?.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if target.starts_with(DATA) && !tops.contains(Path::new(&entry.file_name())) {
            remove(volume, &entry.path())?;
        }
    }
    Ok(())
}

fn write(
    volume: &str,
    version: &Path,
    entries: &[Entry<'_>],
    group: Option<u32>,
) -> Result<(), Error> {
    let directory = |path: &Path| {
        directory(volume, path, 0o755)?;
        chown(path, None, group).map_err(failed_to(volume, "set the group of", path))
    };
    directory(version)?;
    for entry in entries {
        let file = version.join(&entry.path);
        for parent in file.ancestors().skip(1).take_while(|parent| *parent != version) {
            fs::create_dir_all(parent).map_err(failed_to(volume, "make", parent))?;
            directory(parent)?;
        }
        // Nobody may read what nobody else may before its mode is set.
        let mode = mode(entry.mode, group);
        rustix::fs::open(
            &file,
            rustix::fs::OFlags::CREATE
                | rustix::fs::OFlags::EXCL
                | rustix::fs::OFlags::WRONLY
                | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::from_raw_mode(0o600),
        )
        .map_err(io::Error::from)
        .and_then(|new| {
            let mut new = fs::File::from(new);
            io::Write::write_all(&mut new, entry.data)?;
            std::os::unix::fs::fchown(&new, None, group)?;
            new.set_permissions(fs::Permissions::from_mode(mode))
        })
        .map_err(failed_to(volume, "write", &file))?;
    }
    Ok(())
}

/// A pod's own group may read what its volumes hold.
fn mode(mode: u32, group: Option<u32>) -> u32 {
    if group.is_some() { mode | 0o440 } else { mode }
}

/// Path, mode, group and bytes of each file.
type Contents = BTreeMap<PathBuf, (u32, u32, Vec<u8>)>;

fn wanted(entries: &[Entry<'_>], group: Option<u32>) -> Contents {
    let of = |entry: &Entry<'_>| {
        let facts = (mode(entry.mode, group), group.unwrap_or(0), entry.data.to_vec());
        (PathBuf::from(&entry.path), facts)
    };
    entries.iter().map(of).collect()
}

fn contents(version: &Path) -> io::Result<Contents> {
    let mut found = Contents::new();
    let mut directories = vec![version.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                directories.push(entry.path());
                continue;
            }
            let path = entry.path();
            let below = path.strip_prefix(version).unwrap_or(&path).to_path_buf();
            let facts = (metadata.mode() & 0o7777, metadata.gid(), fs::read(&path)?);
            found.insert(below, facts);
        }
    }
    Ok(found)
}

/// Removes a file, a link or a directory, which may be gone already.
fn remove(volume: &str, path: &Path) -> Result<(), Error> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed_to(volume, "remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<'a>(path: &str, data: &'a str, mode: u32) -> Entry<'a> {
        Entry { path: path.to_owned(), data: data.as_bytes(), mode }
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_version_replaces_the_old_one_as_a_whole() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("volume");
        assert!(!is_published(&path));
        publish("v", &path, &[entry("a", "1", 0o600), entry("d/b", "2", 0o440)], None).unwrap();
        assert!(is_published(&path));
        assert_eq!(names(&path), ["..data", "..version-1", "a", "d"]);
        assert_eq!(fs::read_to_string(path.join("d/b")).unwrap(), "2");
        let mode = |name: &str| fs::metadata(path.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("a"), mode("d/b"), mode("d")), (0o600, 0o440, 0o755));

        // An open file is that of its version; a path leads to the newest.
        let open = fs::File::open(path.join("a")).unwrap();
        publish("v", &path, &[entry("a", "3", 0o600), entry("c", "4", 0o644)], None).unwrap();
        assert_eq!(io::read_to_string(open).unwrap(), "1");
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "3");
        assert_eq!(names(&path), ["..data", "..version-2", "a", "c"]);
    }

    #[test]
    fn what_has_not_changed_is_not_written_again() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("volume");
        let version = || fs::read_link(path.join(DATA)).unwrap();
        publish("v", &path, &[entry("a/b", "1", 0o600)], None).unwrap();
        let first = version();
        publish("v", &path, &[entry("a/b", "1", 0o600)], None).unwrap();
        assert_eq!(version(), first);
        publish("v", &path, &[entry("a/b", "1", 0o644)], None).unwrap();
        assert_ne!(version(), first);
    }

    #[test]
    fn what_a_crash_left_is_no_obstacle() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("volume");
        fs::create_dir_all(path.join("..version-1/a")).unwrap();
        fs::create_dir_all(path.join("..version-9")).unwrap();
        symlink("nowhere", path.join(NEXT)).unwrap();
        publish("v", &path, &[entry("a", "1", 0o600)], None).unwrap();
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "1");
        assert_eq!(names(&path), ["..data", "..version-1", "a"]);
    }
}

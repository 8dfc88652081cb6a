//! Gives a pod's volumes to the pod's group, as `fsGroup` asks for.
//!
//! Containers may have left links in a volume by the time it is walked again, so nothing is resolved
//! by path and no link is followed.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat},
    io::Errno,
};

const SET_GROUP: u32 = 0o2000;

/// What the group gets: to read and write, and to enter directories.
const WRITE: u32 = 0o660;
const ENTER: u32 = 0o110;

/// Deeper than people nest directories, and far from the end of the stack.
const DEPTH_MAX: usize = 256;

/// How much is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// All files, each time.
    Always,
    /// Nothing, if the volume's root is as it should be.
    OnRootMismatch,
}

/// Gives the directory `path`, and everything in it, to `group`.
pub(super) fn give(path: &Path, group: u32, policy: Policy) -> io::Result<()> {
    let directory = rustix::fs::open(path, OPEN | OFlags::DIRECTORY, Mode::empty())?;
    let stat = rustix::fs::fstat(&directory)?;
    let wanted = mode(&stat);
    let is_right = stat.st_gid == group && stat.st_mode & 0o7777 == wanted;
    if policy == Policy::OnRootMismatch && is_right {
        return Ok(());
    }
    // The root comes last: if this is cut short, the next time finds a mismatch.
    walk(&directory, group, 0)?;
    change(&directory, &stat, group)
}

const OPEN: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

fn walk(directory: &OwnedFd, group: u32, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other("directories are nested too deeply"));
    }
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            continue;
        }
        match entry_of(directory, name, group, depth) {
            // Gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

fn entry_of(directory: &OwnedFd, name: &CStr, group: u32, depth: usize) -> io::Result<()> {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !matches!(kind, FileType::Directory | FileType::RegularFile) {
        // Links, sockets and the like have no bits that matter, and opening some has effects.
        return Ok(rustix::fs::chownat(
            directory,
            name,
            None,
            Some(Gid::from_raw(group)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?);
    }
    let file = match rustix::fs::openat(directory, name, OPEN, Mode::empty()) {
        // It was exchanged for a link.
        Err(Errno::LOOP) => return Ok(()),
        file => file?,
    };
    let stat = rustix::fs::fstat(&file)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Directory {
        walk(&file, group, depth + 1)?;
    } else if kind != FileType::RegularFile || stat.st_nlink > 1 && stat.st_gid != group {
        // A second name for a file may be one outside of this volume.
        return Ok(());
    }
    change(&file, &stat, group)
}

fn change(file: impl AsFd, stat: &Stat, group: u32) -> io::Result<()> {
    if stat.st_gid != group {
        rustix::fs::fchown(&file, None, Some(Gid::from_raw(group)))?;
    }
    let wanted = mode(stat);
    // Giving a file away takes its set-id bits, so the mode comes second.
    if stat.st_gid != group || stat.st_mode & 0o7777 != wanted {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(wanted))?;
    }
    Ok(())
}

fn mode(stat: &Stat) -> u32 {
    let mode = stat.st_mode & 0o7777 | WRITE;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if is_directory { mode | SET_GROUP | ENTER } else { mode }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    };

    use super::*;

    /// The calling user's own group, which needs no privileges.
    fn group() -> u32 {
        nix::unistd::getegid().as_raw()
    }

    fn mode_of(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_group_may_write_and_links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (volume, outside) = (directory.path().join("volume"), directory.path().join("outside"));
        fs::create_dir_all(volume.join("below")).unwrap();
        fs::create_dir(&outside).unwrap();
        for path in [volume.join("file"), volume.join("below/file"), outside.join("file")] {
            fs::write(&path, "x").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        symlink(&outside, volume.join("directory-link")).unwrap();
        symlink(outside.join("file"), volume.join("file-link")).unwrap();

        give(&volume, group(), Policy::Always).unwrap();

        assert_eq!(mode_of(&volume.join("file")), 0o660);
        assert_eq!(mode_of(&volume.join("below/file")), 0o660);
        assert_eq!(mode_of(&volume.join("below")) & 0o2770, 0o2770);
        assert_eq!(mode_of(&outside.join("file")), 0o600);
        assert_eq!(mode_of(&outside) & 0o2000, 0);

        // The root is right, so a file that is not stays.
        fs::set_permissions(volume.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
        give(&volume, group(), Policy::OnRootMismatch).unwrap();
        assert_eq!(mode_of(&volume.join("file")), 0o600);
    }
}

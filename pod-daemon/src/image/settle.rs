//! What of a layer depends on the layers below it. Done last, so that layers could be unpacked at
//! the same time.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    fs::{self, AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
};

use super::{
    metadata::{copy_directory, is_opaque, is_whiteout, modified, set_opaque},
    remove::list,
    resolve::{directory, split, without_links},
};

/// What is left to be done with an unpacked layer.
#[derive(Debug, Default)]
pub(super) struct Grown {
    /// Directories that no entry describes, by inode, with their paths.
    pub(super) implicit: BTreeMap<u64, Vec<u8>>,
    /// Whiteouts that were made.
    pub(super) whiteouts: Vec<Vec<u8>>,
    /// Nothing of the layers below is to be seen.
    pub(super) opaque_root: bool,
    /// When directories were modified, in the order of the tar.
    pub(super) times: Vec<(Vec<u8>, (i64, u32))>,
    /// Of all files, with their holes.
    pub(super) bytes: u64,
}

impl Grown {
    /// Finishes the layer in `root`, whose layers below are `below`, lowest first.
    pub(super) fn settle(self, root: BorrowedFd<'_>, below: &[PathBuf]) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let below: Vec<OwnedFd> = below
            .iter()
            .rev()
            .map(|layer| fs::openat(CWD, layer, flags, Mode::empty()))
            .collect::<Result<_, _>>()?;
        if self.opaque_root {
            hide_all(root, &below)?;
        }
        let mut times = self.times;
        for (inode, path) in self.implicit {
            if let Some(time) = adopt(root, &below, &path, inode)? {
                times.push((path, time));
            }
        }
        for path in &self.whiteouts {
            drop_if_needless(root, &below, path)?;
        }
        for (path, time) in &times {
            match directory(root, path) {
                Ok(directory) => fs::utimensat(directory, ".", &modified(*time), AtFlags::empty())?,
                // A later entry took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Gives a directory without an entry the looks that it has below, because overlayfs shows those
/// of the upper one; returns its time, to be set when all else is done.
fn adopt(
    root: BorrowedFd<'_>,
    below: &[OwnedFd],
    path: &[u8],
    inode: u64,
) -> Result<Option<(i64, u32)>, Errno> {
    let Ok(mine) = without_links(root, path) else { return Ok(None) };
    let stat = fs::fstat(&mine)?;
    if stat.st_ino != inode || !FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Ok(None);
    }
    for layer in below {
        match without_links(layer.as_fd(), path) {
            Ok(theirs) => {
                let stat = fs::fstat(&theirs)?;
                if !FileType::from_raw_mode(stat.st_mode).is_dir() {
                    return Ok(None);
                }
                copy_directory(theirs.as_fd(), mine.as_fd())?;
                let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
                return Ok(Some((stat.st_mtime, nanoseconds)));
            }
            Err(Errno::NOENT) => {}
            // A link, a file or a whiteout on the way ends what can be seen from here.
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}

/// Removes a whiteout that hides nothing: where overlayfs does not merge directories, listing
/// them would show it.
fn drop_if_needless(root: BorrowedFd<'_>, below: &[OwnedFd], path: &[u8]) -> Result<(), Errno> {
    let Some((parent, name)) = split(path) else { return Ok(()) };
    let Ok(parent) = directory(root, parent) else { return Ok(()) };
    match fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_whiteout(&stat) => {}
        // A later entry took its place.
        _ => return Ok(()),
    }
    let mut hides_something = false;
    for layer in below {
        if let Ok(theirs) = without_links(layer.as_fd(), path) {
            hides_something |= !is_whiteout(&fs::fstat(theirs)?);
        }
    }
    if hides_something && !is_opaque(parent.as_fd())? {
        return Ok(());
    }
    fs::unlinkat(&parent, name, AtFlags::empty())
}

/// Hides each name in the roots below, one by one.
fn hide_all(root: BorrowedFd<'_>, below: &[OwnedFd]) -> Result<(), Errno> {
    for layer in below {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let layer = fs::openat(layer, ".", flags, Mode::empty())?;
        for (name, _) in list(&layer)? {
            match fs::mknodat(root, &name, FileType::CharacterDevice, Mode::empty(), 0) {
                Err(Errno::EXIST) => {}
                made => made?,
            }
            if let Ok(mine) = without_links(root, name.as_bytes())
                && FileType::from_raw_mode(fs::fstat(&mine)?.st_mode).is_dir()
            {
                set_opaque(mine.as_fd())?;
            }
        }
    }
    Ok(())
}

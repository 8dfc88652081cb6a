//! Owner, mode, times and attributes of what a layer contains.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::{
    fs::{
        self, AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid,
        XattrFlags,
    },
    io::Errno,
};

use super::{entries::Entry, resolve::Fault};

/// Tells overlayfs that a directory hides those of the same name below.
pub(super) const OVERLAY_OPAQUE: &str = "trusted.overlay.opaque";

/// Gives an open file or directory its owner, mode and attributes, in the order that lasts: a
/// change of owner clears the set-uid bits and the capabilities.
pub(super) fn dress(file: BorrowedFd<'_>, entry: &Entry) -> Result<(), Fault> {
    let (uid, gid) = owner(entry)?;
    fs::fchown(file, Some(uid), Some(gid)).map_err(Fault::failed("set the owner of"))?;
    fs::fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(Fault::failed("set the mode of"))?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| may_be_set(name)) {
        match fs::fsetxattr(file, &name[..], value, XattrFlags::empty()) {
            // Without capabilities a program does not work; without the others it does.
            Err(Errno::NOTSUP) if !name.starts_with(b"security.") => {
                let (entry, name) = (entry.name.escape_ascii(), name.escape_ascii());
                tracing::debug!(%entry, %name, "attribute dropped: the file system has none such");
            }
            set => set.map_err(Fault::failed("set an attribute of"))?,
        }
    }
    Ok(())
}

/// Gives a name that is not opened, and not followed, its owner and time.
pub(super) fn dress_unopened(parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), Fault> {
    let (uid, gid) = owner(entry)?;
    fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(Fault::failed("set the owner of"))?;
    fs::utimensat(parent, name, &modified(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(Fault::failed("set the time of"))
}

/// For `utimensat`: a time of modification alone.
pub(super) fn modified((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    }
}

/// Whether this is overlayfs's whiteout, a character device 0:0. Layers get no other devices.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Makes a directory hide those of the same name in the layers below.
pub(super) fn set_opaque(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let directory = reopen(directory)?;
    fs::fsetxattr(directory, OVERLAY_OPAQUE, b"y", XattrFlags::empty())
}

/// Whether a directory hides those of the same name in the layers below.
pub(super) fn is_opaque(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut value = [0; 1];
    match fs::fgetxattr(reopen(directory)?, OVERLAY_OPAQUE, &mut value[..]) {
        Ok(length) => Ok(length == 1 && value == *b"y"),
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Makes `to` look like `from`, a directory of a layer below.
pub(super) fn copy_directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let (from, to) = (reopen(from)?, reopen(to)?);
    let stat = fs::fstat(&from)?;
    fs::fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let mut names = Vec::with_capacity(4096);
    let listed = match fs::flistxattr(&from, rustix::buffer::spare_capacity(&mut names)) {
        Err(Errno::NOTSUP) => 0,
        listed => listed?,
    };
    for name in names[..listed].split(|&byte| byte == 0).filter(|name| may_be_set(name)) {
        // The kernel's limit for one value.
        let mut value = Vec::with_capacity(64 * 1024);
        fs::fgetxattr(&from, name, rustix::buffer::spare_capacity(&mut value))?;
        fs::fsetxattr(&to, name, &value, XattrFlags::empty())?;
    }
    Ok(())
}

/// Opens a directory that was opened as a mere path for operations on its inode.
fn reopen(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(directory, ".", flags, Mode::empty())
}

fn owner(entry: &Entry) -> Result<(Uid, Gid), Fault> {
    let id = |id: u64| match u32::try_from(id) {
        // The kernel takes u32::MAX for "do not change".
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Fault::Refused("has an owner or group that is not a 32-bit number")),
    };
    Ok((Uid::from_raw(id(entry.uid)?), Gid::from_raw(id(entry.gid)?)))
}

/// Attributes that an image may bring. `trusted.*` and `user.overlay.*` would speak to overlayfs,
/// and the labels of security modules are this machine's business.
fn may_be_set(name: &[u8]) -> bool {
    match name {
        b"security.capability" => true,
        b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

//! The mount API by file descriptors: nothing is resolved twice, and nothing by a path that a
//! container could change meanwhile.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

use super::userns::{AsRootOf, UserNamespace};

/// How paths below a container's root are resolved: `..` and absolute links end at that root.
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Makes a filesystem that is mounted nowhere yet. An option without a value is a flag.
pub(super) fn new(
    filesystem: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)?;
    // What /proc/mounts shows as the device. A filesystem that takes no source goes without.
    fsconfig_set_string(context.as_fd(), "source", filesystem).ok();
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(context.as_fd(), *key)?;
        } else {
            fsconfig_set_string(context.as_fd(), *key, *value)?;
        }
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A file system that nothing is in and nothing can be put into, mounted nowhere yet.
pub(super) fn empty() -> io::Result<OwnedFd> {
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    new("tmpfs", &[], attributes)
}

/// A copy of the mount tree at `source`, mounted nowhere yet.
pub(super) fn copy(source: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(source, "", flags)?)
}

/// Mounts what is mounted nowhere yet on `target`.
pub(super) fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// `struct mount_attr` of `mount_setattr`.
#[repr(C)]
pub(super) struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

impl MountAttr {
    /// Takes a mount out of its peer group and leaves the rest as it is.
    const PRIVATE: Self =
        Self { attr_set: 0, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };

    /// Makes a mount read-only and leaves the rest as it is.
    pub(super) const READ_ONLY: Self = Self {
        attr_set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits() as u64,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
}

/// Makes a mount that is attached nowhere read-only (Linux 5.12).
pub(super) fn set_detached_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    set_attributes(mount, &MountAttr::READ_ONLY, 0)
}

fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: &MountAttr,
    recursive: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the path and the structure are valid for reads of the given sizes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Shows a mount tree that is attached nowhere with the ids of a user namespace (Linux 5.12).
pub(super) fn map_ids(mount: BorrowedFd<'_>, users: BorrowedFd<'_>) -> io::Result<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let attributes = MountAttr {
        attr_set: MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(users.as_raw_fd().cast_unsigned()),
    };
    set_attributes(mount, &attributes, libc::AT_RECURSIVE)
}

/// Makes an attached mount read-only, with everything mounted below it where the kernel can
/// (Linux 5.12); before that, the mount itself only.
pub(super) fn set_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    make_read_only(mount, libc::AT_RECURSIVE)
}

/// Makes an attached mount read-only, and nothing that is mounted below it.
pub(super) fn set_alone_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    make_read_only(mount, 0)
}

fn make_read_only(mount: BorrowedFd<'_>, recursive: libc::c_int) -> io::Result<()> {
    let Err(error) = set_attributes(mount, &MountAttr::READ_ONLY, recursive) else {
        return Ok(());
    };
    if error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(error);
    }
    // A bind remount replaces the mount's own flags, so those that it has are given again.
    let flags = rustix::fs::fstatvfs(mount)?.f_flag;
    let keep = [
        (rustix::fs::StatVfsMountFlags::NOSUID, libc::MS_NOSUID),
        (rustix::fs::StatVfsMountFlags::NODEV, libc::MS_NODEV),
        (rustix::fs::StatVfsMountFlags::NOEXEC, libc::MS_NOEXEC),
    ]
    .into_iter()
    .filter(|(has, _)| flags.contains(*has))
    .fold(libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY, |all, (_, flag)| all | flag);
    change(mount, keep)
}

/// Takes an attached copy of a mount, with everything mounted below it, out of the peer group of what it
/// was copied from: else what is mounted below the one would be mounted below the other, too.
pub(super) fn isolate(mount: BorrowedFd<'_>) -> io::Result<()> {
    match set_attributes(mount, &MountAttr::PRIVATE, libc::AT_RECURSIVE) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            change(mount, libc::MS_REC | libc::MS_PRIVATE)
        }
        result => result,
    }
}

/// Changes an attached mount in the way that there was before Linux 5.12.
fn change(mount: BorrowedFd<'_>, flags: libc::c_ulong) -> io::Result<()> {
    // The template of mount namespaces has the host's /proc for this.
    let path = CString::new(format!("/proc/self/fd/{}", mount.as_raw_fd()))?;
    // SAFETY: the strings are null-terminated.
    let result = unsafe {
        libc::mount(std::ptr::null(), path.as_ptr(), std::ptr::null(), flags, std::ptr::null())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Removes `directory` with everything in it. What is mounted there in this mount namespace is somebody
/// else's: it is detached first, so that nothing of it is removed.
pub fn remove_all(directory: &Path) -> io::Result<()> {
    detach_below(&fs::canonicalize(directory)?)?;
    fs::remove_dir_all(directory)
}

fn detach_below(directory: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    // The last are on top of those before.
    for line in table.lines().rev() {
        let target = unescaped(line.split(' ').nth(4).unwrap_or_default());
        if target.starts_with(directory) && target != directory {
            tracing::warn!(path = %target.display(), "what is mounted there is detached");
            unmount(&target)?;
        }
    }
    Ok(())
}

/// A path as `/proc/self/mountinfo` has it: spaces, tabs, newlines and backslashes as `\NNN`.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// The mount id of an attached mount, by which the probes know it.
pub(super) fn id(mount: impl AsFd) -> io::Result<u32> {
    // Bit of STATX_MNT_ID, since Linux 5.8.
    let wanted = StatxFlags::from_bits_retain(0x1000);
    let stat = rustix::fs::statx(mount, "", AtFlags::EMPTY_PATH, wanted)?;
    u32::try_from(stat.stx_mnt_id).map_err(|_overflow| io::ErrorKind::InvalidData.into())
}

/// Opens `path` below `root` as a mount target, without following a link out of it.
pub(super) fn open_in(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    Ok(rustix::fs::openat2(root, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), IN_ROOT)?)
}

/// Kind of a mount target that may have to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File,
}

/// Opens `path` below `root`, making it and the directories on the way if they are absent.
///
/// What is made is root's: with a user namespace, the pod's root's.
pub(super) fn make_in(
    root: impl AsFd,
    path: &Path,
    kind: Kind,
    users: Option<&UserNamespace>,
) -> io::Result<OwnedFd> {
    match open_in(&root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let _as_root = AsRootOf::new(users);
    let mut directory = open_in(&root, Path::new("/"))?;
    let names: Vec<_> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let mut walked = PathBuf::from("/");
    for (index, name) in names.iter().enumerate() {
        walked.push(name);
        // Each step is resolved from the root, so that links on the way mean what they mean inside.
        match open_in(&root, &walked) {
            Ok(next) => directory = next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if index + 1 == names.len() && kind == Kind::File {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                    rustix::fs::openat(&directory, *name, flags, Mode::from_raw_mode(0o644))?;
                } else {
                    rustix::fs::mkdirat(&directory, *name, Mode::from_raw_mode(0o755))?;
                }
                directory = open_in(&root, &walked)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(directory)
}

/// Makes the calling thread's root the directory `root`, and lets go of the old one.
pub(super) fn pivot(root: impl AsFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    // "." is now the old root on top of the new one.
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Takes every mount of the calling thread's namespace out of its peer group.
pub(super) fn make_private() -> io::Result<()> {
    let flags =
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", flags)?)
}

/// Mounts a bpf filesystem on `target`, in the daemon's own mount namespace.
pub fn mount_bpf(target: &Path) -> io::Result<()> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let target = rustix::fs::open(target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    attach(new("bpf", &[("mode", "700")], attributes)?, target)
}

/// Takes away what is mounted on `target`, in the daemon's own mount namespace.
pub fn unmount(target: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH)?)
}

/// Whether an error says that there is no such path.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR))
}

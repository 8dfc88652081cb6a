//! A container's /dev: made afresh, never the image's.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags},
    mount::MountAttrFlags,
};

use super::{
    super::{Error, failed_to, mount, userns::UserNamespace},
    SHARED_MEMORY, directory, place,
};

/// Character devices of every container: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Symbolic links of every container's /dev.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// The group of terminals, in every distribution.
const TERMINALS: u32 = 5;

/// Directories of /dev that are filesystems of their own in every container.
const OWN: [&str; 3] = ["pts", "shm", "mqueue"];

/// A device of the node.
#[derive(Debug)]
pub(super) struct Device {
    /// Below /dev.
    path: PathBuf,
    kind: FileType,
    mode: u32,
    owner: (u32, u32),
    number: u64,
}

/// The devices of the node, but for those that every container has its own of.
pub(super) fn of_the_node() -> Vec<Device> {
    let mut devices = Vec::new();
    collect(Path::new("/dev"), Path::new(""), &mut devices);
    devices
}

fn collect(directory: &Path, below: &Path, devices: &mut Vec<Device>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = below.join(entry.file_name());
        // Links stay behind: what they name is here under its own name.
        let Ok(metadata) = entry.metadata() else { continue };
        let kind = metadata.file_type();
        if kind.is_dir() && !OWN.iter().any(|own| path == Path::new(own)) {
            collect(&entry.path(), &path, devices);
        }
        let usual = DEVICES.iter().any(|(name, ..)| path == Path::new(name));
        if usual || path == Path::new("ptmx") || path == Path::new("console") {
            continue;
        }
        let kind = match (kind.is_char_device(), kind.is_block_device()) {
            (true, _) => FileType::CharacterDevice,
            (_, true) => FileType::BlockDevice,
            _ => continue,
        };
        devices.push(Device {
            path,
            kind,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            number: metadata.rdev(),
        });
    }
}

/// Makes one in a /dev that nobody else sees yet.
fn add(dev: &OwnedFd, device: &Device) -> io::Result<()> {
    let mut parent = PathBuf::new();
    for name in device.path.parent().into_iter().flat_map(Path::components) {
        parent.push(name);
        match rustix::fs::mkdirat(dev, &parent, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let mode = Mode::from_raw_mode(device.mode);
    rustix::fs::mknodat(dev, &device.path, device.kind, mode, device.number)?;
    rustix::fs::chmodat(dev, &device.path, mode, rustix::fs::AtFlags::empty())?;
    let (user, group) = device.owner;
    rustix::fs::chownat(
        dev,
        &device.path,
        Some(rustix::fs::Uid::from_raw(user)),
        Some(rustix::fs::Gid::from_raw(group)),
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(())
}

/// Gives what is in a new /dev to root of a pod.
fn give(dev: &OwnedFd, name: &str, owner: u32) -> rustix::io::Result<()> {
    if owner == 0 {
        return Ok(());
    }
    rustix::fs::chownat(
        dev,
        name,
        Some(rustix::fs::Uid::from_raw(owner)),
        Some(rustix::fs::Gid::from_raw(owner)),
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
}

/// A fresh /dev with the usual devices and `more`; returns its null device, to mask files with.
///
/// With a user namespace all of it is its root's: what is the node's root's is nobody's there.
pub(super) fn make(
    root: &OwnedFd,
    more: &[Device],
    users: Option<&UserNamespace>,
) -> Result<OwnedFd, Error> {
    let owner = users.map_or(0, UserNamespace::base);
    let (owner_text, terminals_text) = (owner.to_string(), (owner + TERMINALS).to_string());
    let at = |name: &str| Path::new("/dev").join(name);
    let dev = mount::new(
        "tmpfs",
        &[("mode", "755"), ("size", "65536k"), ("uid", &owner_text), ("gid", &owner_text)],
        MountAttrFlags::MOUNT_ATTR_NOSUID,
    )
    .map_err(failed_to("mount", Path::new("/dev")))?;
    for (name, major, minor) in DEVICES {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(
            &dev,
            name,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            device,
        )
        .and_then(|()| {
            rustix::fs::chmodat(
                &dev,
                name,
                Mode::from_raw_mode(0o666),
                rustix::fs::AtFlags::empty(),
            )
        })
        .and_then(|()| give(&dev, name, owner))
        .map_err(|errno| failed_to("make the device", &at(name))(errno.into()))?;
    }
    for device in more {
        add(&dev, device)
            .map_err(failed_to("make the device", &Path::new("/dev").join(&device.path)))?;
    }
    for (target, name) in LINKS {
        rustix::fs::symlinkat(target, &dev, name)
            .map_err(|errno| failed_to("link", &at(name))(errno.into()))?;
    }
    for name in OWN {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755))
            .map_err(|errno| failed_to("make", &at(name))(errno.into()))?;
    }
    for name in OWN {
        give(&dev, name, owner).map_err(|errno| failed_to("give away", &at(name))(errno.into()))?;
    }
    let target = directory(root, "/dev", users)?;
    mount::attach(&dev, &target).map_err(failed_to("mount", Path::new("/dev")))?;

    let plain = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let terminals = mount::new(
        "devpts",
        &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", &terminals_text)],
        plain,
    );
    place(
        terminals,
        &mount::open_in(root, &at("pts")).map_err(failed_to("open", &at("pts")))?,
        "/dev/pts",
    )?;
    let queues = mount::new("mqueue", &[], plain | MountAttrFlags::MOUNT_ATTR_NODEV);
    place(
        queues,
        &mount::open_in(root, &at("mqueue")).map_err(failed_to("open", &at("mqueue")))?,
        "/dev/mqueue",
    )?;
    let target = mount::open_in(root, &at("shm")).map_err(failed_to("open", &at("shm")))?;
    let shared = rustix::fs::open(SHARED_MEMORY, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed_to("open", Path::new(SHARED_MEMORY))(errno.into()))?;
    place(mount::copy(shared), &target, "/dev/shm")?;
    mount::open_in(root, &at("null")).map_err(failed_to("open", &at("null")))
}

//! A container's file system: image, kernel filesystems, devices and volumes.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags},
    mount::MountAttrFlags,
};

use super::{Error, failed_to, mount};

/// What a container's root is made of.
#[derive(Clone, Debug)]
pub struct Rootfs {
    /// Directories of the image, lowest first.
    pub layers: Vec<PathBuf>,
    /// Where the container's own changes go: a directory with `upper` and `work`, below the data
    /// directory.
    pub scratch: PathBuf,
}

/// Something mounted into a container.
#[derive(Clone, Debug)]
pub struct Bind {
    /// Host path: a directory or a file.
    pub source: PathBuf,
    /// Path in the container.
    pub target: PathBuf,
    /// Whether the container may not write there.
    pub read_only: bool,
    /// Index of the volume that file operations there count for.
    pub volume: Option<usize>,
}

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

/// Parts of /sys that tell about the host's hardware.
const MASKED_SYS: [&str; 2] = ["/sys/firmware", "/sys/devices/virtual/powercap"];

/// Host paths, resolved before the thread leaves the host's mount namespace.
#[derive(Debug)]
pub(super) struct Sources {
    binds: Vec<OwnedFd>,
    layers: Vec<Layer>,
}

/// A directory of the image.
#[derive(Debug)]
enum Layer {
    /// Below the data directory, which pods' mount namespaces have at [`DATA`].
    Data(PathBuf),
    /// Elsewhere on the host: a copy of its mount, to be attached.
    Copy(OwnedFd),
}

/// Where the template of mount namespaces has the data directory.
pub(super) const DATA: &str = "/data";
/// Where layers from elsewhere are attached.
pub(super) const LOWER: &str = "/lower";
/// Where the image is mounted before it becomes the root.
pub(super) const STAGING: &str = "/root";
/// Where the pod's shared memory is.
pub(super) const SHARED_MEMORY: &str = "/shm";

/// A root that is ready to be entered.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) root: OwnedFd,
    pub(super) proc: OwnedFd,
    pub(super) cgroup: Option<OwnedFd>,
    pub(super) null: OwnedFd,
    /// Volume index and mount id; 0 is the root itself.
    pub(super) mounts: Vec<(usize, u32)>,
}

impl Sources {
    /// Copies the mounts at the binds' sources. Runs in the host's mount namespace.
    pub(super) fn open(rootfs: &Rootfs, binds: &[Bind], data: &Path) -> Result<Self, Error> {
        let copy = |path: &Path| {
            let source = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| failed_to("open", path)(errno.into()))?;
            mount::copy(source).map_err(failed_to("copy the mount at", path))
        };
        let binds = binds.iter().map(|bind| copy(&bind.source)).collect::<Result<_, _>>()?;
        let layers = rootfs
            .layers
            .iter()
            .map(|layer| match layer.strip_prefix(data) {
                Ok(below) => Ok(Layer::Data(below.to_path_buf())),
                Err(_elsewhere) => copy(layer).map(Layer::Copy),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { binds, layers })
    }
}

/// Mounts the image with `scratch` (relative to the data directory) on top at [`STAGING`]. Runs in
/// the container's own mount namespace, since overlayfs takes no layers from another one.
pub(super) fn stage(sources: &Sources, scratch: &Path) -> Result<OwnedFd, Error> {
    let fail = || failed_to("mount the image (overlayfs) for", scratch);
    let mut lower = Vec::new();
    for (index, layer) in sources.layers.iter().enumerate() {
        lower.push(match layer {
            Layer::Data(path) => escaped(path),
            Layer::Copy(copy) => {
                let target = Path::new(LOWER).join(index.to_string());
                // All pods' namespaces share the template's directories: only mounts are their own.
                match rustix::fs::mkdir(&target, Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(errno) => return Err(fail()(errno.into())),
                }
                let target =
                    rustix::fs::open(&target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                        .map_err(|errno| fail()(errno.into()))?;
                mount::attach(copy, target).map_err(fail())?;
                format!("{LOWER}/{index}")
            }
        });
    }
    lower.reverse();
    let scratch = escaped(scratch);
    let options =
        format!("lowerdir={},upperdir={scratch}/upper,workdir={scratch}/work", lower.join(":"));
    let options = CString::new(options).map_err(|error| fail()(error.into()))?;
    let staging = CString::new(STAGING).map_err(|error| fail()(error.into()))?;
    // Relative paths keep the options short: all layers must fit in one page. And by mount(2): the
    // new mount API cuts option values at 256 bytes before Linux 6.7.
    rustix::process::chdir(DATA).map_err(|errno| fail()(errno.into()))?;
    // SAFETY: all strings are null-terminated.
    let result = unsafe {
        let overlay = c"overlay".as_ptr();
        libc::mount(overlay, staging.as_ptr(), overlay, 0, options.as_ptr().cast())
    };
    if result != 0 {
        return Err(fail()(io::Error::last_os_error()));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(STAGING, flags, Mode::empty()).map_err(|errno| fail()(errno.into()))
}

/// A path as overlayfs reads it: colons, commas and backslashes separate unless they are escaped.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, ':' | ',' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

/// Mounts everything else below `root`.
pub(super) fn complete(
    root: OwnedFd,
    sources: &Sources,
    binds: &[Bind],
) -> Result<Prepared, Error> {
    let mut mounts = vec![(0, mount::id(&root).map_err(failed_to("identify", Path::new("/")))?)];
    let plain = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;

    let proc = directory(&root, "/proc")?;
    let sys = directory(&root, "/sys")?;
    place(mount::new("sysfs", &[], plain | MountAttrFlags::MOUNT_ATTR_RDONLY), &sys, "/sys")?;
    for path in MASKED_SYS.map(Path::new) {
        match mount::open_in(&root, path) {
            Ok(target) => {
                place(
                    mount::new("tmpfs", &[], plain | MountAttrFlags::MOUNT_ATTR_RDONLY),
                    target,
                    "/sys",
                )?;
            }
            Err(error) if mount::is_absent(&error) => {}
            Err(error) => return Err(failed_to("open", path)(error)),
        }
    }
    let cgroup = mount::open_in(&root, Path::new("/sys/fs/cgroup")).ok();
    let null = devices(&root)?;

    for (bind, source) in binds.iter().zip(&sources.binds) {
        let is_directory = rustix::fs::fstat(source)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        let kind = if is_directory { mount::Kind::Directory } else { mount::Kind::File };
        let target = mount::make_in(&root, &bind.target, kind)
            .map_err(failed_to("make the mount point", &bind.target))?;
        mount::attach(source, &target).map_err(failed_to("mount", &bind.target))?;
        if bind.read_only {
            mount::set_read_only(source.as_fd())
                .map_err(failed_to("make read-only", &bind.target))?;
        }
        if let Some(volume) = bind.volume {
            let id = mount::id(source).map_err(failed_to("identify", &bind.target))?;
            mounts.push((volume, id));
        }
    }
    Ok(Prepared { root, proc, cgroup, null, mounts })
}

/// A fresh /dev; returns its null device, to mask files with.
fn devices(root: &OwnedFd) -> Result<OwnedFd, Error> {
    let at = |name: &str| Path::new("/dev").join(name);
    let dev = mount::new(
        "tmpfs",
        &[("mode", "755"), ("size", "65536k")],
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
        .map_err(|errno| failed_to("make the device", &at(name))(errno.into()))?;
    }
    for (target, name) in LINKS {
        rustix::fs::symlinkat(target, &dev, name)
            .map_err(|errno| failed_to("link", &at(name))(errno.into()))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755))
            .map_err(|errno| failed_to("make", &at(name))(errno.into()))?;
    }
    let target = directory(root, "/dev")?;
    mount::attach(&dev, &target).map_err(failed_to("mount", Path::new("/dev")))?;

    let plain = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let terminals = mount::new(
        "devpts",
        &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")],
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

/// The directory `path` of the image, made if absent. A kernel filesystem mounted over a link that
/// the image supplies could be anywhere, so that is refused.
fn directory(root: &OwnedFd, path: &'static str) -> Result<OwnedFd, Error> {
    let path = Path::new(path);
    let name = path.strip_prefix("/").unwrap_or(path);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(root, name, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {
            rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755))
                .and_then(|()| rustix::fs::openat(root, name, flags, Mode::empty()))
        }
        result => result,
    }
    .map_err(|errno| {
        failed_to("use as a directory of the image (it may not be a link)", path)(errno.into())
    })
}

fn place(mount: io::Result<OwnedFd>, target: impl AsFd, path: &'static str) -> Result<(), Error> {
    mount
        .and_then(|mount| mount::attach(mount, target))
        .map_err(failed_to("mount", Path::new(path)))
}

impl Prepared {
    /// The targets of the mounts that the container's first process makes.
    pub(super) fn child_mounts(&self) -> super::child::Mounts {
        super::child::Mounts {
            proc: self.proc.as_raw_fd(),
            cgroup: self.cgroup.as_ref().map(|descriptor| descriptor.as_raw_fd()),
            null: self.null.as_raw_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_of_overlayfs_are_escaped() {
        assert_eq!(escaped(Path::new("/a:b,c\\d")), "/a\\:b\\,c\\\\d");
    }
}

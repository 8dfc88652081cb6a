//! A container's file system: image, kernel filesystems, devices and volumes.

mod devices;

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags},
    mount::MountAttrFlags,
};

use self::devices::Device;
use super::{
    Error, View,
    child::{Covers, Mounts},
    failed_to, mount,
    userns::{self, AsRootOf, UserNamespace},
};

/// What a container's root is made of.
#[derive(Clone, Debug)]
pub struct Rootfs {
    /// Directories of the image, lowest first.
    pub layers: Vec<PathBuf>,
    /// Where the container's own changes go: a directory with `upper` and `work`, below the data
    /// directory.
    pub scratch: PathBuf,
    /// Whether the container may not write to it; its volumes are another matter.
    pub read_only: bool,
    /// What it shows of the kernel.
    pub view: View,
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

/// Parts of /sys that tell about the host's hardware, or are no business of a container's. Each
/// processor has one more.
const MASKED_SYS: [&str; 3] = ["/sys/firmware", "/sys/devices/virtual/powercap", "/sys/fs/selinux"];

/// The parts of /sys to cover that this node has: what is not there need not be looked for at every
/// start.
pub(super) fn masked_sys() -> Vec<PathBuf> {
    let processors = fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    MASKED_SYS
        .iter()
        .map(PathBuf::from)
        .chain(processors.map(|processor| processor.path().join("thermal_throttle")))
        .filter(|path| path.is_dir())
        .collect()
}

/// Host paths, resolved before the thread leaves the host's mount namespace.
#[derive(Debug)]
pub(super) struct Sources {
    binds: Vec<OwnedFd>,
    layers: Vec<Layer>,
    /// The node's own devices, for those who get them.
    devices: Vec<Device>,
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
/// Where containers with user ids of their own have the same, shown with those.
pub(super) const MAPPED_DATA: &str = "/mapped";
/// Where layers from elsewhere are attached.
pub(super) const LOWER: &str = "/lower";
/// Where the image is mounted before it becomes the root.
pub(super) const STAGING: &str = "/root";
/// Where the pod's shared memory is.
pub(super) const SHARED_MEMORY: &str = "/shm";

/// What lies below every image, in the data directory.
const SKELETON: &str = "skeleton";

/// Makes the mount points that every container has, for those images that are without, so that
/// containers need not each make their own.
pub(super) fn make_skeleton(data: &Path) -> io::Result<()> {
    let skeleton = data.join(SKELETON);
    for directory in ["dev", "etc", "proc", "sys"] {
        let directory = skeleton.join(directory);
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    }
    for file in ["hostname", "hosts", "resolv.conf"] {
        let file = skeleton.join("etc").join(file);
        File::create(&file)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// A root that is ready to be entered.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) root: OwnedFd,
    pub(super) proc: OwnedFd,
    pub(super) cgroup: Option<OwnedFd>,
    null: OwnedFd,
    empty: OwnedFd,
    empty_is_attached: bool,
    view: View,
    /// Volume index and mount id; 0 is the root itself.
    pub(super) mounts: Vec<(usize, u32)>,
}

impl Sources {
    /// Copies the mounts at the binds' sources. Runs in the host's mount namespace.
    pub(super) fn open(
        rootfs: &Rootfs,
        binds: &[Bind],
        data: &Path,
        users: Option<&UserNamespace>,
    ) -> Result<Self, Error> {
        let copy = |path: &Path| -> Result<OwnedFd, Error> {
            let source = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| failed_to("open", path)(errno.into()))?;
            let copy = mount::copy(source).map_err(failed_to("copy the mount at", path))?;
            userns::map_ids(&copy, users, path)?;
            Ok(copy)
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
        let devices = if rootfs.view == View::Node { devices::of_the_node() } else { Vec::new() };
        Ok(Self { binds, layers, devices })
    }
}

/// Mounts the image with `scratch` (relative to the data directory) on top at [`STAGING`]. Runs in
/// the container's own mount namespace, since overlayfs takes no layers from another one.
pub(super) fn stage(
    sources: &Sources,
    scratch: &Path,
    users: Option<&UserNamespace>,
) -> Result<OwnedFd, Error> {
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
    lower.push(SKELETON.to_owned());
    let (lower, scratch) = (lower.join(":"), escaped(scratch));
    // Nobody sees what a run has changed when it is over, so nothing of it need be on the disk by then.
    let options =
        format!("volatile,lowerdir={lower},upperdir={scratch}/upper,workdir={scratch}/work");
    let options = CString::new(options).map_err(|error| fail()(error.into()))?;
    let staging = CString::new(STAGING).map_err(|error| fail()(error.into()))?;
    // Relative paths keep the options short: all layers must fit in one page. And by mount(2): the
    // new mount API cuts option values at 256 bytes before Linux 6.7.
    let data = if users.is_some() { mapped_data(users)? } else { DATA };
    rustix::process::chdir(data).map_err(|errno| fail()(errno.into()))?;
    // Overlayfs works in the layers as whoever mounts it.
    let _as_root = AsRootOf::new(users);
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

/// Mounts the data directory a second time, as the pod's users see it; returns where.
fn mapped_data(users: Option<&UserNamespace>) -> Result<&'static str, Error> {
    let path = Path::new(MAPPED_DATA);
    let data = super::open_path(Path::new(DATA)).and_then(mount::copy);
    let data = data.map_err(failed_to("copy the mount at", Path::new(DATA)))?;
    userns::map_ids(&data, users, Path::new(DATA))?;
    let target = super::open_path(path).and_then(|target| mount::attach(data, target));
    target.map_err(failed_to("mount", path))?;
    Ok(MAPPED_DATA)
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

/// Mounts everything else below `root`, and makes the working directory if it is not there.
pub(super) fn complete(
    root: OwnedFd,
    sources: &Sources,
    rootfs: &Rootfs,
    binds: &[Bind],
    working: &str,
    masked_sys: &[PathBuf],
    users: Option<&UserNamespace>,
) -> Result<Prepared, Error> {
    let mut mounts = vec![(0, mount::id(&root).map_err(failed_to("identify", Path::new("/")))?)];
    let plain = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;

    let proc = directory(&root, "/proc", users)?;
    let sys = directory(&root, "/sys", users)?;
    let is_masked = rootfs.view != View::Node;
    let access =
        if is_masked { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    place(mount::new("sysfs", &[], plain | access), &sys, "/sys")?;
    // One for all: a filesystem for each would cost more at the container's end than here.
    let empty = mount::empty().map_err(failed_to("mount", Path::new("tmpfs")))?;
    let mut empty_is_attached = false;
    for path in masked_sys.iter().filter(|_| is_masked) {
        let target = match mount::open_in(&root, path) {
            Err(error) if mount::is_absent(&error) => continue,
            target => target.map_err(failed_to("open", path))?,
        };
        let cover = if empty_is_attached { Some(mount::copy(&empty)) } else { None };
        let attached = match cover {
            Some(copy) => copy.and_then(|copy| mount::attach(copy, target)),
            None => mount::attach(&empty, target),
        };
        attached.map_err(failed_to("cover", path))?;
        empty_is_attached = true;
    }
    // A volume there is what the container is to see.
    let cgroup = Path::new("/sys/fs/cgroup");
    let is_covered = binds.iter().any(|bind| cgroup.starts_with(&bind.target));
    let cgroup = if is_covered { None } else { mount::open_in(&root, cgroup).ok() };
    let null = devices::make(&root, &sources.devices, users)?;

    for (bind, source) in binds.iter().zip(&sources.binds) {
        let is_directory = rustix::fs::fstat(source)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        let kind = if is_directory { mount::Kind::Directory } else { mount::Kind::File };
        let target = mount::make_in(&root, &bind.target, kind, users)
            .map_err(failed_to("make the mount point", &bind.target))?;
        mount::attach(source, &target).map_err(failed_to("mount", &bind.target))?;
        // Before anything is mounted below it, which would appear on the node.
        mount::isolate(source.as_fd()).map_err(failed_to("make private", &bind.target))?;
        if bind.read_only {
            mount::set_read_only(source.as_fd())
                .map_err(failed_to("make read-only", &bind.target))?;
        }
        if let Some(volume) = bind.volume {
            let id = mount::id(source).map_err(failed_to("identify", &bind.target))?;
            mounts.push((volume, id));
        }
    }
    // As containerd has it. What cannot be made is missed when the program starts.
    let working = Path::new(working);
    if mount::open_in(&root, working).is_err_and(|error| mount::is_absent(&error)) {
        mount::make_in(&root, working, mount::Kind::Directory, users).ok();
    }
    if rootfs.read_only {
        mount::set_alone_read_only(root.as_fd())
            .map_err(failed_to("make read-only", Path::new("/")))?;
    }
    let view = rootfs.view;
    Ok(Prepared { root, proc, cgroup, null, empty, empty_is_attached, view, mounts })
}

/// The directory `path` of the image, made if absent. A kernel filesystem mounted over a link that
/// the image supplies could be anywhere, so that is refused.
fn directory(
    root: &OwnedFd,
    path: &'static str,
    users: Option<&UserNamespace>,
) -> Result<OwnedFd, Error> {
    let path = Path::new(path);
    let name = path.strip_prefix("/").unwrap_or(path);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(root, name, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {
            let _as_root = AsRootOf::new(users);
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
    pub(super) fn child_mounts(&self) -> Mounts {
        let covers = Covers {
            null: self.null.as_raw_fd(),
            empty: self.empty.as_raw_fd(),
            is_attached: self.empty_is_attached,
        };
        Mounts {
            proc: self.proc.as_raw_fd(),
            cgroup: self.cgroup.as_ref().map(|descriptor| descriptor.as_raw_fd()),
            writable_cgroup: self.view == View::Node,
            covers: (self.view == View::Masked).then_some(covers),
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

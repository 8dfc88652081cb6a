//! The mount namespace that pods' are copies of: next to nothing is in it, so that a pod's costs the
//! same however many mounts the host has.

use std::{io, os::fd::OwnedFd, path::Path};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::MountAttrFlags;

use super::{Error, failed_to, mount, open_path, own_namespace, rootfs};

/// Makes it on the calling thread, which is then in it, and returns a descriptor of it.
pub(super) fn make(data: &Path, run: &Path) -> Result<OwnedFd, Error> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
        .map_err(|errno| failed_to("unshare", Path::new("mnt"))(errno.into()))?;
    mount::make_private().map_err(failed_to("make private", Path::new("/")))?;
    let make = || -> io::Result<()> {
        // Opened first: the new root may cover them.
        let (data, proc) = (open_path(data)?, open_path(Path::new("/proc"))?);
        let root = mount::new("tmpfs", &[("mode", "700")], MountAttrFlags::MOUNT_ATTR_NOSUID)?;
        mount::attach(&root, open_path(run)?)?;
        for name in [
            rootfs::DATA,
            rootfs::MAPPED_DATA,
            rootfs::LOWER,
            rootfs::STAGING,
            rootfs::SHARED_MEMORY,
            "/proc",
        ] {
            let mode = rustix::fs::Mode::from_raw_mode(0o700);
            rustix::fs::mkdirat(&root, name.trim_start_matches('/'), mode)?;
        }
        let target = |name: &str| mount::open_in(&root, Path::new(name));
        mount::attach(mount::copy(&data)?, target(rootfs::DATA)?)?;
        mount::attach(mount::copy(&proc)?, target("/proc")?)?;
        mount::pivot(&root)
    };
    make().map_err(failed_to("make the template of mount namespaces in", run))?;
    own_namespace("mnt")
}

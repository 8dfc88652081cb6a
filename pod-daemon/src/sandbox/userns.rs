//! User namespaces of pods: ids of their own, so that root in a pod is nobody on the node.
//!
//! A pod's range of ids is told by its infra program's `/proc/PID/uid_map`, so that whoever finds the
//! pod later needs no other record of it.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nix::unistd::Pid;

use super::{Error, failed_to, namespace_of};

/// Ids of a pod, as Kubernetes has it.
pub(super) const IDS: u32 = 65_536;

/// Most pods that have ids of their own.
const MAX_RANGES: u32 = 4096;

/// The oldest kernel whose overlayfs takes layers with other ids.
const OLDEST_KERNEL: (u32, u32) = (5, 19);

/// The ids of this node that pods may have.
#[derive(Debug)]
pub(super) struct Ranges {
    first: u32,
    used: Mutex<BTreeSet<u32>>,
}

/// The ids of one pod, until it is dropped.
#[derive(Debug)]
pub(super) struct Range {
    base: u32,
    ranges: Arc<Ranges>,
}

/// A pod's user namespace.
#[derive(Debug)]
pub(super) struct UserNamespace {
    namespace: OwnedFd,
    range: Range,
}

impl Ranges {
    /// The ids from `first` on.
    pub(super) fn new(first: u32) -> Arc<Self> {
        Arc::new(Self { first, used: Mutex::default() })
    }

    /// A range that no other pod has.
    pub(super) fn take(self: &Arc<Self>) -> Option<Range> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bases = (0..MAX_RANGES)
            .map_while(|index| self.first.checked_add(index.checked_mul(IDS)?))
            .take_while(|base| base.checked_add(IDS).is_some());
        let base = bases.find(|base| !used.contains(base))?;
        used.insert(base);
        Some(Range { base, ranges: Arc::clone(self) })
    }

    /// The range of a pod that was there before; `None` if another pod has it.
    pub(super) fn claim(self: &Arc<Self>, base: u32) -> Option<Range> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.insert(base).then(|| Range { base, ranges: Arc::clone(self) })
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        self.ranges.used.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.base);
    }
}

impl UserNamespace {
    /// The namespace of `holder`, which was just made and has no ids yet.
    pub(super) fn give_ids(holder: Pid, range: Range) -> Result<Self, Error> {
        let map = format!("0 {} {IDS}\n", range.base);
        for file in ["uid_map", "gid_map"] {
            let path = PathBuf::from(format!("/proc/{holder}/{file}"));
            fs::write(&path, &map).map_err(failed_to("write", &path))?;
        }
        Ok(Self { namespace: namespace_of(holder, "user")?, range })
    }

    /// The namespace of a pod that was there before: of its infra program. `None` if the pod has the
    /// node's ids.
    pub(super) fn of(infra: Pid, ranges: &Arc<Ranges>) -> Result<Option<Self>, Error> {
        let path = PathBuf::from(format!("/proc/{infra}/uid_map"));
        let map = fs::read_to_string(&path).map_err(failed_to("read", &path))?;
        let Some(base) = base_of(&map) else { return Ok(None) };
        let range = ranges.claim(base).ok_or(Error::IdsTaken(base))?;
        Ok(Some(Self { namespace: namespace_of(infra, "user")?, range }))
    }

    /// What root of the pod is on the node.
    pub(super) fn base(&self) -> u32 {
        self.range.base
    }
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// What root is, in the words of a `uid_map`; `None` where all ids are the node's.
fn base_of(map: &str) -> Option<u32> {
    let mut words = map.split_whitespace().map(str::parse::<u32>);
    match (words.next()?, words.next()?, words.next()?) {
        (Ok(0), Ok(base), Ok(IDS)) if base != 0 => Some(base),
        _ => None,
    }
}

/// Refuses user namespaces where the kernel cannot show files with a pod's own ids.
pub(super) fn check_kernel() -> Result<(), Error> {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST_KERNEL { Ok(()) } else { Err(Error::OldKernel(release.into_owned())) }
}

/// The calling thread makes files as root of a pod, until this is dropped.
#[derive(Debug)]
pub(super) struct AsRootOf(Option<()>);

impl AsRootOf {
    /// Nothing changes without a user namespace.
    pub(super) fn new(users: Option<&UserNamespace>) -> Self {
        let Some(users) = users else { return Self(None) };
        let before = rustix::thread::capabilities(None);
        // Threads have file system ids of their own; libc's wrappers do not spread these.
        nix::unistd::setfsgid(nix::unistd::Gid::from_raw(users.base()));
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(users.base()));
        // The change took the capabilities about files, without which a directory of the image that
        // is not root's could not be changed.
        if let Ok(before) = before {
            rustix::thread::set_capabilities(None, before).ok();
        }
        Self(Some(()))
    }
}

impl Drop for AsRootOf {
    fn drop(&mut self) {
        if self.0.is_some() {
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(0));
            nix::unistd::setfsgid(nix::unistd::Gid::from_raw(0));
        }
    }
}

/// Shows the files of a copied mount, and of those below it, with the pod's ids: what is root's on
/// disk is root's in the pod, and the other way round.
pub(super) fn map_ids(
    mount: &OwnedFd,
    users: Option<&UserNamespace>,
    path: &Path,
) -> Result<(), Error> {
    let Some(users) = users else { return Ok(()) };
    super::mount::map_ids(mount.as_fd(), users.as_fd()).map_err(failed_to(
        "show with the pod's own user ids (tmpfs can since Linux 6.3, and not every filesystem can)",
        path,
    ))
}

/// The descriptor for the child, which is the one to join.
pub(super) fn descriptor(users: Option<&UserNamespace>) -> Option<RawFd> {
    users.map(|users| users.namespace.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pods_have_the_same_ids() {
        let ranges = Ranges::new(524_288);
        let first = ranges.take().unwrap();
        let second = ranges.take().unwrap();
        assert_eq!((first.base, second.base), (524_288, 589_824));
        assert!(ranges.claim(589_824).is_none());
        let third = ranges.claim(655_360).unwrap();
        drop(first);
        assert_eq!(ranges.take().unwrap().base, 524_288);
        drop(third);
        // The highest id means "none".
        assert!(Ranges::new(u32::MAX - IDS).take().is_some());
        assert!(Ranges::new(u32::MAX - IDS + 1).take().is_none());
    }

    #[test]
    fn a_pods_ids_are_read_from_its_map() {
        assert_eq!(base_of("         0     524288      65536\n"), Some(524_288));
        assert_eq!(base_of("         0          0 4294967295\n"), None);
        assert_eq!(base_of(""), None);
    }
}

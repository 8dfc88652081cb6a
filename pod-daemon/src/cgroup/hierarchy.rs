//! Where the cgroup v2 hierarchy is, and Podscope's root in it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::{DELEGATED, Error, failed_to};

/// Controllers that limits need; they are switched on for pods where the node has them.
const WANTED: [&str; 5] = ["cpu", "memory", "pids", "io", "hugetlb"];

/// Podscope's part of the cgroup v2 tree: `<mount>/podscope/<pod-uid>/<container>`.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    mount: PathBuf,
    root: PathBuf,
    level: i32,
    controllers: BTreeSet<String>,
}

impl Hierarchy {
    /// Makes `root` (created with its parents if need be) ready to hold pods.
    ///
    /// Controllers are enabled on the way from the mount down to `root`; one that cannot be enabled
    /// is left out of [`Hierarchy::controllers`], and limits that need it are refused later.
    pub fn prepare(root: &Path) -> Result<Self, Error> {
        let mount = mount_point()
            .map_err(failed_to("find the cgroup v2 mount in", Path::new("/proc/self/mountinfo")))?;
        let below = root.strip_prefix(&mount).map_err(|_outside| {
            failed_to("use as cgroup root, since it is not below the cgroup v2 mount,", root)(
                io::ErrorKind::InvalidInput.into(),
            )
        })?;
        let mut current = mount.clone();
        enable(&current);
        for component in below.components() {
            current.push(component);
            match fs::create_dir(&current) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed_to("create cgroup", &current)(error));
                }
                _ => enable(&current),
            }
        }
        let controllers = read_set(&current.join(DELEGATED));
        let depth = i32::try_from(below.components().count()).unwrap_or(i32::MAX);
        // Pods are one level below the root, containers two.
        Ok(Self { mount, root: current, level: depth + 2, controllers })
    }

    /// Removes the root again, if nothing is in it.
    pub fn remove(&self) -> Result<(), Error> {
        fs::remove_dir(&self.root).map_err(failed_to("remove cgroup", &self.root))
    }

    /// The directory that pods' cgroups are made in.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What a cgroup is called from the mount on, as /proc/PID/cgroup has it: `/podscope/<pod-uid>`.
    #[must_use]
    pub fn name_of(&self, cgroup: &Path) -> String {
        let below = cgroup.strip_prefix(&self.mount).unwrap_or(cgroup);
        format!("/{}", below.display())
    }

    /// Depth of containers' cgroups below the root of the hierarchy, as the probes count it.
    #[must_use]
    pub fn container_level(&self) -> i32 {
        self.level
    }

    /// Controllers that pods' cgroups have.
    #[must_use]
    pub fn controllers(&self) -> &BTreeSet<String> {
        &self.controllers
    }
}

/// The default root: `podscope` below the cgroup v2 mount.
pub fn default_root() -> io::Result<PathBuf> {
    Ok(mount_point()?.join("podscope"))
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a hybrid node.
fn mount_point() -> io::Result<PathBuf> {
    find_mount(&fs::read_to_string("/proc/self/mountinfo")?).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup2 filesystem is mounted; `mount -t cgroup2 none /sys/fs/cgroup`, or boot with systemd.unified_cgroup_hierarchy=1",
        )
    })
}

fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        (filesystem.split(' ').next()? == "cgroup2")
            .then(|| mount.split(' ').nth(4))?
            .map(PathBuf::from)
    })
}

/// Switches on for the children of `path` what is wanted, one by one: a controller that is absent
/// or bound to cgroup v1 must not keep out the others.
fn enable(path: &Path) {
    let available = read_set(&path.join("cgroup.controllers"));
    for controller in WANTED.into_iter().filter(|name| available.contains(*name)) {
        if let Err(error) = fs::write(path.join(DELEGATED), format!("+{controller}")) {
            tracing::debug!(%controller, path = %path.display(), %error, "controller cannot be enabled");
        }
    }
}

/// Switches on for the containers of the pod at `path` what the pod itself has.
pub fn enable_for_containers(path: &Path) {
    enable(path);
}

/// The words in a file; none if it is not there.
pub(super) fn read_set(path: &Path) -> BTreeSet<String> {
    fs::read_to_string(path)
        .map(|text| text.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_a_hybrid_node_is_found() {
        let mountinfo = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                         32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                         41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(mountinfo), Some(PathBuf::from("/sys/fs/cgroup/unified")));
    }
}

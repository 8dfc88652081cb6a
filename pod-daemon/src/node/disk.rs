//! How much disk pods use, and which of them use more than they may.
//!
//! Measured by walking their files, since not every file system has quotas. What a pod does to its
//! files meanwhile leads the walk nowhere else: it goes from directory to directory by descriptor,
//! and follows no links.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::PodSpec;
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, open, openat, statat},
};

use super::DiskUsage;
use crate::manifest::{
    bytes,
    demand::{Unit, container_limits, display, limits},
};

/// Directories within each other that are still looked into, each with an open file.
const MAX_DEPTH: usize = 512;

/// `st_blocks` counts these, whatever the file system.
const BLOCK: u64 = 512;

/// A limit of a pod, and the directories that count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    whose: Whose,
    limit: u64,
    directories: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Whose {
    Volume(String),
    Container(String),
    Pod,
}

/// Directories, each measured once: what is written meanwhile must not count for the pod and not
/// for its container.
#[derive(Debug, Default)]
pub(super) struct Measured(HashMap<PathBuf, Usage>);

impl Measured {
    fn of(&mut self, directory: &Path) -> Usage {
        if let Some(usage) = self.0.get(directory) {
            return *usage;
        }
        // What is not there, or no longer, uses nothing.
        let usage = measure(directory).unwrap_or_default();
        self.0.insert(directory.to_path_buf(), usage);
        usage
    }

    /// What a container has, with its pod's files in `files` and its logs in `logs`.
    pub(super) fn container(&mut self, name: &str, files: &Path, logs: &Path) -> DiskUsage {
        let [rootfs, log] = of_container(name, files, logs);
        DiskUsage { rootfs_bytes: self.of(&rootfs).bytes, log_bytes: self.of(&log).bytes }
    }
}

/// Where a container's changes to its image are, and its logs.
fn of_container(name: &str, files: &Path, logs: &Path) -> [PathBuf; 2] {
    [files.join("containers").join(name), logs.join(name)]
}

/// What is below a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    bytes: u64,
    /// There are directories that were too deep to look into.
    too_deep: bool,
}

/// The limits of a pod with its files in `files` and its logs in `logs`; most have none.
pub(super) fn budgets(spec: &PodSpec, files: &Path, logs: &Path) -> Vec<Budget> {
    let mut budgets = Vec::new();
    let mut volumes = Vec::new();
    for volume in spec.volumes.iter().flatten() {
        let Some(empty) = &volume.empty_dir else { continue };
        if empty.medium.as_deref().is_some_and(|medium| !medium.is_empty()) {
            // In memory, where the file system itself has a size.
            continue;
        }
        let directory = files.join("volumes").join(&volume.name);
        // Zero means none, as in Kubernetes.
        let limit = empty.size_limit.as_ref().and_then(|limit| bytes(limit).ok());
        if let Some(limit) = limit.filter(|limit| *limit > 0) {
            let whose = Whose::Volume(volume.name.clone());
            budgets.push(Budget { whose, limit, directories: vec![directory.clone()] });
        }
        volumes.push(directory);
    }
    let of = |name: &str| of_container(name, files, logs).to_vec();
    for container in &spec.containers {
        if let Some(limit) = container_limits(container).ephemeral_bytes {
            let whose = Whose::Container(container.name.clone());
            budgets.push(Budget { whose, limit, directories: of(&container.name) });
        }
    }
    if let Some(limit) = limits(spec).ephemeral_bytes {
        let containers = spec.containers.iter().flat_map(|container| of(&container.name));
        // What all of them share in /etc is the pod's, too.
        let directories = volumes.into_iter().chain(containers).chain([files.join("etc")]);
        let directories = directories.collect();
        budgets.push(Budget { whose: Whose::Pod, limit, directories });
    }
    budgets
}

/// What to say about the first of a pod's limits that is exceeded.
pub(super) fn violation(budgets: &[Budget], measured: &mut Measured) -> Option<String> {
    budgets.iter().find_map(|budget| {
        let mut sum = Usage::default();
        for directory in &budget.directories {
            let usage = measured.of(directory);
            sum.bytes += usage.bytes;
            sum.too_deep |= usage.too_deep;
        }
        budget.violation(sum)
    })
}

impl Budget {
    fn violation(&self, sum: Usage) -> Option<String> {
        let limit = display(self.limit, Unit::Bytes);
        let what = match &self.whose {
            Whose::Volume(name) => {
                format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\"")
            }
            Whose::Container(name) => {
                format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\"")
            }
            Whose::Pod => format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {limit}"
            ),
        };
        if sum.bytes > self.limit {
            Some(format!("{what}: {} are in use.", display(sum.bytes, Unit::Bytes)))
        } else if sum.too_deep {
            Some(format!(
                "{what}, or may: directories more than {MAX_DEPTH} deep are not measured."
            ))
        } else {
            None
        }
    }
}

/// Walks everything below `root` that is on its file system.
fn measure(root: &Path) -> io::Result<Usage> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top: OwnedFd = open(root, flags, Mode::empty())?;
    let device = fstat(&top)?.st_dev;
    let mut usage = Usage::default();
    // A file with several names is there once.
    let mut seen = HashSet::new();
    let mut path = vec![Dir::new(top)?];
    loop {
        let depth = path.len();
        let Some(directory) = path.last_mut() else { return Ok(usage) };
        let Some(entry) = directory.next() else {
            path.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let parent = directory.fd()?;
        // Gone since it was listed: it uses nothing.
        let Ok(stat) = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if stat.st_dev != device {
            continue;
        }
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_directory || stat.st_nlink == 1 || seen.insert(stat.st_ino) {
            usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK;
        }
        if !is_directory {
            continue;
        }
        if depth > MAX_DEPTH {
            usage.too_deep = true;
        } else if let Some(Ok(inner)) =
            openat(parent, name, flags, Mode::empty()).ok().map(Dir::new)
        {
            path.push(inner);
        }
    }
}

/// Why no pod may start on the file system of `data_dir`: less than `reserve` bytes of it are free.
pub(super) fn pressure(data_dir: &Path, reserve: u64) -> Option<String> {
    let disk = rustix::fs::statvfs(data_dir).ok()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    (free < reserve).then(|| {
        // In steps, so that pods that wait are not told of every change.
        let free = display(free >> 20 << 20, Unit::Bytes);
        format!("{free} of {} are free below the data directory", display(reserve, Unit::Bytes))
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use serde_json::json;

    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn files_are_counted_once_and_links_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("large"), vec![1; 8 * MIB]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::write(root.join("a/b/c/file"), vec![1; MIB]).unwrap();
        fs::hard_link(root.join("a/b/c/file"), root.join("again")).unwrap();
        symlink(outside.path(), root.join("a/link")).unwrap();
        symlink(outside.path().join("large"), root.join("large")).unwrap();
        // A hole uses nothing.
        fs::File::create(root.join("hole")).unwrap().set_len(1 << 30).unwrap();

        let usage = measure(root).unwrap();

        assert!(!usage.too_deep);
        assert!((MIB as u64..2 * MIB as u64).contains(&usage.bytes), "{usage:?}");
        assert!(measure(&root.join("large")).is_err());
    }

    #[test]
    fn what_is_too_deep_to_measure_counts_as_too_much() {
        let directory = tempfile::tempdir().unwrap();
        let mut path = directory.path().to_path_buf();
        for _ in 0..MAX_DEPTH + 2 {
            path.push("d");
            fs::create_dir(&path).unwrap();
        }
        let budget = Budget {
            whose: Whose::Pod,
            limit: u64::MAX,
            directories: vec![directory.path().to_path_buf()],
        };
        let message = violation(&[budget], &mut Measured::default()).unwrap();
        assert!(message.contains("not measured"), "{message}");
    }

    #[test]
    fn every_limit_has_its_directories() {
        let spec = json!({
            "containers": [
                {"name": "a", "resources": {"limits": {"ephemeral-storage": "1Mi"}}},
                {"name": "b", "resources": {"limits": {"ephemeral-storage": "2Mi"}}},
            ],
            "volumes": [
                {"name": "cache", "emptyDir": {"sizeLimit": "4Mi"}},
                {"name": "free", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            ],
        });
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let budgets = budgets(&spec, Path::new("/f"), Path::new("/l"));
        let found: Vec<(u64, String)> = budgets
            .iter()
            .map(|budget| {
                let names: Vec<_> =
                    budget.directories.iter().map(|path| path.display().to_string()).collect();
                (budget.limit >> 20, names.join(" "))
            })
            .collect();
        let expected = [
            (4, "/f/volumes/cache"),
            (1, "/f/containers/a /l/a"),
            (2, "/f/containers/b /l/b"),
            (
                3,
                "/f/volumes/cache /f/volumes/free /f/containers/a /l/a /f/containers/b /l/b /f/etc",
            ),
        ];
        assert_eq!(found, expected.map(|(limit, paths)| (limit, paths.to_owned())));
    }

    #[test]
    fn a_violation_names_the_volume_the_use_and_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), vec![1; 2 * MIB]).unwrap();
        let budget = |limit| Budget {
            whose: Whose::Volume("cache".to_owned()),
            limit,
            directories: vec![directory.path().to_path_buf(), PathBuf::from("/nonexistent")],
        };
        let violation = |budgets: &[Budget]| violation(budgets, &mut Measured::default());
        assert_eq!(violation(&[budget(4 << 20)]), None);
        let message = violation(&[budget(4 << 20), budget(1 << 20)]).unwrap();
        let start = "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\": ";
        assert!(message.starts_with(start), "{message}");
        assert!(message.ends_with(" are in use."), "{message}");
    }

    #[test]
    fn a_disk_with_less_than_its_reserve_is_full() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(pressure(directory.path(), 0), None);
        assert!(pressure(directory.path(), u64::MAX).is_some());
    }
}

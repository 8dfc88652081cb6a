//! The kernels of the matrix: which there are, and a cache of them outside the tree.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{
    process::exec,
    vm::{
        apt::Index,
        modules::{self, Tree},
    },
};

/// The series whose newest release is meant by that name.
pub(super) const NEWEST: &str = "newest";

/// The matrix, and whether a series must be there. The others are old or passing guests of their
/// suite, and may leave it any day.
const MATRIX: [(&str, bool); 5] =
    [("5.10", false), ("6.1", true), ("6.12", true), ("6.18", false), (NEWEST, true)];

const FLAVOUR: &str = "-cloud-amd64";

/// A kernel that can be booted.
pub(super) struct Kernel {
    pub(super) series: String,
    /// What `uname -r` says.
    pub(super) release: String,
    /// Folder of `vmlinuz`, `modules.load` and `modules/`.
    pub(super) dir: PathBuf,
}

impl Kernel {
    /// The release, with the exact version where the guest told it and the release hides it.
    pub(super) fn name(&self, results: &str) -> String {
        let version = results
            .lines()
            .find_map(|line| line.strip_prefix("KERNEL ")?.split_once(" Debian "))
            .and_then(|(_, rest)| rest.split(['-', ' ']).next());
        match version {
            Some(version) if !self.release.starts_with(version) => {
                format!("{} ({version})", self.release)
            }
            _ => self.release.clone(),
        }
    }
}

/// Finds the newest kernel of each series, all of the matrix if none is named, and downloads those
/// that the cache lacks.
pub(super) fn kernels(series: &[String], offline: bool) -> anyhow::Result<Vec<Kernel>> {
    let cache = cache_dir()?;
    fs::create_dir_all(&cache).context("create the cache")?;
    // Two commands at a time must not unpack the same kernel.
    let lock = File::create(cache.join("lock")).context("create the cache's lock")?;
    lock.lock().context("lock the cache")?;

    let index = if offline { None } else { Some(Index::open(&cache.join("apt"))?) };
    let packages = index.as_ref().map_or_else(|| Ok(Vec::new()), Index::kernel_packages)?;
    let releases = if offline { cached(&cache)? } else { releases(&packages) };

    let asked: Vec<(&str, bool)> = if series.is_empty() {
        MATRIX.to_vec()
    } else {
        series.iter().map(|name| (name.as_str(), true)).collect()
    };
    let mut kernels = Vec::new();
    for (name, required) in asked {
        let place = if offline { "in the cache" } else { "in Debian's suites" };
        match releases.iter().filter(|release| is_of(release, name)).max_by_key(|r| version(r)) {
            Some(release) => {
                let dir = cache.join(release);
                if let Some(index) = &index
                    && !modules::are_unpacked(&dir)
                {
                    fetch(index, &packages, release, &cache)?;
                }
                kernels.push(Kernel { series: name.to_owned(), release: release.clone(), dir });
            }
            None if required => bail!("kernel {name} is not {place}"),
            None => println!("vm-test: {name}: not {place}, left out"),
        }
    }
    Ok(kernels)
}

fn cache_dir() -> anyhow::Result<PathBuf> {
    let dir = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cache")))
        .context("find the home folder")?;
    Ok(dir.join("podscope/vm"))
}

/// Releases in the cache.
fn cached(cache: &Path) -> anyhow::Result<Vec<String>> {
    let mut releases = Vec::new();
    for entry in fs::read_dir(cache).context("list the cache")? {
        let name = entry.context("list the cache")?.file_name();
        let is_whole =
            |name: &String| name.ends_with(FLAVOUR) && modules::are_unpacked(&cache.join(name));
        releases.extend(name.into_string().ok().filter(is_whole));
    }
    Ok(releases)
}

/// Releases whose packages are all there.
fn releases(packages: &[String]) -> Vec<String> {
    let mut releases: Vec<_> = packages
        .iter()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|release| version(release).len() > 2)
        .filter(|release| parts(packages, release).is_some())
        .map(str::to_owned)
        .collect();
    releases.sort_by_key(|release| version(release));
    releases
}

/// The packages that make up a release. Debian split the image in three with 6.19, and the
/// modules leave the mirror first.
fn parts(packages: &[String], release: &str) -> Option<Vec<String>> {
    let is_there = |name: &String| packages.contains(name);
    let split: Vec<_> =
        ["binary", "modules", "base"].map(|part| format!("linux-{part}-{release}")).to_vec();
    if split.iter().all(is_there) {
        return Some(split);
    }
    let image = format!("linux-image-{release}");
    (!is_there(&split[0]) && is_there(&image)).then(|| vec![image])
}

fn is_of(release: &str, series: &str) -> bool {
    series == NEWEST
        || release.strip_prefix(series).is_some_and(|rest| rest.starts_with(['.', '-', '+']))
}

/// All numbers of a release, by which it sorts.
fn version(release: &str) -> Vec<u64> {
    release
        .trim_end_matches(FLAVOUR)
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Downloads and unpacks a kernel. What is in the cache under its name is complete.
fn fetch(index: &Index, packages: &[String], release: &str, cache: &Path) -> anyhow::Result<()> {
    println!("vm-fetch: downloading {release}");
    let parts = parts(packages, release).context("find the kernel's packages")?;
    let work = cache.join("unpacking");
    if work.exists() {
        fs::remove_dir_all(&work).context("remove what an earlier download left")?;
    }
    let [debs, tree, done] = ["debs", "tree", "done"].map(|name| work.join(name));
    for dir in [&debs, &tree, &done] {
        fs::create_dir_all(dir).context("create a folder to unpack in")?;
    }

    index.download(&parts, &debs)?;
    for deb in fs::read_dir(&debs).context("list the packages")? {
        let deb = deb.context("list the packages")?.path();
        exec(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(&tree))?;
    }

    let in_modules = tree.join(format!("usr/lib/modules/{release}/vmlinuz"));
    let in_boot = tree.join(format!("boot/vmlinuz-{release}"));
    let vmlinuz = if in_modules.exists() { in_modules } else { in_boot };
    fs::copy(vmlinuz, done.join("vmlinuz")).context("copy the kernel")?;
    Tree::find(&tree)?.unpack_wanted(&done)?;

    let place = cache.join(release);
    if place.exists() {
        fs::remove_dir_all(&place).context("remove a kernel with other modules")?;
    }
    fs::rename(&done, place).context("put the kernel into the cache")?;
    fs::remove_dir_all(&work).context("remove the unpacked packages")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_release_of_a_series_has_all_its_packages() {
        let names = [
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-0.deb11.52-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-image-7.1.8+deb13-cloud-amd64",
            "linux-binary-7.1.8+deb13-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
            "linux-base-7.3.4+deb13-cloud-amd64",
        ];
        let names = names.map(str::to_owned);
        let releases = releases(&names);

        let newest = |series| releases.iter().rfind(|release| is_of(release, series));
        assert_eq!(newest("6.1").expect("6.1"), "6.1.0-56-cloud-amd64");
        assert_eq!(newest(NEWEST).expect("newest"), "7.3.4+deb13-cloud-amd64");
        assert!(newest("7.1").is_none());
    }
}

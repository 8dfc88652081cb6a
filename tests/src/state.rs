//! What is on the node that a daemon could leave behind.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{program, seconds};

/// Prefix of the tests' cgroups.
pub const CGROUP: &str = "podscope-test-";

/// The node at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Our children, zombies among them.
    pub children: BTreeSet<String>,
    /// Mounts of our mount namespace.
    pub mounts: BTreeSet<String>,
    /// The tests' cgroups, and those below them.
    pub cgroups: BTreeSet<PathBuf>,
    /// Network interfaces of our network namespace.
    pub links: BTreeSet<String>,
    /// Tables of nftables.
    pub tables: BTreeSet<String>,
    /// What is pinned in the BPF file system.
    pub pins: BTreeSet<PathBuf>,
}

/// An ext4 file system on a disk, for the tests alone, where there is one.
#[must_use]
pub fn disk() -> Option<PathBuf> {
    std::env::var_os("PODSCOPE_DISK").map(PathBuf::from)
}

impl State {
    /// Looks around.
    #[must_use]
    pub fn capture() -> Self {
        let mut cgroups = BTreeSet::new();
        // Others may test on the same machine.
        let own = format!("{CGROUP}{}-", std::process::id());
        for entry in entries(&cgroup_mount()) {
            if entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&own)) {
                walk(&entry, &mut cgroups);
            }
        }
        cgroups.retain(|path| path.is_dir());
        let mut pins = BTreeSet::new();
        walk(Path::new("/sys/fs/bpf"), &mut pins);
        Self {
            children: children(),
            mounts: mounts(),
            cgroups,
            links: links(),
            tables: tables(),
            pins,
        }
    }

    /// Takes the node back to this state, as far as a daemon below the cgroup `root` can have changed
    /// it, without complaint.
    pub fn restore(&self, root: &Path) {
        remove_cgroups(root);
        let now = Self::capture();
        for link in now.links.difference(&self.links) {
            drop(Command::new("ip").args(["link", "delete", link]).output());
        }
        for table in now.tables.difference(&self.tables) {
            let words = table.split_whitespace();
            drop(Command::new("nft").arg("delete").args(words).output());
        }
        // The innermost first.
        let new: Vec<_> = now.mounts.difference(&self.mounts).collect();
        for mount in new.iter().rev() {
            let path = mount.split_whitespace().nth(2).unwrap_or_default();
            umount2(path, MntFlags::MNT_DETACH).ok();
        }
    }

    /// Checks that what is there now was there before.
    ///
    /// # Panics
    /// When there is more, or less.
    #[track_caller]
    pub fn assert_same(&self, before: &Self) {
        assert_eq!(self.children, before.children, "processes are left behind");
        assert_eq!(self.mounts, before.mounts, "mounts are left behind");
        assert_eq!(self.cgroups, before.cgroups, "cgroups are left behind");
        assert_eq!(self.links, before.links, "network interfaces are left behind");
        assert_eq!(self.tables, before.tables, "nftables tables are left behind");
        assert_eq!(self.pins, before.pins, "BPF pins are left behind");
    }
}

/// Where cgroup v2 is mounted.
///
/// # Panics
/// When it is not.
#[must_use]
pub fn cgroup_mount() -> PathBuf {
    let mounts = read("/proc/self/mountinfo");
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let place = line.and_then(|line| line.split_whitespace().nth(4));
    PathBuf::from(place.expect("cgroup v2 is mounted"))
}

/// Whether a path is on a tmpfs.
#[must_use]
pub fn is_tmpfs(path: &Path) -> bool {
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == TMPFS_MAGIC)
}

/// The host's end of a pod's interface.
#[must_use]
pub fn host_end(pod: &serde_json::Value) -> String {
    let uid = pod["metadata"]["uid"].as_str().expect("a pod that runs has a uid");
    let digits: String = uid.chars().filter(char::is_ascii_hexdigit).take(11).collect();
    format!("veth{digits}")
}

/// What of an interface's bytes and packets the probes' own do not explain, if anything. They begin at
/// the IP header; beside them are only what the kernels say among themselves: requests for hardware
/// addresses, of 42 bytes or padded to 60, and IPv6's, of up to 130.
#[must_use]
pub fn unexplained((bytes, packets): (u64, u64), seen: (u64, u64)) -> Option<String> {
    let others = seen.1.checked_sub(packets);
    let rest = seen.0.checked_sub(bytes + 14 * packets);
    let explained = others.zip(rest).is_some_and(|(others, rest)| {
        let arp = (0..=others).any(|padded| 42 * others + 18 * padded == rest);
        others <= 30 && (arp || (42 * others..=130 * others).contains(&rest))
    });
    let (seen_bytes, seen_packets) = seen;
    (!explained).then(|| {
        format!("{bytes} bytes in {packets} packets, interface {seen_bytes} in {seen_packets}")
    })
}

/// Received and sent `(bytes, packets)` of a network interface of the host.
///
/// # Panics
/// When there is no such interface.
#[must_use]
pub fn interface(name: &str) -> [(u64, u64); 2] {
    let table = read("/proc/self/net/dev");
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}:")));
    let line = line.unwrap_or_else(|| panic!("no interface {name} in\n{table}"));
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    [(numbers[0], numbers[1]), (numbers[8], numbers[9])]
}

/// Every process that is in one of the cgroups below `root`.
#[must_use]
pub fn processes_below(root: &Path) -> Vec<i32> {
    let mut paths = BTreeSet::new();
    walk(root, &mut paths);
    let lists = paths.iter().filter(|path| path.ends_with("cgroup.procs"));
    lists.flat_map(|path| pids(path)).collect()
}

/// The processes that a `cgroup.procs` names, the oldest first. 0 stands for one that is reaped this
/// moment.
#[must_use]
pub fn pids(list: &Path) -> Vec<i32> {
    let text = fs::read_to_string(list).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

/// What a process has open, without the numbers that differ each time.
#[must_use]
pub fn open_files(pid: i32) -> Vec<String> {
    let mut files: Vec<String> = entries(Path::new(&format!("/proc/{pid}/fd")))
        .iter()
        .filter_map(|entry| fs::read_link(entry).ok())
        .map(|target| {
            let target = target.to_string_lossy();
            target.split(":[").next().unwrap_or_default().to_owned()
        })
        .collect();
    files.sort();
    files
}

/// Everything below a directory, with itself.
pub fn walk(path: &Path, found: &mut BTreeSet<PathBuf>) {
    found.insert(path.to_path_buf());
    if path.is_dir() && !path.is_symlink() {
        for entry in entries(path) {
            walk(&entry, found);
        }
    }
}

/// What is in a directory; nothing if it is not there.
#[must_use]
pub fn entries(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn children() -> BTreeSet<String> {
    let own = std::process::id().to_string();
    let stats = entries(Path::new("/proc")).into_iter().map(|entry| entry.join("stat"));
    stats
        .filter_map(|path| fs::read_to_string(path).ok())
        .filter(|stat| {
            let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            after_name.split_whitespace().nth(1) == Some(&*own)
        })
        .map(|stat| stat.split_inclusive(')').next().unwrap_or_default().to_owned())
        .collect()
}

fn mounts() -> BTreeSet<String> {
    let table = read("/proc/self/mountinfo");
    // The ids and the options may change without a mount being more or less.
    let place = |line: &str| line.split_whitespace().skip(2).take(3).collect::<Vec<_>>().join(" ");
    table.lines().map(place).collect()
}

fn links() -> BTreeSet<String> {
    let table = read("/proc/self/net/dev");
    table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

fn tables() -> BTreeSet<String> {
    let Some(nft) = program::find("nft") else { return BTreeSet::new() };
    let output = program::run(Command::new(nft).args(["list", "tables"]), seconds(10));
    output.stdout.lines().map(str::to_owned).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Kills what is in the cgroups below `root`, and removes them.
fn remove_cgroups(root: &Path) {
    for _ in 0..200 {
        for pid in processes_below(root) {
            // It may be gone by now.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        let mut paths = BTreeSet::new();
        walk(root, &mut paths);
        for path in paths.iter().rev().filter(|path| path.is_dir()) {
            fs::remove_dir(path).ok();
        }
        if !root.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

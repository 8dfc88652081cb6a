//! The runtimes that Podscope is compared with: `crun` and `runc`, on the same root file system.
//!
//! A sample is the wall time of a whole command, from its start to its end, because a new process
//! per operation is how these runtimes work. Their configuration is what `crun spec` writes, less
//! what the development machine does not grant: no rlimits, no device rules, no cgroup mount.

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::resource::{Resource, getrlimit},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Runs before the measured ones, which fill the caches.
const WARM_UP: usize = 3;

/// Kubernetes' usual set.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Times `n` whole lives of a container: `crun run` of `/bin/true`.
pub(crate) fn crun_run(rootfs: &Path, n: usize) -> anyhow::Result<Vec<Duration>> {
    with_pure_cgroup2(|| Runtime::new("crun", rootfs, &["/bin/true"])?.run(n))
}

/// Times `n` whole lives of a container: `runc run` of `/bin/true`.
pub(crate) fn runc_run(rootfs: &Path, n: usize) -> anyhow::Result<Vec<Duration>> {
    Runtime::new("runc", rootfs, &["/bin/true"])?.run(n)
}

/// Times `n` times `crun exec` of `/bin/true` in a container that is running already.
pub(crate) fn crun_exec(rootfs: &Path, n: usize) -> anyhow::Result<Vec<Duration>> {
    with_pure_cgroup2(|| Runtime::new("crun", rootfs, &["/bin/sleep", "86400"])?.exec(n))
}

/// A runtime with one bundle; its container is removed when this is dropped.
struct Runtime {
    program: &'static str,
    /// The bundle and the runtime's own state.
    directory: TempDir,
    id: String,
}

impl Runtime {
    fn new(program: &'static str, rootfs: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("make a bundle")?;
        let rootfs = rootfs.canonicalize().context("find the root file system")?;
        let id = format!("podscope-bench-{}", std::process::id());
        let config = config(&rootfs, &id, args);
        fs::write(directory.path().join("config.json"), config.to_string())
            .context("write config.json")?;
        Ok(Self { program, directory, id })
    }

    fn run(&self, n: usize) -> anyhow::Result<Vec<Duration>> {
        let bundle = self.directory.path().as_os_str();
        let id = OsStr::new(&self.id);
        sample(n, || self.command([OsStr::new("run"), OsStr::new("--bundle"), bundle, id]))
    }

    fn exec(&self, n: usize) -> anyhow::Result<Vec<Duration>> {
        let bundle = self.directory.path().as_os_str();
        let id = OsStr::new(&self.id);
        let detached = ["run", "--detach", "--bundle"].map(OsStr::new);
        timed(&mut self.command(detached.into_iter().chain([bundle, id])))?;
        sample(n, || self.command([OsStr::new("exec"), id, OsStr::new("/bin/true")]))
    }

    fn command<'a>(&self, args: impl IntoIterator<Item = &'a OsStr>) -> Command {
        let mut command = Command::new(self.program);
        command.arg("--root").arg(self.directory.path().join("state")).args(args);
        // Not a pipe: a detached container would keep it open.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let mut delete = self.command(["delete", "--force", &self.id].map(OsStr::new));
        // Complains when the container is gone already, as it should be after `run`.
        drop(delete.stderr(Stdio::null()).status());
    }
}

fn sample(n: usize, mut command: impl FnMut() -> Command) -> anyhow::Result<Vec<Duration>> {
    for _ in 0..WARM_UP {
        timed(&mut command())?;
    }
    (0..n).map(|_| timed(&mut command())).collect()
}

fn timed(command: &mut Command) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    let elapsed = start.elapsed();
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(elapsed)
}

/// Starts `n` containers with podman, `width` at a time: without network and cgroups of their own, which
/// this machine does not let it have, so it has less to do than for a pod.
pub(crate) fn podman_run(rootfs: &Path, n: usize, width: usize) -> anyhow::Result<Duration> {
    let state = tempfile::tempdir().context("make a directory for podman")?;
    let limits = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of open files")?;
    let podman = |args: &[&str]| {
        let mut command = Command::new("podman");
        command.arg("--root").arg(state.path().join("root"));
        command.arg("--runroot").arg(state.path().join("run"));
        command.args([
            "--cgroup-manager=cgroupfs",
            "--storage-driver=vfs",
            "--events-backend=none",
        ]);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
        command
    };
    let files = format!("--ulimit=nofile={}:{}", limits.0.min(1024), limits.1);
    let run = || {
        let mut command =
            podman(&["run", "--detach", "--rm", "--network=none", "--cgroups=disabled"]);
        command.args([&*files, "--ulimit=nproc=1024:1024", "--rootfs"]).arg(rootfs);
        timed(command.args(["/bin/sleep", "86400"]))
    };
    with_pure_cgroup2(|| {
        run().context("run podman once")?;
        let began = Instant::now();
        let results: Vec<_> = thread::scope(|scope| {
            let work = || (0..n / width).map(|_| run()).collect::<Vec<_>>();
            let threads: Vec<_> = (0..width).map(|_| scope.spawn(work)).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
        });
        let took = began.elapsed();
        let ended = timed(&mut podman(&["kill", "--all"]));
        // The containers remove themselves; their storage goes when they are gone.
        let deadline = Instant::now() + Duration::from_secs(20);
        while timed(&mut podman(&["rm", "--all", "--force"])).is_err() && Instant::now() < deadline
        {
            thread::sleep(Duration::from_millis(200));
        }
        results.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        ended?;
        Ok(took)
    })
}

/// Runs `body` where /sys/fs/cgroup is cgroup v2 and nothing else: crun refuses hybrid hierarchies.
fn with_pure_cgroup2<T: Send>(
    body: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    // A thread of its own, because mount namespaces are per thread. Children inherit its.
    let in_thread = || {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .context("make mounts private")?;
        mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none)
            .context("mount cgroup2")?;
        body()
    };
    thread::scope(|scope| scope.spawn(in_thread).join().expect("the thread does not panic"))
}

fn config(rootfs: &Path, id: &str, args: &[&str]) -> Value {
    let namespaces = ["pid", "mount", "uts", "ipc", "network", "cgroup"];
    let mounts = [
        ("/proc", "proc", "nosuid,noexec,nodev"),
        ("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        ("/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("/dev/shm", "tmpfs", "nosuid,noexec,nodev,mode=1777,size=65536k"),
        ("/dev/mqueue", "mqueue", "nosuid,noexec,nodev"),
        ("/sys", "sysfs", "nosuid,noexec,nodev,ro"),
    ];
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "noNewPrivileges": true,
        },
        "root": { "path": rootfs },
        "hostname": "bench",
        "mounts": mounts.map(|(destination, kind, options)| json!({
            "destination": destination,
            "type": kind,
            "source": kind,
            "options": options.split(',').collect::<Vec<_>>(),
        })),
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "namespaces": namespaces.map(|kind| json!({ "type": kind })),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
                "/sys/firmware",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}

//! A daemon that disturbs no other: started in directories of its own, and removed without a trace.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    http::{Client, Response},
    metrics::Metrics,
    process::{succeeds, wait_until},
    stop,
};

const PROGRAM: &str = "pod-daemon";

/// What the kernel tells CPU time in: its `USER_HZ` is 100 wherever Podscope runs.
const MILLISECONDS_PER_TICK: u64 = 10;

/// How long the daemon may take to be ready, and to be gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running daemon; when this is dropped, it and all that it made are removed.
pub(crate) struct Daemon {
    bin_dir: PathBuf,
    directory: TempDir,
    child: Child,
    arguments: Vec<OsString>,
    cgroup_root: PathBuf,
    network: Ipv4Addr,
    /// The bridge, once it is known; the name of the nftables table ends in the same digits.
    bridge: Option<String>,
    metrics: SocketAddr,
    stopped: bool,
}

impl Daemon {
    /// Starts the daemon of `bin_dir` with these flags and waits until it is ready.
    ///
    /// `name` tells its directories from others'.
    pub(crate) fn start(bin_dir: &Path, name: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix(&format!("podscope-{name}-"))
            .tempdir()
            .context("make a directory for the daemon")?;
        let path = |part: &str| directory.path().join(part);
        let cgroup_root =
            cgroup2_mount()?.join(directory.path().file_name().expect("it has a name"));
        let network = free_network()?;
        let metrics = free_port(9464)?;

        let mut command = Command::new(bin_dir.join(PROGRAM));
        command.arg("--data-dir").arg(path("data")).arg("--run-dir").arg(path("run"));
        command.arg("--bpffs-dir").arg(path("bpf"));
        command.arg("--log-dir").arg(path("log")).arg("--cgroup-root").arg(&cgroup_root);
        command.arg(format!("--network={network}/16")).arg(format!("--metrics-address={metrics}"));
        command.args(["--unenforced-limits=warn", "--stop-seconds=2", "--on-stop=end"]).args(flags);
        let log = File::create(path("daemon.log")).context("create the daemon's log")?;
        command.stdout(log.try_clone().context("copy the log's handle")?).stderr(log);
        let arguments = command.get_args().map(OsStr::to_owned).collect();
        let child = spawn(&mut command)?;
        let mut daemon = Self {
            arguments,
            bin_dir: bin_dir.to_owned(),
            directory,
            child,
            cgroup_root,
            network,
            bridge: None,
            metrics,
            stopped: false,
        };
        daemon.wait_until_ready()?;
        daemon.bridge = daemon.find_bridge()?;
        Ok(daemon)
    }

    /// Where its directories are; others may put theirs beside them.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory().join("run/api.sock")
    }

    pub(crate) fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    pub(crate) fn scrape(&self) -> anyhow::Result<Metrics> {
        Metrics::scrape(self.metrics)
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .context("read the daemon's status")?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
            .context("find the daemon's memory")?;
        Ok(kilobytes.parse::<u64>().context("read the daemon's memory")? * 1024)
    }

    /// CPU time that it has used so far.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        cpu_time(self.child.id())
    }

    /// podctl, told where the daemon is.
    pub(crate) fn podctl(&self) -> Command {
        let mut podctl = Command::new(self.podctl_path());
        podctl.arg("--socket").arg(self.socket());
        podctl
    }

    pub(crate) fn podctl_path(&self) -> PathBuf {
        self.bin_dir.join("podctl")
    }

    /// What the daemon said last.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read_to_string(self.directory().join("daemon.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Ends the daemon as a crash does and starts it again; returns how long it takes from then until it
    /// answers.
    pub(crate) fn crash(&mut self) -> anyhow::Result<Duration> {
        self.child.kill().and_then(|()| self.child.wait()).context("kill the daemon")?;
        let log = File::options()
            .append(true)
            .open(self.directory().join("daemon.log"))
            .context("open the daemon's log")?;
        let mut command = Command::new(self.bin_dir.join(PROGRAM));
        command.args(&self.arguments);
        command.stdout(log.try_clone().context("copy the log's handle")?).stderr(log);
        let began = Instant::now();
        self.child = spawn(&mut command)?;
        let deadline = began + PATIENCE;
        while !self.is_ready() {
            ensure!(Instant::now() < deadline, "no answer of the daemon:\n{}", self.last_words());
            thread::sleep(Duration::from_millis(1));
        }
        Ok(began.elapsed())
    }

    /// Whether it serves both the API and the metrics.
    fn is_ready(&self) -> bool {
        let is_good = |answer: anyhow::Result<Response>| answer.is_ok_and(|it| it.status == 200);
        let api = || Client::unix(&self.socket())?.request("GET", "/readyz", "");
        let metrics = || Client::tcp(self.metrics)?.request("GET", "/readyz", "");
        is_good(api()) && is_good(metrics())
    }

    /// Where its pods' cgroups are.
    pub(crate) fn cgroup_root(&self) -> &Path {
        &self.cgroup_root
    }

    /// Stops the daemon, removes its directories, and makes sure that nothing is left.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).is_err()
            || TcpStream::connect(self.metrics).is_err()
        {
            stop::check()?;
            if let Some(status) = self.child.try_wait().context("wait for the daemon")? {
                bail!("the daemon did not start ({status}):\n{}", self.last_words());
            }
            ensure!(Instant::now() < deadline, "no answer of the daemon:\n{}", self.last_words());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.stopped = true;
        let ended = terminate(&mut self.child, "the daemon");
        if self.bridge.is_none() {
            self.bridge = self.find_bridge()?;
        }
        let left = self.left_over();
        if !left.is_empty() {
            self.sweep();
        }
        let removed = fs::remove_dir_all(self.directory()).context("remove the directories");
        ended?;
        ensure!(left.is_empty(), "the daemon left behind (now removed): {}", left.join(", "));
        removed
    }

    fn find_bridge(&self) -> anyhow::Result<Option<String>> {
        let ours = routes()?.into_iter().find(|route| route.destination == self.network);
        Ok(ours.map(|route| route.interface))
    }

    fn table(&self) -> Option<String> {
        let instance = self.bridge.as_ref()?.rsplit('-').next()?;
        Some(format!("podscope_{instance}"))
    }

    /// What is still there of what the daemon made outside its directories.
    fn left_over(&self) -> Vec<String> {
        let mut left = Vec::new();
        if self.cgroup_root.exists() {
            left.push(format!("cgroup {}", self.cgroup_root.display()));
        }
        let links = Path::new("/sys/class/net");
        left.extend(
            self.bridge
                .iter()
                .filter(|link| links.join(link).exists())
                .map(|it| format!("link {it}")),
        );
        let tables = Command::new("nft").args(["list", "tables"]).output();
        let tables = tables.map(|list| String::from_utf8_lossy(&list.stdout).into_owned());
        left.extend(
            self.table()
                .filter(|table| tables.is_ok_and(|list| list.contains(table)))
                .map(|table| format!("nftables table {table}")),
        );
        let directory = self.directory().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        left.extend(
            mounts.filter(|point| point.starts_with(&directory)).map(|at| format!("mount {at}")),
        );
        left
    }

    /// Does what a daemon that died could not do any more.
    fn sweep(&self) {
        drop(fs::write(self.cgroup_root.join("cgroup.kill"), "1"));
        let deadline = Instant::now() + Duration::from_secs(2);
        while remove_cgroup(&self.cgroup_root).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        if let Some(bridge) = &self.bridge {
            succeeds(Command::new("ip").args(["link", "delete", bridge]));
        }
        if let Some(table) = self.table() {
            succeeds(Command::new("nft").args(["delete", "table", "ip", &table]));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.stopped
            && let Err(error) = self.end()
        {
            eprintln!("xtask: {error:#}");
        }
    }
}

/// Removes a cgroup and those below it.
fn remove_cgroup(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// CPU time that a process has used so far.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/stat")).context("read a process's CPU time")?;
    // Behind the name, which may hold anything.
    let (_, rest) = text.rsplit_once(')').context("find the end of a process's name")?;
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<_, _>>().context("read a process's CPU time")?;
    Ok(Duration::from_millis(ticks * MILLISECONDS_PER_TICK))
}

/// Starts a program that Ctrl-C does not reach, but that does not outlive this one either.
pub(crate) fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    command.stdin(Stdio::null()).process_group(0);
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
    unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGTERM).map_err(io::Error::from)) };
    command.spawn().with_context(|| format!("start {}", command.get_program().display()))
}

/// Asks a program to end and waits until it has.
pub(crate) fn terminate(child: &mut Child, name: &str) -> anyhow::Result<()> {
    let pid = Pid::from_raw(child.id().try_into().context("read a pid")?);
    if child.try_wait().with_context(|| format!("wait for {name}"))?.is_none() {
        kill(pid, Signal::SIGTERM).with_context(|| format!("stop {name}"))?;
    }
    let status = wait_until(child, Instant::now() + PATIENCE);
    let status = status.with_context(|| format!("wait for {name}"))?;
    let status = status.with_context(|| format!("{name} did not stop and was killed"))?;
    ensure!(status.success(), "{name} ended with {status}");
    Ok(())
}

/// The wanted port of 127.0.0.1, or another if it is taken.
pub(crate) fn free_port(wanted: u16) -> anyhow::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, wanted))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .and_then(|listener| listener.local_addr())
        .context("find a free port")
}

/// One line of the routing table.
struct Route {
    interface: String,
    destination: Ipv4Addr,
    mask: u32,
}

/// A /16 that no route leads to, but for the default route.
fn free_network() -> anyhow::Result<Ipv4Addr> {
    let routes = routes()?;
    let is_free = |network: &Ipv4Addr| {
        let (from, to) = (network.to_bits(), network.to_bits() | 0xffff);
        routes.iter().filter(|route| route.mask != 0).all(|route| {
            let start = route.destination.to_bits();
            to < start || start | !route.mask < from
        })
    };
    (78..255)
        .map(|second| Ipv4Addr::new(10, second, 0, 0))
        .find(is_free)
        .context("find a network range that no route leads to")
}

fn routes() -> anyhow::Result<Vec<Route>> {
    // Numbers are in network byte order, and printed as if they were in the host's.
    let number = |hex: &str| u32::from_str_radix(hex, 16).map(u32::from_be).ok();
    let table = fs::read_to_string("/proc/net/route").context("read the routes")?;
    Ok(table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            Some(Route {
                interface: (*fields.first()?).to_owned(),
                destination: Ipv4Addr::from_bits(number(fields.get(1)?)?),
                mask: number(fields.get(7)?)?,
            })
        })
        .collect())
}

fn cgroup2_mount() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
        .context("find where cgroup2 is mounted")
}

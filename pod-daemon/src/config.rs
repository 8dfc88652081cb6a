//! The daemon's settings: flags, a file with the same keys, and defaults.

mod checks;

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;
use ipnet::Ipv4Net;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;

use crate::{
    image::{Registries, Registry, Thresholds},
    manifest::{QuantityError, Unsupported, bytes, millicores},
    metrics::Hold,
    node::{Reserve, USAGE_INTERVAL, UnenforcedLimits},
    pod::logs::Limits,
    probes::{LogLevel, Switch, Timing},
};

/// Runs pods and sees everything they do.
#[derive(Debug, Default, Parser)]
#[command(name = "pod-daemon", version)]
pub struct Flags {
    /// File with the same settings, as TOML with the flags' names
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// What can be set, wherever it is set.
#[derive(Clone, Debug, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Settings {
    /// Images and pods' files [default: /var/lib/podscope]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The API socket, and what does not outlive a reboot [default: /run/podscope]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Containers' logs [default: /var/log/pods]
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Podscope's part of the cgroup v2 tree [default: podscope, below the cgroup2 mount]
    #[arg(long, value_name = "DIR")]
    cgroup_root: Option<PathBuf>,
    /// Where probes and counters outlive the daemon: a folder on a bpf filesystem, or to mount one on
    /// [default: /sys/fs/bpf/podscope]
    #[arg(long, value_name = "DIR")]
    bpffs_dir: Option<PathBuf>,
    /// IPv4 range of the pods [default: 10.77.0.0/16]
    #[arg(long, value_name = "CIDR")]
    network: Option<Ipv4Net>,
    /// Connections that a pod may begin and have at a time, 0 for any number [default: a quarter of
    /// `nf_conntrack_max`]
    #[arg(long, value_name = "COUNT")]
    pod_connections: Option<u32>,
    /// Where /metrics is served [default: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDR")]
    metrics_address: Option<SocketAddr>,
    /// Seconds that the series of a deleted pod stay, at least until the next scrape; 0 for not at all
    /// [default: 300]
    #[arg(long, value_name = "SECONDS")]
    hold_seconds: Option<u64>,
    /// The most series that pods have on /metrics, 0 for any number; what exceeds it is added up
    /// [default: 1500000]
    #[arg(long, value_name = "COUNT")]
    max_series: Option<usize>,
    /// This node's name [default: the hostname]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// First of the user ids that pods with `hostUsers: false` have on this node, 65536 each; must
    /// be a multiple of 65536 [default: 524288]
    #[arg(long, value_name = "ID")]
    first_user_id: Option<u32>,
    /// Pods whose limits this node cannot enforce [default: deny]
    #[arg(long, value_enum, value_name = "WHAT")]
    unenforced_limits: Option<UnenforcedLimits>,
    /// Fields of manifests that Podscope does not support [default: deny]
    #[arg(long, value_enum, value_name = "WHAT")]
    unsupported_fields: Option<Policy>,
    /// What the eBPF probes log [default: off]
    #[arg(long, value_enum, value_name = "LEVEL")]
    probe_log: Option<LogLevel>,
    /// A program that does next to nothing, to compare the cost of the probes with [default: off]
    #[arg(long, value_enum, value_name = "WHAT")]
    probe_floor: Option<Switch>,
    /// How long containers' threads wait for a CPU, and who has it meanwhile; costs something at every
    /// switch of tasks [default: off]
    #[arg(long, value_enum, value_name = "WHAT")]
    probe_runqueue: Option<Switch>,
    /// Share of all CPUs that optional probes may take before they are switched off; 0 is any
    /// [default: 1]
    #[arg(long, value_name = "PERCENT")]
    probe_budget: Option<f64>,
    /// When the kernel measures how long the probes run, which takes as long as many of them
    /// [default: sampled]
    #[arg(long, value_enum, value_name = "WHEN")]
    probe_timing: Option<Timing>,
    /// Milliseconds before a container's second restart; doubles up to thirty times as much
    /// [default: 10000]
    #[arg(long, value_name = "MS")]
    restart_backoff_ms: Option<u64>,
    /// CPU that is not for pods, like 500m [default: 0]
    #[arg(long, value_name = "CPU")]
    reserve_cpu: Option<String>,
    /// Memory that is not for pods, like 1Gi [default: 100Mi]
    #[arg(long, value_name = "BYTES")]
    reserve_memory: Option<String>,
    /// Processes and threads that are not for pods [default: 1024]
    #[arg(long, value_name = "COUNT")]
    reserve_pids: Option<String>,
    /// Disk below the data directory that is to stay free [default: 5 % of it, at most 1Gi]
    #[arg(long, value_name = "BYTES")]
    reserve_disk: Option<String>,
    /// Seconds between two measurements of pods' use of the disk [default: 10]
    #[arg(long, value_name = "SECONDS")]
    disk_usage_seconds: Option<u32>,
    /// Bytes that a log file may have before it is put aside [default: 10485760]
    #[arg(long, value_name = "BYTES")]
    log_max_bytes: Option<u64>,
    /// Log files that are kept of each run of a container [default: 5]
    #[arg(long, value_name = "COUNT")]
    log_max_files: Option<usize>,
    /// What becomes of the pods when the daemon is told to stop [default: keep]
    #[arg(long, value_enum, value_name = "WHAT")]
    on_stop: Option<OnStop>,
    /// Seconds that pods get if they end with the daemon [default: 10]
    #[arg(long, value_name = "SECONDS")]
    stop_seconds: Option<u32>,
    /// Credentials for registries, as docker and podman have them [default: where these have theirs]
    #[arg(long, value_name = "FILE")]
    registry_auth_file: Option<PathBuf>,
    /// Milliseconds before an image that could not be pulled is tried again; doubles up to thirty
    /// times as much [default: 10000]
    #[arg(long, value_name = "MS")]
    image_pull_backoff_ms: Option<u64>,
    /// How full the disk with the images may get before unused ones go [default: 85]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_high_percent: Option<u8>,
    /// How full the disk with the images may stay then [default: 80]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_low_percent: Option<u8>,
    /// How long an image that no pod uses stays in any case [default: 120]
    #[arg(long, value_name = "SECONDS")]
    image_gc_minimum_age_seconds: Option<u64>,
    /// How often the disk with the images is looked at [default: 300]
    #[arg(long, value_name = "SECONDS")]
    image_gc_interval_seconds: Option<u64>,
    /// Registries that need more than their name; in the file only.
    #[arg(skip)]
    registry: Vec<Registry>,
}

/// What becomes of the pods when the daemon is told to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStop {
    /// They run on, and the next daemon takes them over.
    #[default]
    Keep,
    /// They are ended and removed, and so is everything else that the daemon has made.
    End,
}

/// Reads an amount as a manifest has it.
type Parse = fn(&Quantity) -> Result<u64, QuantityError>;

/// What happens to something that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Policy {
    /// An error.
    Deny,
    /// A warning.
    Warn,
}

/// Validated settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Images and pods' files.
    pub data_dir: PathBuf,
    /// The API socket, and what does not outlive a reboot.
    pub run_dir: PathBuf,
    /// Containers' logs.
    pub log_dir: PathBuf,
    /// Podscope's part of the cgroup v2 tree.
    pub cgroup_root: PathBuf,
    /// Where probes and counters outlive the daemon.
    pub bpffs_dir: PathBuf,
    /// IPv4 range of the pods.
    pub network: Ipv4Net,
    /// Connections that a pod may begin and have at a time; 0 is any number, `None` a share of the
    /// node's.
    pub pod_connections: Option<u32>,
    /// Where /metrics is served.
    pub metrics_address: SocketAddr,
    /// How long the series of deleted pods stay, and how many there may be of pods.
    pub hold: Hold,
    /// This node's name.
    pub node_name: String,
    /// First of the user ids of pods that have their own.
    pub first_user_id: u32,
    /// Pods whose limits this node cannot enforce.
    pub unenforced_limits: UnenforcedLimits,
    /// Fields of manifests that Podscope does not support.
    pub unsupported_fields: Unsupported,
    /// What the eBPF probes log.
    pub probe_log: LogLevel,
    /// A program to compare the cost of the probes with.
    pub probe_floor: Switch,
    /// Whether waits for a CPU are counted.
    pub probe_runqueue: Switch,
    /// Share of all CPUs that optional probes may take together; 0 is any.
    pub probe_budget: f64,
    /// When the kernel measures how long the probes run.
    pub probe_timing: Timing,
    /// Pause before a container's second restart.
    pub restart_backoff: Duration,
    /// What of the node is not for pods.
    pub reserve: Reserve,
    /// How often pods' use of the disk is measured.
    pub usage_interval: Duration,
    /// How long containers' logs may become.
    pub log_limits: Limits,
    /// What becomes of the pods when the daemon is told to stop.
    pub on_stop: OnStop,
    /// Seconds that pods get if they end with the daemon.
    pub stop_seconds: u32,
    /// How registries are reached.
    pub registries: Registries,
    /// Pause after a pull that failed.
    pub image_pull_backoff: Duration,
    /// When unused images go.
    pub image_thresholds: Thresholds,
    /// How often to look whether they should.
    pub image_gc_interval: Duration,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("failed to read the config file `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("config file `{}` is not valid", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A setting is out of range.
    #[error("{setting}: {problem}")]
    Value {
        /// Its name.
        setting: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// There is no cgroup v2.
    #[error("failed to find the cgroup v2 mount")]
    Cgroup(#[source] io::Error),
}

/// The run directory of a daemon that is not told otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/podscope";

impl Flags {
    /// Puts flags, file and defaults together; flags win.
    pub fn into_config(self) -> Result<Config, Error> {
        let file = match &self.config {
            Some(path) => read(path)?,
            None => Settings::default(),
        };
        self.settings.or(file).validate()
    }
}

fn read(path: &Path) -> Result<Settings, Error> {
    let text = fs::read_to_string(path)
        .map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    toml::from_str(&text)
        .map_err(|source| Error::Parse { path: path.to_path_buf(), source: Box::new(source) })
}

impl Settings {
    fn or(self, other: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(other.data_dir),
            run_dir: self.run_dir.or(other.run_dir),
            log_dir: self.log_dir.or(other.log_dir),
            cgroup_root: self.cgroup_root.or(other.cgroup_root),
            bpffs_dir: self.bpffs_dir.or(other.bpffs_dir),
            network: self.network.or(other.network),
            pod_connections: self.pod_connections.or(other.pod_connections),
            metrics_address: self.metrics_address.or(other.metrics_address),
            hold_seconds: self.hold_seconds.or(other.hold_seconds),
            max_series: self.max_series.or(other.max_series),
            node_name: self.node_name.or(other.node_name),
            first_user_id: self.first_user_id.or(other.first_user_id),
            unenforced_limits: self.unenforced_limits.or(other.unenforced_limits),
            unsupported_fields: self.unsupported_fields.or(other.unsupported_fields),
            probe_log: self.probe_log.or(other.probe_log),
            probe_floor: self.probe_floor.or(other.probe_floor),
            probe_runqueue: self.probe_runqueue.or(other.probe_runqueue),
            probe_budget: self.probe_budget.or(other.probe_budget),
            probe_timing: self.probe_timing.or(other.probe_timing),
            restart_backoff_ms: self.restart_backoff_ms.or(other.restart_backoff_ms),
            log_max_bytes: self.log_max_bytes.or(other.log_max_bytes),
            log_max_files: self.log_max_files.or(other.log_max_files),
            on_stop: self.on_stop.or(other.on_stop),
            reserve_cpu: self.reserve_cpu.or(other.reserve_cpu),
            reserve_memory: self.reserve_memory.or(other.reserve_memory),
            reserve_pids: self.reserve_pids.or(other.reserve_pids),
            reserve_disk: self.reserve_disk.or(other.reserve_disk),
            disk_usage_seconds: self.disk_usage_seconds.or(other.disk_usage_seconds),
            stop_seconds: self.stop_seconds.or(other.stop_seconds),
            registry_auth_file: self.registry_auth_file.or(other.registry_auth_file),
            image_pull_backoff_ms: self.image_pull_backoff_ms.or(other.image_pull_backoff_ms),
            image_gc_high_percent: self.image_gc_high_percent.or(other.image_gc_high_percent),
            image_gc_low_percent: self.image_gc_low_percent.or(other.image_gc_low_percent),
            image_gc_minimum_age_seconds: self
                .image_gc_minimum_age_seconds
                .or(other.image_gc_minimum_age_seconds),
            image_gc_interval_seconds: self
                .image_gc_interval_seconds
                .or(other.image_gc_interval_seconds),
            registry: other.registry,
        }
    }

    fn validate(self) -> Result<Config, Error> {
        let (registries, image_thresholds) = (self.registries()?, self.thresholds()?);
        let hold = self.hold()?;
        let network = self
            .network
            .unwrap_or_else(|| Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 77, 0, 0), 16));
        if network.prefix_len() > 29 {
            return Err(Error::Value {
                setting: "network",
                problem: format!("{network} has no room for pods; use a /29 or larger"),
            });
        }
        let amount = |setting, text: Option<&String>, parse: Parse| {
            let parsed = text.map(|text| parse(&Quantity(text.clone()))).transpose();
            parsed.map_err(|error| Error::Value { setting, problem: error.to_string() })
        };
        let usual = Reserve::default();
        let reserve = Reserve {
            cpu_millicores: amount("reserve-cpu", self.reserve_cpu.as_ref(), millicores)?
                .unwrap_or(usual.cpu_millicores),
            memory_bytes: amount("reserve-memory", self.reserve_memory.as_ref(), bytes)?
                .unwrap_or(usual.memory_bytes),
            pids: amount("reserve-pids", self.reserve_pids.as_ref(), bytes)?.unwrap_or(usual.pids),
            disk_bytes: amount("reserve-disk", self.reserve_disk.as_ref(), bytes)?,
        };
        let absolute = |setting: &'static str, path: Option<PathBuf>, default: &str| {
            let path = path.unwrap_or_else(|| PathBuf::from(default));
            if path.is_absolute() {
                Ok(path)
            } else {
                Err(Error::Value {
                    setting,
                    problem: format!("`{}` is not absolute", path.display()),
                })
            }
        };
        let first_user_id = self.first_user_id.unwrap_or(524_288);
        if first_user_id == 0 || !first_user_id.is_multiple_of(65_536) {
            return Err(Error::Value {
                setting: "first-user-id",
                problem: format!("{first_user_id} is not a multiple of 65536 above 0"),
            });
        }
        let cgroup_root = match self.cgroup_root {
            Some(root) => absolute("cgroup-root", Some(root), "")?,
            None => crate::cgroup::hierarchy::default_root().map_err(Error::Cgroup)?,
        };
        let hostname = || {
            nix::unistd::gethostname()
                .map_or_else(|_| "localhost".to_owned(), |name| name.to_string_lossy().into_owned())
        };
        let log_limits = Limits {
            file_bytes: self.log_max_bytes.unwrap_or(10 << 20),
            files: self.log_max_files.unwrap_or(5),
        };
        if log_limits.file_bytes < 4096 || log_limits.files < 2 {
            return Err(Error::Value {
                setting: "log-max-bytes, log-max-files",
                problem: "a log needs 2 files of 4096 bytes at least".to_owned(),
            });
        }
        let probe_budget = self.probe_budget.unwrap_or(1.0);
        if !(0.0..=100.0).contains(&probe_budget) {
            return Err(Error::Value {
                setting: "probe-budget",
                problem: format!("{probe_budget} is not between 0 and 100"),
            });
        }
        let run_dir = absolute("run-dir", self.run_dir, DEFAULT_RUN_DIR)?;
        let bpffs_dir = match instance(&run_dir) {
            name if name.is_empty() => "/sys/fs/bpf/podscope".to_owned(),
            name => format!("/sys/fs/bpf/podscope-{name}"),
        };
        let gc_interval = self.image_gc_interval_seconds.unwrap_or(300).max(1);
        Ok(Config {
            data_dir: absolute("data-dir", self.data_dir, "/var/lib/podscope")?,
            bpffs_dir: absolute("bpffs-dir", self.bpffs_dir, &bpffs_dir)?,
            run_dir,
            log_dir: absolute("log-dir", self.log_dir, "/var/log/pods")?,
            cgroup_root,
            network: network.trunc(),
            pod_connections: self.pod_connections,
            metrics_address: self
                .metrics_address
                .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9464))),
            hold,
            node_name: self.node_name.unwrap_or_else(hostname),
            first_user_id,
            unenforced_limits: self.unenforced_limits.unwrap_or_default(),
            unsupported_fields: match self.unsupported_fields {
                Some(Policy::Warn) => Unsupported::Warn,
                Some(Policy::Deny) | None => Unsupported::Deny,
            },
            probe_log: self.probe_log.unwrap_or_default(),
            probe_floor: self.probe_floor.unwrap_or_default(),
            probe_runqueue: self.probe_runqueue.unwrap_or_default(),
            probe_budget: probe_budget / 100.0,
            probe_timing: self.probe_timing.unwrap_or_default(),
            restart_backoff: Duration::from_millis(self.restart_backoff_ms.unwrap_or(10_000)),
            log_limits,
            on_stop: self.on_stop.unwrap_or_default(),
            reserve,
            usage_interval: self
                .disk_usage_seconds
                .map_or(USAGE_INTERVAL, |seconds| Duration::from_secs(seconds.max(1).into())),
            stop_seconds: self.stop_seconds.unwrap_or(10),
            registries,
            image_pull_backoff: Duration::from_millis(self.image_pull_backoff_ms.unwrap_or(10_000)),
            image_thresholds,
            image_gc_interval: Duration::from_secs(gc_interval),
        })
    }
}

impl Config {
    /// What tells this daemon's names from another's on the same node: empty with the default run
    /// directory, else eight digits of a hash of it.
    #[must_use]
    pub fn instance(&self) -> String {
        instance(&self.run_dir)
    }
}

fn instance(run_dir: &Path) -> String {
    if run_dir == Path::new(DEFAULT_RUN_DIR) {
        return String::new();
    }
    use sha2::{Digest as _, Sha256};
    use std::os::unix::ffi::OsStrExt as _;
    let hash = Sha256::digest(run_dir.as_os_str().as_bytes());
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;

//! The eBPF probes: loading them, giving containers their counters, reading what they counted.
//!
//! The only module that knows aya. The daemon owns every key: it inserts a container's keys before
//! its first process exists and deletes them after the last one is gone; the probes only add.

mod addresses;
pub mod btf;
mod container;
mod counters;
mod drops;
mod events;
mod governor;
mod install;
mod meter;
mod pins;
mod plan;
mod sys;

use std::{
    fs, io,
    net::Ipv4Addr,
    num::NonZero,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use aya::{
    maps::{CgroupStorageKey, Map, MapData},
    programs::ProgramInfo,
};
use aya_log::EbpfLogger;
use ipnet::Ipv4Net;

#[cfg(feature = "fuzzing")]
pub(crate) use self::install::Installed;
pub use self::{
    container::{Claim, ContainerProbe},
    counters::Batches,
    drops::Drops,
    events::{EventReader, Record, TraceLink},
    governor::{Governed, GovernedProbe},
    meter::Timing,
    plan::{ProbeStatus, UNSEEN},
};
use self::{
    counters::Counters, governor::Governor, install::Installation, meter::Meter, pins::Pins,
    sys::AttachType,
};
use crate::cgroup::Cgroup;

/// What is attached to each container's cgroup.
const CONTAINER_PROGRAMS: [(&str, AttachType); 3] = [
    ("net_ingress", AttachType::Ingress),
    ("net_egress", AttachType::Egress),
    ("tcp", AttachType::SockOps),
];

/// Beginning of the names of the links of the device policy.
const DEVICES: &str = "devices-";

/// How much the probes themselves log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing: the logging code is not even part of the running programs.
    #[default]
    Off,
    /// What should not happen.
    Warn,
    /// Every exec and exit of a pod.
    Debug,
}

/// Whether something runs that need not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// It does not.
    #[default]
    Off,
    /// It does.
    On,
}

/// Where and how the probes are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// Where they outlive the daemon: a folder on a bpf filesystem, or to mount one on.
    pub bpffs: &'a Path,
    /// The run directory.
    pub run: &'a Path,
    /// Depth of containers' cgroups below the root of the hierarchy.
    pub container_level: i32,
    /// The pods' network, and the node's address in it.
    pub pods: (Ipv4Net, Ipv4Addr),
    /// How much they log.
    pub log: LogLevel,
    /// Whether there is one to compare the others' cost with, as `podscope_bpf_program_*{program="floor"}`.
    pub floor: Switch,
    /// Whether waits for a CPU are counted.
    pub runqueue: Switch,
    /// Share of all CPUs that optional probes may take together; 0 is any.
    pub budget: f64,
    /// When the kernel measures how long they run.
    pub timing: Timing,
}

/// The loaded probes of this node.
pub struct Probes {
    pins: Pins,
    id: String,
    counters: Arc<Counters>,
    status: RwLock<Vec<ProbeStatus>>,
    origin: Origin,
    /// Where the next daemon finds the status.
    record: PathBuf,
    governor: Mutex<Governor>,
    meter: Meter,
}

/// What this daemon found of an earlier one's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing.
    New,
    /// The very same object: it runs on.
    Adopted,
    /// Another object with maps of the same layout: the programs are new, the counters go on.
    Migrated,
    /// Maps of another layout: the counters begin at zero.
    Replaced,
}

impl Origin {
    /// The value of the `origin` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Adopted => "adopted",
            Self::Migrated => "migrated",
            Self::Replaced => "replaced",
        }
    }
}

/// The probes cannot be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's types are not known.
    #[error("failed to resolve the fields that the probes read")]
    Btf(#[from] btf::Error),
    /// The kernel's types as aya reads them.
    #[error("failed to read the kernel's BTF")]
    KernelBtf(#[source] aya::BtfError),
    /// The object does not load.
    #[error("failed to load the eBPF object")]
    Load(#[source] aya::EbpfError),
    /// A program that pods cannot go without does not attach.
    #[error("failed to attach the `{program}` probe")]
    Attach {
        /// The program.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Something cannot be kept on the bpf filesystem.
    #[error("failed to {action} `{}`", path.display())]
    Pin {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A map operation failed.
    #[error("failed to {action}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: aya::maps::MapError,
    },
    /// All slots are taken.
    #[error("no room for another {what}: the probes count {capacity} at a time")]
    Full {
        /// Containers or volumes.
        what: &'static str,
        /// How many fit.
        capacity: u32,
    },
    /// The number of CPUs is not known.
    #[error("failed to count the CPUs")]
    Cpus(#[source] io::Error),
    /// Events cannot be read.
    #[error("failed to read the probes' events")]
    Events(#[source] io::Error),
    /// What a trace needs cannot be attached.
    #[error("failed to attach the program that tells of opened files")]
    Trace(#[source] io::Error),
    /// The log of the probes cannot be read.
    #[error("failed to read the probes' log")]
    Log(#[source] io::Error),
}

/// What a program cost so far.
#[derive(Clone, Debug)]
pub struct ProgramCost {
    /// Its name.
    pub program: String,
    /// How often it ran, by the kernel's own statistics or samples of them.
    pub runs: u64,
    /// How long it ran, in seconds, likewise.
    pub seconds: f64,
    /// How often it did not run, since it was running on that CPU already: where tasks are preempted
    /// at any time, one may be within it while another comes (counted since Linux 5.12).
    pub missed: u64,
}

/// How full a map is.
#[derive(Clone, Debug)]
pub struct MapFill {
    /// Its name.
    pub map: &'static str,
    /// Keys in use.
    pub entries: u64,
    /// Keys that fit.
    pub capacity: u64,
}

impl Probes {
    /// Takes over what an earlier daemon has left running, or loads the object and attaches what
    /// is attached once per node.
    pub fn open(settings: &Settings<'_>) -> Result<Self, Error> {
        let Installation { pins, id, status, origin, record } = install::take_over(settings)?;
        let programs = pins.programs(&id);
        if settings.log != LogLevel::Off {
            forward_log(&programs.join("exec"))?;
        }
        let meter = Meter::open(&programs, settings.timing).map_err(|source| Error::Pin {
            action: "open a program below",
            path: programs,
            source,
        })?;
        let counters = Arc::new(Counters::open(&pins.maps())?);
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        let governor = Mutex::new(Governor::new(settings.budget, cpus as f64));
        let status = RwLock::new(status);
        Ok(Self { pins, id, counters, status, origin, record, governor, meter })
    }

    /// What is attached how, and what is not.
    #[must_use]
    pub fn status(&self) -> Vec<ProbeStatus> {
        self.status.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a probe is attached.
    fn runs(&self, probe: &str) -> bool {
        let status = self.status.read().unwrap_or_else(PoisonError::into_inner);
        status.iter().any(|status| status.probe == probe && status.is_attached())
    }

    /// What this daemon found of an earlier one's probes.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Makes a place for what is attached to a pod's cgroups; or takes over the one that an earlier
    /// daemon has made.
    pub fn prepare_pod(&self, uid: &str) -> Result<(), Error> {
        let folder = self.pins.pod(uid);
        fs::create_dir_all(&folder).map_err(|source| Error::Pin {
            action: "make",
            path: folder.clone(),
            source,
        })?;
        if self.origin == Origin::Replaced {
            // A link that changes its program keeps its storage, which is of a map that is given up.
            // But of the devices none may be open meanwhile, and that program has no storage.
            let is_policy = |path: &Path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DEVICES))
            };
            for path in pins::entries(&folder).filter(|path| !is_policy(path)) {
                pins::remove_link(&path);
            }
        }
        Ok(())
    }

    /// Lets the processes of a pod's cgroup `name` use the usual devices only. Before there is any
    /// process in it: what is open stays open.
    pub fn guard_devices(&self, uid: &str, name: &str, cgroup: &Cgroup) -> Result<(), Error> {
        let path = self.pins.pod(uid).join(format!("{DEVICES}{name}"));
        self.attach(&path, "devices", AttachType::Device, cgroup).map(drop)
    }

    /// Detaches everything from a pod's cgroups.
    pub fn detach_pod(&self, uid: &str) {
        pins::remove(&self.pins.pod(uid));
    }

    /// Gives a container a slot and a cell per volume, and attaches what is attached per container.
    /// Its cgroup must have no processes yet.
    pub fn add_container(
        &self,
        (uid, name): (&str, &str),
        cgroup: &Cgroup,
        volumes: &[String],
    ) -> Result<ContainerProbe, Error> {
        let (slot, cells) = self.counters.allocate(volumes.len())?;
        let probe = self.probe(cgroup, Claim { slot, cells }, volumes, Vec::new());
        let attached = self
            .counters
            .set_pod(slot, uid)
            .and_then(|()| self.counters.insert_slot(cgroup.id(), slot))
            .and_then(|()| self.attach_container(uid, name, cgroup, slot));
        match attached {
            Ok(()) => Ok(probe),
            Err(error) => {
                probe.release();
                Err(error)
            }
        }
    }

    /// Takes over the counters and links of a container of an earlier daemon.
    pub fn adopt_container(
        &self,
        (uid, name): (&str, &str),
        cgroup: &Cgroup,
        volumes: &[String],
        claim: Claim,
    ) -> Result<ContainerProbe, Error> {
        let slot = claim.slot;
        let mounts = self.counters.claim(cgroup.id(), slot, &claim.cells)?;
        self.counters.set_pod(slot, uid)?;
        self.attach_container(uid, name, cgroup, slot)?;
        Ok(self.probe(cgroup, claim, volumes, mounts))
    }

    fn probe(
        &self,
        cgroup: &Cgroup,
        claim: Claim,
        volumes: &[String],
        mounts: Vec<u32>,
    ) -> ContainerProbe {
        let volumes = volumes.iter().map(|volume| volume.as_str().into()).zip(claim.cells);
        ContainerProbe {
            counters: Arc::clone(&self.counters),
            cgroup_id: cgroup.id(),
            slot: claim.slot,
            volumes: volumes.chain([("other".into(), claim.slot)]).collect(),
            mounts: Mutex::new(mounts),
            network: Mutex::default(),
        }
    }

    fn attach_container(
        &self,
        uid: &str,
        name: &str,
        cgroup: &Cgroup,
        slot: u32,
    ) -> Result<(), Error> {
        for (program, attach_type) in CONTAINER_PROGRAMS {
            let path = self.pins.pod(uid).join(format!("{program}-{name}"));
            if self.attach(&path, program, attach_type, cgroup)? {
                let key = CgroupStorageKey::new(cgroup.id(), attach_type as u32);
                self.counters.set_attachment_slot(key, slot)?;
            }
        }
        Ok(())
    }

    /// Attaches a program, if it is loaded, and keeps the link at `path`; a link that is there
    /// already is made to run this program. Returns whether there is a link.
    fn attach(
        &self,
        path: &Path,
        program: &'static str,
        attach_type: AttachType,
        cgroup: &Cgroup,
    ) -> Result<bool, Error> {
        let failed = |source| Error::Attach { program, source };
        let loaded = match sys::get(&self.pins.programs(&self.id).join(program)) {
            Ok(loaded) => loaded,
            // It is off, as the status says.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        match sys::get(path) {
            Ok(_) if self.origin == Origin::Adopted => {}
            Ok(link) => sys::update(link.as_fd(), loaded.as_fd()).map_err(failed)?,
            Err(_absent) => {
                let link =
                    sys::attach(loaded.as_fd(), cgroup.as_fd(), attach_type).map_err(failed)?;
                sys::pin(link.as_fd(), path).map_err(failed)?;
            }
        }
        Ok(true)
    }

    /// Forgets what belongs to no pod of `living`, once all of those have been taken over.
    pub fn sweep(&self, living: &[&str]) {
        self.counters.forget_unclaimed();
        self.pins.remove_pods_but(living);
        self.pins.remove_others(&self.id);
    }

    /// Unloads the probes for good.
    pub fn remove(&self) {
        self.pins.remove();
    }

    /// What every program cost so far; with [`Timing::Sampled`], since this daemon began.
    #[must_use]
    pub fn costs(&self) -> Vec<ProgramCost> {
        self.meter.costs()
    }

    /// Measures the programs and keeps the optional ones within their budget, for ever.
    pub async fn measure(&self) {
        loop {
            self.govern();
            self.meter.pass().await;
        }
    }
}

impl std::ops::Deref for Probes {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.counters
    }
}

/// Forwards what the probes log to `tracing`, which takes over the `log` crate's records.
fn forward_log(program: &Path) -> Result<(), Error> {
    let logger = ProgramInfo::from_pin(program)
        .map_err(|error| error.to_string())
        .and_then(|info| EbpfLogger::init_from_id(info.id()).map_err(|error| error.to_string()));
    let logger = match logger {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!(%error, "the probes cannot log");
            return Ok(());
        }
    };
    // SAFETY: the logger owns its map's descriptor, and flushing neither closes nor replaces it.
    let mut logger = unsafe {
        tokio::io::unix::AsyncFd::register_with_interest(logger, tokio::io::Interest::READABLE)
    }
    .map_err(|error| Error::Log(error.into_parts().1))?;
    tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
    Ok(())
}

/// Opens the pinned map `name`.
fn open<T: TryFrom<Map, Error = aya::maps::MapError>>(
    folder: &Path,
    name: &'static str,
    kind: fn(MapData) -> Map,
) -> Result<T, Error> {
    MapData::from_pin(folder.join(name))
        .map(kind)
        .and_then(T::try_from)
        .map_err(|source| Error::Map { action: "open a map of the probes", source })
}

type Data = MapData;

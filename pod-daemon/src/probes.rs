//! The eBPF probes: loading them, giving containers their counters, reading what they counted.
//!
//! The only module that knows aya. The daemon owns every key: it inserts a container's keys before
//! its first process exists and deletes them after the last one is gone; the probes only add.

pub mod btf;
mod counters;
mod plan;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{CgroupStorageKey, Map, MapData},
    programs::{CgroupAttachMode, CgroupDevice, CgroupSkb, CgroupSkbAttachType, Program, SockOps},
    sys::Stats,
};
use aya_log::EbpfLogger;
use pod_ebpf::file::Volume;

use self::counters::Counters;
pub use self::plan::ProbeStatus;
use crate::cgroup::Cgroup;

/// The object, built by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes"));

/// `BPF_CGROUP_SOCK_OPS` of `enum bpf_attach_type`.
const SOCK_OPS_ATTACH_TYPE: u32 = 3;

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

/// Whether a program that does next to nothing runs beside the probes, to compare their cost with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Floor {
    /// It does not.
    #[default]
    Off,
    /// It does, as `podscope_bpf_program_*{program="floor"}`.
    On,
}

/// The loaded probes of this node.
pub struct Probes {
    ebpf: Mutex<Ebpf>,
    counters: Arc<Counters>,
    status: Vec<ProbeStatus>,
    /// Keeps the kernel's accounting of programs' run time switched on.
    _statistics: Option<OwnedFd>,
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
    /// A program that pods cannot go without does not load or attach.
    #[error("failed to attach the `{program}` probe")]
    Attach {
        /// The program.
        program: &'static str,
        /// Why not.
        source: aya::programs::ProgramError,
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
    /// The log of the probes cannot be read.
    #[error("failed to read the probes' log")]
    Log(#[source] io::Error),
}

/// What a program cost so far.
#[derive(Clone, Debug)]
pub struct ProgramCost {
    /// Its name.
    pub program: String,
    /// How often it ran.
    pub runs: u64,
    /// How long it ran, in seconds, by the kernel's own statistics.
    pub seconds: f64,
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

/// The links of one pod: dropping it detaches the pod's programs.
#[derive(Debug)]
pub struct PodLinks {
    _links: Vec<aya::programs::cgroup_skb::CgroupSkbLink>,
    _devices: Option<aya::programs::cgroup_device::CgroupDeviceLink>,
}

/// One container's counters, kept for as long as its pod exists.
pub struct ContainerProbe {
    counters: Arc<Counters>,
    cgroup_id: u64,
    slot: u32,
    /// Volume names and cells, `rootfs` first.
    volumes: Vec<(String, u32)>,
    mounts: Mutex<Vec<u32>>,
    _link: Option<aya::programs::sock_ops::SockOpsLink>,
}

impl Probes {
    /// Loads the object and attaches what is attached once per node.
    ///
    /// `container_level` is the depth of containers' cgroups below the root of the hierarchy.
    pub fn load(container_level: i32, log: LogLevel, floor: Floor) -> Result<Self, Error> {
        let kernel = btf::Btf::from_kernel()?;
        let offsets = btf::offsets(&kernel)?;
        let btf = aya::Btf::from_sys_fs().map_err(Error::KernelBtf)?;
        let log_level: u8 = match log {
            LogLevel::Off => 0,
            LogLevel::Warn => aya_log::Level::Warn as u8,
            LogLevel::Debug => aya_log::Level::Debug as u8,
        };
        let mut ebpf = EbpfLoader::new()
            .btf(&btf)
            .override_global("CONTAINER_LEVEL", &container_level, true)
            .override_global("OFFSETS", &offsets, true)
            .override_global(aya_log::LEVEL, &log_level, true)
            .load(OBJECT)
            .map_err(Error::Load)?;
        let mut status = plan::attach(&mut ebpf, &kernel, &btf);
        if floor == Floor::On {
            status.push(plan::attach_floor(&mut ebpf, &btf));
        }
        for probe in status.iter().filter(|probe| probe.mode == plan::OFF) {
            tracing::warn!(probe = probe.probe, reason = %probe.reason, "probe is off");
        }
        if log != LogLevel::Off {
            forward_log(&mut ebpf)?;
        }
        let statistics = aya::sys::enable_stats(Stats::RunTime)
            .inspect_err(
                |error| tracing::warn!(%error, "the cost of the probes cannot be measured"),
            )
            .ok();
        let counters = Arc::new(Counters::take(&mut ebpf)?);
        Ok(Self { ebpf: Mutex::new(ebpf), counters, status, _statistics: statistics })
    }

    /// What is attached how, and what is not.
    #[must_use]
    pub fn status(&self) -> Vec<ProbeStatus> {
        self.status.clone()
    }

    /// Attaches the network programs and the device policy to a pod's cgroup, before there is any
    /// process in it.
    pub fn attach_pod(&self, cgroup: &Cgroup) -> Result<PodLinks, Error> {
        let mut ebpf = self.ebpf();
        let mut links = Vec::new();
        for (name, attach_type) in [
            ("net_ingress", CgroupSkbAttachType::Ingress),
            ("net_egress", CgroupSkbAttachType::Egress),
        ] {
            let Some(program) = loaded::<CgroupSkb>(&mut ebpf, name) else { continue };
            // Links are always multi-attach; any other mode than `Single` becomes a link flag that
            // the kernel refuses.
            let link = program
                .attach(cgroup, attach_type, CgroupAttachMode::Single)
                .and_then(|id| program.take_link(id))
                .map_err(|source| Error::Attach { program: name, source })?;
            links.push(link);
        }
        let mut devices = None;
        if let Some(program) = loaded::<CgroupDevice>(&mut ebpf, "devices") {
            let link = program
                .attach(cgroup, CgroupAttachMode::Single)
                .and_then(|id| program.take_link(id))
                .map_err(|source| Error::Attach { program: "devices", source })?;
            devices = Some(link);
        }
        Ok(PodLinks { _links: links, _devices: devices })
    }

    /// Gives a container a slot and a cell per volume, and attaches what is attached per container.
    /// Its cgroup must have no processes yet.
    pub fn add_container(
        &self,
        cgroup: &Cgroup,
        volumes: &[String],
    ) -> Result<ContainerProbe, Error> {
        let (slot, cells) = self.counters.allocate(volumes.len())?;
        let mut probe = ContainerProbe {
            counters: Arc::clone(&self.counters),
            cgroup_id: cgroup.id(),
            slot,
            volumes: volumes.iter().cloned().zip(cells).collect(),
            mounts: Mutex::new(Vec::new()),
            _link: None,
        };
        self.counters.insert_slot(cgroup.id(), slot)?;
        let mut ebpf = self.ebpf();
        if let Some(program) = loaded::<SockOps>(&mut ebpf, "tcp") {
            let link = program
                .attach(cgroup, CgroupAttachMode::Single)
                .and_then(|id| program.take_link(id))
                .map_err(|source| Error::Attach { program: "tcp", source })?;
            probe._link = Some(link);
            let key = CgroupStorageKey::new(cgroup.id(), SOCK_OPS_ATTACH_TYPE);
            self.counters.set_attachment_slot(key, slot)?;
        }
        Ok(probe)
    }

    fn ebpf(&self) -> MutexGuard<'_, Ebpf> {
        self.ebpf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What every program cost so far.
    #[must_use]
    pub fn costs(&self) -> Vec<ProgramCost> {
        let ebpf = self.ebpf();
        let mut costs: Vec<_> = ebpf
            .programs()
            .filter_map(|(name, program)| {
                let info = program.info().ok()?;
                Some(ProgramCost {
                    program: name.to_owned(),
                    runs: info.run_count(),
                    seconds: info.run_time().as_secs_f64(),
                })
            })
            .collect();
        costs.sort_by(|a, b| a.program.cmp(&b.program));
        costs
    }
}

impl std::ops::Deref for Probes {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.counters
    }
}

impl ContainerProbe {
    /// The slot of this container's counters.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Volumes and the cells of their counters: those given at the start, then `other` for
    /// everything that is read or written elsewhere.
    #[must_use]
    pub fn volumes(&self) -> Vec<(String, u32)> {
        let mut volumes = self.volumes.clone();
        volumes.push(("other".to_owned(), self.slot));
        volumes
    }

    /// Tells the probes which mounts the container's volumes are, in the order of the volumes; a
    /// volume may be mounted more than once. The mounts of an earlier run are forgotten.
    pub fn set_mounts(&self, mounts: &[(usize, u32)]) -> Result<(), Error> {
        let mut current = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        self.counters.remove_mounts(&current);
        current.clear();
        for (volume, mount_id) in mounts {
            let Some((_, cell)) = self.volumes.get(*volume) else { continue };
            self.counters.insert_mount(*mount_id, Volume { slot: self.slot, cell: *cell })?;
            current.push(*mount_id);
        }
        Ok(())
    }
}

impl Drop for ContainerProbe {
    fn drop(&mut self) {
        let mounts = self.mounts.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.counters.remove_mounts(mounts);
        let cells: Vec<u32> = self.volumes.iter().map(|(_, cell)| *cell).collect();
        self.counters.release(self.cgroup_id, self.slot, &cells);
    }
}

/// The program `name` if it is loaded.
fn loaded<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Option<&'a mut T>
where
    &'a mut T: TryFrom<&'a mut Program>,
{
    let program = ebpf.program_mut(name)?;
    program.fd().is_ok().then_some(())?;
    program.try_into().ok()
}

/// Forwards what the probes log to `tracing`, which takes over the `log` crate's records.
fn forward_log(ebpf: &mut Ebpf) -> Result<(), Error> {
    let logger = match EbpfLogger::init(ebpf) {
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

/// Takes the map `name` out of the object.
fn take<T: TryFrom<Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, Error> {
    ebpf.take_map(name)
        .ok_or_else(|| aya::maps::MapError::InvalidName { name: name.to_owned() })
        .and_then(T::try_from)
        .map_err(|source| Error::Map { action: "find a map of the probes", source })
}

type Data = MapData;

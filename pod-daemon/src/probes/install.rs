//! Loading the object, or finding that an earlier daemon has: what is attached once per node.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use aya::EbpfLoader;
use rustix::{
    param::page_size,
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Error, LogLevel, Origin, ProbeStatus, Settings, Switch, btf, counters, drops,
    pins::Pins,
    plan::{self, Attachment},
};

/// The object, built by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes"));

/// In the run directory: how the probes were attached.
const INSTALLED: &str = "probes.json";

/// The object that runs on this node.
pub(super) struct Installation {
    pub(super) pins: Pins,
    /// What tells it from another one.
    pub(super) id: String,
    pub(super) status: Vec<ProbeStatus>,
    pub(super) origin: Origin,
    /// Where the next daemon learns of all that.
    pub(super) record: PathBuf,
}

/// What a daemon leaves to the next one.
#[derive(Deserialize, Serialize)]
pub(crate) struct Installed {
    id: String,
    status: Vec<ProbeStatus>,
}

impl Installed {
    pub(crate) fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }
}

/// Takes over what an earlier daemon has left running, or loads the object.
pub(super) fn take_over(settings: &Settings<'_>) -> Result<Installation, Error> {
    let pins = Pins::open(settings.bpffs)?;
    let id = object_id(settings);
    let record = settings.run.join(INSTALLED);
    let earlier = fs::read(&record).ok();
    let earlier = earlier.and_then(|text| Installed::parse(&text).ok());
    let (status, origin) = match earlier.filter(|earlier| earlier.id == id) {
        Some(earlier) if pins.object(&id).is_dir() => (earlier.status, Origin::Adopted),
        _ => {
            let origin = match pins.earlier_maps() {
                (true, _) => Origin::Migrated,
                (false, true) => Origin::Replaced,
                (false, false) => Origin::New,
            };
            fs::remove_file(&record).ok();
            let status = install(settings, &pins, &id)?;
            save(&record, &id, &status)?;
            (status, origin)
        }
    };
    for probe in status.iter().filter(|probe| probe.mode == plan::OFF) {
        tracing::warn!(probe = %probe.probe, reason = %probe.reason, "probe is off");
    }
    Ok(Installation { pins, id, status, origin, record })
}

/// Leaves to the next daemon how the object `id` is attached.
pub(super) fn save(record: &Path, id: &str, status: &[ProbeStatus]) -> Result<(), Error> {
    let installed = Installed { id: id.to_owned(), status: status.to_vec() };
    serde_json::to_vec(&installed)
        .map_err(io::Error::from)
        .and_then(|text| fs::write(record, text))
        .map_err(|source| Error::Pin { action: "write", path: record.to_path_buf(), source })
}

/// Loads the object with the maps that are there, and attaches what is attached once per node in
/// place of what another object has attached.
fn install(settings: &Settings<'_>, pins: &Pins, id: &str) -> Result<Vec<ProbeStatus>, Error> {
    let kernel = btf::Btf::from_kernel()?;
    let offsets = btf::offsets(&kernel)?;
    pins.make_object(id)?;
    let btf = aya::Btf::from_sys_fs().map_err(Error::KernelBtf)?;
    let log_level: u8 = match settings.log {
        LogLevel::Off => 0,
        LogLevel::Warn => aya_log::Level::Warn as u8,
        LogLevel::Debug => aya_log::Level::Debug as u8,
    };
    let (network, gateway) = settings.pods;
    let since_boot = clock_gettime(ClockId::Boottime);
    let loaded_at =
        since_boot.tv_sec.cast_unsigned() * 1_000_000_000 + since_boot.tv_nsec.cast_unsigned();
    let no_room = drops::reason(&kernel, "SOCKET_RCVBUFF")?;
    let no_memory = drops::reason(&kernel, "PROTO_MEM")?;
    let mut loader = EbpfLoader::new();
    for name in counters::NAMES {
        loader.map_pin_path(name, pins.maps().join(name));
    }
    let mut ebpf = loader
        .btf(&btf)
        .override_global("CONTAINER_LEVEL", &settings.container_level, true)
        .override_global("LOADED_AT", &loaded_at, true)
        .override_global("PAGE_SHIFT", &page_size().trailing_zeros(), true)
        .override_global("OFFSETS", &offsets, true)
        .override_global("POD_NETWORK", &word(network.network()), true)
        .override_global("POD_MASK", &word(network.netmask()), true)
        .override_global("POD_GATEWAY", &word(gateway), true)
        .override_global("DROP_NO_ROOM", &no_room, true)
        .override_global("DROP_NO_MEMORY", &no_memory, true)
        .override_global(aya_log::LEVEL, &log_level, true)
        .load(OBJECT)
        .map_err(Error::Load)?;
    let mut attachment =
        Attachment { ebpf: &mut ebpf, kernel: &kernel, btf: &btf, offsets: &offsets, pins, id };
    let mut status = attachment.attach();
    let wanted: &[&str] = if settings.runqueue == Switch::On { &["runqueue"] } else { &[] };
    status.extend(attachment.attach_optional(wanted));
    if settings.floor == Switch::On {
        status.push(attachment.attach_floor());
    }
    attachment.pin_programs()?;
    Ok(status)
}

/// An address as it stands in packets.
fn word(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// What tells one object from another: the code, and what it was told at the start. Of the kernel it
/// was told, too, but a pin never sees another one.
fn object_id(settings: &Settings<'_>) -> String {
    let mut hash = Sha256::new();
    hash.update(OBJECT);
    // With another budget, what the last one has switched off is worth another try.
    let Settings { container_level, pods, log, floor, runqueue, budget, .. } = settings;
    hash.update(format!("{container_level} {pods:?} {log:?} {floor:?} {runqueue:?} {budget}"));
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

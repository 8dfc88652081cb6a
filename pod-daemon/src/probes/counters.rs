//! The maps: which slots and cells are taken, and what the probes counted in them.

use std::{
    collections::{HashMap as Table, HashSet},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
};

use aya::{
    maps::{Array, CgroupStorageKey, HashMap, MapError, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use pod_ebpf::{
    MAX_SLOTS, NO_SLOT,
    file::{FILE_CELLS, FileStats, MAX_VOLUMES, Volume},
    lost::Lost,
    net::NetStats,
    process::{ProcessStats, Run, Victim},
    tcp::{AttachmentSlot, TcpStats},
};

#[expect(
    deprecated,
    reason = "its successor needs Linux 6.2, and a helper that sock_ops may not call"
)]
type AttachmentSlots = aya::maps::CgroupStorage<Data, AttachmentSlot>;

use super::{Data, Error, MapFill, open};

/// Names of the maps that outlive the daemon.
pub(super) const NAMES: [&str; 11] = [
    "SLOTS",
    "PROCESS",
    "RUNS",
    "VICTIMS",
    "NET",
    "TCP",
    "SLOT_OF",
    "TCP_SOCKETS",
    "VOLUMES",
    "FILES",
    "LOST",
];

/// The probes' maps, as the daemon uses them.
pub struct Counters {
    keys: Mutex<Keys>,
    /// Locked for writing only to clear what is given back.
    values: RwLock<Values>,
    lost: Array<Data, u64>,
    cpus: usize,
}

/// What the probes write.
struct Values {
    process: Array<Data, ProcessStats>,
    runs: Array<Data, Run>,
    victims: Array<Data, Victim>,
    net: PerCpuArray<Data, NetStats>,
    tcp: Array<Data, TcpStats>,
    files: PerCpuArray<Data, FileStats>,
}

/// What only the daemon writes.
struct Keys {
    slots: HashMap<Data, u64, u32>,
    volumes: HashMap<Data, u32, Volume>,
    attachments: AttachmentSlots,
    free_slots: Vec<u32>,
    free_cells: Vec<u32>,
    slot_count: u64,
    mount_count: u64,
    /// Keys of an earlier daemon that no pod has claimed yet: cgroup ids, and mounts by slot.
    unclaimed: HashSet<u64>,
    unclaimed_mounts: Table<u32, Vec<u32>>,
}

impl Counters {
    /// Opens the maps that are pinned in `folder`, which may hold what an earlier daemon's pods
    /// have counted.
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        let cpus = nr_cpus().map_err(|(_file, error)| Error::Cpus(error))?.get() as usize;
        let slots: HashMap<Data, u64, u32> = open(folder, "SLOTS", aya::maps::Map::HashMap)?;
        let volumes: HashMap<Data, u32, Volume> = open(folder, "VOLUMES", aya::maps::Map::HashMap)?;
        let unclaimed: HashSet<u64> = slots.keys().filter_map(Result::ok).collect();
        let mut unclaimed_mounts: Table<u32, Vec<u32>> = Table::new();
        for (mount, volume) in volumes.iter().filter_map(Result::ok) {
            unclaimed_mounts.entry(volume.slot).or_default().push(mount);
        }
        Ok(Self {
            keys: Mutex::new(Keys {
                slot_count: unclaimed.len() as u64,
                mount_count: unclaimed_mounts.values().map(|mounts| mounts.len() as u64).sum(),
                slots,
                volumes,
                attachments: open(folder, "SLOT_OF", aya::maps::Map::CgroupStorage)?,
                // Taken from the end: low numbers first.
                free_slots: (NO_SLOT + 1..MAX_SLOTS).rev().collect(),
                free_cells: (MAX_SLOTS..FILE_CELLS).rev().collect(),
                unclaimed,
                unclaimed_mounts,
            }),
            values: RwLock::new(Values {
                process: open(folder, "PROCESS", aya::maps::Map::Array)?,
                runs: open(folder, "RUNS", aya::maps::Map::Array)?,
                victims: open(folder, "VICTIMS", aya::maps::Map::Array)?,
                net: open(folder, "NET", aya::maps::Map::PerCpuArray)?,
                tcp: open(folder, "TCP", aya::maps::Map::Array)?,
                files: open(folder, "FILES", aya::maps::Map::PerCpuArray)?,
            }),
            lost: open(folder, "LOST", aya::maps::Map::Array)?,
            cpus,
        })
    }

    /// Takes over the slot and cells of a container of an earlier daemon, with what they hold.
    /// Returns the ids of its mounts.
    pub(super) fn claim(
        &self,
        cgroup_id: u64,
        slot: u32,
        cells: &[u32],
    ) -> Result<Vec<u32>, Error> {
        let mut keys = self.keys();
        keys.free_slots.retain(|free| *free != slot);
        keys.free_cells.retain(|free| !cells.contains(free));
        if !keys.unclaimed.remove(&cgroup_id) {
            // The maps are new ones.
            drop(keys);
            self.insert_slot(cgroup_id, slot)?;
            return Ok(Vec::new());
        }
        Ok(keys.unclaimed_mounts.remove(&slot).unwrap_or_default())
    }

    /// Removes the keys that no pod has claimed.
    pub(super) fn forget_unclaimed(&self) {
        let mut keys = self.keys();
        let keys = &mut *keys;
        for cgroup_id in keys.unclaimed.drain() {
            keys.slots.remove(&cgroup_id).ok();
            keys.slot_count -= 1;
        }
        for mount in keys.unclaimed_mounts.drain().flat_map(|(_, mounts)| mounts) {
            keys.volumes.remove(&mount).ok();
            keys.mount_count -= 1;
        }
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn values(&self) -> RwLockReadGuard<'_, Values> {
        self.values.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a slot and `count` cells, and sets them to zero.
    pub(super) fn allocate(&self, count: usize) -> Result<(u32, Vec<u32>), Error> {
        let mut keys = self.keys();
        if keys.free_cells.len() < count {
            return Err(Error::Full { what: "volume", capacity: MAX_VOLUMES });
        }
        let slot = keys
            .free_slots
            .pop()
            .ok_or(Error::Full { what: "container", capacity: MAX_SLOTS - 1 })?;
        let at = keys.free_cells.len() - count;
        let cells: Vec<u32> = keys.free_cells.split_off(at);
        if let Err(source) = self.clear(slot, &cells) {
            keys.free_slots.push(slot);
            keys.free_cells.extend(cells);
            return Err(Error::Map { action: "clear a container's counters", source });
        }
        Ok((slot, cells))
    }

    pub(super) fn insert_slot(&self, cgroup_id: u64, slot: u32) -> Result<(), Error> {
        let mut keys = self.keys();
        keys.slots
            .insert(&cgroup_id, &slot, 0)
            .map_err(|source| Error::Map { action: "insert a container's slot", source })?;
        keys.slot_count += 1;
        Ok(())
    }

    pub(super) fn set_attachment_slot(
        &self,
        key: CgroupStorageKey,
        slot: u32,
    ) -> Result<(), Error> {
        self.keys()
            .attachments
            .insert(key, &AttachmentSlot { slot, unused: 0 }, 0)
            .map_err(|source| Error::Map { action: "store an attachment's slot", source })
    }

    pub(super) fn insert_mount(&self, mount_id: u32, volume: Volume) -> Result<(), Error> {
        let mut keys = self.keys();
        let is_new = keys.volumes.get(&mount_id, 0).is_err();
        keys.volumes
            .insert(&mount_id, &volume, 0)
            .map_err(|source| Error::Map { action: "insert a volume's mount", source })?;
        keys.mount_count += u64::from(is_new);
        Ok(())
    }

    /// Forgets mounts of a slot. The kernel uses the id of a mount that is gone again: what is another
    /// container's by now stays.
    pub(super) fn remove_mounts(&self, slot: u32, mount_ids: &[u32]) {
        let mut keys = self.keys();
        for id in mount_ids {
            let is_ours = keys.volumes.get(id, 0).is_ok_and(|volume| volume.slot == slot);
            if is_ours && keys.volumes.remove(id).is_ok() {
                keys.mount_count -= 1;
            }
        }
    }

    /// Gives back a slot and its cells. Nothing may count there any more.
    pub(super) fn release(&self, cgroup_id: u64, slot: u32, cells: &[u32]) {
        let mut keys = self.keys();
        if keys.slots.remove(&cgroup_id).is_ok() {
            keys.slot_count -= 1;
        }
        keys.free_slots.push(slot);
        keys.free_cells.extend(cells);
    }

    fn clear(&self, slot: u32, cells: &[u32]) -> Result<(), MapError> {
        let mut values = self.values.write().unwrap_or_else(PoisonError::into_inner);
        values.process.set(slot, &ProcessStats::ZERO, 0)?;
        values.runs.set(slot, &Run::NONE, 0)?;
        values.victims.set(slot, &Victim::NONE, 0)?;
        values.tcp.set(slot, &TcpStats::ZERO, 0)?;
        values.net.set(slot, PerCpuValues::try_from(vec![NetStats::ZERO; self.cpus])?, 0)?;
        for cell in cells.iter().chain([&slot]) {
            let zero = PerCpuValues::try_from(vec![FileStats::ZERO; self.cpus])?;
            values.files.set(*cell, zero, 0)?;
        }
        Ok(())
    }

    /// What the processes of a slot did.
    #[must_use]
    pub fn process(&self, slot: u32) -> ProcessStats {
        self.values().process.get(&slot, 0).unwrap_or(ProcessStats::ZERO)
    }

    /// The current or last run of a slot's container, as the probes saw it.
    #[must_use]
    pub fn run(&self, slot: u32) -> Run {
        self.values().runs.get(&slot, 0).unwrap_or(Run::NONE)
    }

    /// The process of run `number` that the kernel chose to kill for want of memory, once it has ended.
    #[must_use]
    pub fn victim(&self, slot: u32, number: u32) -> Option<Victim> {
        let victim = self.values().victims.get(&slot, 0).ok()?;
        (victim.tgid != 0 && victim.run == number && victim.name[0] != 0).then_some(victim)
    }

    /// Makes the next exec in a slot's container that of the first process of run `number`.
    pub(super) fn await_run(&self, slot: u32, number: u32) -> Result<(), Error> {
        self.set_run(slot, Run::awaited(number))
    }

    /// Says which process that is, which has not exec'ed yet.
    pub(super) fn introduce(&self, slot: u32, number: u32, tgid: u32) -> Result<(), Error> {
        self.set_run(slot, Run { tgid, ..Run::awaited(number) })
    }

    fn set_run(&self, slot: u32, run: Run) -> Result<(), Error> {
        let mut values = self.values.write().unwrap_or_else(PoisonError::into_inner);
        values
            .runs
            .set(slot, &run, 0)
            .map_err(|source| Error::Map { action: "announce a run", source })
    }

    /// The traffic of a slot, all CPUs together.
    #[must_use]
    pub fn net(&self, slot: u32) -> NetStats {
        total(&self.values().net, slot)
    }

    /// The TCP connections of a slot.
    #[must_use]
    pub fn tcp(&self, slot: u32) -> TcpStats {
        self.values().tcp.get(&slot, 0).unwrap_or(TcpStats::ZERO)
    }

    /// The file operations of a cell, all CPUs together.
    #[must_use]
    pub fn file(&self, cell: u32) -> FileStats {
        total(&self.values().files, cell)
    }

    /// Events that are missing from the counters, by kind.
    #[must_use]
    pub fn lost(&self) -> Vec<(&'static str, u64)> {
        Lost::ALL
            .into_iter()
            .map(|kind| (kind.label(), self.lost.get(&(kind as u32), 0).unwrap_or(0)))
            .collect()
    }

    /// How full the maps are that can run full.
    #[must_use]
    pub fn maps(&self) -> Vec<MapFill> {
        let keys = self.keys();
        let cells = u64::from(MAX_VOLUMES) - keys.free_cells.len() as u64;
        vec![
            MapFill { map: "SLOTS", entries: keys.slot_count, capacity: u64::from(MAX_SLOTS) - 1 },
            MapFill { map: "VOLUMES", entries: keys.mount_count, capacity: u64::from(MAX_VOLUMES) },
            MapFill { map: "FILES", entries: cells, capacity: u64::from(MAX_VOLUMES) },
        ]
    }
}

/// The value of a cell, all CPUs together.
fn total<T: pod_ebpf::Counters>(map: &PerCpuArray<Data, T>, cell: u32) -> T {
    let mut sum = T::zero();
    if let Ok(values) = map.get(&cell, 0) {
        values.iter().for_each(|value| sum.add(value));
    }
    sum
}

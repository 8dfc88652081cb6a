//! The maps: which slots and cells are taken, and what the probes counted in them.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use aya::{
    Ebpf,
    maps::{Array, CgroupStorageKey, HashMap, MapError, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use pod_ebpf::{
    MAX_SLOTS, NO_SLOT,
    file::{FILE_CELLS, FileStats, MAX_VOLUMES, Volume},
    lost::Lost,
    net::{AttachmentSlot, NetStats, TcpStats},
    process::ProcessStats,
};

#[expect(
    deprecated,
    reason = "its successor needs Linux 6.2, and a helper that sock_ops may not call"
)]
type AttachmentSlots = aya::maps::CgroupStorage<Data, AttachmentSlot>;

use super::{Data, Error, MapFill, take};

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
}

impl Counters {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let cpus = nr_cpus().map_err(|(_file, error)| Error::Cpus(error))?.get() as usize;
        Ok(Self {
            keys: Mutex::new(Keys {
                slots: take(ebpf, "SLOTS")?,
                volumes: take(ebpf, "VOLUMES")?,
                attachments: take(ebpf, "SLOT_OF")?,
                // Taken from the end: low numbers first.
                free_slots: (NO_SLOT + 1..MAX_SLOTS).rev().collect(),
                free_cells: (MAX_SLOTS..FILE_CELLS).rev().collect(),
                slot_count: 0,
                mount_count: 0,
            }),
            values: RwLock::new(Values {
                process: take(ebpf, "PROCESS")?,
                net: take(ebpf, "NET")?,
                tcp: take(ebpf, "TCP")?,
                files: take(ebpf, "FILES")?,
            }),
            lost: take(ebpf, "LOST")?,
            cpus,
        })
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn values(&self) -> RwLockReadGuard<'_, Values> {
        self.values.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a slot and `count` cells, all zero.
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
        drop(keys);
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
        keys.volumes
            .insert(&mount_id, &volume, 0)
            .map_err(|source| Error::Map { action: "insert a volume's mount", source })?;
        keys.mount_count += 1;
        Ok(())
    }

    pub(super) fn remove_mounts(&self, mount_ids: &[u32]) {
        let mut keys = self.keys();
        for id in mount_ids {
            if keys.volumes.remove(id).is_ok() {
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
        if let Err(error) = self.clear(slot, cells) {
            // A slot with old counts must not be handed out again.
            tracing::error!(%error, slot, "counters cannot be cleared; the slot is retired");
            return;
        }
        keys.free_slots.push(slot);
        keys.free_cells.extend(cells);
    }

    fn clear(&self, slot: u32, cells: &[u32]) -> Result<(), MapError> {
        let mut values = self.values.write().unwrap_or_else(PoisonError::into_inner);
        values.process.set(slot, &ProcessStats::ZERO, 0)?;
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

    /// The traffic of a slot, all CPUs together.
    #[must_use]
    pub fn net(&self, slot: u32) -> NetStats {
        let mut sum = NetStats::ZERO;
        let Ok(values) = self.values().net.get(&slot, 0) else { return sum };
        for value in values.iter() {
            for direction in 0..2 {
                sum.bytes[direction] += value.bytes[direction];
                sum.packets[direction] += value.packets[direction];
                sum.segments[direction] += value.segments[direction];
            }
        }
        sum
    }

    /// The TCP connections of a slot.
    #[must_use]
    pub fn tcp(&self, slot: u32) -> TcpStats {
        self.values().tcp.get(&slot, 0).unwrap_or(TcpStats::ZERO)
    }

    /// The file operations of a cell, all CPUs together.
    #[must_use]
    pub fn file(&self, cell: u32) -> FileStats {
        let mut sum = FileStats::ZERO;
        let Ok(values) = self.values().files.get(&cell, 0) else { return sum };
        for value in values.iter() {
            sum.read_bytes += value.read_bytes;
            sum.reads += value.reads;
            sum.written_bytes += value.written_bytes;
            sum.writes += value.writes;
        }
        sum
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

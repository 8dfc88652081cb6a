//! The maps: which slots and cells are taken, and what the probes counted in them.

mod batched;
mod batches;
mod per_cpu;
mod slowest;
mod watch;
mod window;

use std::{
    collections::{HashMap as Table, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
};

use aya::maps::{Array, CgroupStorageKey, HashMap, MapError};
use pod_ebpf::{
    AttachmentSlot, MAX_SLOTS, NO_SLOT,
    block::BlockStats,
    dns::DnsStats,
    drops::DropStats,
    event::Watch,
    file::{FILE_CELLS, FileBytes, FileOperations, MAX_VOLUMES, Volume},
    lost::Lost,
    net::NetStats,
    process::{ProcessStats, Run, Victim},
    runqueue::{HOST, IDLE, PodNumber, RunQueueStats},
    tcp::TcpStats,
};

#[expect(
    deprecated,
    reason = "its successor needs Linux 6.2, and a helper that sock_ops may not call"
)]
type AttachmentSlots = aya::maps::CgroupStorage<Data, AttachmentSlot>;

pub use self::batches::Batches;
use self::{
    batched::{Batched, Plain},
    per_cpu::PerCpu,
};
use super::{
    Data, Error, MapFill,
    addresses::Addresses,
    drops::{Drops, Networks},
    open,
};

/// Names of the maps that outlive the daemon.
pub(super) const NAMES: [&str; 26] = [
    "SLOTS",
    "PROCESS",
    "RUNS",
    "VICTIMS",
    "NET",
    "ADDRESSES",
    "DNS",
    "DNS_PENDING",
    "DNS_SLOWEST",
    "TCP",
    "TCP_SLOWEST",
    "SLOT_OF",
    "TCP_SOCKETS",
    "VOLUMES",
    "FILES",
    "FILE_OPS",
    "FILE_SLOWEST",
    "BLOCK",
    "DROPS",
    "NETWORKS",
    "LOST",
    "RUNQUEUE",
    "POD_OF",
    "EVENTS",
    "TRACES",
    "WATCHES",
];

/// The probes' maps, as the daemon uses them.
pub struct Counters {
    keys: Mutex<Keys>,
    /// Locked for writing only to clear what is given back.
    values: RwLock<Values>,
    addresses: Mutex<Addresses>,
    lost: Array<Data, u64>,
}

/// What the probes write.
struct Values {
    process: Plain<ProcessStats>,
    runs: Plain<Run>,
    victims: Array<Data, Victim>,
    net: PerCpu<NetStats>,
    dns: Plain<DnsStats>,
    tcp: Plain<TcpStats>,
    files: PerCpu<FileBytes>,
    file_operations: Plain<FileOperations>,
    block: Plain<BlockStats>,
    drops: Plain<DropStats>,
    runqueue: Plain<RunQueueStats>,
    slowest: slowest::Kept,
}

/// What only the daemon writes.
struct Keys {
    slots: HashMap<Data, u64, u32>,
    volumes: HashMap<Data, u32, Volume>,
    attachments: AttachmentSlots,
    pods: Array<Data, PodNumber>,
    networks: Networks,
    watches: Array<Data, Watch>,
    /// The next one that gets a slot. Those before it are never used again.
    next_owner: u32,
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
        let slots: HashMap<Data, u64, u32> = open(folder, "SLOTS", aya::maps::Map::HashMap)?;
        let volumes: HashMap<Data, u32, Volume> = open(folder, "VOLUMES", aya::maps::Map::HashMap)?;
        let unclaimed: HashSet<u64> = slots.keys().filter_map(Result::ok).collect();
        let mut unclaimed_mounts: Table<u32, Vec<u32>> = Table::new();
        for (mount, volume) in volumes.iter().filter_map(Result::ok) {
            unclaimed_mounts.entry(volume.slot).or_default().push(mount);
        }
        let watches: Array<Data, Watch> = open(folder, "WATCHES", aya::maps::Map::Array)?;
        let last_owner = watches.iter().filter_map(Result::ok).map(|watch| watch.owner).max();
        Ok(Self {
            keys: Mutex::new(Keys {
                watches,
                next_owner: last_owner.unwrap_or(0) + 1,
                slot_count: unclaimed.len() as u64,
                mount_count: unclaimed_mounts.values().map(|mounts| mounts.len() as u64).sum(),
                slots,
                volumes,
                attachments: open(folder, "SLOT_OF", aya::maps::Map::CgroupStorage)?,
                pods: open(folder, "POD_OF", aya::maps::Map::Array)?,
                networks: Networks::open(folder)?,
                // Taken from the end: low numbers first.
                free_slots: (NO_SLOT + 1..MAX_SLOTS).rev().collect(),
                free_cells: (MAX_SLOTS..FILE_CELLS).rev().collect(),
                unclaimed,
                unclaimed_mounts,
            }),
            values: RwLock::new(Values {
                process: Plain::open(folder, "PROCESS")?,
                runs: Plain::open(folder, "RUNS")?,
                victims: open(folder, "VICTIMS", aya::maps::Map::Array)?,
                net: PerCpu::open(folder, "NET")?,
                dns: Plain::open(folder, "DNS")?,
                tcp: Plain::open(folder, "TCP")?,
                files: PerCpu::open(folder, "FILES")?,
                file_operations: Plain::open(folder, "FILE_OPS")?,
                block: Plain::open(folder, "BLOCK")?,
                drops: Plain::open(folder, "DROPS")?,
                runqueue: Plain::open(folder, "RUNQUEUE")?,
                slowest: slowest::Kept::open(folder)?,
            }),
            addresses: Mutex::new(Addresses::open(folder)?),
            lost: open(folder, "LOST", aya::maps::Map::Array)?,
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
        // Whatever was traced, its daemon is gone.
        keys.watch(slot)?;
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
        keys.networks.forget_unclaimed();
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
        let begun = keys.set_watch(slot, Watch::NONE).and_then(|()| keys.watch(slot));
        if let Err(error) = begun {
            keys.free_slots.push(slot);
            keys.free_cells.extend(cells);
            return Err(error);
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

    /// Says which pod a slot's container is of.
    pub(super) fn set_pod(&self, slot: u32, uid: &str) -> Result<(), Error> {
        self.keys()
            .pods
            .set(slot, &pod_number(uid), 0)
            .map_err(|source| Error::Map { action: "store a container's pod", source })
    }

    /// Counts for a slot what is dropped in the network namespace `new`, and no more what is in `old`.
    pub(super) fn set_network(
        &self,
        slot: u32,
        old: Option<u32>,
        new: Option<u32>,
    ) -> Result<(), Error> {
        let networks = &mut self.keys().networks;
        old.into_iter().for_each(|inode| networks.remove(inode));
        new.map_or(Ok(()), |inode| networks.insert(inode, slot))
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

    /// Tells the probes the node's own addresses, in place of those that they know.
    pub fn set_node_addresses(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).set(addresses)
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
        // The owner stays, so that the next daemon knows it for used.
        let owner = keys.owner(slot);
        keys.set_watch(slot, Watch { kinds: 0, owner }).ok();
        keys.free_slots.push(slot);
        keys.free_cells.extend(cells);
    }

    /// Who has a slot, or had it last.
    pub(crate) fn owner(&self, slot: u32) -> u32 {
        self.keys().owner(slot)
    }

    /// Chooses what is told of an owner's slot, beside what is told of every one.
    pub(super) fn watch(&self, slot: u32, owner: u32, kinds: u32) -> Result<(), Error> {
        let mut keys = self.keys();
        if keys.owner(slot) != owner {
            return Ok(());
        }
        keys.set_watch(slot, Watch { kinds: Watch::USUAL | kinds, owner })
    }

    fn clear(&self, slot: u32, cells: &[u32]) -> Result<(), MapError> {
        let mut values = self.values.write().unwrap_or_else(PoisonError::into_inner);
        values.process.set(slot, &ProcessStats::ZERO)?;
        values.runs.set(slot, &Run::NONE)?;
        values.victims.set(slot, &Victim::NONE, 0)?;
        values.dns.set(slot, &DnsStats::ZERO)?;
        values.runqueue.set(slot, &RunQueueStats::ZERO)?;
        values.tcp.set(slot, &TcpStats::ZERO)?;
        values.block.set(slot, &BlockStats::ZERO)?;
        values.drops.set(slot, &DropStats::ZERO)?;
        values.net.clear(slot)?;
        values.slowest.clear(slot, cells)?;
        for cell in cells.iter().chain([&slot]) {
            values.files.clear(*cell)?;
            values.file_operations.set(*cell, &FileOperations::ZERO)?;
        }
        Ok(())
    }

    /// What the processes of a slot did.
    #[must_use]
    pub fn process(&self, slot: u32) -> ProcessStats {
        self.values().process.one(slot).unwrap_or(ProcessStats::ZERO)
    }

    /// The current or last run of a slot's container, as the probes saw it.
    #[must_use]
    pub fn run(&self, slot: u32) -> Run {
        self.values().runs.one(slot).unwrap_or(Run::NONE)
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
            .set(slot, &run)
            .map_err(|source| Error::Map { action: "announce a run", source })
    }

    /// The traffic of a slot, all CPUs together.
    #[must_use]
    pub fn net(&self, slot: u32) -> NetStats {
        self.values().net.total(slot)
    }

    /// What a slot's container asked of name servers.
    #[must_use]
    pub fn dns(&self, slot: u32) -> DnsStats {
        self.values().dns.one(slot).unwrap_or(DnsStats::ZERO)
    }

    /// The TCP connections of a slot.
    #[must_use]
    pub fn tcp(&self, slot: u32) -> TcpStats {
        self.values().tcp.one(slot).unwrap_or(TcpStats::ZERO)
    }

    /// The waits for a CPU of a slot.
    #[must_use]
    pub fn runqueue(&self, slot: u32) -> RunQueueStats {
        self.values().runqueue.one(slot).unwrap_or(RunQueueStats::ZERO)
    }

    /// What was read and written on a cell, all CPUs together.
    #[must_use]
    pub fn file_bytes(&self, cell: u32) -> FileBytes {
        self.values().files.total(cell)
    }

    /// The file operations of a cell.
    #[must_use]
    pub fn file_operations(&self, cell: u32) -> FileOperations {
        self.values().file_operations.one(cell).unwrap_or(FileOperations::ZERO)
    }

    /// What block devices did for a slot.
    #[must_use]
    pub fn block(&self, slot: u32) -> BlockStats {
        self.values().block.one(slot).unwrap_or(BlockStats::ZERO)
    }

    /// Packets of a slot that were dropped.
    #[must_use]
    pub fn drops(&self, slot: u32) -> Drops {
        self.values().drops.one(slot).map(|stats| Drops::of(&stats)).unwrap_or_default()
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

/// What tells a pod from others in the probes, made of its uid.
fn pod_number(uid: &str) -> PodNumber {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    hasher.finish().clamp(HOST + 1, IDLE - 1)
}

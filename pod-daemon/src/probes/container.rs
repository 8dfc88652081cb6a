//! The counters of one container.

use std::sync::{Arc, Mutex, PoisonError};

use pod_ebpf::file::Volume;
use serde::{Deserialize, Serialize};

use super::{Error, counters::Counters};

/// One container's counters, kept for as long as its pod exists.
pub struct ContainerProbe {
    pub(super) counters: Arc<Counters>,
    pub(super) cgroup_id: u64,
    pub(super) slot: u32,
    /// See [`Self::volumes`].
    pub(super) volumes: Arc<[(Arc<str>, u32)]>,
    pub(super) mounts: Mutex<Vec<u32>>,
    /// The network namespace that is counted here.
    pub(super) network: Mutex<Option<u32>>,
}

/// The counters of a container of an earlier daemon.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Claim {
    /// Its slot.
    pub slot: u32,
    /// A cell for each of its volumes, in their order.
    pub cells: Vec<u32>,
}

impl ContainerProbe {
    /// The slot of this container's counters.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Who tells in [events](super::Record) that it is this container.
    #[must_use]
    pub fn owner(&self) -> u32 {
        self.counters.owner(self.slot)
    }

    /// Volumes and the cells of their counters: those given at the start, then `other` for
    /// everything that is read or written elsewhere.
    #[must_use]
    pub fn volumes(&self) -> Arc<[(Arc<str>, u32)]> {
        Arc::clone(&self.volumes)
    }

    /// The cells that are the container's own: that of `other` goes with the slot.
    fn cells(&self) -> Vec<u32> {
        let cells = self.volumes.iter().map(|(_, cell)| *cell);
        cells.filter(|cell| *cell != self.slot).collect()
    }

    /// What a later daemon needs to take the counters over.
    #[must_use]
    pub fn claim(&self) -> Claim {
        Claim { slot: self.slot, cells: self.cells() }
    }

    /// Announces run `number`, whose first process is the next one that is started.
    pub fn await_run(&self, number: u32) -> Result<(), Error> {
        self.counters.await_run(self.slot, number)
    }

    /// Says which process is the first of run `number`, before it executes its program: so the probes
    /// know it even if the kernel skips them at that moment.
    pub fn introduce(&self, number: u32, pid: nix::unistd::Pid) -> Result<(), Error> {
        self.counters.introduce(self.slot, number, pid.as_raw().cast_unsigned())
    }

    /// The current or last run, as the probes saw it.
    #[must_use]
    pub fn run(&self) -> pod_ebpf::process::Run {
        self.counters.run(self.slot)
    }

    /// The process of run `number` that the kernel chose to kill for want of memory, once it has ended.
    #[must_use]
    pub fn victim(&self, number: u32) -> Option<pod_ebpf::process::Victim> {
        self.counters.victim(self.slot, number)
    }

    /// Gives the counters back. Nothing may count there any more.
    pub fn release(mut self) {
        let mounts = self.mounts.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.counters.remove_mounts(self.slot, mounts);
        self.set_network(None).ok();
        self.counters.release(self.cgroup_id, self.slot, &self.cells());
    }

    /// Counts here what is dropped in the network namespace with this inode, in place of the last one.
    pub fn set_network(&self, inode: Option<u32>) -> Result<(), Error> {
        let mut current = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        self.counters.set_network(self.slot, current.take(), inode)?;
        *current = inode;
        Ok(())
    }

    /// Tells the probes which mounts the container's volumes are, in the order of the volumes; a
    /// volume may be mounted more than once. The mounts of an earlier run are forgotten.
    pub fn set_mounts(&self, mounts: &[(usize, u32)]) -> Result<(), Error> {
        let mut current = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        self.counters.remove_mounts(self.slot, &current);
        current.clear();
        for (volume, mount_id) in mounts {
            let Some((_, cell)) = self.volumes.get(*volume) else { continue };
            self.counters.insert_mount(*mount_id, Volume { slot: self.slot, cell: *cell })?;
            current.push(*mount_id);
        }
        Ok(())
    }
}

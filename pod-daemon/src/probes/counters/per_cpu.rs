//! Counters of which each CPU has its own.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::{
    maps::{Map, MapError, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use pod_ebpf::Counters;

use super::{
    super::{open, sys},
    Data, Error,
};

/// A map of them.
pub(super) struct PerCpu<T: Counters> {
    map: PerCpuArray<Data, T>,
    /// The same: aya takes four allocations for a value, and a scrape looks for thousands.
    descriptor: OwnedFd,
    cpus: usize,
}

impl<T: Counters> PerCpu<T> {
    /// Opens the map that is pinned in `folder`.
    pub(super) fn open(folder: &Path, name: &'static str) -> Result<Self, Error> {
        let cpus = nr_cpus().map_err(|(_file, error)| Error::Cpus(error))?.get() as usize;
        let descriptor = sys::get(&folder.join(name)).map_err(|error| Error::Map {
            action: "open a map of the probes",
            source: MapError::IoError(error),
        })?;
        Ok(Self { map: open(folder, name, Map::PerCpuArray)?, descriptor, cpus })
    }

    /// The value at `index`, all CPUs together.
    pub(super) fn total(&self, index: u32) -> T {
        let (mut sum, mut values) = (T::zero(), vec![T::zero(); self.cpus]);
        // SAFETY: aya has found the map's values to be as long as `T`, and there is room for one of
        // each CPU that there may be.
        if unsafe { sys::look_up(self.descriptor.as_fd(), index, &mut values) }.is_ok() {
            values.iter().for_each(|value| sum.add(value));
        }
        sum
    }

    /// Sets the value at `index` to zero on all CPUs.
    pub(super) fn clear(&mut self, index: u32) -> Result<(), MapError> {
        self.map.set(index, PerCpuValues::try_from(vec![T::zero(); self.cpus])?, 0)
    }
}

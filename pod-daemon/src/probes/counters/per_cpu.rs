//! Counters of which each CPU has its own.

use std::{os::fd::AsFd as _, path::Path};

use aya::{
    maps::{Map, MapError, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use pod_ebpf::Counters;

use super::{
    super::{open, sys},
    Data, Error,
    batched::{Batched, Blocks},
};

/// A map of them.
pub(super) struct PerCpu<T: Counters> {
    map: PerCpuArray<Data, T>,
    /// The same: aya takes four allocations for a value, and a scrape looks for thousands.
    blocks: Blocks,
    cpus: usize,
}

impl<T: Counters> PerCpu<T> {
    /// Opens the map that is pinned in `folder`.
    pub(super) fn open(folder: &Path, name: &'static str) -> Result<Self, Error> {
        let cpus = nr_cpus().map_err(|(_file, error)| Error::Cpus(error))?.get() as usize;
        let blocks = Blocks::open(folder, name, cpus * size_of::<T>())?;
        Ok(Self { map: open(folder, name, Map::PerCpuArray)?, blocks, cpus })
    }

    /// The value at `index`, all CPUs together.
    pub(super) fn total(&self, index: u32) -> T {
        self.one(index).unwrap_or_else(T::zero)
    }

    /// Sets the value at `index` to zero on all CPUs.
    pub(super) fn clear(&mut self, index: u32) -> Result<(), MapError> {
        self.map.set(index, PerCpuValues::try_from(vec![T::zero(); self.cpus])?, 0)
    }
}

impl<T: Counters> Batched<T> for PerCpu<T> {
    fn one(&self, index: u32) -> Option<T> {
        let mut values = vec![T::zero(); self.cpus];
        // SAFETY: aya has found the map's values to be as long as `T`, and there is room for one of
        // each CPU that there may be.
        unsafe { sys::look_up(self.blocks.map.as_fd(), index, &mut values) }.ok()?;
        Some(sum(&values))
    }

    fn many(&self, first: u32, count: u32, values: &mut Vec<T>) -> bool {
        // SAFETY: aya has found the map's values to be as long as `T`, which is made of `u64`s, and
        // there may be as many CPUs.
        let is_read = unsafe { self.blocks.read(first, count, self.cpus, values) };
        if is_read {
            let found = values.len() / self.cpus;
            // Each goes where one was that is already added.
            for index in 0..found {
                values[index] = sum(&values[index * self.cpus..][..self.cpus]);
            }
            values.truncate(found);
        }
        is_read
    }
}

fn sum<T: Counters>(values: &[T]) -> T {
    let mut sum = T::zero();
    values.iter().for_each(|value| sum.add(value));
    sum
}

#[cfg(test)]
mod tests {
    use pod_ebpf::file::FileBytes;

    use super::*;

    #[test]
    fn many_values_are_sums_over_the_cpus() {
        let cpus = nr_cpus().unwrap().get() as usize;
        let bytes = size_of::<FileBytes>();
        // Not everybody may make maps.
        let Ok(descriptor) = sys::make_array(6, u32::try_from(bytes).unwrap(), 50) else { return };
        let blocks = Blocks::new(descriptor.try_clone().unwrap(), cpus * bytes);
        let map = Map::PerCpuArray(Data::from_fd(descriptor).unwrap());
        let mut files = PerCpu { map: PerCpuArray::try_from(map).unwrap(), blocks, cpus };
        for index in 0..50 {
            let values = (0..cpus as u64)
                .map(|cpu| FileBytes { written: u64::from(index) + cpu, ..FileBytes::zero() });
            files
                .map
                .set(index, PerCpuValues::try_from(values.collect::<Vec<_>>()).unwrap(), 0)
                .unwrap();
        }

        let mut values = Vec::new();
        for (first, count, found) in [(0, 8, 0..8), (45, 8, 45..50), (50, 8, 50..50)] {
            assert!(files.many(first, count, &mut values), "Linux 5.13 can");
            let alone = found.map(|index| files.total(index).written);
            assert!(values.iter().map(|value| value.written).eq(alone), "{first}");
        }
        let cpus = cpus as u64;
        assert_eq!(files.total(7).written, 7 * cpus + cpus * (cpus - 1) / 2);
    }
}

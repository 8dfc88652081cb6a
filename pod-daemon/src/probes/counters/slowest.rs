//! The slowest of what was timed lately, beside the histograms that all of it is in.

use std::path::Path;

use aya::maps::{Array, MapError};
use pod_ebpf::{
    file::OPERATIONS,
    slowest::{Observation, Slowest},
};

use super::{super::open, Counters, Data, Error};

/// Where the probes keep it.
pub(super) struct Kept {
    operations: Array<Data, [Slowest; OPERATIONS]>,
    connects: Array<Data, Slowest>,
    queries: Array<Data, Slowest>,
}

impl Kept {
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        Ok(Self {
            operations: open(folder, "FILE_SLOWEST", aya::maps::Map::Array)?,
            connects: open(folder, "TCP_SLOWEST", aya::maps::Map::Array)?,
            queries: open(folder, "DNS_SLOWEST", aya::maps::Map::Array)?,
        })
    }

    /// Forgets what a slot and its cells had.
    pub(super) fn clear(&mut self, slot: u32, cells: &[u32]) -> Result<(), MapError> {
        self.connects.set(slot, &Slowest::NONE, 0)?;
        self.queries.set(slot, &Slowest::NONE, 0)?;
        let mut cells = cells.iter().chain([&slot]);
        cells.try_for_each(|cell| self.operations.set(*cell, &[Slowest::NONE; OPERATIONS], 0))
    }
}

impl Counters {
    /// The slowest operations of a cell lately, each at its own index.
    #[must_use]
    pub fn slowest_operations(&self, cell: u32) -> [Option<Observation>; OPERATIONS] {
        let kept = self.values().slowest.operations.get(&cell, 0);
        kept.unwrap_or([Slowest::NONE; OPERATIONS]).map(Slowest::observation)
    }

    /// The connection of a slot that took longest to be established lately.
    #[must_use]
    pub fn slowest_connect(&self, slot: u32) -> Option<Observation> {
        self.values().slowest.connects.get(&slot, 0).ok()?.observation()
    }

    /// The query of a slot that took longest to be answered lately.
    #[must_use]
    pub fn slowest_query(&self, slot: u32) -> Option<Observation> {
        self.values().slowest.queries.get(&slot, 0).ok()?.observation()
    }
}

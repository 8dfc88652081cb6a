//! Counters of many containers, one container after the other.

use pod_ebpf::{
    MAX_SLOTS,
    block::BlockStats,
    dns::DnsStats,
    drops::DropStats,
    file::{FileBytes, FileOperations},
    net::NetStats,
    process::{ProcessStats, Run},
    runqueue::RunQueueStats,
    tcp::TcpStats,
};

use super::{Counters, Values, batched::Batched, window::Window};
use crate::probes::{Drops, ProbeStatus};

/// Looks for counters. It may have read what it answers with along with that of another container, a
/// moment ago: so it is made for one scrape, after it was decided which containers that shows, and is
/// asked for slots in a row.
pub struct Batches<'a> {
    counters: &'a Counters,
    counts_drops: bool,
    counts_waits: bool,
    process: Window<ProcessStats>,
    runs: Window<Run>,
    net: Window<NetStats>,
    dns: Window<DnsStats>,
    tcp: Window<TcpStats>,
    block: Window<BlockStats>,
    drops: Window<DropStats>,
    runqueue: Window<RunQueueStats>,
    /// Cells that go with slots, and others: two rows.
    files: [Window<FileBytes>; 2],
    file_operations: [Window<FileOperations>; 2],
}

impl<'a> Batches<'a> {
    /// Looks for what `status` says to be counted; for more at once than it is asked for if there are
    /// `many` containers.
    #[must_use]
    pub fn new(counters: &'a Counters, status: &[ProbeStatus], many: bool) -> Self {
        let counts =
            |probe| status.iter().any(|status| status.probe == probe && status.is_attached());
        Self {
            counters,
            counts_drops: counts("packet_drop"),
            counts_waits: counts("runqueue"),
            process: Window::new(many),
            runs: Window::new(many),
            net: Window::new(many),
            dns: Window::new(many),
            tcp: Window::new(many),
            block: Window::new(many),
            drops: Window::new(many),
            runqueue: Window::new(many),
            files: [Window::new(many), Window::new(many)],
            file_operations: [Window::new(many), Window::new(many)],
        }
    }

    /// What few containers have is looked for alone.
    #[must_use]
    pub fn alone(&self) -> &'a Counters {
        self.counters
    }

    /// See [`Counters::process`].
    pub fn process(&mut self, slot: u32) -> ProcessStats {
        let found = find(self.counters, &mut self.process, slot, |values| &values.process);
        found.unwrap_or(ProcessStats::ZERO)
    }

    /// See [`Counters::run`].
    pub fn run(&mut self, slot: u32) -> Run {
        find(self.counters, &mut self.runs, slot, |values| &values.runs).unwrap_or(Run::NONE)
    }

    /// See [`Counters::net`].
    pub fn net(&mut self, slot: u32) -> NetStats {
        find(self.counters, &mut self.net, slot, |values| &values.net).unwrap_or(NetStats::ZERO)
    }

    /// See [`Counters::dns`].
    pub fn dns(&mut self, slot: u32) -> DnsStats {
        find(self.counters, &mut self.dns, slot, |values| &values.dns).unwrap_or(DnsStats::ZERO)
    }

    /// See [`Counters::tcp`].
    pub fn tcp(&mut self, slot: u32) -> TcpStats {
        find(self.counters, &mut self.tcp, slot, |values| &values.tcp).unwrap_or(TcpStats::ZERO)
    }

    /// See [`Counters::block`].
    pub fn block(&mut self, slot: u32) -> BlockStats {
        let found = find(self.counters, &mut self.block, slot, |values| &values.block);
        found.unwrap_or(BlockStats::ZERO)
    }

    /// See [`Counters::drops`]; nothing if they are not counted.
    pub fn drops(&mut self, slot: u32) -> Drops {
        if !self.counts_drops {
            return Drops::default();
        }
        let found = find(self.counters, &mut self.drops, slot, |values| &values.drops);
        found.map(|stats| Drops::of(&stats)).unwrap_or_default()
    }

    /// See [`Counters::runqueue`]; nothing if they are not counted.
    pub fn runqueue(&mut self, slot: u32) -> RunQueueStats {
        if !self.counts_waits {
            return RunQueueStats::ZERO;
        }
        let found = find(self.counters, &mut self.runqueue, slot, |values| &values.runqueue);
        found.unwrap_or(RunQueueStats::ZERO)
    }

    /// See [`Counters::file_bytes`].
    pub fn file_bytes(&mut self, cell: u32) -> FileBytes {
        let window = &mut self.files[row(cell)];
        find(self.counters, window, cell, |values| &values.files).unwrap_or_default()
    }

    /// See [`Counters::file_operations`].
    pub fn file_operations(&mut self, cell: u32) -> FileOperations {
        let window = &mut self.file_operations[row(cell)];
        let found = find(self.counters, window, cell, |values| &values.file_operations);
        found.unwrap_or(FileOperations::ZERO)
    }
}

/// Which row of cells that is.
fn row(cell: u32) -> usize {
    usize::from(cell >= MAX_SLOTS)
}

/// The value at `index` of a map, which is looked at only if the window has it not.
fn find<T: Copy, M: Batched<T>>(
    counters: &Counters,
    window: &mut Window<T>,
    index: u32,
    map: fn(&Values) -> &M,
) -> Option<T> {
    window.find(index).or_else(|| window.fetch(index, map(&counters.values())))
}

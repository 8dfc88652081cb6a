//! The contract between the daemon and its eBPF probes.
//!
//! Everything that crosses the kernel boundary is declared here: capacities, names, and the layout
//! of every key and value. There is no logic beyond what both sides must compute alike. The probes
//! (`src/probes`) only ever add to these values; the daemon alone inserts and deletes keys.

#![no_std]

pub mod file;
pub mod lost;
pub mod net;
pub mod process;

/// Version of the layout of all maps: it grows with every change of a key, a value or a capacity. A
/// daemon goes on counting in maps of its own version only.
pub const LAYOUT: u32 = 2;

/// Number of slots: one per container that is alive or whose counters are still to be read.
/// Slot 0 means "not a pod".
pub const MAX_SLOTS: u32 = 2048;

/// The slot of everything that does not belong to a container of a pod.
pub const NO_SLOT: u32 = 0;

/// Which way the bytes go, seen from the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Direction {
    /// Into the container.
    Receive = 0,
    /// Out of the container.
    Transmit = 1,
}

impl Direction {
    /// Every direction, in the order of the arrays that are indexed by it.
    pub const ALL: [Self; 2] = [Self::Receive, Self::Transmit];

    /// The value of the `direction` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Transmit => "transmit",
        }
    }
}

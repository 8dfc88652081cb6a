//! Packets that the kernel dropped.
//!
//! The kernel names the reason by a number, which means another one in each release: what it stands for
//! is for the daemon to find out.

/// Number of the kernel's reasons that are told apart, and one for all others: Linux 7.3 has 126.
pub const REASONS: u32 = 160;

/// Where those are counted that have a greater number, such as those of subsystems.
pub const OTHER: u32 = REASONS - 1;

/// Network namespaces that there is room for: a pod has one.
pub const MAX_NETWORKS: u32 = crate::MAX_SLOTS;

/// Dropped packets of one slot.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DropStats {
    /// Of the container's sockets, by [`index`].
    pub of_sockets: [u64; REASONS as usize],
    /// Of no container's sockets, in the pod's network namespace. They are counted for one of its
    /// containers.
    pub of_network: [u64; REASONS as usize],
}

impl DropStats {
    /// Nothing was dropped.
    pub const ZERO: Self =
        Self { of_sockets: [0; REASONS as usize], of_network: [0; REASONS as usize] };
}

/// Where a reason of the kernel's is counted.
#[must_use]
#[inline(always)]
pub const fn index(reason: u32) -> u32 {
    if reason < OTHER { reason } else { OTHER }
}

crate::counters!(DropStats);

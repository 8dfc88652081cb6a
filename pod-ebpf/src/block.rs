//! What block devices did for a container.

use crate::latency::Latency;

/// Requests of one kind.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BlockOperation {
    /// Bytes that were transferred.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Requests that succeeded without being timed.
    pub untimed: u64,
    /// How long the others took, from when there was a request until it was done.
    pub latency: Latency,
}

impl BlockOperation {
    /// There were no requests.
    pub const ZERO: Self = Self { bytes: 0, errors: 0, untimed: 0, latency: Latency::ZERO };

    /// How many succeeded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.untimed + self.latency.count()
    }
}

/// Requests of one container.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BlockStats {
    /// From a device.
    pub reads: BlockOperation,
    /// To a device.
    pub writes: BlockOperation,
}

impl BlockStats {
    /// There were no requests.
    pub const ZERO: Self = Self { reads: BlockOperation::ZERO, writes: BlockOperation::ZERO };
}

crate::counters!(BlockStats);

//! What a container read from and wrote to regular files, by volume.

use crate::MAX_SLOTS;

/// Volumes of all containers together: each container's root filesystem is one of them.
pub const MAX_VOLUMES: u32 = 8192;

/// Cells of the file counters. Cell `slot` (below [`MAX_SLOTS`]) holds what a container did on
/// mounts that it was not given (`/proc`, or mounts of its own making); the daemon hands out the
/// rest, one per volume and container.
pub const FILE_CELLS: u32 = MAX_SLOTS + MAX_VOLUMES;

/// Which counters belong to a mount.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Volume {
    /// The container that this mount was made for.
    pub slot: u32,
    /// The cell of the file counters.
    pub cell: u32,
}

const _: () = assert!(size_of::<Volume>() == 8);

/// Counters of one cell, one copy per CPU.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FileStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Successful read operations, those that met the end of the file included.
    pub reads: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Successful write operations.
    pub writes: u64,
}

const _: () = assert!(size_of::<FileStats>() == 32);

impl FileStats {
    /// No operations.
    pub const ZERO: Self = Self { read_bytes: 0, reads: 0, written_bytes: 0, writes: 0 };
}

/// What a file operation does to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Bytes come out of the file.
    Read,
    /// Bytes go into the file.
    Write,
}

crate::counters!(FileStats);

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, two `u32`s, so no padding and every bit pattern is valid.
unsafe impl aya::Pod for Volume {}

//! What a container did with files, by volume.

use crate::{MAX_SLOTS, latency::Latency};

/// Volumes of all containers together: each container's root filesystem is one of them.
pub const MAX_VOLUMES: u32 = 8192;

/// Cells of the file counters. Cell `slot` (below [`MAX_SLOTS`]) holds what a container did on
/// mounts that it was not given (`/proc`, or mounts of its own making) or that are not known; the
/// daemon hands out the rest, one per volume and container.
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

/// Bytes of one cell, one copy per CPU.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct FileBytes {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

const _: () = assert!(size_of::<FileBytes>() == 16);

impl FileBytes {
    /// Nothing was read or written.
    pub const ZERO: Self = Self { read: 0, written: 0 };
}

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Operation {
    /// Bytes come out of the file.
    Read = 0,
    /// Bytes go into the file.
    Write = 1,
    /// `fsync`, `fdatasync`.
    Sync = 2,
    /// A descriptor is made for a path.
    Open = 3,
    /// An open made the file.
    Create = 4,
    /// A name is removed.
    Unlink = 5,
    /// A name is changed.
    Rename = 6,
}

/// Number of [`Operation`]s.
pub const OPERATIONS: usize = 7;

impl Operation {
    /// Every operation, in the order of [`FileOperations`].
    pub const ALL: [Self; OPERATIONS] =
        [Self::Read, Self::Write, Self::Sync, Self::Open, Self::Create, Self::Unlink, Self::Rename];

    /// The value of the `operation` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "fsync",
            Self::Open => "open",
            Self::Create => "create",
            Self::Unlink => "unlink",
            Self::Rename => "rename",
        }
    }
}

/// One operation on one volume.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct OperationStats {
    /// How often it failed.
    pub errors: u64,
    /// How often it succeeded without being timed.
    pub untimed: u64,
    /// How long it took when it succeeded.
    pub latency: Latency,
}

impl OperationStats {
    /// It was never tried.
    pub const ZERO: Self = Self { errors: 0, untimed: 0, latency: Latency::ZERO };

    /// How often it succeeded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.untimed + self.latency.count()
    }
}

/// All operations of one cell, by [`Operation`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FileOperations(pub [OperationStats; OPERATIONS]);

const _: () = assert!(size_of::<FileOperations>() == 1736);

impl FileOperations {
    /// Nothing was done.
    pub const ZERO: Self = Self([OperationStats::ZERO; OPERATIONS]);
}

crate::counters!(FileBytes, OperationStats, FileOperations);

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, two `u32`s, so no padding and every bit pattern is valid.
unsafe impl aya::Pod for Volume {}

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

/// Where the bytes of a read came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ReadFrom {
    /// The page cache had them.
    Hit = 0,
    /// They had to be brought into the page cache first.
    Miss = 1,
    /// The file was opened to be read past the page cache (`O_DIRECT`).
    Bypass = 2,
    /// Nobody looked on while they were read.
    Unknown = 3,
}

/// Number of [`ReadFrom`]s.
pub const READ_FROM: usize = 4;

impl ReadFrom {
    /// Every place, in the order of [`FileBytes::read_from`].
    pub const ALL: [Self; READ_FROM] = [Self::Hit, Self::Miss, Self::Bypass, Self::Unknown];

    /// The value of the `result` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
            Self::Unknown => "unknown",
        }
    }
}

/// What brought pages of a file into the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FilledBy {
    /// A system call that reads: what it asked for, and what the kernel read ahead.
    Read = 0,
    /// A page fault on a mapping of the file, with what the kernel read around it.
    Fault = 1,
    /// Something else: an exec, `readahead`, `posix_fadvise`, or a request of io_uring.
    Other = 2,
}

/// Number of [`FilledBy`]s.
pub const FILLED_BY: usize = 3;

impl FilledBy {
    /// Every cause, in the order of [`FileBytes::filled_by`].
    pub const ALL: [Self; FILLED_BY] = [Self::Read, Self::Fault, Self::Other];

    /// The value of the `by` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Fault => "fault",
            Self::Other => "other",
        }
    }
}

/// Bytes of one cell, one copy per CPU.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct FileBytes {
    /// Bytes read, by [`ReadFrom`].
    pub read_from: [u64; READ_FROM],
    /// Bytes written.
    pub written: u64,
    /// Bytes of whole pages that came into the page cache, by [`FilledBy`].
    pub filled_by: [u64; FILLED_BY],
}

const _: () = assert!(size_of::<FileBytes>() == 64);

impl FileBytes {
    /// Nothing was read or written.
    pub const ZERO: Self =
        Self { read_from: [0; READ_FROM], written: 0, filled_by: [0; FILLED_BY] };

    /// Bytes read, wherever from. The probes do not count them a second time, so that the parts and
    /// the sum agree at any moment.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.read_from.iter().sum()
    }
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

//! The contract between the daemon and its eBPF probes.
//!
//! Everything that crosses the kernel boundary is declared here: capacities, names, and the layout
//! of every key and value. There is no logic beyond what both sides must compute alike. The probes
//! (`src/probes`) only ever add to these values; the daemon alone inserts and deletes keys.

#![no_std]

pub mod block;
pub mod dns;
pub mod drops;
pub mod event;
pub mod file;
pub mod latency;
pub mod lost;
pub mod net;
pub mod offsets;
pub mod process;
pub mod runqueue;
pub mod slowest;
pub mod tcp;

/// Version of the layout of all maps: it grows with every change of a key, a value or a capacity. A
/// daemon goes on counting in maps of its own version only.
pub const LAYOUT: u32 = 5;

/// Number of slots: one per container that is alive or whose counters are still to be read.
/// Slot 0 means "not a pod".
pub const MAX_SLOTS: u32 = 2048;

/// The slot of everything that does not belong to a container of a pod.
pub const NO_SLOT: u32 = 0;

/// What the daemon leaves in the storage of each attachment to a container's cgroup.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AttachmentSlot {
    /// Slot of the container whose cgroup this is.
    pub slot: u32,
    /// Cgroup storage comes in units of eight bytes.
    pub unused: u32,
}

const _: () = assert!(size_of::<AttachmentSlot>() == 8);

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, two `u32`s, so no padding and every bit pattern is valid.
unsafe impl aya::Pod for AttachmentSlot {}

/// What the probes count, as nothing but `u64`s: so it can be summed word by word.
///
/// # Safety
/// The type is `repr(C)` and consists of `u64`s only.
#[cfg(feature = "user")]
pub unsafe trait Counters: aya::Pod {
    /// Nothing was counted.
    #[must_use]
    fn zero() -> Self {
        // SAFETY: by this trait's contract every bit pattern is valid.
        unsafe { core::mem::zeroed() }
    }

    /// Adds what was counted elsewhere.
    fn add(&mut self, other: &Self) {
        let words = size_of::<Self>() / size_of::<u64>();
        // SAFETY: by this trait's contract both are that many `u64`s.
        let (sum, more) = unsafe {
            (
                core::slice::from_raw_parts_mut(core::ptr::from_mut(self).cast::<u64>(), words),
                core::slice::from_raw_parts(core::ptr::from_ref(other).cast::<u64>(), words),
            )
        };
        for (sum, more) in sum.iter_mut().zip(more) {
            *sum = sum.wrapping_add(*more);
        }
    }
}

/// Makes types of `u64`s [`Counters`].
macro_rules! counters {
    ($($type:ty),+) => {$(
        #[cfg(feature = "user")]
        // SAFETY: `repr(C)`, only `u64`s, so no padding and every bit pattern is valid.
        unsafe impl aya::Pod for $type {}
        #[cfg(feature = "user")]
        // SAFETY: `repr(C)`, only `u64`s.
        unsafe impl $crate::Counters for $type {}
    )+};
}
pub(crate) use counters;

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

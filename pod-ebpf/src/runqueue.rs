//! How long a container's threads waited for a CPU, and who had it meanwhile.

use crate::latency::Latency;

/// Number of [`Holder`]s.
pub const HOLDERS: usize = 6;

/// Stints that a CPU remembers. A power of two.
pub const STINTS: usize = 32;

/// CPUs that are remembered, by the last digits of their numbers. A power of two.
pub const CPUS: u32 = 512;

/// Threads whose earlier waits are remembered, by the last digits of their ids. A power of two.
pub const TASKS: u32 = 1 << 16;

/// Who had the CPU while a thread waited for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Holder {
    /// It did not matter: the container, or its pod, had used up its CPU limit.
    OwnThrottle = 0,
    /// A thread of the same pod.
    SamePod = 1,
    /// A thread of another pod.
    OtherPod = 2,
    /// A thread that belongs to no pod.
    Host = 3,
    /// Nobody: it was still waking up.
    Idle = 4,
    /// It is not known: the wait was before all that the CPU remembers, or on a CPU that the thread
    /// never ran on.
    Unknown = 5,
}

impl Holder {
    /// Every holder, in the order of [`RunQueueStats::wait_ns`].
    pub const ALL: [Self; HOLDERS] =
        [Self::OwnThrottle, Self::SamePod, Self::OtherPod, Self::Host, Self::Idle, Self::Unknown];

    /// The value of the `by` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::OwnThrottle => "own_throttle",
            Self::SamePod => "same_pod",
            Self::OtherPod => "other_pod",
            Self::Host => "host",
            Self::Idle => "idle",
            Self::Unknown => "unknown",
        }
    }
}

/// Waits of one slot.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RunQueueStats {
    /// From the moment that a thread can run until it does.
    pub latency: Latency,
    /// The same time by [`Holder`], in nanoseconds.
    pub wait_ns: [u64; HOLDERS],
}

impl RunQueueStats {
    /// No waits.
    pub const ZERO: Self = Self { latency: Latency::ZERO, wait_ns: [0; HOLDERS] };
}

/// Which pod a slot's container is of: any number but these two. The daemon writes it.
pub type PodNumber = u64;

/// What belongs to no pod.
pub const HOST: PodNumber = 0;

/// Nothing at all.
pub const IDLE: PodNumber = u64::MAX;

/// What one CPU has been doing, the newest at `newest % STINTS`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Stints {
    /// Number of the newest.
    pub newest: u64,
    /// One after the other.
    pub ring: [Stint; STINTS],
}

/// The time that one pod's threads, or those of no pod, had a CPU, up to the next stint.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Stint {
    /// When it began, by the CPU's own clock.
    pub began: u64,
    /// Whose it was.
    pub pod: PodNumber,
}

/// How long a thread had waited in all its life when it was last given a CPU.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Waited {
    /// Its id.
    pub pid: u32,
    /// The CPU.
    pub cpu: u32,
    /// Nanoseconds.
    pub nanoseconds: u64,
}

/// How long a container was throttled on a CPU when it last had it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Throttled {
    /// The queue that this was read from: nested cgroups have queues of their own.
    pub queue: u64,
    /// Nanoseconds.
    pub nanoseconds: u64,
}

const _: () =
    assert!(STINTS.is_power_of_two() && TASKS.is_power_of_two() && CPUS.is_power_of_two());

crate::counters!(RunQueueStats);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_stand_at_their_own_index() {
        for (index, holder) in Holder::ALL.into_iter().enumerate() {
            assert_eq!(holder as usize, index);
        }
    }
}

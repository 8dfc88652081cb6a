//! What is told one by one, because it is rare: how processes begin and end, and what failed.
//!
//! Nothing here is a metric: what is lost on the way is counted, and the counters are complete without it.

use crate::{lost::Lost, process::NAME_BYTES};

/// Bytes of the ring of rare events: some 800 execs, or five times as many of the others. What does not
/// fit is lost, and counted.
pub const EVENT_BYTES: u32 = 512 << 10;

/// Bytes of the ring of what is told of a pod on request only, so that it takes nobody else's room.
pub const TRACE_BYTES: u32 = 256 << 10;

/// With more than this in a ring its reader is woken; else it looks by itself.
pub const WAKE_BYTES: u32 = 64 << 10;

/// Bytes of arguments or of a path that are told.
pub const TEXT_BYTES: u32 = 512;

/// Number of [`Kind`]s.
pub const KINDS: usize = 7;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A program was executed.
    Exec = 0,
    /// A process ended.
    Exit = 1,
    /// The kernel chose a process to kill for want of memory.
    Oom = 2,
    /// An outgoing TCP connection attempt failed.
    ConnectFailure = 3,
    /// An outgoing TCP connection was established.
    Connect = 4,
    /// An incoming TCP connection was established.
    Accept = 5,
    /// A file was opened, or could not be.
    Open = 6,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; KINDS] = [
        Self::Exec,
        Self::Exit,
        Self::Oom,
        Self::ConnectFailure,
        Self::Connect,
        Self::Accept,
        Self::Open,
    ];

    /// Its bit in [`Watch::kinds`].
    #[must_use]
    #[inline(always)]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// What is counted when one does not fit into the ring.
    #[must_use]
    #[inline(always)]
    pub const fn loss(self) -> Lost {
        match self {
            Self::Exec => Lost::EventExec,
            Self::Exit => Lost::EventExit,
            Self::Oom => Lost::EventOom,
            Self::ConnectFailure => Lost::EventConnect,
            Self::Connect | Self::Accept | Self::Open => Lost::EventTrace,
        }
    }
}

/// What is told of a slot, by the daemon's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Watch {
    /// The [`Kind::bit`]s of what is told.
    pub kinds: u32,
    /// Who has the slot: a number that no other container had or gets, as slots are used again before
    /// all is read that was told of whoever had them.
    pub owner: u32,
}

impl Watch {
    /// Nothing of nobody.
    pub const NONE: Self = Self { kinds: 0, owner: 0 };

    /// What is told of every container.
    pub const USUAL: u32 =
        Kind::Exec.bit() | Kind::Exit.bit() | Kind::Oom.bit() | Kind::ConnectFailure.bit();
}

/// One event. What does not apply to its kind is 0.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Event {
    /// A [`Kind`].
    pub kind: u32,
    /// The [`Watch::owner`] of the slot.
    pub owner: u32,
    /// When, in nanoseconds of `CLOCK_BOOTTIME`.
    pub time: u64,
    /// Process id in the initial PID namespace.
    pub pid: u32,
    /// That of its parent.
    pub parent: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// The peer's port.
    pub port: u32,
    /// Bytes of text that there were, of which the first [`TEXT_BYTES`] follow.
    pub total: u32,
    /// How a file was to be opened: `O_*`.
    pub flags: u32,
    /// Unused.
    pub unused: u32,
    /// An exit's status as `wait` gives it, an attempt's errno, or what an open returned.
    pub number: i64,
    /// How long a process lived or a connection attempt took, in nanoseconds.
    pub duration: u64,
    /// The peer's address; of IPv4 the first four bytes.
    pub address: [u32; 4],
    /// Name of the process, or of an exec's parent, as the kernel knows it.
    pub name: [u8; NAME_BYTES],
}

/// An [`Event`] with the arguments of an exec, each with a zero behind it, or the path of a file.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Worded {
    /// The event.
    pub event: Event,
    /// The first bytes of the text.
    pub text: [u8; TEXT_BYTES as usize],
}

const _: () = assert!(size_of::<Watch>() == 8);
const _: () = assert!(size_of::<Event>() == 96);
const _: () = assert!(size_of::<Worded>() == 96 + TEXT_BYTES as usize);

impl Event {
    /// An event about which nothing is known but this.
    #[must_use]
    #[inline(always)]
    pub const fn new(kind: Kind, owner: u32, time: u64) -> Self {
        Self {
            kind: kind as u32,
            owner,
            time,
            pid: 0,
            parent: 0,
            uid: 0,
            family: 0,
            port: 0,
            total: 0,
            flags: 0,
            unused: 0,
            number: 0,
            duration: 0,
            address: [0; 4],
            name: [0; NAME_BYTES],
        }
    }
}

#[cfg(feature = "user")]
mod user {
    use super::{Event, Watch};

    // SAFETY: `repr(C)`, two `u32`s, so no padding and every bit pattern is valid.
    unsafe impl aya::Pod for Watch {}

    // SAFETY: `repr(C)`, integers without padding, and every bit pattern is valid.
    unsafe impl aya::Pod for Event {}

    impl Event {
        /// An event and its text, as the ring has them; `None` if that is too short.
        #[must_use]
        pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
            let (head, text) = bytes.split_at_checked(size_of::<Self>())?;
            // SAFETY: there are as many bytes as an event has, and every bit pattern is one.
            let event = unsafe { head.as_ptr().cast::<Self>().read_unaligned() };
            let length = usize::try_from(event.total).ok()?.min(text.len());
            Some((event, &text[..length]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_stand_at_their_own_index() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }
}

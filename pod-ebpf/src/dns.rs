//! What a container asked of name servers, and what they answered.

use crate::{latency::Latency, net::Address};

/// The port of name servers.
pub const PORT: u16 = 53;

/// Number of [`Outcome`]s.
pub const OUTCOMES: usize = 5;

/// Queries that may wait for their answer at a time. Of more than these the oldest are forgotten.
pub const MAX_PENDING: u32 = 8192;

/// The queries of one slot. They are rare next to packets, so atomic adds will do.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DnsStats {
    /// Queries that were sent.
    pub queries: u64,
    /// Those that were answered, by [`Outcome`].
    pub answers: [u64; OUTCOMES],
    /// How long the answers took.
    pub duration: Latency,
}

const _: () = assert!(size_of::<DnsStats>() == 8 * (1 + OUTCOMES) + size_of::<Latency>());

impl DnsStats {
    /// Nothing was asked.
    pub const ZERO: Self = Self { queries: 0, answers: [0; OUTCOMES], duration: Latency::ZERO };
}

/// How a query was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// The name exists, if perhaps not with such a record.
    NoError = 0,
    /// It does not.
    NoName = 1,
    /// The server could not find out.
    ServerFailure = 2,
    /// The server did not want to.
    Refused = 3,
    /// Anything else.
    Other = 4,
}

impl Outcome {
    /// Every outcome, in the order of [`DnsStats::answers`].
    pub const ALL: [Self; OUTCOMES] =
        [Self::NoError, Self::NoName, Self::ServerFailure, Self::Refused, Self::Other];

    /// What the `RCODE` of an answer says.
    #[must_use]
    #[inline(always)]
    pub const fn of_code(code: u8) -> Self {
        match code {
            0 => Self::NoError,
            2 => Self::ServerFailure,
            3 => Self::NoName,
            5 => Self::Refused,
            _ => Self::Other,
        }
    }

    /// The value of the `outcome` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoError => "noerror",
            Self::NoName => "nxdomain",
            Self::ServerFailure => "servfail",
            Self::Refused => "refused",
            Self::Other => "other",
        }
    }
}

/// What tells the answer to one query from all others.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Query {
    /// The name server.
    pub server: Address,
    /// Slot of the container that asked.
    pub slot: u32,
    /// Its socket's port, in network byte order.
    pub port: u16,
    /// The id that the container chose, as it stands in the packet.
    pub id: u16,
}

const _: () = assert!(size_of::<Query>() == 24);

/// A query that waits for its answer.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Pending {
    /// When it was sent, in nanoseconds of `bpf_ktime_get_ns`.
    pub began: u64,
    /// Process that asked; 0 if that is not known.
    pub pid: u32,
    /// The size is a multiple of eight bytes.
    pub unused: u32,
}

const _: () = assert!(size_of::<Pending>() == 16);

crate::counters!(DnsStats);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_stand_at_their_own_index() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
    }
}

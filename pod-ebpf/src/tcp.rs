//! The TCP connections of a container.

use crate::latency::Latency;

/// Number of [`ConnectResult`]s.
pub const CONNECT_RESULTS: usize = 5;

/// TCP counters of one slot. Connections are rare next to packets, so atomic adds will do.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TcpStats {
    /// Outgoing connections by [`ConnectResult`].
    pub connects: [u64; CONNECT_RESULTS],
    /// Incoming connections whose handshake is complete.
    pub accepts: u64,
    /// How long established outgoing connections took to be so.
    pub connect_latency: Latency,
}

const _: () = assert!(size_of::<TcpStats>() == 8 * (CONNECT_RESULTS + 1) + size_of::<Latency>());

impl TcpStats {
    /// No connections.
    pub const ZERO: Self =
        Self { connects: [0; CONNECT_RESULTS], accepts: 0, connect_latency: Latency::ZERO };
}

/// How an outgoing TCP connection attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ConnectResult {
    /// The handshake completed.
    Established = 0,
    /// The peer answered with a reset (`ECONNREFUSED`).
    Refused = 1,
    /// Nobody answered (`ETIMEDOUT`).
    TimedOut = 2,
    /// The network said no (`EHOSTUNREACH`, `ENETUNREACH`).
    Unreachable = 3,
    /// Anything else, e.g. the program closed the socket before an answer came.
    Aborted = 4,
}

impl ConnectResult {
    /// Every result, in the order of [`TcpStats::connects`].
    pub const ALL: [Self; CONNECT_RESULTS] =
        [Self::Established, Self::Refused, Self::TimedOut, Self::Unreachable, Self::Aborted];

    /// The result that the socket error `errno` (positive) of a failed attempt stands for.
    #[must_use]
    #[inline(always)]
    pub const fn of_errno(errno: u32) -> Self {
        match errno {
            111 => Self::Refused,
            110 => Self::TimedOut,
            101 | 113 => Self::Unreachable,
            _ => Self::Aborted,
        }
    }

    /// The value of the `result` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Aborted => "aborted",
        }
    }
}

crate::counters!(TcpStats);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_at_their_own_index() {
        for (index, result) in ConnectResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, index);
        }
    }
}

//! The TCP connections of a container.

use crate::latency::Latency;

/// Number of [`ConnectResult`]s.
pub const CONNECT_RESULTS: usize = 8;

/// TCP counters of one slot. Connections are rare next to packets, and so are measurements of the round
/// trip: there is one of each round trip, whatever number of packets it has. So atomic adds will do.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TcpStats {
    /// Outgoing connections by [`ConnectResult`].
    pub connects: [u64; CONNECT_RESULTS],
    /// Incoming connections whose handshake is complete.
    pub accepts: u64,
    /// Connections that there are now, by [`Phase`].
    pub open: [u64; PHASES],
    /// Connections that are over, by [`Ending`].
    pub closes: [u64; ENDINGS],
    /// Segments that were sent once more, by [`Segment`].
    pub retransmits: [u64; SEGMENTS],
    /// How often the retransmission timer went off, by [`Segment`], of which the last is not seen.
    pub timeouts: [u64; SEGMENTS - 1],
    /// Resets, indexed by [`Direction`](crate::Direction).
    pub resets: [u64; 2],
    /// How long established outgoing connections took to be so.
    pub connect_latency: Latency,
    /// The smoothed round-trip time, once when a connection is established and then once in each round
    /// trip with data of the container's.
    pub rtt: Latency,
    /// The least round-trip time of each connection, at its end.
    pub min_rtt: Latency,
}

const _: () = assert!(
    size_of::<TcpStats>()
        == 8 * (CONNECT_RESULTS + 1 + PHASES + ENDINGS + 2 * SEGMENTS + 1)
            + 3 * size_of::<Latency>()
);

impl TcpStats {
    /// No connections.
    pub const ZERO: Self = Self {
        connects: [0; CONNECT_RESULTS],
        accepts: 0,
        open: [0; PHASES],
        closes: [0; ENDINGS],
        retransmits: [0; SEGMENTS],
        timeouts: [0; SEGMENTS - 1],
        resets: [0; 2],
        connect_latency: Latency::ZERO,
        rtt: Latency::ZERO,
        min_rtt: Latency::ZERO,
    };
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
    /// There is no way, by the node's own routes or by the network's word (`EHOSTUNREACH`, `ENETUNREACH`,
    /// `EHOSTDOWN`, `ENONET`).
    Unreachable = 3,
    /// Anything else after the first packet, e.g. the program closed the socket before an answer came.
    Aborted = 4,
    /// No port or address of the container's own was free (`EADDRNOTAVAIL`).
    NoPort = 5,
    /// Somebody forbids it: the node, or a firewall of IPv6 (`EACCES`, `EPERM`).
    Denied = 6,
    /// Anything else before the first packet, such as an address that makes no sense.
    Other = 7,
}

impl ConnectResult {
    /// Every result, in the order of [`TcpStats::connects`].
    pub const ALL: [Self; CONNECT_RESULTS] = [
        Self::Established,
        Self::Refused,
        Self::TimedOut,
        Self::Unreachable,
        Self::Aborted,
        Self::NoPort,
        Self::Denied,
        Self::Other,
    ];

    /// The result that the socket error `errno` (positive) of a failed attempt stands for.
    #[must_use]
    #[inline(always)]
    pub const fn of_errno(errno: u32) -> Self {
        match errno {
            111 => Self::Refused,
            110 => Self::TimedOut,
            64 | 101 | 112 | 113 => Self::Unreachable,
            99 => Self::NoPort,
            1 | 13 => Self::Denied,
            _ => Self::Aborted,
        }
    }

    /// The result that a call's error `errno` (positive) stands for, if no packet was sent; `None` if an
    /// attempt has not failed: the socket is connected, or about to be.
    #[must_use]
    #[inline(always)]
    pub const fn of_unsent(errno: u32) -> Option<Self> {
        match errno {
            106 | 114 | 115 => None,
            _ => match Self::of_errno(errno) {
                Self::Aborted => Some(Self::Other),
                result => Some(result),
            },
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
            Self::NoPort => "no_port",
            Self::Denied => "denied",
            Self::Other => "other",
        }
    }
}

/// Number of [`Phase`]s.
pub const PHASES: usize = 3;

/// How far an open connection is from its end. A connection in TIME_WAIT has no socket any more, so it
/// is not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// Both sides may send.
    Established = 0,
    /// The peer has closed and the container has not: a program that does not close its sockets has
    /// more and more of these.
    CloseWait = 1,
    /// The container has closed, and the peer has not yet answered or closed.
    Closing = 2,
}

impl Phase {
    /// Every phase, in the order of [`TcpStats::open`].
    pub const ALL: [Self; PHASES] = [Self::Established, Self::CloseWait, Self::Closing];

    /// The phase that an open connection is in while the kernel has its socket in `state`, which is not
    /// `TCP_CLOSE`. With TCP Fast Open a connection is open before its handshake is complete.
    #[must_use]
    #[inline(always)]
    pub const fn of_state(state: u32) -> Self {
        match state {
            1 | 3 => Self::Established,
            8 => Self::CloseWait,
            _ => Self::Closing,
        }
    }

    /// The value of the `state` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::CloseWait => "close_wait",
            Self::Closing => "closing",
        }
    }
}

/// Number of [`Ending`]s.
pub const ENDINGS: usize = 4;

/// How an open connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Ending {
    /// The container closed it, and the peer has closed it, too, or was not waited for any longer.
    Closed = 0,
    /// The peer reset it.
    Reset = 1,
    /// The peer or the network did not answer any more.
    TimedOut = 2,
    /// The container's side reset it: by `SO_LINGER`, by closing it with data that was not read, or by
    /// closing a listener that it waited at.
    Aborted = 3,
}

impl Ending {
    /// Every ending, in the order of [`TcpStats::closes`].
    pub const ALL: [Self; ENDINGS] = [Self::Closed, Self::Reset, Self::TimedOut, Self::Aborted];

    /// The ending of a connection in this phase whose socket has the error `errno` (positive, 0 for none).
    #[must_use]
    #[inline(always)]
    pub const fn of(phase: u32, errno: u32) -> Self {
        match errno {
            0 if phase == Phase::Closing as u32 => Self::Closed,
            0 => Self::Aborted,
            // EPIPE is a reset after the peer has closed.
            32 | 104 => Self::Reset,
            13 | 64 | 101 | 110 | 112 | 113 => Self::TimedOut,
            _ => Self::Aborted,
        }
    }

    /// The value of the `reason` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::TimedOut => "timed_out",
            Self::Aborted => "aborted",
        }
    }
}

/// Number of [`Segment`]s.
pub const SEGMENTS: usize = 3;

/// What was sent again, or waited for in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Segment {
    /// Of an open connection.
    Data = 0,
    /// The first of an outgoing connection.
    Syn = 1,
    /// The answer to the first of an incoming one.
    SynAck = 2,
}

impl Segment {
    /// Every kind, in the order of [`TcpStats::retransmits`].
    pub const ALL: [Self; SEGMENTS] = [Self::Data, Self::Syn, Self::SynAck];

    /// What a socket in `state` waits to be answered.
    #[must_use]
    #[inline(always)]
    pub const fn of_state(state: u32) -> Self {
        // Both sides may begin at the same time; then the container's has received a SYN after its own.
        if state == 2 || state == 3 { Self::Syn } else { Self::Data }
    }

    /// The value of the `segment` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Syn => "syn",
            Self::SynAck => "syn_ack",
        }
    }
}

/// What the probes keep with a socket. It goes with the socket.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Socket {
    /// When the connection attempt began, in nanoseconds of `bpf_ktime_get_ns`; 0 if it was the peer's.
    pub began: u64,
    /// 1 + the [`Phase`] that it is counted in; 0 if it is not counted among the open ones.
    pub counted: u32,
    /// Process that began it; 0 if that is not known.
    pub pid: u32,
}

const _: () = assert!(size_of::<Socket>() == 16);

crate::counters!(TcpStats);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_stand_at_their_own_index() {
        for (index, result) in ConnectResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, index);
        }
        for (index, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, index);
        }
        for (index, ending) in Ending::ALL.into_iter().enumerate() {
            assert_eq!(ending as usize, index);
        }
        for (index, segment) in Segment::ALL.into_iter().enumerate() {
            assert_eq!(segment as usize, index);
        }
    }

    #[test]
    fn what_fails_before_a_packet_has_a_result_of_its_own() {
        let unsent = |errno| ConnectResult::of_unsent(errno);
        assert_eq!(unsent(115), None);
        assert_eq!(unsent(22), Some(ConnectResult::Other));
        assert_eq!(ConnectResult::of_errno(22), ConnectResult::Aborted);
        for (errno, result) in [
            (101, ConnectResult::Unreachable),
            (113, ConnectResult::Unreachable),
            (99, ConnectResult::NoPort),
            (1, ConnectResult::Denied),
            (13, ConnectResult::Denied),
        ] {
            assert_eq!(unsent(errno), Some(result), "{errno}");
            assert_eq!(ConnectResult::of_errno(errno), result, "{errno}");
        }
    }

    #[test]
    fn only_who_has_closed_before_ends_in_order() {
        for (phase, errno, ending) in [
            (Phase::Closing, 0, Ending::Closed),
            (Phase::Closing, 104, Ending::Reset),
            (Phase::Established, 0, Ending::Aborted),
            (Phase::CloseWait, 0, Ending::Aborted),
            (Phase::CloseWait, 32, Ending::Reset),
            (Phase::Established, 110, Ending::TimedOut),
            (Phase::Established, 113, Ending::TimedOut),
            (Phase::Established, 103, Ending::Aborted),
        ] {
            assert_eq!(Ending::of(phase as u32, errno), ending, "{phase:?} {errno}");
        }
    }
}

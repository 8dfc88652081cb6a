//! What the probes could not count.

/// Number of [`Lost`] kinds.
pub const LOST_KINDS: u32 = 5;

/// Why an event is missing from the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Lost {
    /// A fork or exit whose task could not be read.
    Task = 0,
    /// A file operation whose file or mount could not be read.
    File = 1,
    /// A connection attempt that got no storage: its result is counted, its latency is not.
    ConnectLatency = 2,
    /// A connection attempt whose failure the kernel will not report.
    ConnectResult = 3,
    /// A connection that got no storage: it is not among the open ones, and its end is not counted.
    Connection = 4,
}

impl Lost {
    /// Every kind, in the order of the map that is indexed by it.
    pub const ALL: [Self; LOST_KINDS as usize] =
        [Self::Task, Self::File, Self::ConnectLatency, Self::ConnectResult, Self::Connection];

    /// The value of the `kind` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::File => "file",
            Self::ConnectLatency => "connect_latency",
            Self::ConnectResult => "connect_result",
            Self::Connection => "connection",
        }
    }
}

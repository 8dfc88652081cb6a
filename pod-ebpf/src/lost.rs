//! What the probes could not count.

/// Number of [`Lost`] kinds.
pub const LOST_KINDS: u32 = 11;

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
    /// A file operation that was counted without its duration: another task's took the place where its
    /// beginning was noted, or it began before the probes did.
    FileLatency = 4,
    /// An exec that was not told: the ring was full. It is counted all the same, as are the next.
    EventExec = 5,
    /// An exit that was not told.
    EventExit = 6,
    /// A victim of the OOM killer that was not told.
    EventOom = 7,
    /// A failed connection attempt that was not told.
    EventConnect = 8,
    /// Something of a pod that is traced that was not told.
    EventTrace = 9,
    /// A connection that got no storage: it is not among the open ones, and its end is not counted.
    Connection = 10,
}

impl Lost {
    /// Every kind, in the order of the map that is indexed by it.
    pub const ALL: [Self; LOST_KINDS as usize] = [
        Self::Task,
        Self::File,
        Self::ConnectLatency,
        Self::ConnectResult,
        Self::FileLatency,
        Self::EventExec,
        Self::EventExit,
        Self::EventOom,
        Self::EventConnect,
        Self::EventTrace,
        Self::Connection,
    ];

    /// The value of the `kind` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::File => "file",
            Self::ConnectLatency => "connect_latency",
            Self::ConnectResult => "connect_result",
            Self::FileLatency => "file_latency",
            Self::EventExec => "event_exec",
            Self::EventExit => "event_exit",
            Self::EventOom => "event_oom",
            Self::EventConnect => "event_connect_failure",
            Self::EventTrace => "event_trace",
            Self::Connection => "connection",
        }
    }
}

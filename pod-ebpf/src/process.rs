//! What the processes of a container did.

/// Number of [`ExitClass`]es.
pub const EXIT_CLASSES: usize = 6;

/// Number of [`ExecFailure`] classes.
pub const EXEC_FAILURES: usize = 7;

/// Signals are numbered 1 to 64 on every architecture that Podscope runs on; index 0 is unused.
pub const SIGNALS: usize = 65;

/// Counters of one slot. Execs and exits are rare, so one cell each and atomic adds will do.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProcessStats {
    /// Successful `execve` and `execveat` calls.
    pub execs: u64,
    /// Those that failed, by [`ExecFailure`].
    pub exec_failures: [u64; EXEC_FAILURES],
    /// New processes (not threads).
    pub forks: u64,
    /// New threads of existing processes.
    pub threads: u64,
    /// Processes that called `exit`, by class of the code.
    pub exits: [u64; EXIT_CLASSES],
    /// Processes that a signal ended, by signal.
    pub signals: [u64; SIGNALS],
}

const _: () = assert!(size_of::<Run>() == 24);
const _: () =
    assert!(size_of::<ProcessStats>() == 8 * (3 + EXEC_FAILURES + EXIT_CLASSES + SIGNALS));

impl ProcessStats {
    /// No events.
    pub const ZERO: Self = Self {
        execs: 0,
        exec_failures: [0; EXEC_FAILURES],
        forks: 0,
        threads: 0,
        exits: [0; EXIT_CLASSES],
        signals: [0; SIGNALS],
    };
}

/// A container's run, as its first process lived it: how a daemon that was away learns the exit code.
///
/// The daemon writes it whole before it starts the process ([`RunState::Awaited`]), once more with the
/// process before that execs, and after that only the probes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Run {
    /// Number of the run, which the daemon counts.
    pub number: u32,
    /// A [`RunState`].
    pub state: u32,
    /// Process id in the initial PID namespace.
    pub tgid: u32,
    /// As `wait` gives it.
    pub status: u32,
    /// When it ended, in nanoseconds of `CLOCK_BOOTTIME`.
    pub ended: u64,
}

/// The process of a run that the kernel chose to kill for want of memory, the first if there were more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Victim {
    /// Number of the run.
    pub run: u32,
    /// Process id in the initial PID namespace; 0 if there was none.
    pub tgid: u32,
    /// Its name, as the kernel knows it, with a zero behind it; empty before it has ended.
    pub name: [u8; NAME_BYTES],
}

const _: () = assert!(size_of::<Victim>() == 8 + NAME_BYTES);

/// `TASK_COMM_LEN` of the kernel.
pub const NAME_BYTES: usize = 16;

impl Victim {
    /// Nobody.
    pub const NONE: Self = Self { run: 0, tgid: 0, name: [0; NAME_BYTES] };
}

/// How far a [`Run`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RunState {
    /// There was none.
    None = 0,
    /// The next exec in the container is that of its first process.
    Awaited = 1,
    /// The first process has exec'ed.
    Running = 2,
    /// The first process has ended.
    Ended = 3,
}

impl Run {
    /// No run.
    pub const NONE: Self =
        Self { number: 0, state: RunState::None as u32, tgid: 0, status: 0, ended: 0 };

    /// A run that is about to begin.
    #[must_use]
    pub const fn awaited(number: u32) -> Self {
        Self { number, state: RunState::Awaited as u32, ..Self::NONE }
    }
}

/// Why a program could not be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ExecFailure {
    /// `ENOENT`: there is no such file, or not the interpreter that it names.
    NotFound = 0,
    /// `EACCES`: it may not be executed.
    Denied = 1,
    /// `ENOEXEC`: the kernel does not know what it is.
    UnknownFormat = 2,
    /// `E2BIG`: arguments and environment are too long.
    TooLong = 3,
    /// `ENOMEM`.
    NoMemory = 4,
    /// `ETXTBSY`: it is open for writing.
    Busy = 5,
    /// All else.
    Other = 6,
}

impl ExecFailure {
    /// Every class, in the order of [`ProcessStats::exec_failures`].
    pub const ALL: [Self; EXEC_FAILURES] = [
        Self::NotFound,
        Self::Denied,
        Self::UnknownFormat,
        Self::TooLong,
        Self::NoMemory,
        Self::Busy,
        Self::Other,
    ];

    /// The class of what `execve` returned; `None` if it did not fail, or if the kernel begins it again
    /// after a signal, which the program does not get to see.
    #[must_use]
    #[inline(always)]
    pub const fn of(result: i64) -> Option<Self> {
        Some(match result {
            -2 => Self::NotFound,
            -13 => Self::Denied,
            -8 => Self::UnknownFormat,
            -7 => Self::TooLong,
            -12 => Self::NoMemory,
            -26 => Self::Busy,
            -511..=-1 => Self::Other,
            _ => return None,
        })
    }

    /// The value of the `errno` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotFound => "ENOENT",
            Self::Denied => "EACCES",
            Self::UnknownFormat => "ENOEXEC",
            Self::TooLong => "E2BIG",
            Self::NoMemory => "ENOMEM",
            Self::Busy => "ETXTBSY",
            Self::Other => "other",
        }
    }
}

/// Exit codes by what shells and runtimes use them for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ExitClass {
    /// 0.
    Success = 0,
    /// 1.
    Failure = 1,
    /// 2 to 125.
    Custom = 2,
    /// 126: found, but not executable.
    NotExecutable = 3,
    /// 127: command not found.
    NotFound = 4,
    /// 128 to 255: by convention 128 + a signal that a child died of.
    High = 5,
}

impl ExitClass {
    /// Every class, in the order of [`ProcessStats::exits`].
    pub const ALL: [Self; EXIT_CLASSES] = [
        Self::Success,
        Self::Failure,
        Self::Custom,
        Self::NotExecutable,
        Self::NotFound,
        Self::High,
    ];

    /// The class of an exit code.
    #[must_use]
    #[inline(always)]
    pub const fn of(code: u32) -> Self {
        match code {
            0 => Self::Success,
            1 => Self::Failure,
            126 => Self::NotExecutable,
            127 => Self::NotFound,
            2..=125 => Self::Custom,
            _ => Self::High,
        }
    }

    /// The value of the `code` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Success => "0",
            Self::Failure => "1",
            Self::Custom => "2-125",
            Self::NotExecutable => "126",
            Self::NotFound => "127",
            Self::High => "128-255",
        }
    }
}

crate::counters!(ProcessStats);

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, integers without padding, and every bit pattern is valid.
unsafe impl aya::Pod for Run {}

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, integers without padding, and every bit pattern is valid.
unsafe impl aya::Pod for Victim {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_falls_into_the_class_that_its_label_names() {
        for (code, label) in [
            (0, "0"),
            (1, "1"),
            (2, "2-125"),
            (7, "2-125"),
            (125, "2-125"),
            (126, "126"),
            (127, "127"),
            (128, "128-255"),
            (255, "128-255"),
        ] {
            assert_eq!(ExitClass::of(code).label(), label, "code {code}");
        }
    }

    #[test]
    fn classes_stand_at_their_own_index() {
        for (index, class) in ExitClass::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, index);
        }
        for (index, class) in ExecFailure::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, index);
        }
    }

    #[test]
    fn an_exec_that_succeeds_or_is_begun_again_has_not_failed() {
        for result in [0, 1, -512, -513, -516] {
            assert_eq!(ExecFailure::of(result), None, "{result}");
        }
        assert_eq!(ExecFailure::of(-2), Some(ExecFailure::NotFound));
        assert_eq!(ExecFailure::of(-1), Some(ExecFailure::Other));
    }
}

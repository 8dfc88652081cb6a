//! What a filter decides, before it is a program.

use std::collections::BTreeMap;

use super::abi::Abi;

/// Decisions for every way into the kernel.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) tables: Vec<Table>,
    /// For calls through an ABI that has no table, and for numbers that are none of its own.
    pub(super) foreign: Action,
}

/// Decisions for one ABI.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) abi: Abi,
    /// By number; the first rule that applies decides.
    pub(super) calls: BTreeMap<u32, Vec<Rule>>,
    /// For the calls without a rule that applies.
    pub(super) otherwise: Action,
    /// For those of them from that number on, if they are to be told apart.
    pub(super) beyond: Option<(u32, Action)>,
}

/// What happens if all conditions are met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) when: Vec<Condition>,
    pub(super) then: Action,
}

/// `(argument & mask) COMPARE value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u32,
    pub(super) mask: u64,
    pub(super) compare: Compare,
    pub(super) value: u64,
}

/// How a condition compares; unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    GreaterOrEqual,
    Greater,
}

/// What the kernel does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Allow,
    Log,
    Errno(u16),
    Trace(u16),
    Trap,
    KillThread,
    KillProcess,
}

impl Action {
    /// What a kernel answers that does not have a call: then a program does without.
    pub(super) const ABSENT: Self = Self::Errno(38); // ENOSYS

    /// `SECCOMP_RET_*`.
    pub(super) fn value(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Log => libc::SECCOMP_RET_LOG,
            Self::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
            Self::Trace(data) => libc::SECCOMP_RET_TRACE | u32::from(data),
            Self::Trap => libc::SECCOMP_RET_TRAP,
            Self::KillThread => libc::SECCOMP_RET_KILL_THREAD,
            Self::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }
}

impl Rule {
    pub(super) fn always(then: Action) -> Self {
        Self { when: Vec::new(), then }
    }
}

impl Condition {
    /// Compares the lower half of an argument, which is all that the kernel reads of an `int`: a
    /// condition on the whole could be met by what the kernel does not look at.
    pub(super) fn word(argument: u32, compare: Compare, value: u32) -> Self {
        Self { argument, mask: 0xffff_ffff, compare, value: u64::from(value) }
    }
}

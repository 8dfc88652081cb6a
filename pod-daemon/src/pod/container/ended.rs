//! How a run ended, or why it did not begin.

use jiff::{SignedDuration, Timestamp};
use pod_ebpf::process::Run as SeenRun;

use super::super::{
    chain,
    oom::{self, Oom},
};
use crate::{image::PullError, node::Exit};

/// Exit code of a run whose program could not be started, as containerd reports it.
const NOT_STARTED: i32 = 128;

/// Exit code of a run whose end nobody has seen, as containerd reports it.
pub(super) const UNKNOWN: i32 = 255;

/// A run that is over, or that never began.
#[derive(Debug)]
pub(in super::super) struct Ended {
    pub(super) code: i32,
    pub(super) signal: Option<i32>,
    pub(super) finished: Timestamp,
    pub(super) oom: Option<Oom>,
    /// Nobody has seen how.
    pub(super) unknown: bool,
    pub(super) failure: Option<Failure>,
}

/// Why a run did not begin.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// The image is not there: a matter of waiting, not of the restart policy.
    pub(super) image: bool,
}

impl Ended {
    pub(super) fn failed(failure: Failure) -> Self {
        Self {
            code: NOT_STARTED,
            signal: None,
            finished: Timestamp::now(),
            oom: None,
            unknown: false,
            failure: Some(failure),
        }
    }

    pub(in super::super) fn unknown() -> Self {
        Self {
            code: UNKNOWN,
            signal: None,
            finished: Timestamp::now(),
            oom: None,
            unknown: true,
            failure: None,
        }
    }

    pub(super) fn known(self) -> Self {
        Self { unknown: false, ..self }
    }

    /// As the probes saw it.
    pub(super) fn seen(run: &SeenRun) -> Self {
        let signal = i32::try_from(run.status & 0x7f).ok().filter(|signal| *signal != 0);
        let code = i32::try_from((run.status >> 8) & 0xff).unwrap_or(UNKNOWN);
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now = SignedDuration::new(now.tv_sec, i32::try_from(now.tv_nsec).unwrap_or(0));
        let ended = SignedDuration::from_nanos(i64::try_from(run.ended).unwrap_or(i64::MAX));
        let finished = Timestamp::now() - (now - ended);
        let code = signal.map_or(code, |signal| 128 + signal);
        Self { code, signal, finished, ..Self::unknown() }.known()
    }

    pub(super) fn into_exit(self, started: Timestamp) -> Exit {
        let killed = |oom: &Oom| oom.main && oom.limit == oom::Limit::Container;
        let (reason, message) = match (self.failure, self.oom) {
            (Some(failure), _) => (failure.reason, failure.message),
            (None, Some(oom)) if killed(&oom) => ("OOMKilled", oom.message),
            (None, _) if self.unknown => {
                ("Unknown", "it ended while nobody was there to see how".to_owned())
            }
            (None, oom) => {
                let message = oom.map(|oom| oom.message).unwrap_or_default();
                (if self.code == 0 { "Completed" } else { "Error" }, message)
            }
        };
        Exit {
            code: self.code,
            signal: self.signal,
            reason: reason.to_owned(),
            message,
            started,
            finished: self.finished,
        }
    }
}

impl Failure {
    pub(super) fn new(reason: &'static str, error: &dyn std::error::Error) -> Self {
        Self { reason, message: chain(error), image: false }
    }

    pub(super) fn image(error: PullError) -> Self {
        Self { reason: error.reason, message: error.message, image: true }
    }

    pub(super) fn internal(message: &str) -> Self {
        Self { reason: "StartError", message: message.to_owned(), image: false }
    }
}

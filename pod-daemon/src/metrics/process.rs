//! Execs, forks and exits.

use std::borrow::Cow;

use nix::sys::signal::Signal;
use pod_ebpf::process::{EXEC_FAILURES, EXIT_CLASSES, ExecFailure, ExitClass};

use super::family::{Domain, Family, Label, Source::Container, labels};

const EXIT_CODES: [&str; EXIT_CLASSES] = labels!(ExitClass::ALL, EXIT_CLASSES);

const ERRNOS: [&str; EXEC_FAILURES] = labels!(ExecFailure::ALL, EXEC_FAILURES);

pub(super) const DOMAIN: Domain = Domain {
    title: "Processes",
    text: "Counted in the kernel, from the first exec of the container on and without sampling: a \
           process that lives for a millisecond counts like any other. Processes that `podctl \
           exec` starts count, too.",
    families: &[
        Family::counter(
            "podscope_exec_total",
            "Programs that were started: successful `execve` and `execveat` calls. Exemplar: the \
             first process of the current or last run.",
            Container(|c, sheet| sheet.count_such_as(&[], c.process.execs, c.first)),
        )
        .counted_by(&["exec"]),
        Family::counter(
            "podscope_exec_failures_total",
            "Calls of `execve` and `execveat` that failed, that of the container's own command \
             included. A look-up along `PATH` that simply tries, as the daemon's own and that of \
             many programs, fails with `ENOENT` in each directory before the right one. An error \
             has no series before it first happens.",
            Container(|c, sheet| {
                for (failure, count) in ExecFailure::ALL.into_iter().zip(c.process.exec_failures) {
                    if count > 0 {
                        sheet.count(&[failure.label()], count);
                    }
                }
            }),
        )
        .by(&[Label::each("errno", &ERRNOS)])
        .counted_by(&["exec_failure"]),
        Family::counter(
            "podscope_forks_total",
            "New processes.",
            Container(|c, sheet| sheet.count(&[], c.process.forks)),
        )
        .counted_by(&["fork"]),
        Family::counter(
            "podscope_threads_total",
            "New threads of existing processes.",
            Container(|c, sheet| sheet.count(&[], c.process.threads)),
        )
        .counted_by(&["fork"]),
        Family::counter(
            "podscope_process_exits_total",
            "Processes that ended by themselves, by class of their exit code.",
            Container(|c, sheet| {
                for (class, count) in ExitClass::ALL.into_iter().zip(c.process.exits) {
                    sheet.count(&[class.label()], count);
                }
            }),
        )
        .by(&[Label::each("code", &EXIT_CODES)])
        .counted_by(&["exit"]),
        Family::counter(
            "podscope_process_signals_total",
            "Processes that a signal ended. A signal has no series before it first ends a \
             process.",
            Container(|c, sheet| {
                for (signal, count) in c.process.signals.into_iter().enumerate() {
                    if count > 0 {
                        sheet.count(&[&signal_name(signal)], count);
                    }
                }
            }),
        )
        .by(&[Label::free("signal", "name of the signal, such as `SIGKILL`")])
        .counted_by(&["exit"]),
    ],
};

/// The name of a signal as in signal(7), and as `kill -l` shows real-time signals.
pub(super) fn signal_name(number: usize) -> Cow<'static, str> {
    let known = i32::try_from(number).ok().and_then(|number| Signal::try_from(number).ok());
    match (known, number) {
        (Some(signal), _) => signal.as_str().into(),
        // The first two are glibc's own.
        (None, 34) => "SIGRTMIN".into(),
        (None, 35..=64) => format!("SIGRTMIN+{}", number - 34).into(),
        (None, _) => format!("SIG{number}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_names_that_kill_knows() {
        for (number, name) in
            [(9, "SIGKILL"), (15, "SIGTERM"), (31, "SIGSYS"), (33, "SIG33"), (36, "SIGRTMIN+2")]
        {
            assert_eq!(signal_name(number), name);
        }
    }
}

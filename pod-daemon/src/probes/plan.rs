//! Which program hangs on which hook, in which mode, on this kernel.
//!
//! Policy as a table: a probe that the kernel refuses is off and says why; it is never silently
//! absent.

use std::{borrow::Cow, os::fd::AsFd as _};

use aya::{
    Ebpf,
    programs::{
        BtfTracePoint, CgroupDevice, CgroupSkb, FExit, ProgramError, SockOps, links::FdLink,
    },
};

use serde::{Deserialize, Serialize};

use super::{Error, btf::Btf, pins::Pins, sys};

/// Mode of a probe that does not run.
pub(super) const OFF: &str = "off";

/// How one probe is attached.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ProbeStatus {
    /// What it measures.
    pub probe: Cow<'static, str>,
    /// `tracepoint`, `cgroup`, `fexit`, `syscall` or `off`.
    pub mode: Cow<'static, str>,
    /// Why it is not in its preferred mode; empty if it is.
    pub reason: String,
}

/// Probe, program, tracepoint.
const TRACEPOINTS: [(&str, &str, &str); 4] = [
    ("exec", "exec", "sched_process_exec"),
    ("fork", "fork", "sched_process_fork"),
    ("exit", "exit", "sched_process_exit"),
    ("oom_victim", "oom_victim", "mark_victim"),
];

/// Probe, program, function of the kernel whose return is hooked.
const FILE_FUNCTIONS: [(&str, &str, &str); 3] = [
    ("file_read", "file_read", "vfs_read"),
    ("file_write", "file_write", "vfs_write"),
    ("file_copy_range", "f_copy_range", "vfs_copy_file_range"),
];

/// Probe, program, system call whose return is hooked in fexit mode.
const FILE_CALLS: [(&str, &str, &str); 8] = [
    ("file_readv", "f_readv", "readv"),
    ("file_preadv", "f_preadv", "preadv"),
    ("file_preadv2", "f_preadv2", "preadv2"),
    ("file_writev", "f_writev", "writev"),
    ("file_pwritev", "f_pwritev", "pwritev"),
    ("file_pwritev2", "f_pwritev2", "pwritev2"),
    ("file_sendfile", "f_sendfile", "sendfile64"),
    ("file_splice", "f_splice", "splice"),
];

/// The program of the syscall mode.
const SYSCALL_PROGRAM: &str = "file_syscall";

/// What the kernel calls the entry of a system call.
#[cfg(target_arch = "aarch64")]
const SYSCALL_PREFIX: &str = "__arm64_sys_";
#[cfg(not(target_arch = "aarch64"))]
const SYSCALL_PREFIX: &str = "__x64_sys_";

/// An object that is being loaded, and where its programs and links are kept.
pub(super) struct Attachment<'a> {
    pub(super) ebpf: &'a mut Ebpf,
    pub(super) kernel: &'a Btf,
    pub(super) btf: &'a aya::Btf,
    pub(super) pins: &'a Pins,
    pub(super) id: &'a str,
}

impl Attachment<'_> {
    /// Attaches everything that is attached once per node, and loads what is attached per pod.
    pub(super) fn attach(&mut self) -> Vec<ProbeStatus> {
        let mut status = Vec::new();
        for (probe, program, tracepoint) in TRACEPOINTS {
            let result = self.attach_tracepoint(program, tracepoint);
            status.push(outcome(probe, "tracepoint", result));
        }
        for (probe, program) in
            [("network_receive", "net_ingress"), ("network_transmit", "net_egress")]
        {
            let result = with::<CgroupSkb, _, _>(self.ebpf, program, CgroupSkb::load);
            status.push(outcome(probe, "cgroup", result));
        }
        let result = with::<CgroupDevice, _, _>(self.ebpf, "devices", CgroupDevice::load);
        status.push(outcome("devices", "cgroup", result));
        let result = with::<SockOps, _, _>(self.ebpf, "tcp", SockOps::load);
        status.push(outcome("tcp", "cgroup", result));
        status.extend(self.attach_files());
        status
    }

    /// Attaches the program that does next to nothing, to compare the others' cost with.
    pub(super) fn attach_floor(&mut self) -> ProbeStatus {
        let result = self.attach_fexit("floor", FILE_FUNCTIONS[0].2);
        outcome("floor", "fexit", result)
    }

    /// Keeps every program that was loaded.
    pub(super) fn pin_programs(&self) -> Result<(), Error> {
        let folder = self.pins.object(self.id).join("programs");
        for (name, program) in self.ebpf.programs() {
            let Ok(program) = program.fd() else { continue };
            let path = folder.join(name);
            sys::pin(program.as_fd(), &path).map_err(|source| Error::Pin {
                action: "pin",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// The file probes: all by fexit, or, if the kernel refuses that, all by the syscall mode.
    fn attach_files(&mut self) -> Vec<ProbeStatus> {
        let functions =
            FILE_FUNCTIONS.map(|(probe, program, function)| (probe, program, function.to_owned()));
        let calls = FILE_CALLS
            .map(|(probe, program, call)| (probe, program, format!("{SYSCALL_PREFIX}{call}")));
        let first = self.attach_fexit(functions[0].1, &functions[0].2);
        if let Err(refused) = first {
            let reason = format!("fexit: {}", chain(&refused));
            let result = self.attach_tracepoint(SYSCALL_PROGRAM, "sys_exit");
            return functions
                .iter()
                .chain(&calls)
                .map(|(probe, ..)| match &result {
                    Ok(()) => ProbeStatus::new(probe, "syscall", reason.clone()),
                    Err(error) => ProbeStatus::new(
                        probe,
                        OFF,
                        format!("{reason}; sys_exit: {}", chain(error)),
                    ),
                })
                .collect();
        }
        let mut status = vec![outcome(functions[0].0, "fexit", first)];
        for (probe, program, function) in functions[1..].iter().chain(&calls) {
            status.push(if self.kernel.has_function(function) {
                outcome(probe, "fexit", self.attach_fexit(program, function))
            } else {
                let reason = format!("this kernel has no function `{function}`");
                ProbeStatus::new(probe, OFF, reason)
            });
        }
        status
    }

    fn attach_tracepoint(&mut self, name: &str, tracepoint: &str) -> Result<(), ProgramError> {
        let Self { ebpf, btf, pins, id, .. } = self;
        let link: FdLink = with::<BtfTracePoint, _, _>(ebpf, name, |program| {
            program.load(tracepoint, btf)?;
            pins.remove_link_of_others(id, name);
            let link = program.attach()?;
            Ok(program.take_link(link)?.into())
        })?;
        self.keep(name, link)
    }

    fn attach_fexit(&mut self, name: &str, function: &str) -> Result<(), ProgramError> {
        let Self { ebpf, btf, pins, id, .. } = self;
        let link: FdLink = with::<FExit, _, _>(ebpf, name, |program| {
            program.load(function, btf)?;
            pins.remove_link_of_others(id, name);
            let link = program.attach()?;
            Ok(program.take_link(link)?.into())
        })?;
        self.keep(name, link)
    }

    /// Keeps a link after this daemon.
    fn keep(&self, name: &str, link: FdLink) -> Result<(), ProgramError> {
        let path = self.pins.object(self.id).join("links").join(name);
        link.pin(path)
            .map(drop)
            .map_err(|error| ProgramError::IOError(std::io::Error::other(error)))
    }
}

impl ProbeStatus {
    fn new(probe: &'static str, mode: &'static str, reason: String) -> Self {
        Self { probe: probe.into(), mode: mode.into(), reason }
    }
}

fn with<T, R, F>(ebpf: &mut Ebpf, name: &str, action: F) -> Result<R, ProgramError>
where
    F: FnOnce(&mut T) -> Result<R, ProgramError>,
    for<'a> &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
    action(program.try_into()?)
}

fn outcome(
    probe: &'static str,
    mode: &'static str,
    result: Result<(), ProgramError>,
) -> ProbeStatus {
    match result {
        Ok(()) => ProbeStatus::new(probe, mode, String::new()),
        Err(error) => ProbeStatus::new(probe, OFF, chain(&error)),
    }
}

/// An error with its causes, in one short line: a verifier's log is for the debug level.
fn chain(error: &ProgramError) -> String {
    tracing::debug!(?error, "program refused");
    if let ProgramError::LoadError { io_error, .. } = error {
        return format!("the kernel refuses the program: {io_error}");
    }
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

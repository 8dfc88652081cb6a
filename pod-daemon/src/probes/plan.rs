//! Which program hangs on which hook, in which mode, on this kernel.
//!
//! Policy as a table: a probe that the kernel refuses is off and says why; it is never silently
//! absent.

mod table;

use std::{borrow::Cow, os::fd::AsFd as _};

use aya::{
    Ebpf,
    programs::{
        BtfTracePoint, CgroupDevice, CgroupSkb, FEntry, FExit, ProgramError, SockOps, links::FdLink,
    },
};
use pod_ebpf::offsets::{ABSENT, FIELDS, Offsets};
use serde::{Deserialize, Serialize};

pub use self::table::UNSEEN;
use self::table::{
    CONNECT_FAILURE, DROP, DROP_TO, DROP_UDP, EVENTS, EXEC_CALLS, EXEC_CALLS_32, EXEC_FAILURE,
    FILE_CALLS, FILE_ENTER, FILE_FAULT, FILE_FUNCTIONS, FILE_MOUNT, FILE_SYSCALL, FLOOR_SYSCALL,
    Needs, PACKET_DROP, RENAMED, SYSCALL_PREFIX, SYSCALL_PREFIX_32, TRACE, TRACEPOINTS,
    URING_ENTRY, URING_RESULT, WITHOUT_VOLUME,
};
pub(super) use self::table::{OPTIONAL, Probe, TRACE_OPEN};
use super::{Error, btf::Btf, pins::Pins, sys};

/// Mode of a probe that does not run.
pub(super) const OFF: &str = "off";

/// Mode of an optional probe that nobody has asked for.
const UNASKED: &str = "optional";

/// Mode of probes that share one program at the exit of all system calls.
const SYSCALL: &str = "syscall";

/// What the probe of dropped packets lacks before Linux 6.11.
const UNTOLD: &str = "this kernel does not tell what socket a packet of TCP was for";

/// How the reason begins for which the governor has switched a probe off.
const OVER_BUDGET: &str = "over budget";

/// Why the governor switches a probe off: the share of all CPUs that the optional probes took, and
/// that they may take.
pub(super) fn over_budget(share: f64, budget: f64) -> String {
    let percent = |share: f64| 100.0 * share;
    format!("{OVER_BUDGET}: {:.3} % of the CPUs, of {} %", percent(share), percent(budget))
}

/// How one probe is attached.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ProbeStatus {
    /// What it measures.
    pub probe: Cow<'static, str>,
    /// `tracepoint`, `cgroup`, `fexit`, `syscall`, `optional`, `on_demand` or `off`.
    pub mode: Cow<'static, str>,
    /// Why it is not in its preferred mode; empty if it is.
    pub reason: String,
}

/// An object that is being loaded, and where its programs and links are kept.
pub(super) struct Attachment<'a> {
    pub(super) ebpf: &'a mut Ebpf,
    pub(super) kernel: &'a Btf,
    pub(super) btf: &'a aya::Btf,
    pub(super) offsets: &'a Offsets,
    pub(super) pins: &'a Pins,
    pub(super) id: &'a str,
}

impl Attachment<'_> {
    /// Attaches everything that is attached once per node, and loads what is attached per pod.
    pub(super) fn attach(&mut self) -> Vec<ProbeStatus> {
        let mut status = Vec::new();
        for probe in &TRACEPOINTS {
            let result = self.attach_tracepoint(probe);
            status.push(outcome(probe.name, "tracepoint", result));
        }
        for probe in &EVENTS {
            let result = self.attach_tracepoint(probe);
            status.push(outcome(probe.name, "tracepoint", result));
        }
        status.push(outcome(TRACE.name, "on_demand", self.load_tracepoint(&TRACE)));
        for (probe, program) in
            [("network_receive", "net_ingress"), ("network_transmit", "net_egress")]
        {
            let result = with::<CgroupSkb, _, _>(self.ebpf, program, CgroupSkb::load);
            status.push(outcome(probe, "cgroup", result.map_err(Refusal::Program)));
        }
        let result = with::<CgroupDevice, _, _>(self.ebpf, "devices", CgroupDevice::load);
        status.push(outcome("devices", "cgroup", result.map_err(Refusal::Program)));
        let result = self.require(&[&["sock_err"]]).and_then(|()| {
            with::<SockOps, _, _>(self.ebpf, "tcp", SockOps::load).map_err(Refusal::Program)
        });
        status.push(outcome("tcp", "cgroup", result));
        let files = self.attach_files();
        status.push(self.attach_exec_failures(&files));
        status.push(self.attach_connect_failures(&files));
        status.extend(files);
        status.push(self.attach_uring());
        status.push(self.attach_drops());
        status
    }

    /// Attaches the optional probes that are `wanted`.
    pub(super) fn attach_optional(&mut self, wanted: &[&str]) -> Vec<ProbeStatus> {
        let attach = |probe: &Probe| {
            if !wanted.contains(&probe.name) {
                let reason = format!("needs --probe-{}=on", probe.name);
                return ProbeStatus::new(probe.name, UNASKED, reason);
            }
            let result = self.attach_tracepoint(probe);
            outcome(probe.name, "tracepoint", result)
        };
        OPTIONAL.iter().map(attach).collect()
    }

    /// What counts execs that fail: by fexit, or, if the kernel refuses that, by what counts files
    /// in syscall mode.
    fn attach_exec_failures(&mut self, files: &[ProbeStatus]) -> ProbeStatus {
        let of_32_bit = EXEC_CALLS_32.iter().map(|probe| (probe, SYSCALL_PREFIX_32));
        let calls: Vec<_> = EXEC_CALLS
            .iter()
            .map(|probe| (probe, SYSCALL_PREFIX))
            .chain(of_32_bit)
            .map(|(probe, prefix)| (probe, format!("{prefix}{}", probe.hook)))
            .collect();
        for (probe, function) in calls {
            let is_32_bit = function.starts_with(SYSCALL_PREFIX_32);
            match self.attach_function::<FExit>(probe.program, &function, probe.needs) {
                Ok(()) => {}
                // It runs no such programs.
                Err(Refusal::NoFunction(_)) if is_32_bit => {}
                refused => return fexit_or_syscall(EXEC_FAILURE, refused, files),
            }
        }
        outcome(EXEC_FAILURE, "fexit", Ok(()))
    }

    /// What counts connects that fail before their first packet, in the same way.
    fn attach_connect_failures(&mut self, files: &[ProbeStatus]) -> ProbeStatus {
        let result = self.attach_timed(&CONNECT_FAILURE, CONNECT_FAILURE.hook);
        fexit_or_syscall(CONNECT_FAILURE.name, result, files)
    }

    /// Attaches the program that does next to nothing, to compare the others' cost with.
    pub(super) fn attach_floor(&mut self) -> ProbeStatus {
        match self.attach_function::<FExit>("floor", FILE_FUNCTIONS[0].hook, &[]) {
            Err(Refusal::Program(_)) => {
                outcome("floor", "syscall", self.attach_tracepoint(&FLOOR_SYSCALL))
            }
            result => outcome("floor", "fexit", result),
        }
    }

    /// Keeps every program that was loaded.
    pub(super) fn pin_programs(&self) -> Result<(), Error> {
        let folder = self.pins.programs(self.id);
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
        let functions = FILE_FUNCTIONS.iter().map(|probe| {
            let renamed = RENAMED.iter().find(|(name, _)| *name == probe.hook);
            let renamed = renamed.filter(|_| !self.kernel.has_function(probe.hook));
            (probe, renamed.map_or(probe.hook, |(_, name)| *name).to_owned())
        });
        let calls =
            FILE_CALLS.iter().map(|probe| (probe, format!("{SYSCALL_PREFIX}{}", probe.hook)));
        let fault = (&FILE_FAULT, FILE_FAULT.hook.to_owned());
        let mut status = Vec::new();
        for (probe, function) in functions.chain(calls).chain([fault]).collect::<Vec<_>>() {
            let result = self.attach_timed(probe, &function);
            if let Err(Refusal::Program(refused)) = &result
                && status.is_empty()
            {
                return self.attach_file_syscall(&format!("fexit: {}", chain(refused)));
            }
            status.push(outcome(probe.name, "fexit", result));
        }
        let Probe { name, program, hook, needs, .. } = FILE_MOUNT;
        let result = self.attach_function::<FEntry>(program, hook, needs);
        status.push(outcome(name, "fexit", result));
        status
    }

    /// The file probes, where the kernel refuses fexit for this reason.
    fn attach_file_syscall(&mut self, reason: &str) -> Vec<ProbeStatus> {
        let result = self
            .attach_tracepoint(&FILE_ENTER)
            .and_then(|()| self.attach_tracepoint(&FILE_SYSCALL));
        let status = |probe: &Probe| match &result {
            Ok(()) => ProbeStatus::new(probe.name, SYSCALL, reason.to_owned()),
            Err(refusal) => {
                ProbeStatus::new(probe.name, OFF, format!("{reason}; sys_exit: {refusal}"))
            }
        };
        let mut status: Vec<_> = FILE_FUNCTIONS.iter().chain(&FILE_CALLS).map(status).collect();
        for probe in [FILE_FAULT, FILE_MOUNT] {
            status.push(ProbeStatus::new(probe.name, OFF, reason.to_owned()));
        }
        status
    }

    /// The probe of io_uring: what its tracepoint tells has changed more than once.
    fn attach_uring(&mut self) -> ProbeStatus {
        let (result, entry) = (&URING_RESULT, &URING_ENTRY);
        let outcome_of = match self.kernel.tracepoint_pointers(result.hook) {
            Ok(Some(pointers)) => match *pointers {
                [_, true, true] => self.attach_tracepoint(entry),
                [_, true, false, false, ..] => self.attach_tracepoint(result),
                _ => Err(Refusal::NoRequest(result.hook)),
            },
            Ok(None) | Err(_) => Err(Refusal::NoRequest(result.hook)),
        };
        outcome(result.name, "tracepoint", outcome_of)
    }

    /// The probe of dropped packets: what its tracepoint tells has become more and more.
    fn attach_drops(&mut self) -> ProbeStatus {
        let arguments = match self.kernel.tracepoint_pointers(DROP.hook) {
            Ok(Some(pointers)) => pointers.len(),
            Ok(None) | Err(_) => 0,
        };
        let mut reason = "";
        let outcome_of = match arguments {
            ..3 => Err(Refusal::NoReason(DROP.hook)),
            3 => {
                reason = UNTOLD;
                self.attach_tracepoint(&DROP).and_then(|()| self.attach_tracepoint(&DROP_UDP))
            }
            4.. => self.attach_tracepoint(&DROP_TO),
        };
        let mut status = outcome(PACKET_DROP, "tracepoint", outcome_of);
        if status.is_attached() {
            reason.clone_into(&mut status.reason);
        }
        status
    }

    /// Whether the kernel has these fields.
    fn require(&self, needs: Needs) -> Result<(), Refusal> {
        let fields = FIELDS.iter().zip(self.offsets.as_array());
        for (field, offset) in fields {
            if *offset == ABSENT && needs.iter().any(|list| list.contains(&field.name)) {
                return Err(Refusal::NoField(field.places[0]));
            }
        }
        Ok(())
    }

    fn attach_tracepoint(&mut self, probe: &Probe) -> Result<(), Refusal> {
        self.require(probe.needs)?;
        let Self { ebpf, btf, pins, id, .. } = self;
        let name = probe.program;
        let link: FdLink = with::<BtfTracePoint, _, _>(ebpf, name, |program| {
            program.load(probe.hook, btf)?;
            pins.remove_link_of_others(id, name);
            let link = program.attach()?;
            Ok(program.take_link(link)?.into())
        })
        .map_err(Refusal::Program)?;
        self.keep(name, link)
    }

    /// Loads a program that is attached later, and not by this object.
    fn load_tracepoint(&mut self, probe: &Probe) -> Result<(), Refusal> {
        self.require(probe.needs)?;
        let Self { ebpf, btf, .. } = self;
        with::<BtfTracePoint, _, _>(ebpf, probe.program, |program| program.load(probe.hook, btf))
            .map_err(Refusal::Program)
    }

    fn attach_function<T: Trampoline>(
        &mut self,
        name: &str,
        function: &str,
        needs: Needs,
    ) -> Result<(), Refusal>
    where
        for<'a> &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
    {
        self.require(needs)?;
        if !self.kernel.has_function(function) {
            return Err(Refusal::NoFunction(function.to_owned()));
        }
        let Self { ebpf, btf, pins, id, .. } = self;
        let link = with::<T, _, _>(ebpf, name, |program| {
            program.load(function, btf)?;
            pins.remove_link_of_others(id, name);
            program.attach()
        })
        .map_err(Refusal::Program)?;
        self.keep(name, link)
    }

    /// Attaches a program at a function's entry, and one at its return.
    fn attach_timed(&mut self, probe: &Probe, function: &str) -> Result<(), Refusal> {
        self.attach_function::<FEntry>(probe.entry, function, probe.needs)?;
        self.attach_function::<FExit>(probe.program, function, &[])
    }

    /// Keeps a link after this daemon.
    fn keep(&self, name: &str, link: FdLink) -> Result<(), Refusal> {
        let path = self.pins.object(self.id).join("links").join(name);
        link.pin(path)
            .map(drop)
            .map_err(|error| Refusal::Program(ProgramError::IOError(std::io::Error::other(error))))
    }
}

/// A program at a function's entry or return.
trait Trampoline {
    fn load(&mut self, function: &str, btf: &aya::Btf) -> Result<(), ProgramError>;
    fn attach(&mut self) -> Result<FdLink, ProgramError>;
}

impl Trampoline for FEntry {
    fn load(&mut self, function: &str, btf: &aya::Btf) -> Result<(), ProgramError> {
        self.load(function, btf)
    }

    fn attach(&mut self) -> Result<FdLink, ProgramError> {
        let link = self.attach()?;
        Ok(self.take_link(link)?.into())
    }
}

impl Trampoline for FExit {
    fn load(&mut self, function: &str, btf: &aya::Btf) -> Result<(), ProgramError> {
        self.load(function, btf)
    }

    fn attach(&mut self) -> Result<FdLink, ProgramError> {
        let link = self.attach()?;
        Ok(self.take_link(link)?.into())
    }
}

/// Why a probe does not run.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("this kernel has no field `{0}`")]
    NoField(&'static str),
    #[error("this kernel has no function `{0}`")]
    NoFunction(String),
    #[error("this kernel's tracepoint `{0}` does not tell the file")]
    NoRequest(&'static str),
    #[error("this kernel's tracepoint `{0}` does not tell the reason")]
    NoReason(&'static str),
    #[error("{}", chain(.0))]
    Program(ProgramError),
}

impl ProbeStatus {
    fn new(probe: &'static str, mode: &'static str, reason: String) -> Self {
        Self { probe: probe.into(), mode: mode.into(), reason }
    }

    /// How much it sees of what it is for: `attached` is all, `degraded` a part, `missing` nothing.
    #[must_use]
    pub fn coverage(&self) -> &'static str {
        match &*self.mode {
            OFF => "missing",
            "syscall" if WITHOUT_VOLUME.contains(&&*self.probe) => "degraded",
            _ if self.reason == UNTOLD => "degraded",
            _ => "attached",
        }
    }

    /// Whether it counts.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        !matches!(&*self.mode, OFF | UNASKED)
    }

    /// Whether the governor has switched it off.
    pub(super) fn is_over_budget(&self) -> bool {
        self.reason.starts_with(OVER_BUDGET)
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

fn outcome(probe: &'static str, mode: &'static str, result: Result<(), Refusal>) -> ProbeStatus {
    match result {
        Ok(()) => ProbeStatus::new(probe, mode, String::new()),
        Err(refusal) => ProbeStatus::new(probe, OFF, refusal.to_string()),
    }
}

/// As [`outcome`], of what hangs on functions, and where the kernel refuses that is counted by what counts
/// `files` in syscall mode.
fn fexit_or_syscall(
    probe: &'static str,
    result: Result<(), Refusal>,
    files: &[ProbeStatus],
) -> ProbeStatus {
    match result {
        Err(Refusal::Program(refused)) if files.iter().any(|file| file.mode == SYSCALL) => {
            ProbeStatus::new(probe, SYSCALL, format!("fexit: {}", chain(&refused)))
        }
        result => outcome(probe, "fexit", result),
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

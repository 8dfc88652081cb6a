//! Which program hangs on which hook, in which mode, on this kernel.
//!
//! Policy as a table: a probe that the kernel refuses is off and says why; it is never silently
//! absent.

use aya::{
    Ebpf,
    programs::{BtfTracePoint, CgroupDevice, CgroupSkb, FExit, ProgramError, SockOps},
};

use super::btf::Btf;

/// Mode of a probe that does not run.
pub(super) const OFF: &str = "off";

/// How one probe is attached.
#[derive(Clone, Debug)]
pub struct ProbeStatus {
    /// What it measures.
    pub probe: &'static str,
    /// `tracepoint`, `cgroup`, `fexit`, `syscall` or `off`.
    pub mode: &'static str,
    /// Why it is not in its preferred mode; empty if it is.
    pub reason: String,
}

/// Probe, program, scheduler tracepoint.
const TRACEPOINTS: [(&str, &str, &str); 3] = [
    ("exec", "exec", "sched_process_exec"),
    ("fork", "fork", "sched_process_fork"),
    ("exit", "exit", "sched_process_exit"),
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

/// Attaches everything that is attached once per node, and loads what is attached per pod.
pub(super) fn attach(ebpf: &mut Ebpf, kernel: &Btf, btf: &aya::Btf) -> Vec<ProbeStatus> {
    let mut status = Vec::new();
    for (probe, program, tracepoint) in TRACEPOINTS {
        let result = attach_tracepoint(ebpf, program, tracepoint, btf);
        status.push(outcome(probe, "tracepoint", result));
    }
    for (probe, program) in [("network_receive", "net_ingress"), ("network_transmit", "net_egress")]
    {
        let result = with::<CgroupSkb, _>(ebpf, program, CgroupSkb::load);
        status.push(outcome(probe, "cgroup", result));
    }
    let result = with::<CgroupDevice, _>(ebpf, "devices", CgroupDevice::load);
    status.push(outcome("devices", "cgroup", result));
    let result = with::<SockOps, _>(ebpf, "tcp", SockOps::load);
    status.push(outcome("tcp", "cgroup", result));
    status.extend(attach_files(ebpf, kernel, btf));
    status
}

/// Attaches the program that does next to nothing, to compare the others' cost with.
pub(super) fn attach_floor(ebpf: &mut Ebpf, btf: &aya::Btf) -> ProbeStatus {
    outcome("floor", "fexit", attach_fexit(ebpf, "floor", FILE_FUNCTIONS[0].2, btf))
}

/// The file probes: all by fexit, or, if the kernel refuses that, all by the syscall mode.
fn attach_files(ebpf: &mut Ebpf, kernel: &Btf, btf: &aya::Btf) -> Vec<ProbeStatus> {
    let functions =
        FILE_FUNCTIONS.map(|(probe, program, function)| (probe, program, function.to_owned()));
    let calls = FILE_CALLS
        .map(|(probe, program, call)| (probe, program, format!("{SYSCALL_PREFIX}{call}")));
    let first = attach_fexit(ebpf, functions[0].1, &functions[0].2, btf);
    if let Err(refused) = first {
        let reason = format!("fexit: {}", chain(&refused));
        let result = attach_tracepoint(ebpf, SYSCALL_PROGRAM, "sys_exit", btf);
        return functions
            .iter()
            .chain(&calls)
            .map(|(probe, ..)| match &result {
                Ok(()) => ProbeStatus { probe, mode: "syscall", reason: reason.clone() },
                Err(error) => ProbeStatus {
                    probe,
                    mode: OFF,
                    reason: format!("{reason}; sys_exit: {}", chain(error)),
                },
            })
            .collect();
    }
    let mut status = vec![outcome(functions[0].0, "fexit", first)];
    for (probe, program, function) in functions[1..].iter().chain(&calls) {
        status.push(if kernel.has_function(function) {
            outcome(probe, "fexit", attach_fexit(ebpf, program, function, btf))
        } else {
            ProbeStatus {
                probe,
                mode: OFF,
                reason: format!("this kernel has no function `{function}`"),
            }
        });
    }
    status
}

fn attach_tracepoint(
    ebpf: &mut Ebpf,
    program: &str,
    tracepoint: &str,
    btf: &aya::Btf,
) -> Result<(), ProgramError> {
    with::<BtfTracePoint, _>(ebpf, program, |program| {
        program.load(tracepoint, btf)?;
        program.attach().map(drop)
    })
}

fn attach_fexit(
    ebpf: &mut Ebpf,
    program: &str,
    function: &str,
    btf: &aya::Btf,
) -> Result<(), ProgramError> {
    with::<FExit, _>(ebpf, program, |program| {
        program.load(function, btf)?;
        program.attach().map(drop)
    })
}

fn with<T, F>(ebpf: &mut Ebpf, name: &str, action: F) -> Result<(), ProgramError>
where
    F: FnOnce(&mut T) -> Result<(), ProgramError>,
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
        Ok(()) => ProbeStatus { probe, mode, reason: String::new() },
        Err(error) => ProbeStatus { probe, mode: OFF, reason: chain(&error) },
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

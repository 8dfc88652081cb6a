//! What a new process does between `clone3` and `execve`.
//!
//! It runs in the daemon's memory while the thread that made it sleeps: it may make system calls
//! and write to its [`Plan`], and must neither allocate nor lock, since another thread may hold the
//! allocator's lock. So everything it needs is prepared in the plan.

mod mounts;

use std::{ffi::CString, os::fd::RawFd, ptr, sync::Arc};

use libc::{c_char, c_int, c_long};
use nix::errno::Errno;

pub(super) use self::mounts::{Covers, Mounts};
use super::{clone, oom_score::OomScore, seccomp::Filter};

/// The highest capability number that any kernel knows.
const CAP_LAST: c_int = 63;

/// Where a program of the daemon's own is open until its exec.
const PROGRAM: c_int = 3;

/// The first of the descriptors that such a program keeps.
pub const FIRST_KEPT: usize = 4;

/// Signals are numbered 1 to 64.
const SIGNALS: c_int = 64;

/// What the process does, in the order of the fields.
#[derive(Debug)]
pub(super) struct Plan {
    /// How early the kernel is to kill it. First, while it may still lower the daemon's own.
    pub(super) oom_score: Option<Arc<OomScore>>,
    /// Mounts that can only be made from inside the new PID and cgroup namespaces.
    pub(super) mounts: Option<Mounts>,
    /// Directory to start in.
    pub(super) directory: CString,
    /// Descriptors that become 0, 1 and 2.
    pub(super) stdio: [RawFd; 3],
    /// Descriptors that a program of the daemon's own keeps, as [`FIRST_KEPT`] and those after it.
    /// None of them has a number in that range.
    pub(super) kept: Vec<RawFd>,
    /// What becomes the root directory, if it is to be another than the calling thread's.
    pub(super) root: Option<RawFd>,
    /// A user namespace to join, by its descriptor or by one of a process in it. Only a process
    /// with one thread can, so it is left to this one.
    pub(super) user_namespace: Option<RawFd>,
    /// More namespaces to be made at birth, as flags of `clone`.
    pub(super) namespaces: c_int,
    /// Whether the process becomes the user below: in a namespace without ids it cannot.
    pub(super) keeps_identity: bool,
    /// User, group and supplementary groups.
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) groups: Vec<u32>,
    /// Bit set of capabilities to keep.
    pub(super) capabilities: u64,
    /// Whether programs with set-uid bits or file capabilities give nothing.
    pub(super) no_new_privileges: bool,
    /// What the daemon ignores, a bit for each signal, 1 for the first.
    pub(super) ignored_signals: u64,
    /// Which system calls the program may make.
    pub(super) filter: Option<Arc<Filter>>,
    /// Soft and hard limit of open files.
    pub(super) open_files: Option<(u64, u64)>,
    /// Soft and hard limit of locked memory, in bytes.
    pub(super) locked_memory: (u64, u64),
    /// What to execute: a sealed program of the daemon's own, or paths to try in this order.
    pub(super) program: Program,
    pub(super) arguments: Strings,
    pub(super) environment: Strings,
    /// What went wrong.
    pub(super) error: Option<(&'static str, c_int)>,
}

#[derive(Debug)]
pub(super) enum Program {
    Descriptor(RawFd),
    Paths(Vec<CString>),
}

/// A null-terminated array of strings, as `execve` takes it.
#[derive(Debug)]
pub(super) struct Strings {
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    pub(super) fn new(owned: Vec<CString>) -> Self {
        let pointers = owned
            .iter()
            .map(|string| string.as_ptr())
            .chain(std::iter::once(ptr::null()))
            .collect();
        Self { _owned: owned, pointers }
    }
}

/// What this process ignores, or all signals if that is not known; see [`Plan::ignored_signals`].
pub(super) fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let digits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    digits.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(u64::MAX)
}

/// A step that failed, and why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("failed to {step}")]
pub struct Failure {
    /// What was tried.
    pub step: &'static str,
    /// The kernel's answer.
    #[source]
    pub errno: Errno,
}

impl Failure {
    pub(super) fn new(step: &'static str, errno: Errno) -> Self {
        Self { step, errno }
    }
}

/// The name of the last step.
pub const EXECUTE: &str = "execute the program";

impl Plan {
    pub(super) fn failure(&self) -> Option<Failure> {
        self.error.map(|(step, errno)| Failure::new(step, Errno::from_raw(errno)))
    }
}

/// The child's entry.
pub(super) unsafe extern "C" fn run(plan: *mut Plan) -> ! {
    // SAFETY: the caller passes a plan that outlives this process's use of it, and sleeps.
    let plan = unsafe { &mut *plan };
    let is_known = plan.oom_score.as_ref().is_none_or(|score| score.wait());
    let done = if is_known { carry_out(plan) } else { Err(("get its score", libc::ETIMEDOUT)) };
    let (step, errno) = match done {
        Ok(never) => match never {},
        Err(error) => error,
    };
    plan.error = Some((step, errno));
    // SAFETY: ends this process without running the daemon's exit handlers.
    unsafe {
        libc::syscall(libc::SYS_exit_group, 127);
        libc::syscall(libc::SYS_exit, 127);
    }
    // A filter that is already loaded may refuse both.
    clone::trap()
}

type Step<T> = Result<T, (&'static str, c_int)>;

fn carry_out(plan: &Plan) -> Step<std::convert::Infallible> {
    // SAFETY: system calls on the plan's own memory and descriptors, in a process that nobody else
    // knows yet; none of them touches the memory of the daemon's other threads.
    unsafe {
        check("start a session", libc::syscall(libc::SYS_setsid))?;
        if let Some(mounts) = &plan.mounts {
            check("unshare the cgroup namespace", unshare(libc::CLONE_NEWCGROUP))?;
            mounts::mount_kernel_filesystems(mounts)?;
        }
        let (soft, hard) = plan.locked_memory;
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        // Lower than the daemon's, so it cannot fail.
        libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit);
        if let Some((soft, hard)) = plan.open_files {
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            // A lower hard limit than asked for is the node's business: keep what there is.
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
        if let Some(root) = plan.root {
            check("open the root", libc::syscall(libc::SYS_fchdir, root))?;
            check("change the root", libc::syscall(libc::SYS_chroot, c".".as_ptr()))?;
        }
        if let Some(namespace) = plan.user_namespace {
            check(
                "join the user namespace",
                libc::syscall(libc::SYS_setns, namespace, libc::CLONE_NEWUSER),
            )?;
        }
        redirect(plan)?;
        change_directory(plan)?;
        libc::syscall(libc::SYS_umask, 0o022);
        // The daemon ignores SIGPIPE, as Rust programs do, and perhaps what its own parent ignored.
        // Containers must not inherit that; clone3 has reset only what was handled.
        for signal in 1..=SIGNALS {
            if plan.ignored_signals & 1 << (signal - 1) != 0 {
                // libc keeps 32 and 33 for itself, and posix_spawn has them ignored.
                let default: [u64; 4] = [libc::SIG_DFL as u64, 0, 0, 0];
                let (action, none) = (default.as_ptr(), ptr::null_mut::<u64>());
                libc::syscall(libc::SYS_rt_sigaction, signal, action, none, size_of::<u64>());
            }
        }
        // Without no_new_privs only who has CAP_SYS_ADMIN may load a filter, so it comes before the
        // capabilities go and must let the rest of the plan pass. Else it comes last.
        if !plan.no_new_privileges {
            load_filter(plan)?;
        }
        become_user(plan)?;
        conceal();
        let none: u64 = 0;
        check(
            "unblock signals",
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const none,
                ptr::null_mut::<u64>(),
                size_of::<u64>(),
            ),
        )?;
        if plan.no_new_privileges {
            load_filter(plan)?;
        }
        execute(plan)
    }
}

/// Keeps this process, and whose memory it has, from leaving a core: a change of user makes it dump again
/// where `fs.suid_dumpable` says so.
fn conceal() {
    // SAFETY: a flag of the memory, which the daemon wants, too.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

unsafe fn load_filter(plan: &Plan) -> Step<()> {
    let Some(filter) = &plan.filter else { return Ok(()) };
    conceal();
    let program = filter.program();
    // SAFETY: by the caller's contract; the kernel copies the program, which the plan keeps.
    unsafe {
        check(
            "load the seccomp filter",
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program),
        )?;
    }
    Ok(())
}

/// Changes to a directory that an image may have chosen, so not before the daemon's descriptors are
/// closed: `/proc/self/fd/N` could be one of them (CVE-2024-21626).
unsafe fn change_directory(plan: &Plan) -> Step<()> {
    let step = "change to the working directory";
    let mut path = [0_u8; 4096];
    // SAFETY: by the caller's contract; the kernel writes no more than there is room for.
    unsafe {
        check(step, libc::syscall(libc::SYS_chdir, plan.directory.as_ptr()))?;
        check(step, libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()))?;
    }
    // The kernel says "(unreachable)" of what is not below the root.
    if path[0] == b'/' { Ok(()) } else { Err((step, libc::EXDEV)) }
}

unsafe fn redirect(plan: &Plan) -> Step<()> {
    // SAFETY: by the caller's contract.
    unsafe {
        // First out of the way: a descriptor of the plan may itself be 0, 1 or 2.
        let mut moved = [0; 3];
        for (index, descriptor) in plan.stdio.iter().enumerate() {
            moved[index] = check(
                "move a descriptor",
                libc::syscall(libc::SYS_fcntl, *descriptor, libc::F_DUPFD_CLOEXEC, 3),
            )?;
        }
        for (index, descriptor) in moved.iter().enumerate() {
            check(
                "redirect a standard stream",
                libc::syscall(libc::SYS_dup3, *descriptor, index, 0),
            )?;
        }
        // Everything else is close-on-exec already; this closes what a library forgot. The program
        // itself must stay open until the exec.
        let mut first = PROGRAM as usize;
        if let Program::Descriptor(program) = &plan.program {
            check(
                "keep the program",
                libc::syscall(libc::SYS_dup3, *program, PROGRAM, libc::O_CLOEXEC),
            )?;
            first = FIRST_KEPT;
            for descriptor in &plan.kept {
                check("keep a descriptor", libc::syscall(libc::SYS_dup3, *descriptor, first, 0))?;
                first += 1;
            }
        }
        check("close descriptors", libc::syscall(libc::SYS_close_range, first, u32::MAX, 0))?;
    }
    Ok(())
}

/// Capability sets as `capset` takes them, version 3.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Raw system calls throughout: libc's wrappers would change every thread of the daemon.
unsafe fn become_user(plan: &Plan) -> Step<()> {
    // SAFETY: by the caller's contract.
    unsafe {
        for capability in 0..=CAP_LAST {
            if plan.capabilities & (1 << capability) == 0 {
                let drop = libc::PR_CAPBSET_DROP;
                if libc::syscall(libc::SYS_prctl, drop, capability, 0, 0, 0) != 0 {
                    // EINVAL: this kernel does not know so many.
                    break;
                }
            }
        }
        if !plan.keeps_identity {
            check(
                "set groups",
                libc::syscall(libc::SYS_setgroups, plan.groups.len(), plan.groups.as_ptr()),
            )?;
            check(
                "set the group",
                libc::syscall(libc::SYS_setresgid, plan.group, plan.group, plan.group),
            )?;
            check(
                "set the user",
                libc::syscall(libc::SYS_setresuid, plan.user, plan.user, plan.user),
            )?;
        }
        // A user other than root has lost them with the change of user.
        let kept = if plan.user == 0 { plan.capabilities } else { 0 };
        let header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
        let set = |shift: u32| {
            let word = ((kept >> shift) & 0xffff_ffff) as u32;
            CapabilityData { effective: word, permitted: word, inheritable: 0 }
        };
        let data = [set(0), set(32)];
        check(
            "set capabilities",
            libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()),
        )?;
        if plan.no_new_privileges {
            check(
                "set no_new_privs",
                libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            )?;
        }
    }
    Ok(())
}

unsafe fn execute(plan: &Plan) -> Step<std::convert::Infallible> {
    let (arguments, environment) =
        (plan.arguments.pointers.as_ptr(), plan.environment.pointers.as_ptr());
    // SAFETY: by the caller's contract; both arrays end in a null pointer.
    unsafe {
        match &plan.program {
            Program::Descriptor(_) => {
                libc::syscall(
                    libc::SYS_execveat,
                    PROGRAM,
                    c"".as_ptr(),
                    arguments,
                    environment,
                    libc::AT_EMPTY_PATH,
                );
                Err((EXECUTE, errno()))
            }
            Program::Paths(paths) => {
                // As a shell does: a file that may not be executed is remembered, in case no other
                // directory has the program.
                let mut error = libc::ENOENT;
                for path in paths {
                    libc::syscall(libc::SYS_execve, path.as_ptr(), arguments, environment);
                    match errno() {
                        libc::ENOENT | libc::ENOTDIR => {}
                        libc::EACCES => error = libc::EACCES,
                        other => return Err((EXECUTE, other)),
                    }
                }
                Err((EXECUTE, error))
            }
        }
    }
}

unsafe fn unshare(flags: c_int) -> c_long {
    // SAFETY: affects this process only.
    unsafe { libc::syscall(libc::SYS_unshare, flags) }
}

fn check(step: &'static str, result: c_long) -> Step<c_int> {
    if result < 0 {
        return Err((step, errno()));
    }
    // Descriptors, sizes and zero: all of them fit.
    Ok(c_int::try_from(result).unwrap_or(c_int::MAX))
}

fn errno() -> c_int {
    // SAFETY: errno of the thread whose memory this process borrows, which sleeps.
    unsafe { *libc::__errno_location() }
}

//! `clone3` into a cgroup, with the memory of the caller until the child execs.
//!
//! The child borrows the daemon's memory (`CLONE_VM`) instead of a copy of its page tables, and the
//! calling thread sleeps until the child has exec'ed or died (`CLONE_VFORK`), as `posix_spawn` does.
//! So starting a process costs the same however large the daemon is, and the child reports what went
//! wrong by writing it to memory.

use std::{
    arch::asm,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    sys::signal::{SigSet, SigmaskHow, pthread_sigmask},
    unistd::Pid,
};

use super::child::{self, Plan};

/// Bytes of the child's stack. It runs a fixed list of system calls with no recursion.
const STACK_SIZE: usize = 64 * 1024;

/// `struct clone_args`, up to the field that Linux 5.7 added.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A process that has exec'ed.
#[derive(Debug)]
pub struct Process {
    /// Its pid in the daemon's PID namespace.
    pub pid: Pid,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// Its mount namespace, if it has one of its own: who is the last to let go of it waits until all
    /// CPUs have seen that the mounts are gone, and that should not be the process at its end.
    pub(super) _mounts: Option<OwnedFd>,
}

impl Process {
    /// Takes over a process that another daemon started; `None` if it does not run any more.
    pub fn adopt(pid: Pid, expected_start: u64) -> io::Result<Option<Self>> {
        // SAFETY: no memory is involved.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
        let pidfd = match i32::try_from(result) {
            // SAFETY: the kernel returned a new descriptor.
            Ok(descriptor) if descriptor >= 0 => unsafe { OwnedFd::from_raw_fd(descriptor) },
            _ => {
                let error = io::Error::last_os_error();
                // EINVAL: a thread has that number.
                return match error.raw_os_error() {
                    Some(libc::ESRCH | libc::EINVAL) => Ok(None),
                    _ => Err(error),
                };
            }
        };
        // Whoever has the pid now has the descriptor, too: the start time tells whether it is the one.
        let process = Self { pid, pidfd, _mounts: None };
        let is_same = start_time(pid).is_some_and(|start| start == expected_start);
        Ok((is_same && process.is_alive()).then_some(process))
    }

    /// Whether it has not ended yet.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let mut poll = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, Some(&rustix::event::Timespec::default())) == Ok(0)
    }

    /// Kills a process that cannot be looked after, and reaps it.
    pub fn abandon(&self) {
        // It may have ended by itself; either way there is something to reap.
        self.signal(libc::SIGKILL).ok();
        wait(&self.pidfd).ok();
    }

    /// Sends a signal to this very process, whoever has its pid by now.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let (pidfd, none) = (self.pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: the descriptor is open, and no siginfo is passed.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, none, 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Starts a process in `cgroup` that carries out `plan`, which ends in an exec.
///
/// It joins the namespaces of the calling thread, and gets a PID namespace of its own with
/// `new_pid_namespace`. Returns when the exec is done; an error is that of the plan's failed step.
pub(super) fn spawn(
    plan: &mut Plan,
    cgroup: BorrowedFd<'_>,
    new_pid_namespace: bool,
) -> Result<Process, child::Failure> {
    let mut pidfd: RawFd = -1;
    let mut stack = vec![0_u128; STACK_SIZE / 16];
    let mut flags = libc::CLONE_VM as u64
        | libc::CLONE_VFORK as u64
        | libc::CLONE_PIDFD as u64
        | CLONE_CLEAR_SIGHAND
        | CLONE_INTO_CGROUP;
    // Flags of namespaces have one bit each, all of them positive.
    flags |= u64::from(plan.namespaces.cast_unsigned());
    if new_pid_namespace {
        flags |= libc::CLONE_NEWPID as u64;
    }
    let pid = plan.oom_score.as_ref().map(|score| score.pid());
    if pid.is_some() {
        flags |= libc::CLONE_PARENT_SETTID as u64;
    }
    let arguments = CloneArgs {
        flags,
        pidfd: (&raw mut pidfd) as u64,
        parent_tid: pid.map_or(0, |pid| pid as u64),
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: STACK_SIZE as u64,
        cgroup: u64::from(cgroup.as_raw_fd().cast_unsigned()),
        ..CloneArgs::default()
    };

    // Until its exec the child must run nothing but the plan; it unblocks signals itself.
    let mut previous = SigSet::empty();
    let blocked =
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut previous));
    blocked.map_err(|errno| child::Failure::new("block signals", errno))?;
    // SAFETY: the child runs `child::run` on its own stack and never returns from it; the plan, the
    // arguments and the stack outlive it, since this thread sleeps until the child execs or dies.
    let result = unsafe { clone3(&arguments, plan) };
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&previous), None).ok();

    let pid = match i32::try_from(result) {
        Ok(pid) if pid > 0 => Pid::from_raw(pid),
        _ => {
            let errno = nix::errno::Errno::from_raw(i32::try_from(-result).unwrap_or(libc::EINVAL));
            return Err(child::Failure::new("clone into the cgroup", errno));
        }
    };
    // SAFETY: the kernel stored a new descriptor there.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if let Some(failure) = plan.failure() {
        // The child has exited; it must not stay a zombie.
        wait(&pidfd).ok();
        return Err(failure);
    }
    Ok(Process { pid, pidfd, _mounts: None })
}

/// When a process started, in clock ticks since boot; `None` if there is none.
#[must_use]
pub fn start_time(pid: Pid) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything; field 22 is the twentieth after it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Reaps a process that has ended: `(exit code, signal)`, one of which is meaningful.
pub fn wait(pidfd: &OwnedFd) -> io::Result<(i32, Option<i32>)> {
    // SAFETY: an all-zero `siginfo_t` is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: `info` is valid for writes and the descriptor is open.
        let result = unsafe {
            libc::waitid(
                libc::P_PIDFD,
                pidfd.as_raw_fd().cast_unsigned(),
                &raw mut info,
                libc::WEXITED,
            )
        };
        if result == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: waitid filled in a SIGCHLD siginfo.
    let status = unsafe { info.si_status() };
    Ok(if info.si_code == libc::CLD_EXITED { (status, None) } else { (128 + status, Some(status)) })
}

/// Ends the process by an instruction that no system call filter sees: the kernel kills who has no
/// handler for its signal.
pub(super) fn trap() -> ! {
    // SAFETY: the instruction raises an exception and touches nothing.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("ud2", options(noreturn, nomem, nostack));
        #[cfg(target_arch = "aarch64")]
        asm!("udf #0", options(noreturn, nomem, nostack));
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn clone3(arguments: &CloneArgs, plan: &mut Plan) -> i64 {
    let result: i64;
    // SAFETY: by the caller's contract. The child starts at the instruction after `syscall` with
    // the stack of `arguments`, calls `run`, and never leaves it.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {plan}",
            "call {run}",
            "ud2",
            "2:",
            run = sym child::run,
            plan = in(reg) plan,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") arguments,
            in("rsi") size_of::<CloneArgs>(),
            // Not `lateout`: `plan` must not live in a register that the system call overwrites.
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

#[cfg(target_arch = "aarch64")]
unsafe fn clone3(arguments: &CloneArgs, plan: &mut Plan) -> i64 {
    let result: i64;
    // SAFETY: as on x86-64.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {plan}",
            "bl {run}",
            "brk 1",
            "2:",
            run = sym child::run,
            plan = in(reg) plan,
            in("x8") libc::SYS_clone3,
            inlateout("x0") arguments => result,
            in("x1") size_of::<CloneArgs>(),
            out("x30") _,
        );
    }
    result
}

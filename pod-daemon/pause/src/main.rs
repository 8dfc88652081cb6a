//! The infra program: a pod's first process and its last.
//!
//! Sleeps until SIGTERM or SIGINT tells it to leave. As PID 1 of a shared PID namespace it also
//! inherits every orphan of the pod, and reaps it. Nothing else: no libc, no heap, no handlers, no
//! writable data; one page of code and the stack the kernel gave it.

#![no_std]
#![no_main]

use core::{arch::asm, panic::PanicInfo, ptr};

#[cfg(target_arch = "x86_64")]
mod call {
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const WAIT4: usize = 61;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 128;
    pub(crate) const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod call {
    pub(crate) const EXIT_GROUP: usize = 94;
    pub(crate) const RT_SIGPROCMASK: usize = 135;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 137;
    pub(crate) const WAIT4: usize = 260;
}

const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const SIGCHLD: isize = 17;

const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;
const ANY_CHILD: usize = usize::MAX;

/// The kernel's `sigset_t`: signal n is bit n - 1.
static AWAITED: u64 = (1 << (SIGINT - 1)) | (1 << (SIGTERM - 1)) | (1 << (SIGCHLD - 1));

#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    block();
    loop {
        // First, because children may have died before the signals were blocked; after every
        // signal, because one SIGCHLD stands for any number of deaths.
        while reap() {}

        // An error is EINTR (a tracer, a stop and continue): one more turn.
        if let SIGINT | SIGTERM = wait() {
            exit();
        }
    }
}

/// Makes the awaited signals pend. PID 1 needs no handler then: the kernel spares it the signals
/// whose default action it would not survive, but not those that it has blocked.
fn block() {
    // SAFETY: the kernel reads `AWAITED`, whose size is that of its own set, and writes nothing.
    unsafe { syscall(call::RT_SIGPROCMASK, [SIG_BLOCK, awaited(), 0, size_of::<u64>()]) };
}

/// Whether there was a dead child to reap.
fn reap() -> bool {
    // SAFETY: the null pointers ask for neither a status nor a usage.
    let pid = unsafe { syscall(call::WAIT4, [ANY_CHILD, 0, WNOHANG, 0]) };
    pid > 0
}

/// Sleeps until one of the awaited signals is there, and takes it.
fn wait() -> isize {
    // SAFETY: as in `block`; the null pointers ask for no details and set no time limit.
    unsafe { syscall(call::RT_SIGTIMEDWAIT, [awaited(), 0, 0, size_of::<u64>()]) }
}

fn exit() {
    // SAFETY: no memory is involved.
    unsafe { syscall(call::EXIT_GROUP, [0; 4]) };
}

fn awaited() -> usize {
    ptr::addr_of!(AWAITED).addr()
}

/// Makes a system call; errors are negative numbers.
///
/// # Safety
/// Where the call takes a pointer, the argument must be one that the kernel may use in that way.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn syscall(number: usize, [a, b, c, d]: [usize; 4]) -> isize {
    let result;
    // SAFETY: the kernel keeps the stack and every register but these; memory is the caller's care.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Makes a system call; errors are negative numbers.
///
/// # Safety
/// Where the call takes a pointer, the argument must be one that the kernel may use in that way.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn syscall(number: usize, [a, b, c, d]: [usize; 4]) -> isize {
    let result;
    // SAFETY: the kernel keeps the stack and every register but x0; memory is the caller's care.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d,
            options(nostack),
        );
    }
    result
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {
        exit();
    }
}

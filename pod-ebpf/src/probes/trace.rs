//! Every file that a pod opens, told one by one: attached only while somebody traces a pod.
//!
//! At the exit of the system calls, when the path has just been read: so it is in memory, and the result
//! is known.

use aya_ebpf::{
    helpers::{
        bpf_get_current_comm,
        generated::{bpf_probe_read_user, bpf_probe_read_user_str},
    },
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use pod_ebpf::event::{Kind, TEXT_BYTES, Worded};

use crate::{
    counter,
    event::{self, TRACES},
    kernel::field,
    slot,
};

/// How a system call is told what to open.
#[derive(Clone, Copy)]
struct Open {
    /// Number of the argument that is the path.
    path: usize,
    flags: Flags,
}

#[derive(Clone, Copy)]
enum Flags {
    /// Number of the argument.
    Argument(usize),
    /// Number of the argument that points at them.
    Behind(usize),
    /// Always the same.
    Fixed(u32),
}

#[cfg(bpf_target_arch = "aarch64")]
mod arch {
    //! Registers at a system call's exit: `struct user_pt_regs`, then `orig_x0` and `syscallno`.
    use super::{Flags, Open};

    pub(super) const fn argument(n: usize) -> u64 {
        if n == 0 { 272 } else { 8 * n as u64 }
    }
    pub(super) const NUMBER: u64 = 280;

    pub(super) const fn classify(nr: u32) -> Option<Open> {
        Some(match nr {
            56 => Open { path: 1, flags: Flags::Argument(2) },
            437 => Open { path: 1, flags: Flags::Behind(2) },
            _ => return None,
        })
    }
}

#[cfg(not(bpf_target_arch = "aarch64"))]
mod arch {
    //! Registers at a system call's exit: `struct pt_regs` of x86-64, a fixed layout.
    use super::{Flags, Open};

    pub(super) const fn argument(n: usize) -> u64 {
        match n {
            0 => 112,
            1 => 104,
            _ => 96,
        }
    }
    pub(super) const NUMBER: u64 = 120;

    pub(super) const fn classify(nr: u32) -> Option<Open> {
        Some(match nr {
            2 => Open { path: 0, flags: Flags::Argument(1) },
            // creat is open with O_CREAT | O_WRONLY | O_TRUNC.
            85 => Open { path: 0, flags: Flags::Fixed(0o1101) },
            257 => Open { path: 1, flags: Flags::Argument(2) },
            437 => Open { path: 1, flags: Flags::Behind(2) },
            _ => return None,
        })
    }
}

/// Arguments: the registers and the return value.
#[btf_tracepoint(function = "sys_exit")]
fn trace_open(ctx: BtfTracePointContext) -> i32 {
    let regs = ctx.arg::<*const u8>(0);
    // SAFETY: `regs` is the tracepoint's `struct pt_regs *`.
    let nr = unsafe { field::<u32>(regs, arch::NUMBER) };
    if let Some(open) = arch::classify(nr) {
        opened(regs, ctx.arg(1), open);
    }
    0
}

#[inline(always)]
fn opened(regs: *const u8, result: i64, open: Open) {
    let Some(mut event) = event::begin(slot::of_current(), Kind::Open) else { return };
    // SAFETY: as above.
    let argument = |n: usize| unsafe { field::<u64>(regs, arch::argument(n)) };
    event.pid = event::current_pid();
    event.number = result;
    event.name = bpf_get_current_comm().unwrap_or_default();
    #[expect(clippy::cast_possible_truncation, reason = "all flags are in the lower half")]
    let flags = match open.flags {
        Flags::Argument(n) => argument(n) as u32,
        Flags::Behind(n) => {
            let mut flags = 0_u64;
            // SAFETY: the helper writes eight bytes, and checks the address that it reads.
            unsafe { bpf_probe_read_user((&raw mut flags).cast(), 8, pointer(argument(n))) };
            flags as u32
        }
        Flags::Fixed(flags) => flags,
    };
    event.flags = flags;
    let path = pointer(argument(open.path));
    let Some(mut place) = TRACES.reserve::<Worded>(0) else {
        counter::lose(Kind::Open.loss());
        return;
    };
    let record = place.as_mut_ptr();
    // SAFETY: `record` is a reservation of this type, which holds that many bytes of text. The helper
    // checks the address that it reads, and fails instead of faulting.
    unsafe {
        let text = (&raw mut (*record).text).cast();
        let length = bpf_probe_read_user_str(text, TEXT_BYTES, path);
        // Without the zero at its end.
        event.total = u32::try_from(length).unwrap_or(0).saturating_sub(1);
        (&raw mut (*record).event).write(event);
    }
    place.submit(event::wake(&TRACES));
}

#[inline(always)]
fn pointer(address: u64) -> *const core::ffi::c_void {
    #[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
    core::ptr::with_exposed_provenance(address as usize)
}

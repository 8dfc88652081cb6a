//! The syscall mode: two programs for all system calls, which pick those on files.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use super::{
    call::{self, Call},
    timing::Place,
};
use crate::{slot, tcp::connect};

/// Arguments: the registers and the call's number.
#[btf_tracepoint(function = "sys_enter")]
fn file_enter(ctx: BtfTracePointContext) -> i32 {
    let call = call::of(ctx.arg(1));
    if call != Call::Other
        && slot::may_have_one()
        && let Some(place) = Place::of_current()
    {
        match call {
            // SAFETY: the argument is the tracepoint's `struct pt_regs *`.
            Call::Connect => unsafe { connect::begins(ctx.arg(0), place) },
            // What it brings into the page cache is no operation's.
            Call::Exec => {}
            _ => place.begin(),
        }
    }
    0
}

/// Arguments: the registers and the return value.
#[btf_tracepoint(function = "sys_exit")]
fn file_syscall(ctx: BtfTracePointContext) -> i32 {
    let regs = ctx.arg::<*const u8>(0);
    // SAFETY: `regs` is the tracepoint's `struct pt_regs *`.
    unsafe {
        let call = call::of(call::number(regs));
        if call != Call::Other {
            call::finished(regs, ctx.arg(1), call);
        }
    }
    0
}

/// The least that a probe on this hook costs. Attached when asked for, to compare the others with.
#[btf_tracepoint(function = "sys_exit")]
fn sys_floor(_ctx: BtfTracePointContext) -> i32 {
    0
}

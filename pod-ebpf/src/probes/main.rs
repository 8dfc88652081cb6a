//! The eBPF object: every program and map that Podscope loads, in one ELF.
//!
//! Programs only add to counters, and tell of what is rare. But for queries that wait for their answer
//! (`dns`) they never insert keys; they never block, and, but for `device`, always let the observed
//! operation through. One file per domain; maps stand beside the hooks that write them.

#![no_std]
#![no_main]
#![allow(internal_features, reason = "atomic adds on the BPF target exist as an intrinsic only")]
#![feature(core_intrinsics)]

mod block;
mod counter;
mod device;
mod dns;
mod drops;
mod event;
mod file;
mod kernel;
mod net;
mod process;
mod runqueue;
mod slot;
mod slowest;
mod tcp;
mod trace;

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses programs that could get here, so this is never reached.
    // SAFETY: see above.
    unsafe { core::hint::unreachable_unchecked() }
}

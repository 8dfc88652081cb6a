//! Which devices the processes of a pod may use: the only program here that refuses anything.
//!
//! The list is the field's: making device nodes is allowed, since images do it; opening one is not,
//! but for those that every container has.

use aya_ebpf::{macros::cgroup_device, programs::DeviceContext};

/// `BPF_DEVCG_ACC_MKNOD` and `BPF_DEVCG_DEV_CHAR`; the access stands in the upper half of the word.
const MKNOD: u32 = 1;
const CHARACTER: u32 = 2;

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

#[cgroup_device]
fn devices(ctx: DeviceContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let (access_type, major, minor) =
        unsafe { ((*ctx.device).access_type, (*ctx.device).major, (*ctx.device).minor) };
    let usual = match (major, minor) {
        // null, zero, full, random, urandom
        (1, 3 | 5 | 7 | 8 | 9) => true,
        // tty, console, ptmx
        (5, 0..=2) => true,
        // pseudo terminals
        (136, _) => true,
        _ => false,
    };
    let is_character = access_type & 0xffff == CHARACTER;
    if access_type >> 16 == MKNOD || (is_character && usual) { ALLOW } else { REFUSE }
}

//! The fexit mode: a program at the entry of each function and one at its return.
//!
//! A stacked file system such as overlayfs, which every container's root is, calls some of these
//! functions again for the files below: those calls are not the container's.

use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use pod_ebpf::{NO_SLOT, file::Operation, lost::Lost};

use super::{
    File, O_DIRECT, Outcome,
    call::{self, Call},
    is_final, is_regular, opened,
    timing::Place,
};
use crate::{
    counter,
    kernel::{field, offset, read},
    slot,
};

/// A `struct vfsmount` of a stacked file system has this address as its namespace.
const MNT_NS_INTERNAL: u64 = (-22_i64).cast_unsigned();

/// Bit of an open's flags: the kernel opens a program to execute it.
const FMODE_EXEC: u32 = 0x20;

/// An operation of a task that may be a container's begins.
#[inline(always)]
fn begin() -> i32 {
    if slot::may_have_one()
        && let Some(place) = Place::of_current()
    {
        place.begin();
    }
    0
}

/// As [`begin`], for one whose mount [`file_mount`] finds out.
#[inline(always)]
fn begin_somewhere() -> i32 {
    if slot::may_have_one()
        && let Some(place) = Place::of_current()
    {
        place.begin_somewhere();
    }
    0
}

/// As [`begin`], for one on a regular file: nobody would end it on another.
#[inline(always)]
fn begin_on(file: *const u8) -> i32 {
    // SAFETY: `file` is a typed argument of the program, and these are fields of it and its inode.
    let mode =
        || unsafe { field(field::<*const u8>(file, offset!(file_inode)), offset!(inode_mode)) };
    if slot::may_have_one()
        && is_regular(mode())
        && let Some(place) = Place::of_current()
    {
        place.begin();
    }
    0
}

#[fentry(function = "vfs_read")]
fn b_read(ctx: FEntryContext) -> i32 {
    begin_on(ctx.arg(0))
}

/// `ssize_t vfs_read(struct file *, char *, size_t, loff_t *)`: read, pread.
#[fexit(function = "vfs_read")]
fn file_read(ctx: FExitContext) -> i32 {
    if let Some((outcome, file)) = returned(ctx.arg(0), ctx.arg(4)) {
        // The verifier of Linux 5.10 lets nobody load an argument that points at a number.
        let position = || read::<u64>(ctx.as_ptr() as u64, 3 * 8);
        outcome.count_read(file, || read::<u64>(position()?, 0));
    }
    0
}

#[fentry(function = "vfs_write")]
fn b_write(ctx: FEntryContext) -> i32 {
    begin_on(ctx.arg(0))
}

/// `ssize_t vfs_write(struct file *, const char *, size_t, loff_t *)`: write, pwrite.
#[fexit(function = "vfs_write")]
fn file_write(ctx: FExitContext) -> i32 {
    if let Some((outcome, file)) = returned(ctx.arg(0), ctx.arg(4)) {
        outcome.count_write(file);
    }
    0
}

#[fentry(function = "vfs_copy_file_range")]
fn b_copy_range(ctx: FEntryContext) -> i32 {
    if is_below(ctx.arg(0)) { 0 } else { begin() }
}

/// `ssize_t vfs_copy_file_range(struct file *, loff_t, struct file *, loff_t, size_t, unsigned)`. The
/// function, not its system call, whose argument has no usable type on 5.10.
#[fexit(function = "vfs_copy_file_range")]
fn f_copy_range(ctx: FExitContext) -> i32 {
    let (from, to, result) = (ctx.arg(0), ctx.arg(2), ctx.arg::<i64>(6));
    let slot = slot::of_current();
    if slot == NO_SLOT || !is_final(result) || is_below(from) {
        return 0;
    }
    let Some(place) = Place::of_current() else { return 0 };
    let outcome = Outcome::of(slot, result, place);
    if let Some(file) = regular(from) {
        outcome.count_read(file, || None);
    }
    // A copy that met the end of its source has written nothing.
    if result != 0
        && let Some(file) = regular(to)
    {
        outcome.count_write(file);
    }
    0
}

/// The least that a probe on this hook costs: a program with one look-up in a hash map. Attached
/// when asked for, to compare the others with.
#[fexit(function = "vfs_read")]
fn floor(_ctx: FExitContext) -> i32 {
    i32::from(slot::of_cgroup(0) != NO_SLOT)
}

/// A call on `file` returned `result` bytes or an error.
#[inline(always)]
fn returned(file: *const u8, result: i64) -> Option<(Outcome, File)> {
    let slot = slot::of_current();
    if slot == NO_SLOT || !is_final(result) {
        return None;
    }
    let file = regular(file)?;
    Some((Outcome::of(slot, result, Place::of_current()?), file))
}

/// What a file is, if it is a regular one.
#[inline(always)]
fn regular(file: *const u8) -> Option<File> {
    // SAFETY: `file` is a typed argument of the program, and these are fields of it and its inode.
    let (flags, mnt) = unsafe {
        let inode = field::<*const u8>(file, offset!(file_inode));
        if !is_regular(field(inode, offset!(inode_mode))) {
            return None;
        }
        let flags = field::<u32>(file, offset!(file_flags));
        (flags, field::<u64>(file, offset!(file_mnt)))
    };
    // The id stands behind the part of the mount that `mnt` points at, so the verifier does not
    // allow a plain load.
    let Some(mnt_id) = read::<u32>(mnt, offset!(mnt_id)) else {
        counter::lose(Lost::File);
        return None;
    };
    Some(File { is_regular: true, is_direct: flags & O_DIRECT != 0, mnt_id })
}

/// Whether a stacked file system has opened this file for itself. Up to Linux 6.6 such a file has the
/// path of the one above and an inode of the one below; from then on it is on a mount that nobody
/// else sees.
#[inline(always)]
fn is_below(file: *const u8) -> bool {
    // SAFETY: `file` is a typed argument of the program, and each step is a field of what the step
    // before points at.
    let (mnt, of_mount, of_inode) = unsafe {
        let inode = field::<*const u8>(file, offset!(file_inode));
        let mnt = field::<*const u8>(file, offset!(file_mnt));
        let of_mount = field::<u64>(mnt, offset!(mnt_sb));
        (mnt, of_mount, field::<u64>(inode, offset!(inode_sb)))
    };
    of_mount != of_inode || read::<u64>(mnt as u64, offset!(mnt_ns)) == Some(MNT_NS_INTERNAL)
}

/// `int mnt_want_write(struct vfsmount *)`: whoever changes a directory asks for this first, with the
/// mount that the path has led to.
#[fentry(function = "mnt_want_write")]
fn file_mount(ctx: FEntryContext) -> i32 {
    if slot::may_have_one()
        && let Some(place) = Place::of_current()
    {
        place.note_mount(|| read::<u32>(ctx.arg::<u64>(0), offset!(mnt_id)));
    }
    0
}

#[fentry(function = "do_filp_open")]
fn b_open(_ctx: FEntryContext) -> i32 {
    begin_somewhere()
}

/// `struct file *do_filp_open(int, struct filename *, const struct open_flags *)`: an error stands
/// where the file would.
#[fexit(function = "do_filp_open")]
fn f_open(ctx: FExitContext) -> i32 {
    const LOWEST_ERROR: u64 = (-4095_i64).cast_unsigned();
    let slot = slot::of_current();
    let flags = read::<u32>(ctx.arg::<u64>(2), offset!(open_flag));
    if slot == NO_SLOT {
        return 0;
    }
    let Some(place) = Place::of_current() else { return 0 };
    if flags.is_none_or(|flags| flags & FMODE_EXEC != 0) {
        place.forget();
        return 0;
    }
    let file = ctx.arg::<u64>(3);
    let outcome = Outcome::of(slot, 0, place);
    if file >= LOWEST_ERROR {
        let result = file.cast_signed();
        if is_final(result) {
            Outcome { result, ..outcome }.count(Operation::Open, place.mount());
        }
    } else if opened(file, outcome).is_none() {
        counter::lose(Lost::File);
    }
    0
}

/// A directory was changed, or was not.
#[inline(always)]
fn changed(result: i64, operation: Operation) -> i32 {
    let slot = slot::of_current();
    if slot != NO_SLOT
        && is_final(result)
        && let Some(place) = Place::of_current()
    {
        Outcome::of(slot, result, place).count(operation, place.mount());
    }
    0
}

#[fentry(function = "do_unlinkat")]
fn b_unlink(_ctx: FEntryContext) -> i32 {
    begin_somewhere()
}

/// `int do_unlinkat(int, struct filename *)`.
#[fexit(function = "do_unlinkat")]
fn f_unlink(ctx: FExitContext) -> i32 {
    changed(i64::from(ctx.arg::<i32>(2)), Operation::Unlink)
}

#[fentry(function = "do_renameat2")]
fn b_rename(_ctx: FEntryContext) -> i32 {
    begin_somewhere()
}

/// `int do_renameat2(int, struct filename *, int, struct filename *, unsigned)`.
#[fexit(function = "do_renameat2")]
fn f_rename(ctx: FExitContext) -> i32 {
    changed(i64::from(ctx.arg::<i32>(5)), Operation::Rename)
}

/// What has no function of its own with a file in its hands: vectored calls and copies inside the kernel,
/// at their system calls.
macro_rules! calls {
    ($($begin:ident $program:ident $function:literal $call:expr;)*) => {$(
        #[fentry(function = $function)]
        fn $begin(_ctx: FEntryContext) -> i32 {
            begin()
        }

        #[fexit(function = $function)]
        fn $program(ctx: FExitContext) -> i32 {
            // SAFETY: the first argument is the function's `struct pt_regs *`.
            unsafe { call::finished(ctx.arg(0), ctx.arg(1), $call) };
            0
        }
    )*};
}

calls! {
    b_readv f_readv "readv" Call::Read;
    b_preadv f_preadv "preadv" Call::ReadAt;
    b_preadv2 f_preadv2 "preadv2" Call::ReadAt;
    b_writev f_writev "writev" Call::Write;
    b_pwritev f_pwritev "pwritev" Call::Write;
    b_pwritev2 f_pwritev2 "pwritev2" Call::Write;
    b_sendfile f_sendfile "sendfile64" Call::Send;
    b_splice f_splice "splice" Call::Copy;
    b_fsync f_fsync "fsync" Call::Sync;
    b_fdatasync f_fdatasync "fdatasync" Call::Sync;
}

//! Reads and writes of regular files, by volume.
//!
//! The preferred mode hooks the return of the kernel's own read and write functions (`fexit`).
//! Where a hardened kernel refuses that, the syscall mode counts at the exit of each system call,
//! from the file descriptor and the return value.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf},
    macros::{btf_tracepoint, fexit, map},
    maps::{HashMap, PerCpuArray},
    programs::{BtfTracePointContext, FExitContext},
};
use pod_ebpf::{
    NO_SLOT,
    file::{Access, FILE_CELLS, FileStats, MAX_VOLUMES, Volume},
    lost::Lost,
    offsets::FILE_HEAD,
};

use crate::{
    counter,
    kernel::{field, has, offset, read},
    process::exec_returned,
    slot,
};

/// File type bits of `i_mode`, and the value for a regular file.
const S_IFMT: u16 = 0o170_000;
const S_IFREG: u16 = 0o100_000;

/// Words of `struct file` that hold its inode and mount on every kernel of the matrix; the daemon
/// checks.
const HEAD_WORDS: usize = FILE_HEAD as usize / 8;

/// Mount id to the volume that was mounted there. Each container has mounts of its own, so two
/// containers that share a volume, or two volumes on one filesystem, stay apart.
#[map]
static VOLUMES: HashMap<u32, Volume> = HashMap::with_max_entries(MAX_VOLUMES, 0);

/// Counters by cell.
#[map]
static FILES: PerCpuArray<FileStats> = PerCpuArray::with_max_entries(FILE_CELLS, 0);

/// `ssize_t vfs_read(struct file *, char *, size_t, loff_t *)`: read, pread.
#[fexit(function = "vfs_read")]
fn file_read(ctx: FExitContext) -> i32 {
    returned(ctx.arg(0), ctx.arg(4), Access::Read);
    0
}

/// `ssize_t vfs_write(struct file *, const char *, size_t, loff_t *)`: write, pwrite.
#[fexit(function = "vfs_write")]
fn file_write(ctx: FExitContext) -> i32 {
    returned(ctx.arg(0), ctx.arg(4), Access::Write);
    0
}

/// `ssize_t vfs_copy_file_range(struct file *, loff_t, struct file *, loff_t, size_t, unsigned)`. The
/// function, not its system call, whose argument has no usable type on 5.10.
#[fexit(function = "vfs_copy_file_range")]
fn f_copy_range(ctx: FExitContext) -> i32 {
    let result = ctx.arg::<i64>(6);
    returned(ctx.arg(0), result, Access::Read);
    // A copy that met the end of its source has written nothing.
    if result > 0 {
        returned(ctx.arg(2), result, Access::Write);
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
fn returned(file: *const u8, result: i64, access: Access) {
    if result < 0 {
        return;
    }
    let slot = slot::of_current();
    if slot == NO_SLOT {
        return;
    }
    // SAFETY: `file` is the function's `struct file *`, and these are fields of it.
    let (inode, mnt) = unsafe {
        (field::<*const u8>(file, offset!(file_inode)), field::<*const u8>(file, offset!(file_mnt)))
    };
    // SAFETY: `inode` was read from a typed pointer.
    if !is_regular(unsafe { field(inode, offset!(inode_mode)) }) {
        return;
    }
    // The id stands behind the part of the mount that `mnt` points at, so the verifier does not
    // allow a plain load.
    match read::<u32>(mnt as u64, offset!(mnt_id)) {
        Some(mnt_id) => add(slot, mnt_id, result.cast_unsigned(), access),
        None => counter::lose(Lost::File),
    }
}

/// Pipes and sockets would swamp everything else.
#[inline(always)]
fn is_regular(mode: u16) -> bool {
    mode & S_IFMT == S_IFREG
}

#[inline(always)]
fn count(slot: u32, file: u64, bytes: u64, access: Access) {
    match mount_of(file) {
        Some(Some(mnt_id)) => add(slot, mnt_id, bytes, access),
        Some(None) => {}
        None => counter::lose(Lost::File),
    }
}

/// The mount id of a regular file; `Some(None)` for other kinds of files.
#[inline(always)]
fn mount_of(file: u64) -> Option<Option<u32>> {
    // One read for both fields: helper calls are what this costs.
    let head = read::<[u64; HEAD_WORDS]>(file, 0)?;
    let word = |offset: u64| head.get((offset / 8) as usize).copied();
    let inode = word(offset!(file_inode))?;
    let mnt = word(offset!(file_mnt))?;
    if !is_regular(read::<u16>(inode, offset!(inode_mode))?) {
        return Some(None);
    }
    Some(Some(read::<u32>(mnt, offset!(mnt_id))?))
}

#[inline(always)]
fn add(slot: u32, mnt_id: u32, bytes: u64, access: Access) {
    // SAFETY: values are eight bytes that only the daemon writes, whole.
    let cell = match unsafe { VOLUMES.get(&mnt_id) } {
        Some(volume) if volume.slot == slot => volume.cell,
        _ => slot,
    };
    let Some(stats) = FILES.get_ptr_mut(cell) else { return };
    // SAFETY: `stats` points into the map's storage, which outlives this program.
    unsafe {
        match access {
            Access::Read => {
                counter::add(&raw mut (*stats).read_bytes, bytes);
                counter::add(&raw mut (*stats).reads, 1);
            }
            Access::Write => {
                counter::add(&raw mut (*stats).written_bytes, bytes);
                counter::add(&raw mut (*stats).writes, 1);
            }
        }
    }
}

/// The file behind a descriptor of the current task. Another thread may have put another file
/// there since the call began; that file then gets the bytes.
#[inline(always)]
fn file_of(fd: u64) -> Option<u64> {
    let (max_fds, array) = if !has!(cgroup_ancestor_ids) {
        // SAFETY: the helper has no preconditions, and each step is a field of the structure that
        // the step before it points at.
        unsafe {
            let task = bpf_get_current_task_btf() as *const u8;
            let files = field::<*const u8>(task, offset!(task_files));
            let table = field::<*const u8>(files, offset!(files_fdt));
            (field::<u32>(table, offset!(fdt_max_fds)), field::<u64>(table, offset!(fdt_fd)))
        }
    } else {
        // A kernel old enough to have that array may be too old for a typed task (Linux 5.11).
        // SAFETY: the helper has no preconditions.
        let task = unsafe { bpf_get_current_task() };
        let files = read::<u64>(task, offset!(task_files))?;
        let table = read::<u64>(files, offset!(files_fdt))?;
        (read::<u32>(table, offset!(fdt_max_fds))?, read::<u64>(table, offset!(fdt_fd))?)
    };
    if fd >= u64::from(max_fds) {
        return None;
    }
    read::<u64>(array, fd * 8).filter(|file| *file != 0)
}

/// Where a system call keeps the descriptors of the files that it reads and writes.
#[derive(Clone, Copy)]
struct Call {
    reads: Option<usize>,
    writes: Option<usize>,
}

#[cfg(bpf_target_arch = "aarch64")]
mod arch {
    //! Registers at a system call's exit: `struct user_pt_regs`, then `orig_x0` and `syscallno`.
    use super::{Call, call};

    /// Offset of argument `n`. The return value has taken the place of the first one.
    pub(super) const fn argument(n: usize) -> u64 {
        if n == 0 { 272 } else { 8 * n as u64 }
    }
    pub(super) const NUMBER: u64 = 280;

    /// `execve`, `execveat`.
    pub(super) const EXECS: [u32; 2] = [221, 281];

    pub(super) const fn classify(nr: u32) -> Option<Call> {
        Some(match nr {
            63 | 67 | 65 | 69 | 286 => call(Some(0), None),
            64 | 68 | 66 | 70 | 287 => call(None, Some(0)),
            71 => call(Some(1), Some(0)),
            285 | 76 => call(Some(0), Some(2)),
            _ => return None,
        })
    }
}

#[cfg(not(bpf_target_arch = "aarch64"))]
mod arch {
    //! Registers at a system call's exit: `struct pt_regs` of x86-64, a fixed layout.
    use super::{Call, call};

    /// Offset of argument `n`: di, si, dx, r10.
    pub(super) const fn argument(n: usize) -> u64 {
        match n {
            0 => 112,
            1 => 104,
            2 => 96,
            _ => 56,
        }
    }
    /// Offset of the call's number: orig_ax.
    pub(super) const NUMBER: u64 = 120;

    /// `execve`, `execveat`.
    pub(super) const EXECS: [u32; 2] = [59, 322];

    pub(super) const fn classify(nr: u32) -> Option<Call> {
        Some(match nr {
            // read, pread64, readv, preadv, preadv2
            0 | 17 | 19 | 295 | 327 => call(Some(0), None),
            // write, pwrite64, writev, pwritev, pwritev2
            1 | 18 | 20 | 296 | 328 => call(None, Some(0)),
            // sendfile(out, in)
            40 => call(Some(1), Some(0)),
            // splice(in, , out), copy_file_range(in, , out)
            275 | 326 => call(Some(0), Some(2)),
            _ => return None,
        })
    }
}

const fn call(reads: Option<usize>, writes: Option<usize>) -> Call {
    Call { reads, writes }
}

/// Arguments: the registers and the return value.
#[btf_tracepoint(function = "sys_exit")]
fn file_syscall(ctx: BtfTracePointContext) -> i32 {
    let regs = ctx.arg::<*const u8>(0);
    let result = ctx.arg::<i64>(1);
    // SAFETY: `regs` is the tracepoint's `struct pt_regs *`.
    let nr = unsafe { field::<u32>(regs, arch::NUMBER) };
    if result < 0 {
        // Here, since a program of its own would cost every system call as much as this one.
        if arch::EXECS.contains(&nr) {
            exec_returned(result);
        }
        return 0;
    }
    match arch::classify(nr) {
        Some(call) => finished(regs, result, call),
        None => 0,
    }
}

/// A system call returned `result` bytes or an error.
#[inline(always)]
fn finished(regs: *const u8, result: i64, call: Call) -> i32 {
    if result < 0 {
        return 0;
    }
    let slot = slot::of_current();
    if slot == NO_SLOT {
        return 0;
    }
    let descriptor = |argument: usize| {
        // SAFETY: `regs` is a typed `struct pt_regs *`, the argument of the hooked function.
        file_of(u64::from(unsafe { field::<u32>(regs, arch::argument(argument)) }))
    };
    if let Some(file) = call.reads.and_then(descriptor) {
        count(slot, file, result.cast_unsigned(), Access::Read);
    }
    // A copy that met the end of its source has written nothing.
    if call.reads.is_some() && result == 0 {
        return 0;
    }
    if let Some(file) = call.writes.and_then(descriptor) {
        count(slot, file, result.cast_unsigned(), Access::Write);
    }
    0
}

/// What the vfs hooks do not see: vectored calls and copies inside the kernel, at the return of
/// their system calls. In fexit mode these take the place of [`file_syscall`], at no cost to the
/// other calls.
macro_rules! calls {
    ($($program:ident $function:literal $reads:expr, $writes:expr;)*) => {$(
        #[fexit(function = $function)]
        fn $program(ctx: FExitContext) -> i32 {
            finished(ctx.arg(0), ctx.arg(1), call($reads, $writes))
        }
    )*};
}

calls! {
    f_readv "readv" Some(0), None;
    f_preadv "preadv" Some(0), None;
    f_preadv2 "preadv2" Some(0), None;
    f_writev "writev" None, Some(0);
    f_pwritev "pwritev" None, Some(0);
    f_pwritev2 "pwritev2" None, Some(0);
    f_sendfile "sendfile64" Some(1), Some(0);
    f_splice "splice" Some(0), Some(2);
}

//! Operations on files, by volume.
//!
//! The preferred mode hooks the kernel's own functions (`fentry`, `fexit`). Where a hardened kernel
//! refuses that, the syscall mode works at the entry and the exit of each system call, from the file
//! descriptor and the return value.

mod cache;
pub(crate) mod call;
mod fexit;
mod name;
mod syscall;
mod timing;
mod uring;

pub(crate) use self::timing::Place;

use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf},
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use pod_ebpf::{
    file::{
        FILE_CELLS, FileBytes, FileOperations, MAX_VOLUMES, OPERATIONS, Operation, OperationStats,
        Volume,
    },
    lost::Lost,
    offsets::FILE_HEAD,
    slowest::Slowest,
};

use self::cache::Filled;
use crate::{
    counter, event,
    kernel::{field, has, offset, read},
    slowest,
};

/// File type bits of `i_mode`, and the value for a regular file.
const S_IFMT: u16 = 0o170_000;
const S_IFREG: u16 = 0o100_000;
const S_IFSOCK: u16 = 0o140_000;

/// Bit of `f_mode`: this open has made the file.
const FMODE_CREATED: u32 = 1 << 20;

/// Bit of `f_mode`: a stacked file system has opened this for itself.
const FMODE_BACKING: u32 = 1 << 25;

/// Bit of `f_flags`: bytes do not go through the page cache.
#[cfg(bpf_target_arch = "aarch64")]
const O_DIRECT: u32 = 0o200_000;
#[cfg(not(bpf_target_arch = "aarch64"))]
const O_DIRECT: u32 = 0o40_000;

/// Words of `struct file` that hold its inode and mount on every kernel of the matrix; the daemon
/// checks.
const HEAD_WORDS: usize = FILE_HEAD as usize / 8;

/// Mount id to the volume that was mounted there. Each container has mounts of its own, so two
/// containers that share a volume, or two volumes on one filesystem, stay apart.
#[map]
static VOLUMES: HashMap<u32, Volume> = HashMap::with_max_entries(MAX_VOLUMES, 0);

/// Bytes by cell.
#[map]
static FILES: PerCpuArray<FileBytes> = PerCpuArray::with_max_entries(FILE_CELLS, 0);

/// Operations by cell.
#[map]
static FILE_OPS: Array<FileOperations> = Array::with_max_entries(FILE_CELLS, 0);

/// The slowest operations by cell, each at its own index.
#[map]
static FILE_SLOWEST: Array<[Slowest; OPERATIONS]> = Array::with_max_entries(FILE_CELLS, 0);

/// How an operation of a container ended.
#[derive(Clone, Copy)]
struct Outcome {
    slot: u32,
    /// Bytes, or something else that is not negative, or an error.
    result: i64,
    duration: Duration,
    /// What came into the page cache meanwhile.
    filled: Filled,
}

/// How long an operation took: an enumeration would leave words undefined, and the verifier of Linux 5.10
/// refuses a program that keeps such a one on its stack.
#[derive(Clone, Copy)]
struct Duration {
    timing: Timing,
    nanoseconds: u64,
    /// When it ended, in nanoseconds since boot.
    now: u64,
}

/// What is known of that.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Timing {
    /// All of it.
    Known,
    /// Its beginning was noted, and the note is lost.
    Lost,
    /// Nobody looks at the beginning of such operations.
    Unknown,
}

impl Duration {
    const LOST: Self = Self { timing: Timing::Lost, nanoseconds: 0, now: 0 };
    const UNKNOWN: Self = Self { timing: Timing::Unknown, nanoseconds: 0, now: 0 };
}

impl Outcome {
    /// Of an operation of the current task that ends now.
    #[inline(always)]
    fn of(slot: u32, result: i64, place: Place) -> Self {
        let (duration, filled) = place.end();
        Self { slot, result, duration, filled }
    }

    /// Counts a read, and its bytes; `end` finds out at what byte of the file it has ended.
    #[inline(always)]
    fn count_read(self, file: File, end: impl FnOnce() -> Option<u64>) {
        let cell = self.count(Operation::Read, Some(file.mnt_id));
        if self.result > 0 {
            self.add_read(cell, file.is_direct, end);
        }
    }

    /// Counts a write, and its bytes.
    #[inline(always)]
    fn count_write(self, file: File) {
        let cell = self.count(Operation::Write, Some(file.mnt_id));
        if self.result > 0
            && let Some(bytes) = FILES.get_ptr_mut(cell)
        {
            // SAFETY: `bytes` points into the map's storage, which outlives this program.
            unsafe { counter::add(&raw mut (*bytes).written, self.result.cast_unsigned()) };
        }
    }

    /// Counts the operation for a mount, and returns the cell of its counters; what is done on an unknown
    /// one counts for none of the volumes.
    #[inline(always)]
    fn count(self, operation: Operation, mnt_id: Option<u32>) -> u32 {
        let cell = cell_of(self.slot, mnt_id);
        let Some(all) = FILE_OPS.get_ptr_mut(cell) else { return cell };
        // SAFETY: `all` points into the map's storage, which outlives this program, and there is one
        // for each operation.
        unsafe {
            let stats = all.cast::<OperationStats>().add(operation as usize);
            if self.result < 0 {
                counter::add(&raw mut (*stats).errors, 1);
                return cell;
            }
            let Duration { timing, nanoseconds, now } = self.duration;
            match timing {
                Timing::Known => {
                    counter::observe(&raw mut (*stats).latency, nanoseconds);
                    if let Some(all) = FILE_SLOWEST.get_ptr_mut(cell) {
                        let kept = all.cast::<Slowest>().add(operation as usize);
                        slowest::keep(kept, nanoseconds, now, event::current_pid);
                    }
                }
                Timing::Lost => {
                    counter::add(&raw mut (*stats).untimed, 1);
                    counter::lose(Lost::FileLatency);
                }
                Timing::Unknown => counter::add(&raw mut (*stats).untimed, 1),
            }
        }
        cell
    }
}

#[inline(always)]
fn cell_of(slot: u32, mnt_id: Option<u32>) -> u32 {
    // SAFETY: values are eight bytes that only the daemon writes, whole.
    match mnt_id.and_then(|mnt_id| unsafe { VOLUMES.get(&mnt_id) }) {
        Some(volume) if volume.slot == slot => volume.cell,
        _ => slot,
    }
}

/// Whether a result is one: a call that a signal interrupted may be made again by the kernel itself,
/// which such numbers ask for.
#[inline(always)]
fn is_final(result: i64) -> bool {
    const ERESTARTSYS: i64 = -512;
    const ERESTART_RESTARTBLOCK: i64 = -516;
    !(ERESTART_RESTARTBLOCK..=ERESTARTSYS).contains(&result)
}

/// Pipes and sockets would swamp everything else.
#[inline(always)]
fn is_regular(mode: u16) -> bool {
    mode & S_IFMT == S_IFREG
}

/// The `struct socket` behind a descriptor of the current task, if it is one.
#[inline(always)]
pub(crate) fn socket_of(fd: u64) -> Option<u64> {
    let file = file_of(fd)?;
    let mode = read::<u16>(read::<u64>(file, offset!(file_inode))?, offset!(inode_mode))?;
    // A file that only names a socket (`O_PATH`) is none.
    if mode & S_IFMT != S_IFSOCK {
        return None;
    }
    read::<u64>(file, offset!(file_private)).filter(|socket| *socket != 0)
}

/// What a `struct file` is.
#[derive(Clone, Copy)]
struct File {
    is_regular: bool,
    is_direct: bool,
    mnt_id: u32,
}

/// Reads what a file is: no more than its kind if it is not a regular one.
#[inline(always)]
fn file_at(file: u64) -> Option<File> {
    // One read for both fields: helper calls are what this costs.
    let head = read::<[u64; HEAD_WORDS]>(file, 0)?;
    let word = |offset: u64| head.get((offset / 8) as usize).copied();
    let inode = word(offset!(file_inode))?;
    let mnt = word(offset!(file_mnt))?;
    if !is_regular(read::<u16>(inode, offset!(inode_mode))?) {
        return Some(File { is_regular: false, is_direct: false, mnt_id: 0 });
    }
    let flags = word(offset!(file_flags))? >> (8 * (offset!(file_flags) % 8));
    Some(File {
        is_regular: true,
        is_direct: flags & u64::from(O_DIRECT) != 0,
        mnt_id: read::<u32>(mnt, offset!(mnt_id))?,
    })
}

/// A file of any kind was opened, and perhaps made.
#[inline(always)]
fn opened(file: u64, outcome: Outcome) -> Option<()> {
    let mnt = read::<u64>(file, offset!(file_mnt))?;
    let mnt_id = read::<u32>(mnt, offset!(mnt_id))?;
    outcome.count(Operation::Open, Some(mnt_id));
    if read::<u32>(file, offset!(file_mode))? & FMODE_CREATED != 0 {
        outcome.count(Operation::Create, Some(mnt_id));
    }
    Some(())
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

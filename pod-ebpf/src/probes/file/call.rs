//! System calls on files: which there are, and which registers have their descriptors.

use pod_ebpf::{NO_SLOT, file::Operation, lost::Lost};

use super::{
    File, Outcome, file_at, file_of, is_final,
    name::{AT_FDCWD, mount_of},
    opened,
    timing::Place,
};
use crate::{
    counter,
    kernel::{field, offset, read},
    process, slot,
    tcp::connect,
};

/// What a system call does.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Call {
    /// Nothing to files.
    Other,
    /// Reads from its first argument, at the place where that is.
    Read,
    /// Reads from its first argument, at its fourth.
    ReadAt,
    /// Writes to its first argument.
    Write,
    /// Writes to its first argument what it reads from its second.
    Send,
    /// Writes to its third argument what it reads from its first.
    Copy,
    /// Has the disk catch up with its first argument.
    Sync,
    /// Returns a descriptor for a path.
    Open,
    Unlink,
    /// Of a directory, if its third argument says so.
    UnlinkAt,
    Rename,
    /// As the former, each name with the descriptor of a directory before it.
    RenameAt,
    /// Executes a program.
    Exec,
    /// Connects its first argument with the address that its second points at.
    Connect,
}

/// System calls have lower numbers.
const NUMBERS: usize = 512;

/// By number.
static CALLS: [Call; NUMBERS] = {
    let mut calls = [Call::Other; NUMBERS];
    let mut index = 0;
    while index < arch::CALLS.len() {
        let (numbers, call) = arch::CALLS[index];
        let mut at = 0;
        while at < numbers.len() {
            calls[numbers[at]] = call;
            at += 1;
        }
        index += 1;
    }
    calls
};

/// What the system call of this number does.
#[inline(always)]
pub(super) fn of(number: u64) -> Call {
    #[expect(clippy::cast_possible_truncation, reason = "numbers have 32 bits")]
    let number = number as usize;
    if number < NUMBERS { CALLS[number] } else { Call::Other }
}

/// The lower half of argument `n` of a system call.
///
/// # Safety
/// `regs` is a typed `struct pt_regs *`, the argument of the program.
#[inline(always)]
pub(crate) unsafe fn argument(regs: *const u8, n: usize) -> u64 {
    // SAFETY: by this function's contract.
    u64::from(unsafe { field::<u32>(regs, arch::argument(n)) })
}

/// As above, of one that is an address.
///
/// # Safety
/// As above.
#[inline(always)]
pub(crate) unsafe fn address(regs: *const u8, n: usize) -> u64 {
    // SAFETY: by this function's contract.
    unsafe { field::<u64>(regs, arch::argument(n)) }
}

/// The number of the system call that ends.
///
/// # Safety
/// As above.
#[inline(always)]
pub(super) unsafe fn number(regs: *const u8) -> u64 {
    // SAFETY: by this function's contract.
    u64::from(unsafe { field::<u32>(regs, arch::NUMBER) })
}

/// A system call returned `result` or an error.
///
/// # Safety
/// `regs` is a typed `struct pt_regs *`, the argument of the program.
#[inline(always)]
pub(super) unsafe fn finished(regs: *const u8, result: i64, call: Call) -> Option<()> {
    if !is_final(result) {
        return None;
    }
    if call == Call::Exec {
        // Here, since a program of its own would cost every system call as much as this one.
        process::exec_returned(result);
        return None;
    }
    if call == Call::Connect {
        // SAFETY: by this function's contract.
        return unsafe { connect::returned(regs, result) };
    }
    let slot = slot::of_current();
    if slot == NO_SLOT {
        return None;
    }
    // SAFETY: by this function's contract.
    let counted = unsafe { count(regs, slot, result, call) };
    if counted.is_none()
        && let Some(place) = Place::of_current()
    {
        place.forget();
    }
    counted
}

/// Counts a call of a container's, if it was on a file.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn count(regs: *const u8, slot: u32, result: i64, call: Call) -> Option<()> {
    // SAFETY: by this function's contract.
    let descriptor = |n| file_of(unsafe { argument(regs, n) });
    match call {
        Call::Read | Call::ReadAt => {
            let at = descriptor(0)?;
            let file = checked(at)?;
            let end = || {
                // SAFETY: by this function's contract.
                let from = unsafe { field::<u64>(regs, arch::argument(3)) };
                // `preadv2` may leave it to the file, too.
                if call == Call::ReadAt && from != u64::MAX {
                    return Some(from.wrapping_add(result.cast_unsigned()));
                }
                read::<u64>(at, offset!(file_pos))
            };
            Outcome::of(slot, result, Place::of_current()?).count_read(file, end);
            Some(())
        }
        Call::Write => moved(slot, result, None, descriptor(0)),
        Call::Send => moved(slot, result, descriptor(1), descriptor(0)),
        Call::Copy => moved(slot, result, descriptor(0), descriptor(2)),
        Call::Sync => {
            let file = checked(descriptor(0)?)?;
            Outcome::of(slot, result, Place::of_current()?)
                .count(Operation::Sync, Some(file.mnt_id));
            Some(())
        }
        Call::Open => {
            let outcome = Outcome::of(slot, result, Place::of_current()?);
            if result < 0 {
                outcome.count(Operation::Open, None);
            } else if file_of(result.cast_unsigned())
                .and_then(|file| opened(file, outcome))
                .is_none()
            {
                counter::lose(Lost::File);
            }
            Some(())
        }
        Call::Unlink | Call::UnlinkAt | Call::Rename | Call::RenameAt => {
            const AT_REMOVEDIR: u64 = 0x200;
            // SAFETY: by this function's contract.
            let number = |n| unsafe { argument(regs, n) };
            // SAFETY: as above.
            let text = |n| unsafe { address(regs, n) };
            let (operation, mount) = match call {
                Call::UnlinkAt if number(2) & AT_REMOVEDIR != 0 => return None,
                Call::UnlinkAt => (Operation::Unlink, mount_of(number(0), text(1))),
                Call::Rename => (Operation::Rename, mount_of(AT_FDCWD, text(0))),
                Call::RenameAt => (Operation::Rename, mount_of(number(0), text(1))),
                _ => (Operation::Unlink, mount_of(AT_FDCWD, text(0))),
            };
            Outcome::of(slot, result, Place::of_current()?).count(operation, mount);
            Some(())
        }
        Call::Exec | Call::Connect | Call::Other => None,
    }
}

/// Bytes came out of a file, or went into one, or both.
#[inline(always)]
fn moved(slot: u32, result: i64, from: Option<u64>, to: Option<u64>) -> Option<()> {
    let is_copy = from.is_some() && to.is_some();
    let from = from.and_then(checked);
    // A copy that met the end of its source has written nothing.
    let to = to.filter(|_| !is_copy || result != 0).and_then(checked);
    if from.is_none() && to.is_none() {
        return None;
    }
    let outcome = Outcome::of(slot, result, Place::of_current()?);
    if let Some(file) = from {
        outcome.count_read(file, || None);
    }
    if let Some(file) = to {
        outcome.count_write(file);
    }
    Some(())
}

/// What a file is, if it is a regular one.
#[inline(always)]
fn checked(file: u64) -> Option<File> {
    let Some(file) = file_at(file) else {
        counter::lose(Lost::File);
        return None;
    };
    file.is_regular.then_some(file)
}

#[cfg(bpf_target_arch = "aarch64")]
mod arch {
    //! Registers at a system call's exit: `struct user_pt_regs`, then `orig_x0` and `syscallno`.
    use super::Call;

    /// Offset of argument `n`. The return value has taken the place of the first one.
    pub(super) const fn argument(n: usize) -> u64 {
        if n == 0 { 272 } else { 8 * n as u64 }
    }
    pub(super) const NUMBER: u64 = 280;

    pub(super) const CALLS: &[(&[usize], Call)] = &[
        // read, readv
        (&[63, 65], Call::Read),
        // pread64, preadv, preadv2
        (&[67, 69, 286], Call::ReadAt),
        (&[64, 68, 66, 70, 287], Call::Write),
        (&[71], Call::Send),
        // copy_file_range, splice
        (&[285, 76], Call::Copy),
        // fsync, fdatasync
        (&[82, 83], Call::Sync),
        // openat, openat2
        (&[56, 437], Call::Open),
        (&[35], Call::UnlinkAt),
        // renameat, renameat2
        (&[38, 276], Call::RenameAt),
        // execve, execveat
        (&[221, 281], Call::Exec),
        (&[203], Call::Connect),
    ];
}

#[cfg(not(bpf_target_arch = "aarch64"))]
mod arch {
    //! Registers at a system call's exit: `struct pt_regs` of x86-64, a fixed layout.
    use super::Call;

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

    pub(super) const CALLS: &[(&[usize], Call)] = &[
        // read, readv
        (&[0, 19], Call::Read),
        // pread64, preadv, preadv2
        (&[17, 295, 327], Call::ReadAt),
        (&[1, 18, 20, 296, 328], Call::Write),
        // sendfile
        (&[40], Call::Send),
        // splice, copy_file_range
        (&[275, 326], Call::Copy),
        // fsync, fdatasync
        (&[74, 75], Call::Sync),
        // open, creat, openat, openat2
        (&[2, 85, 257, 437], Call::Open),
        (&[87], Call::Unlink),
        (&[263], Call::UnlinkAt),
        (&[82], Call::Rename),
        // renameat, renameat2
        (&[264, 316], Call::RenameAt),
        // execve, execveat
        (&[59, 322], Call::Exec),
        (&[42], Call::Connect),
    ];
}

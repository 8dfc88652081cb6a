//! On which mount a name is, where only a call's arguments tell.
//!
//! A path may lead anywhere, by mounts and by links. A plain name does not: it is in the directory that
//! paths begin at, and the calls that remove and change names follow no link at their end. So the mount of
//! a plain name is known for sure, and that of any other path is not known.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_user_str};

use super::file_of;
use crate::kernel::{offset, read};

/// Bytes of a path that are looked at, with the zero at its end: longer names are not known.
const BYTES: u32 = 64;
const WORDS: usize = BYTES as usize / 8;

/// Stands for the working directory's descriptor.
pub(super) const AT_FDCWD: u64 = 0xffff_ff9c;

const SLASH: u64 = b'/' as u64;
const DOT: u64 = b'.' as u64;

/// The mount of the name at address `path`, in the directory of this descriptor or, with a slash before it,
/// in the task's root directory.
#[inline(always)]
pub(super) fn mount_of(directory: u64, path: u64) -> Option<u32> {
    let mut words = text_at(path)?;
    let first = words[0];
    let is_rooted = first & 0xff == SLASH;
    if is_rooted {
        words[0] ^= SLASH;
    }
    // Of these two, and of none, the kernel makes something else.
    let begin = if is_rooted { first >> 8 } else { first };
    if begin == 0 || begin == DOT || begin == (DOT << 8 | DOT) || words.into_iter().any(has_slash) {
        return None;
    }
    let mnt = if is_rooted {
        read::<u64>(current_fs()?, offset!(fs_root))?
    } else if directory == AT_FDCWD {
        read::<u64>(current_fs()?, offset!(fs_pwd))?
    } else {
        read::<u64>(file_of(directory)?, offset!(file_mnt))?
    };
    read::<u32>(mnt, offset!(mnt_id))
}

/// What the current task has as root and as working directory.
#[inline(always)]
fn current_fs() -> Option<u64> {
    // SAFETY: the helper has no preconditions.
    read::<u64>(unsafe { bpf_get_current_task() }, offset!(task_fs))
}

/// The text at an address of the current task, with zeros behind it, if that is all of it.
#[inline(always)]
fn text_at(address: u64) -> Option<[u64; WORDS]> {
    let mut words = [0; WORDS];
    #[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
    let from = core::ptr::with_exposed_provenance(address as usize);
    // SAFETY: the helper writes no more bytes than there are, and checks the address that it reads.
    let length = unsafe { bpf_probe_read_user_str((&raw mut words).cast(), BYTES, from) };
    (0 < length && length < i64::from(BYTES)).then_some(words)
}

/// Whether one of a word's bytes is a slash.
#[inline(always)]
fn has_slash(word: u64) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    // Those that are become zeros, and only a zero, or what stands above one, borrows.
    let word = word ^ (ONES * SLASH);
    word.wrapping_sub(ONES) & !word & (ONES << 7) != 0
}

//! Mounts that can only be made from inside the new PID and cgroup namespaces.
//!
//! As all of the child: system calls only, no allocation.

use std::{ffi::CStr, os::fd::RawFd, ptr};

use libc::{c_char, c_int, c_long};

use super::{super::mount::MountAttr, Step, check, errno};

/// Everything below `/proc` that tells about the host, or lets a container change it, is hidden.
const MASKED: [&CStr; 10] = [
    c"acpi",
    c"asound",
    c"interrupts",
    c"kcore",
    c"keys",
    c"latency_stats",
    c"sched_debug",
    c"scsi",
    c"timer_list",
    c"timer_stats",
];

/// What containers may read below `/proc` and not change.
const READ_ONLY: [&CStr; 5] = [c"bus", c"fs", c"irq", c"sys", c"sysrq-trigger"];

/// Targets of the mounts that the process makes itself, as `O_PATH` descriptors.
#[derive(Debug)]
pub(in crate::sandbox) struct Mounts {
    pub(in crate::sandbox) proc: RawFd,
    /// `/sys/fs/cgroup`, if the container's `/sys` has it.
    pub(in crate::sandbox) cgroup: Option<RawFd>,
    /// Whether the container may write there.
    pub(in crate::sandbox) writable_cgroup: bool,
    /// What covers files and directories of `/proc`; without it, nothing is covered or read-only.
    pub(in crate::sandbox) covers: Option<Covers>,
}

/// What hides something: attached nowhere, or a device of the container.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct Covers {
    /// `/dev/null` of the container, for files.
    pub(in crate::sandbox) null: RawFd,
    /// An empty read-only directory, for directories.
    pub(in crate::sandbox) empty: RawFd,
    /// Whether it covers something already. What is mounted nowhere cannot be copied before Linux
    /// 6.15, so the first directory gets the mount itself.
    pub(in crate::sandbox) is_attached: bool,
}

/// Mounts `/proc` and the cgroup filesystem, which show the namespaces of the process that mounts
/// them, and covers what containers must not see or change.
pub(super) unsafe fn mount_kernel_filesystems(mounts: &Mounts) -> Step<()> {
    let attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    // SAFETY: by the caller's contract.
    unsafe {
        let proc = new_mount(c"proc", attributes)?;
        attach(proc, mounts.proc)?;
        if let Some(mut covers) = mounts.covers {
            for name in READ_ONLY {
                make_read_only(proc, name)?;
            }
            for name in MASKED {
                mask(proc, name, &mut covers)?;
            }
        }
        if let Some(target) = mounts.cgroup {
            let access = if mounts.writable_cgroup { 0 } else { MOUNT_ATTR_RDONLY };
            let cgroup = new_mount(c"cgroup2", attributes | access)?;
            attach(cgroup, target)?;
        }
    }
    Ok(())
}

const MOUNT_ATTR_RDONLY: c_long = 1;
const MOUNT_ATTR_NOSUID: c_long = 2;
const MOUNT_ATTR_NODEV: c_long = 4;
const MOUNT_ATTR_NOEXEC: c_long = 8;
const FSOPEN_CLOEXEC: c_int = 1;
const FSMOUNT_CLOEXEC: c_int = 1;
const FSCONFIG_SET_STRING: c_int = 1;
const FSCONFIG_CMD_CREATE: c_int = 6;
const OPEN_TREE_CLONE: c_int = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_int = 4;
const MOVE_MOUNT_T_EMPTY_PATH: c_int = 0x40;

unsafe fn new_mount(filesystem: &CStr, attributes: c_long) -> Step<c_int> {
    // SAFETY: by the caller's contract.
    unsafe {
        let context = check(
            "open a filesystem",
            libc::syscall(libc::SYS_fsopen, filesystem.as_ptr(), FSOPEN_CLOEXEC),
        )?;
        let null = ptr::null::<c_char>();
        // What /proc/mounts shows as the device. A filesystem that takes no source goes without.
        libc::syscall(
            libc::SYS_fsconfig,
            context,
            FSCONFIG_SET_STRING,
            c"source".as_ptr(),
            filesystem.as_ptr(),
            0,
        );
        check(
            "create a filesystem",
            libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_CMD_CREATE, null, null, 0),
        )?;
        check(
            "mount a filesystem",
            libc::syscall(libc::SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes),
        )
    }
}

unsafe fn attach(mount: c_int, target: c_int) -> Step<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: by the caller's contract.
    unsafe {
        check(
            "attach a mount",
            libc::syscall(libc::SYS_move_mount, mount, c"".as_ptr(), target, c"".as_ptr(), flags),
        )?;
    }
    Ok(())
}

/// Opens `name` in `directory` as a mount target; `None` if this kernel has no such file.
unsafe fn target(directory: c_int, name: &CStr) -> Option<c_int> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: by the caller's contract.
    let descriptor = unsafe { libc::syscall(libc::SYS_openat, directory, name.as_ptr(), flags, 0) };
    c_int::try_from(descriptor).ok().filter(|descriptor| *descriptor >= 0)
}

unsafe fn clone_mount(source: c_int) -> Step<c_int> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH;
    // SAFETY: by the caller's contract.
    unsafe {
        check("clone a mount", libc::syscall(libc::SYS_open_tree, source, c"".as_ptr(), flags))
    }
}

unsafe fn make_read_only(proc: c_int, name: &CStr) -> Step<()> {
    // SAFETY: by the caller's contract.
    unsafe {
        let Some(path) = target(proc, name) else { return Ok(()) };
        let copy = clone_mount(path)?;
        attach(copy, path)?;
        set_read_only(copy)
    }
}

/// Makes an attached mount read-only.
unsafe fn set_read_only(mount: c_int) -> Step<()> {
    let attributes = MountAttr::READ_ONLY;
    // SAFETY: by the caller's contract.
    unsafe {
        let result = libc::syscall(
            libc::SYS_mount_setattr,
            mount,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        );
        if result == 0 || errno() != libc::ENOSYS {
            check("make a path read-only", result)?;
            return Ok(());
        }
        // Before Linux 5.12: by path, through the descriptor. /proc is this container's own and
        // nothing runs in it yet.
        let mut path = *b"/proc/self/fd/..........\0";
        write_number(&mut path[14..], mount);
        let flags = libc::MS_REMOUNT
            | libc::MS_BIND
            | libc::MS_RDONLY
            | libc::MS_NOSUID
            | libc::MS_NODEV
            | libc::MS_NOEXEC;
        let none = ptr::null::<c_char>();
        check(
            "make a path read-only",
            libc::syscall(libc::SYS_mount, none, path.as_ptr(), none, flags, none),
        )?;
    }
    Ok(())
}

/// Covers a file with `/dev/null` and a directory with an empty one.
unsafe fn mask(proc: c_int, name: &CStr, covers: &mut Covers) -> Step<()> {
    // SAFETY: by the caller's contract.
    unsafe {
        let Some(path) = target(proc, name) else { return Ok(()) };
        let mut stat: libc::stat = std::mem::zeroed();
        check(
            "stat a path",
            libc::syscall(
                libc::SYS_newfstatat,
                path,
                c"".as_ptr(),
                &raw mut stat,
                libc::AT_EMPTY_PATH,
            ),
        )?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return attach(clone_mount(covers.null)?, path);
        }
        let cover = if covers.is_attached { clone_mount(covers.empty)? } else { covers.empty };
        covers.is_attached = true;
        attach(cover, path)
    }
}

/// Writes a number in decimal, and a terminating zero.
fn write_number(buffer: &mut [u8], number: c_int) {
    let mut digits = [0_u8; 10];
    let mut count = 0;
    let mut rest = number.unsigned_abs();
    loop {
        digits[count] = b'0' + (rest % 10) as u8;
        count += 1;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    for index in 0..count {
        buffer[index] = digits[count - 1 - index];
    }
    buffer[count] = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal() {
        for (number, text) in [(0, "0"), (7, "7"), (1234, "1234")] {
            let mut buffer = *b"..........\0";
            write_number(&mut buffer, number);
            assert_eq!(CStr::from_bytes_until_nul(&buffer).unwrap().to_str().unwrap(), text);
        }
    }
}

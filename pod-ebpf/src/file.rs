//! What a container read from and wrote to regular files, by volume.

use crate::MAX_SLOTS;

/// Volumes of all containers together: each container's root filesystem is one of them.
pub const MAX_VOLUMES: u32 = 8192;

/// Cells of the file counters. Cell `slot` (below [`MAX_SLOTS`]) holds what a container did on
/// mounts that it was not given (`/proc`, or mounts of its own making); the daemon hands out the
/// rest, one per volume and container.
pub const FILE_CELLS: u32 = MAX_SLOTS + MAX_VOLUMES;

/// Bytes at the beginning of `struct file` in which its inode and its mount are.
pub const FILE_HEAD: usize = 128;

/// Which counters belong to a mount.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Volume {
    /// The container that this mount was made for.
    pub slot: u32,
    /// The cell of the file counters.
    pub cell: u32,
}

const _: () = assert!(size_of::<Volume>() == 8);

/// Counters of one cell, one copy per CPU.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FileStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Successful read operations, those that met the end of the file included.
    pub reads: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Successful write operations.
    pub writes: u64,
}

const _: () = assert!(size_of::<FileStats>() == 32);

impl FileStats {
    /// No operations.
    pub const ZERO: Self = Self { read_bytes: 0, reads: 0, written_bytes: 0, writes: 0 };
}

/// What a file operation does to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Bytes come out of the file.
    Read,
    /// Bytes go into the file.
    Write,
}

/// Offsets in the running kernel's structures, in bytes, resolved from its BTF by the daemon.
///
/// rustc emits no relocations for kernel fields, so they are handed in as a global of the object.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Offsets {
    /// `task_struct.files`
    pub task_files: u32,
    /// `task_struct.exit_code`
    pub task_exit_code: u32,
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `task_struct.group_leader`
    pub task_leader: u32,
    /// `task_struct.comm`
    pub task_name: u32,
    /// `signal_struct.group_exec_task` (`group_exit_task` before Linux 5.17)
    pub signal_exec_task: u32,
    /// `files_struct.fdt`
    pub files_fdt: u32,
    /// `fdtable.max_fds`
    pub fdt_max_fds: u32,
    /// `fdtable.fd`
    pub fdt_fd: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `file.f_path.mnt`
    pub file_mnt: u32,
    /// `inode.i_mode`
    pub inode_mode: u32,
    /// `mount.mnt_id` as seen from `mount.mnt`, which is what `f_path.mnt` points at.
    pub mnt_id: u32,
    /// `sock.sk_err`
    pub sock_err: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `css_set.dfl_cgrp`
    pub css_set_cgroup: u32,
    /// `cgroup.level`
    pub cgroup_level: u32,
    /// `cgroup.ancestors`, from Linux 6.1 on; 0 before.
    pub cgroup_ancestors: u32,
    /// `cgroup.kn`
    pub cgroup_node: u32,
    /// `kernfs_node.id`
    pub node_id: u32,
    /// `cgroup.ancestor_ids`, up to Linux 6.0; 0 from then on, where a helper takes its place.
    pub cgroup_ancestor_ids: u32,
}

const _: () = assert!(size_of::<Offsets>() == 23 * 4);

#[cfg(feature = "user")]
mod user {
    // SAFETY: `repr(C)`, two `u32`s, so no padding and every bit pattern is valid.
    unsafe impl aya::Pod for super::Volume {}
    // SAFETY: `repr(C)`, only `u64`s, so no padding and every bit pattern is valid.
    unsafe impl aya::Pod for super::FileStats {}
    // SAFETY: `repr(C)`, only `u32`s, so no padding and every bit pattern is valid.
    unsafe impl aya::Pod for super::Offsets {}
}

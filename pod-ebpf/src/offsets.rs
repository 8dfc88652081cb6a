//! Where fields are in the running kernel's structures, and which bit of a word is meant by a flag.
//!
//! rustc emits no relocations for kernel fields, so the daemon resolves them from the kernel's BTF and
//! hands them in as a global of the object. A field stands here once, with its places: the first that
//! the kernel has counts.

/// The kernel has no such field.
pub const ABSENT: u32 = u32::MAX;

/// Bytes at the beginning of `struct file` in which its inode and its mount are.
pub const FILE_HEAD: u32 = 128;

/// One of the [`Offsets`], and how it is found.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name in [`Offsets`].
    pub name: &'static str,
    /// Where it may be, as `structure.member`, or as `enumeration::NAME` for a number of the kernel's.
    pub places: &'static [&'static str],
    /// The place that the offset counts from; empty if it is the structure's beginning.
    pub from: &'static str,
    /// Number of bytes in which it must lie, with 8 bytes of its own.
    pub within: u32,
}

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident: $($place:literal)|+ $(, from $from:literal)? $(, within $within:expr)?;)*) => {
        /// Offsets in bytes; [`ABSENT`] where the kernel has no such field.
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub struct Offsets {
            $(#[doc = concat!("`", concat!($($place, "` ",)+))] $(#[$doc])* pub $name: u32,)*
        }

        impl Offsets {
            /// Nothing is known.
            pub const NONE: Self = Self { $($name: ABSENT,)* };
        }

        /// How each of the [`Offsets`] is found, in their order.
        pub const FIELDS: &[Field] = &[$(Field {
            name: stringify!($name),
            places: &[$($place),+],
            from: concat!("" $(, $from)?),
            within: ABSENT $(& $within)?,
        },)*];
    };
}

offsets! {
    task_files: "task_struct.files";
    task_exit_code: "task_struct.exit_code";
    task_pid: "task_struct.pid";
    task_tgid: "task_struct.tgid";
    task_signal: "task_struct.signal";
    task_leader: "task_struct.group_leader";
    task_name: "task_struct.comm";
    /// How long it has waited for a CPU, how often it got one, and since when it waits now, by the clock
    /// of the CPU's queue; 0 if it does not.
    task_run_delay: "task_struct.sched_info.run_delay";
    task_times_run: "task_struct.sched_info.pcount";
    task_last_queued: "task_struct.sched_info.last_queued";
    task_queue: "task_struct.se.cfs_rq";
    queue_cpu: "cfs_rq.rq";
    /// How long it has been throttled, as long as its load is not counted. Renamed in Linux 5.19.
    queue_throttled: "cfs_rq.throttled_clock_pelt_time" | "cfs_rq.throttled_clock_task_time";
    cpu_clock: "rq.clock";
    task_parent: "task_struct.real_parent";
    task_mm: "task_struct.mm";
    /// Since boot, the time in suspend included.
    task_started: "task_struct.start_boottime" | "task_struct.real_start_time";
    mm_arg_start: "mm_struct.arg_start";
    mm_arg_end: "mm_struct.arg_end";
    /// Renamed in Linux 5.17.
    signal_exec_task: "signal_struct.group_exec_task" | "signal_struct.group_exit_task";
    signal_flags: "signal_struct.flags";
    signal_exit_code: "signal_struct.group_exit_code";
    task_fs: "task_struct.fs";
    fs_root: "fs_struct.root.mnt";
    fs_pwd: "fs_struct.pwd.mnt";
    files_fdt: "files_struct.fdt";
    fdt_max_fds: "fdtable.max_fds";
    fdt_fd: "fdtable.fd";
    file_inode: "file.f_inode", within FILE_HEAD;
    file_mnt: "file.f_path.mnt", within FILE_HEAD;
    file_mode: "file.f_mode";
    file_flags: "file.f_flags", within FILE_HEAD;
    file_pos: "file.f_pos";
    /// From Linux 6.8 on: the path of what a stacked file system has opened for itself, as its user
    /// sees it.
    backing_mnt: "backing_file.user_path.mnt";
    /// Of a page before Linux 5.16.
    folio_flags: "folio.flags" | "page.flags";
    folio_mapping: "folio.mapping" | "page.mapping";
    folio_index: "folio.index" | "page.index";
    /// Of one that has more pages than one, which the bit of its flags says. Renamed in Linux 6.15.
    folio_pages: "folio._nr_pages" | "folio._folio_nr_pages";
    folio_head: "pageflags::PG_head";
    mapping_host: "address_space.host";
    fault_vma: "vm_fault.vma";
    vma_file: "vm_area_struct.vm_file";
    /// A socket's, if the inode says that it is one.
    file_private: "file.private_data";
    inode_mode: "inode.i_mode";
    inode_sb: "inode.i_sb";
    mnt_sb: "vfsmount.mnt_sb";
    /// As seen from `mount.mnt`, which is what `f_path.mnt` points at.
    mnt_id: "mount.mnt_id", from "mount.mnt";
    /// As seen from `mount.mnt`, too.
    mnt_ns: "mount.mnt_ns", from "mount.mnt";
    open_flag: "open_flags.open_flag";
    uring_file: "io_kiocb.file";
    uring_opcode: "io_kiocb.opcode";
    cqe_res: "io_uring_cqe.res";
    request_bio: "request.bio";
    request_flags: "request.cmd_flags";
    request_length: "request.__data_len";
    request_began: "request.start_time_ns";
    bio_blkg: "bio.bi_blkg";
    blkg_blkcg: "blkcg_gq.blkcg";
    blkcg_cgroup: "blkcg.css.cgroup";
    socket_state: "socket.state";
    socket_sk: "socket.sk";
    sock_protocol: "sock.sk_protocol";
    sock_err: "sock.sk_err";
    sock_state: "sock.__sk_common.skc_state";
    /// The first word: a pointer to the cgroup, in kernels that let it be something else with a mark in
    /// its lowest bits.
    sock_cgroup: "sock.sk_cgrp_data";
    /// Also of what stands for a connection that is over or not yet made.
    sock_net: "sock.__sk_common.skc_net.net";
    skb_protocol: "sk_buff.protocol";
    skb_head: "sk_buff.head";
    skb_network_header: "sk_buff.network_header";
    skb_sk: "sk_buff.sk";
    skb_dev: "sk_buff.dev";
    /// A pointer, with marks in its lowest bits.
    skb_route: "sk_buff._skb_refdst";
    route_dev: "dst_entry.dev";
    device_net: "net_device.nd_net.net";
    net_inode: "net.ns.inum";
    task_cgroups: "task_struct.cgroups";
    css_set_cgroup: "css_set.dfl_cgrp";
    cgroup_level: "cgroup.level";
    /// From Linux 6.1 on.
    cgroup_ancestors: "cgroup.ancestors";
    cgroup_node: "cgroup.kn";
    node_id: "kernfs_node.id";
    /// Up to Linux 6.0; from then on a helper takes its place.
    cgroup_ancestor_ids: "cgroup.ancestor_ids";
}

const _: () = assert!(size_of::<Offsets>() == 4 * FIELDS.len());

#[cfg(feature = "user")]
mod user {
    use super::{FIELDS, Offsets};

    // SAFETY: `repr(C)`, only `u32`s, so no padding and every bit pattern is valid.
    unsafe impl aya::Pod for Offsets {}

    impl Offsets {
        /// The offsets in the order of [`FIELDS`].
        pub fn as_mut_array(&mut self) -> &mut [u32; FIELDS.len()] {
            // SAFETY: `repr(C)`, as many `u32`s as there are fields: see the assertion above.
            unsafe { &mut *core::ptr::from_mut(self).cast() }
        }

        /// The offsets in the order of [`FIELDS`].
        #[must_use]
        pub fn as_array(&self) -> &[u32; FIELDS.len()] {
            // SAFETY: as above.
            unsafe { &*core::ptr::from_ref(self).cast() }
        }
    }
}

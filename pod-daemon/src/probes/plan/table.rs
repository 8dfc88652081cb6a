//! The probes: which program measures what, where it hangs, and which fields of the kernel it reads.

/// Fields of the kernel's structures, as `Offsets` name them, in lists that probes share.
pub(super) type Needs = &'static [&'static [&'static str]];

/// A program, what it measures, and where it hangs.
pub(in crate::probes) struct Probe {
    pub(in crate::probes) name: &'static str,
    pub(in crate::probes) program: &'static str,
    /// A tracepoint, a function of the kernel or a system call whose return is hooked; empty for what
    /// hangs on cgroups.
    pub(super) hook: &'static str,
    /// The program at the function's entry, which notes when it began; empty if there is none.
    pub(super) entry: &'static str,
    /// What it reads: without one of them it is off.
    pub(super) needs: Needs,
}

const fn probe(
    name: &'static str,
    program: &'static str,
    hook: &'static str,
    needs: Needs,
) -> Probe {
    Probe { name, program, hook, entry: "", needs }
}

const fn timed(
    name: &'static str,
    (entry, program): (&'static str, &'static str),
    hook: &'static str,
    needs: Needs,
) -> Probe {
    Probe { name, program, hook, entry, needs }
}

/// What an ended task tells.
const EXIT: Needs = &[&[
    "task_exit_code",
    "task_leader",
    "task_name",
    "task_pid",
    "task_signal",
    "task_tgid",
    "signal_exec_task",
    "signal_exit_code",
    "signal_flags",
]];

/// From a request to whose it is.
const REQUEST: Needs = &[&[
    "request_bio",
    "request_flags",
    "request_length",
    "request_began",
    "bio_blkg",
    "blkg_blkcg",
    "blkcg_cgroup",
    "cgroup_level",
]];

/// A task that is given a CPU.
const SWITCH: Needs = &[&[
    "task_pid",
    "task_cgroups",
    "task_run_delay",
    "task_times_run",
    "task_last_queued",
    "task_queue",
    "task_started",
    "queue_cpu",
    "cpu_clock",
]];

/// From a socket to its cgroup.
const SOCKET: &[&str] = &["sock_cgroup", "sock_state", "cgroup_level"];

/// From a packet to its protocol, and to whose it is.
const PACKET: Needs = &[
    SOCKET,
    &[
        "skb_protocol",
        "skb_head",
        "skb_network_header",
        "skb_sk",
        "skb_dev",
        "skb_route",
        "route_dev",
        "device_net",
        "net_inode",
        "sock_net",
    ],
];

/// From a file to its kind and its mount.
const FILE: &[&str] = &["file_flags", "file_inode", "file_mnt", "inode_mode", "mnt_id"];

/// And to the file system that it is on.
const STACKED: Needs = &[FILE, &["inode_sb", "mnt_ns", "mnt_sb"]];

/// Of a file that is opened.
const OPENED: Needs = &[&["file_mnt", "file_mode", "mnt_id", "open_flag"]];

/// From a request of a ring to its file.
const REQUEST_OF_RING: Needs = &[FILE, &["uring_file", "uring_opcode", "cqe_res"]];

/// From the current task to the files that it has open.
const OPEN_FILES: &[&str] = &["task_files", "files_fdt", "fdt_max_fds", "fdt_fd"];

/// Of such a file: how it was opened, and where in it the task is.
const OPEN_FILE: &[&str] = &["file_mode", "file_pos"];

/// From a descriptor of the current task to a file.
const DESCRIPTOR: Needs = &[OPEN_FILES, OPEN_FILE, FILE];

/// And from where its paths begin.
const ARGUMENTS: Needs = &[OPEN_FILES, OPEN_FILE, FILE, &["task_fs", "fs_root", "fs_pwd"]];

/// From a descriptor of the current task to a socket, and to whose it is.
const CONNECT: Needs = &[
    OPEN_FILES,
    SOCKET,
    &["task_pid", "file_inode", "file_private", "inode_mode"],
    &["socket_state", "socket_sk", "sock_protocol"],
];

/// From a page to the kind of its file.
const PAGE: Needs =
    &[&["folio_flags", "folio_head", "folio_index", "folio_mapping", "mapping_host", "inode_mode"]];

/// From a page fault to the mount of the file that is mapped there.
const FAULT: Needs = &[&["fault_vma", "vma_file", "file_mnt", "file_mode", "mnt_id"]];

/// By typed tracepoints (`tp_btf`).
pub(super) const TRACEPOINTS: [Probe; 9] = [
    probe("exec", "exec", "sched_process_exec", &[]),
    probe("fork", "fork", "sched_process_fork", &[&["task_pid", "task_tgid"]]),
    probe("exit", "exit", "sched_process_exit", EXIT),
    probe("block", "block_done", "block_rq_complete", REQUEST),
    probe("oom_victim", "oom_victim", "mark_victim", &[&["task_tgid", "task_cgroups"]]),
    probe("page_cache", "page_cache", "mm_filemap_add_to_page_cache", PAGE),
    probe("tcp_reset_sent", "tcp_reset_sent", "tcp_send_reset", &[SOCKET]),
    probe("tcp_reset_received", "tcp_reset_got", "tcp_receive_reset", &[SOCKET]),
    probe("tcp_syn_ack", "tcp_syn_ack", "tcp_retransmit_synack", &[SOCKET]),
];

/// What an exec tells beside that it happened.
const EXEC: Needs = &[&[
    "task_tgid",
    "task_parent",
    "task_leader",
    "task_name",
    "task_mm",
    "mm_arg_start",
    "mm_arg_end",
]];

/// What an ended task tells beside how it ended.
const LIFE: Needs = &[&[
    "task_exit_code",
    "task_name",
    "task_pid",
    "task_signal",
    "task_started",
    "task_tgid",
    "signal_exec_task",
    "signal_exit_code",
    "signal_flags",
]];

/// What tells of single events, by the same tracepoints: the counters do not depend on it.
pub(super) const EVENTS: [Probe; 3] = [
    probe("event_exec", "event_exec", "sched_process_exec", EXEC),
    probe("event_exit", "event_exit", "sched_process_exit", LIFE),
    probe("event_oom", "event_oom", "mark_victim", &[&["task_tgid", "task_cgroups", "task_name"]]),
];

/// What tells of every file that a pod opens, while somebody wants to know.
pub(super) const TRACE: Probe = probe("trace_open", TRACE_OPEN, "sys_exit", &[]);

/// The program of that.
pub(in crate::probes) const TRACE_OPEN: &str = "trace_open";

/// Typed tracepoints that cost too much for everybody: they are attached when asked for, and
/// detached again when they cost too much.
pub(in crate::probes) const OPTIONAL: [Probe; 1] =
    [probe("runqueue", "runqueue", "sched_switch", SWITCH)];

/// The calls that execute a program.
pub(super) const EXEC_CALLS: [Probe; 2] = [
    probe(EXEC_FAILURE, "f_execve", "execve", &[]),
    probe(EXEC_FAILURE, "f_execveat", "execveat", &[]),
];

/// The same for 32-bit programs, where the kernel runs these.
pub(super) const EXEC_CALLS_32: [Probe; 2] = [
    probe(EXEC_FAILURE, "f_execve32", "execve", &[]),
    probe(EXEC_FAILURE, "f_execveat32", "execveat", &[]),
];

pub(super) const EXEC_FAILURE: &str = "exec_failure";

/// What connects, at its entry and its return.
pub(super) const CONNECT_FAILURE: Probe =
    timed("connect_failure", ("b_connect", "f_connect"), "inet_stream_connect", CONNECT);

/// At the entry and the return of functions of the kernel.
pub(super) const FILE_FUNCTIONS: [Probe; 6] = [
    timed("file_read", ("b_read", "file_read"), "vfs_read", &[FILE]),
    timed("file_write", ("b_write", "file_write"), "vfs_write", &[FILE]),
    timed("file_copy_range", ("b_copy_range", "f_copy_range"), "vfs_copy_file_range", STACKED),
    timed("file_open", ("b_open", "f_open"), "do_filp_open", OPENED),
    timed("file_unlink", ("b_unlink", "f_unlink"), "do_unlinkat", &[&["mnt_id"]]),
    timed("file_rename", ("b_rename", "f_rename"), "do_renameat2", &[&["mnt_id"]]),
];

/// What Linux 7 calls some of them; their arguments are the same.
pub(super) const RENAMED: [(&str, &str); 3] = [
    ("do_filp_open", "do_file_open"),
    ("do_unlinkat", "filename_unlinkat"),
    ("do_renameat2", "filename_renameat2"),
];

/// Where the last three of them, when they change a directory, are told the mount.
pub(super) const FILE_MOUNT: Probe =
    probe("file_mount", "file_mount", "mnt_want_write", &[&["mnt_id"]]);

/// Where a page of a mapping is brought in, which tells the volume.
pub(super) const FILE_FAULT: Probe =
    timed("file_fault", ("b_fault", "f_fault"), "filemap_fault", FAULT);

/// At the entry and the return of system calls, in fexit mode.
pub(super) const FILE_CALLS: [Probe; 10] = [
    timed("file_readv", ("b_readv", "f_readv"), "readv", DESCRIPTOR),
    timed("file_preadv", ("b_preadv", "f_preadv"), "preadv", DESCRIPTOR),
    timed("file_preadv2", ("b_preadv2", "f_preadv2"), "preadv2", DESCRIPTOR),
    timed("file_writev", ("b_writev", "f_writev"), "writev", DESCRIPTOR),
    timed("file_pwritev", ("b_pwritev", "f_pwritev"), "pwritev", DESCRIPTOR),
    timed("file_pwritev2", ("b_pwritev2", "f_pwritev2"), "pwritev2", DESCRIPTOR),
    timed("file_sendfile", ("b_sendfile", "f_sendfile"), "sendfile64", DESCRIPTOR),
    timed("file_splice", ("b_splice", "f_splice"), "splice", DESCRIPTOR),
    timed("file_fsync", ("b_fsync", "f_fsync"), "fsync", DESCRIPTOR),
    timed("file_fdatasync", ("b_fdatasync", "f_fdatasync"), "fdatasync", DESCRIPTOR),
];

/// What notes when a system call begins, in syscall mode.
pub(super) const FILE_ENTER: Probe = probe("file_enter", "file_enter", "sys_enter", DESCRIPTOR);

/// What counts all of them then.
pub(super) const FILE_SYSCALL: Probe = probe("file_syscall", "file_syscall", "sys_exit", ARGUMENTS);

/// The least that a program costs in syscall mode.
pub(super) const FLOOR_SYSCALL: Probe = probe("floor", "sys_floor", "sys_exit", &[]);

/// What syscall mode counts with its volume only if the path is a plain name.
pub(super) const WITHOUT_VOLUME: [&str; 2] = ["file_unlink", "file_rename"];

/// What no program can see: bytes that go into a file through a mapping of it.
pub const UNSEEN: [&str; 1] = ["file_mmap_write"];

/// Packets that are dropped, where the tracepoint has the reason and the socket that they were for.
pub(super) const DROP_TO: Probe = probe(PACKET_DROP, "packet_drop_to", "kfree_skb", PACKET);

/// Where it has the reason.
pub(super) const DROP: Probe = probe(PACKET_DROP, "packet_drop", "kfree_skb", PACKET);

/// And what tells then for what socket of UDP there was no room.
pub(super) const DROP_UDP: Probe = probe(PACKET_DROP, "udp_drop", "udp_fail_queue_rcv_skb", PACKET);

pub(super) const PACKET_DROP: &str = "packet_drop";

/// What is done by io_uring, where the tracepoint has the request and its result.
pub(super) const URING_RESULT: Probe =
    probe("file_io_uring", "uring_result", "io_uring_complete", REQUEST_OF_RING);

/// And where it has the request and the entry with the result.
pub(super) const URING_ENTRY: Probe =
    probe("file_io_uring", "uring_entry", "io_uring_complete", REQUEST_OF_RING);

/// What the kernel calls the entry of a system call.
#[cfg(target_arch = "aarch64")]
pub(super) const SYSCALL_PREFIX: &str = "__arm64_sys_";
#[cfg(target_arch = "aarch64")]
pub(super) const SYSCALL_PREFIX_32: &str = "__arm64_compat_sys_";
#[cfg(not(target_arch = "aarch64"))]
pub(super) const SYSCALL_PREFIX: &str = "__x64_sys_";
#[cfg(not(target_arch = "aarch64"))]
pub(super) const SYSCALL_PREFIX_32: &str = "__ia32_compat_sys_";

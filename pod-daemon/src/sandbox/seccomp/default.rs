//! The profile of every container that asks for no other.
//!
//! The lists are facts about the field's default, which a test compares with a copy of it. What is
//! Podscope's own: `ENOSYS` for what the lists do not know, so that libraries fall back to older
//! calls, and `EPERM` for what they know and refuse; nothing at all for x32; and no way around the
//! rules for sockets on 32-bit x86.

use std::collections::BTreeMap;

use super::{
    super::Capabilities,
    abi::{Abi, OURS},
    policy::{Action, Compare, Condition, Policy, Rule, Table},
};

/// What every process may call.
const ALWAYS: [&str; 291] = [
    "accept",
    "accept4",
    "access",
    "adjtimex",
    "alarm",
    "arch_prctl",
    "bind",
    "brk",
    "capget",
    "capset",
    "chdir",
    "chmod",
    "chown",
    "clock_adjtime",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "close_range",
    "connect",
    "copy_file_range",
    "creat",
    "dup",
    "dup2",
    "dup3",
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_ctl_old",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "epoll_wait_old",
    "eventfd",
    "eventfd2",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fallocate",
    "fanotify_mark",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchown",
    "fchownat",
    "fcntl",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fork",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "futex",
    "futex_waitv",
    "futimesat",
    "get_robust_list",
    "get_thread_area",
    "getcpu",
    "getcwd",
    "getdents",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getitimer",
    "getpeername",
    "getpgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getpriority",
    "getrandom",
    "getresgid",
    "getresuid",
    "getrlimit",
    "getrusage",
    "getsid",
    "getsockname",
    "getsockopt",
    "gettid",
    "gettimeofday",
    "getuid",
    "getxattr",
    "inotify_add_watch",
    "inotify_init",
    "inotify_init1",
    "inotify_rm_watch",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_pgetevents",
    "io_setup",
    "io_submit",
    "ioctl",
    "ioprio_get",
    "ioprio_set",
    "kill",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "lchown",
    "lgetxattr",
    "link",
    "linkat",
    "listen",
    "listxattr",
    "llistxattr",
    "lremovexattr",
    "lseek",
    "lsetxattr",
    "lstat",
    "madvise",
    "membarrier",
    "memfd_create",
    "memfd_secret",
    "mincore",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "modify_ldt",
    "mprotect",
    "mq_getsetattr",
    "mq_notify",
    "mq_open",
    "mq_timedreceive",
    "mq_timedsend",
    "mq_unlink",
    "mremap",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "name_to_handle_at",
    "nanosleep",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pause",
    "pidfd_open",
    "pidfd_send_signal",
    "pipe",
    "pipe2",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "preadv",
    "preadv2",
    "prlimit64",
    "process_mrelease",
    "process_vm_readv",
    "process_vm_writev",
    "pselect6",
    "ptrace",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readlink",
    "readlinkat",
    "readv",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "remap_file_pages",
    "removexattr",
    "rename",
    "renameat",
    "renameat2",
    "restart_syscall",
    "rmdir",
    "rseq",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigqueueinfo",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_tgsigqueueinfo",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "sched_getaffinity",
    "sched_getattr",
    "sched_getparam",
    "sched_getscheduler",
    "sched_rr_get_interval",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "sched_yield",
    "seccomp",
    "select",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "sendfile",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "set_robust_list",
    "set_thread_area",
    "set_tid_address",
    "setfsgid",
    "setfsuid",
    "setgid",
    "setgroups",
    "setitimer",
    "setpgid",
    "setpriority",
    "setregid",
    "setresgid",
    "setresuid",
    "setreuid",
    "setrlimit",
    "setsid",
    "setsockopt",
    "setuid",
    "setxattr",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
    "shutdown",
    "sigaltstack",
    "signalfd",
    "signalfd4",
    "socketpair",
    "splice",
    "stat",
    "statfs",
    "statx",
    "symlink",
    "symlinkat",
    "sync",
    "sync_file_range",
    "syncfs",
    "sysinfo",
    "tee",
    "tgkill",
    "time",
    "timer_create",
    "timer_delete",
    "timer_getoverrun",
    "timer_gettime",
    "timer_settime",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_settime",
    "times",
    "tkill",
    "truncate",
    "umask",
    "uname",
    "unlink",
    "unlinkat",
    "utime",
    "utimensat",
    "utimes",
    "vfork",
    "vmsplice",
    "wait4",
    "waitid",
    "write",
    "writev",
];

/// The same calls where numbers, times or offsets have another width, and their ancestors: only
/// 32-bit programs have these. Not `socketcall`: its arguments are out of a filter's sight, and
/// since Linux 4.3 there is a call for each of its parts.
const ALWAYS_32: [&str; 63] = [
    "_llseek",
    "_newselect",
    "chown32",
    "clock_adjtime64",
    "clock_getres_time64",
    "clock_gettime64",
    "clock_nanosleep_time64",
    "fadvise64_64",
    "fchown32",
    "fcntl64",
    "fstat64",
    "fstatat64",
    "fstatfs64",
    "ftruncate64",
    "futex_time64",
    "getegid32",
    "geteuid32",
    "getgid32",
    "getgroups32",
    "getresgid32",
    "getresuid32",
    "getuid32",
    "io_pgetevents_time64",
    "ipc",
    "lchown32",
    "lstat64",
    "mmap2",
    "mq_timedreceive_time64",
    "mq_timedsend_time64",
    "nice",
    "ppoll_time64",
    "pselect6_time64",
    "recvmmsg_time64",
    "rt_sigtimedwait_time64",
    "sched_rr_get_interval_time64",
    "semtimedop_time64",
    "sendfile64",
    "setfsgid32",
    "setfsuid32",
    "setgid32",
    "setgroups32",
    "setregid32",
    "setresgid32",
    "setresuid32",
    "setreuid32",
    "setuid32",
    "sigaction",
    "signal",
    "sigpending",
    "sigprocmask",
    "sigreturn",
    "sigsuspend",
    "stat64",
    "statfs64",
    "timer_gettime64",
    "timer_settime64",
    "timerfd_gettime64",
    "timerfd_settime64",
    "truncate64",
    "ugetrlimit",
    "utimensat_time64",
    "waitpid",
    "readdir",
];

/// What a capability is for: calls that only those who have it may make.
const BY_CAPABILITY: [(&str, &[&str]); 14] = [
    (
        "SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("BPF", &["bpf"]),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("PERFMON", &["perf_event_open"]),
    ("SYSLOG", &["syslog"]),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_CHROOT", &["chroot"]),
    ("SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise"]),
    ("SYS_RAWIO", &["ioperm", "iopl"]),
    ("SYS_TIME", &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
];

/// What nobody may call, whatever the capabilities. Known to be dangerous, or to be relics.
const NEVER: [&str; 28] = [
    "_sysctl",
    "add_key",
    "afs_syscall",
    "create_module",
    "get_kernel_syms",
    "getpmsg",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "migrate_pages",
    "move_pages",
    "nfsservctl",
    "pivot_root",
    "putpmsg",
    "query_module",
    "request_key",
    "security",
    "swapoff",
    "swapon",
    "sysfs",
    "tuxcall",
    "uselib",
    "userfaultfd",
    "ustat",
    "vserver",
];

const REFUSED: Action = Action::Errno(1); // EPERM
const UNKNOWN: Action = Action::Errno(38); // ENOSYS

/// Flags of `clone` that make namespaces.
const NAMESPACES: u32 = 0x7e02_0000;

/// The values of `personality` that change nothing of consequence: Linux's own, with uname as of
/// 2.6, with 32-bit addresses, both, and the question for the current one.
const PERSONALITIES: [u32; 5] = [0, 8, 0x20000, 0x20008, 0xffff_ffff];

/// Families of sockets that reach out of the pod, or code of the kernel that needs no reaching.
const AF_ALG: u32 = 38;
const AF_VSOCK: u32 = 40;

/// The policy for a process that has `capabilities`.
pub(super) fn policy(capabilities: Capabilities) -> Policy {
    Policy { tables: OURS.iter().map(|abi| table(*abi, capabilities)).collect(), foreign: UNKNOWN }
}

/// The policy for one ABI.
fn table(abi: Abi, capabilities: Capabilities) -> Table {
    let mut calls = BTreeMap::new();
    let mut set = |name: &str, rules: Vec<Rule>| {
        if let Some(number) = abi.number(name) {
            calls.insert(number, rules);
        }
    };
    for name in NEVER {
        set(name, vec![Rule::always(REFUSED)]);
    }
    for (_, names) in BY_CAPABILITY {
        for name in names {
            set(name, vec![Rule::always(REFUSED)]);
        }
    }
    for name in ALWAYS.into_iter().chain(ALWAYS_32) {
        set(name, vec![Rule::always(Action::Allow)]);
    }
    let namespaces =
        Condition { argument: 0, mask: u64::from(NAMESPACES), compare: Compare::Equal, value: 0 };
    set("clone", vec![Rule { when: vec![namespaces], then: Action::Allow }, Rule::always(REFUSED)]);
    // Its flags are behind a pointer. The C library takes ENOSYS as an invitation to use `clone`.
    set("clone3", vec![Rule::always(UNKNOWN)]);
    set(
        "personality",
        PERSONALITIES
            .map(|value| Rule {
                when: vec![Condition::word(0, Compare::Equal, value)],
                then: Action::Allow,
            })
            .into_iter()
            .chain([Rule::always(REFUSED)])
            .collect(),
    );
    set(
        "socket",
        vec![
            Rule {
                when: [AF_ALG, AF_VSOCK]
                    .map(|family| Condition::word(0, Compare::NotEqual, family))
                    .to_vec(),
                then: Action::Allow,
            },
            Rule::always(REFUSED),
        ],
    );
    for (capability, names) in BY_CAPABILITY {
        if Capabilities::named(capability).is_some_and(|one| capabilities.contains(one)) {
            for name in names {
                set(name, vec![Rule::always(Action::Allow)]);
            }
        }
    }
    Table { abi, calls, otherwise: UNKNOWN }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::{
        super::{
            super::DEFAULT_CAPABILITIES,
            abi::{AARCH64, X86, X86_64},
        },
        *,
    };

    /// The field's default: names by the word that begins the line.
    fn field() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
        include_str!("../../../tests/fixtures/seccomp_default_x86_64.txt")
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| {
                let mut words = line.split_whitespace();
                let first = words.next().unwrap().trim_end_matches(':');
                (first.trim_start_matches("CAP_"), words.collect())
            })
            .collect()
    }

    #[test]
    fn the_lists_are_those_of_the_fields_default() {
        let mut field = field();
        assert_eq!(field.remove("ALWAYS").unwrap(), BTreeSet::from(ALWAYS));
        assert_eq!(field.remove("NEVER").unwrap(), BTreeSet::from(NEVER));
        let conditional = field.remove("args").unwrap();
        assert_eq!(conditional, BTreeSet::from(["clone", "personality", "socket"]));
        let ours: BTreeMap<_, BTreeSet<_>> = BY_CAPABILITY
            .into_iter()
            .map(|(capability, names)| (capability, names.iter().copied().collect()))
            .collect();
        assert_eq!(field, ours);
    }

    #[test]
    fn every_call_of_the_field_is_decided_as_there() {
        let decide = |capabilities, name: &str| {
            let table = table(X86_64, capabilities);
            let number = X86_64.number(name)?;
            Some(table.calls.get(&number).unwrap_or_else(|| panic!("no rule for {name}")).clone())
        };
        let field = field();
        for name in &field["ALWAYS"] {
            let rules = decide(Capabilities::NONE, name).unwrap();
            assert_eq!(rules, [Rule::always(Action::Allow)], "{name}");
        }
        for name in field["NEVER"].iter().filter(|name| X86_64.number(name).is_some()) {
            assert_eq!(decide(Capabilities::ALL, name).unwrap(), [Rule::always(REFUSED)], "{name}");
        }
        for (capability, names) in &field {
            let Some(capability) = Capabilities::named(capability) else { continue };
            for name in names.iter().filter(|name| X86_64.number(name).is_some()) {
                let with = decide(capability, name).unwrap();
                assert_eq!(with, [Rule::always(Action::Allow)], "{name}");
                let refusal = if *name == "clone3" { UNKNOWN } else { REFUSED };
                let without = decide(Capabilities::NONE, name).unwrap();
                assert_eq!(without.last(), Some(&Rule::always(refusal)), "{name}");
            }
        }
        // What neither knows is unknown, so that libraries fall back.
        let number = X86_64.number("cachestat").unwrap();
        let table = table(X86_64, DEFAULT_CAPABILITIES);
        assert!(!table.calls.contains_key(&number));
        assert_eq!(table.otherwise, UNKNOWN);
    }

    #[test]
    fn every_name_is_a_call_of_some_architecture() {
        let known =
            |name: &&str| [X86_64, X86, AARCH64].iter().any(|abi| abi.number(name).is_some());
        let all = ALWAYS.into_iter().chain(ALWAYS_32);
        let unknown: Vec<_> = all.filter(|name| !known(name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert!(!table(X86, Capabilities::NONE).calls.contains_key(&102), "socketcall");
    }
}

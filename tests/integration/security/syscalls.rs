//! The seccomp filter, tried from inside.

use std::fmt::Write as _;

use pod_tests::{Daemon, manifest::pod};
use serde_json::json;

/// Calls that nobody may make, by their 64-bit and 32-bit numbers; 0 where there is none.
const NEVER: [(&str, i64, i64); 15] = [
    ("add_key", libc::SYS_add_key, 286),
    ("io_uring_setup", libc::SYS_io_uring_setup, 425),
    ("io_uring_enter", libc::SYS_io_uring_enter, 426),
    ("io_uring_register", libc::SYS_io_uring_register, 427),
    ("kexec_load", libc::SYS_kexec_load, 283),
    ("keyctl", libc::SYS_keyctl, 288),
    ("migrate_pages", libc::SYS_migrate_pages, 294),
    ("move_pages", libc::SYS_move_pages, 317),
    ("nfsservctl", libc::SYS_nfsservctl, 169),
    ("pivot_root", libc::SYS_pivot_root, 217),
    ("request_key", libc::SYS_request_key, 287),
    ("swapoff", libc::SYS_swapoff, 115),
    ("swapon", libc::SYS_swapon, 87),
    ("userfaultfd", libc::SYS_userfaultfd, 374),
    ("kexec_file_load", libc::SYS_kexec_file_load, 0),
];

/// Calls that take a capability which containers have not by default.
const WITHOUT_CAPABILITY: [(&str, i64, i64); 21] = [
    ("acct", libc::SYS_acct, 51),
    ("bpf", libc::SYS_bpf, 357),
    ("delete_module", libc::SYS_delete_module, 129),
    ("finit_module", libc::SYS_finit_module, 350),
    ("fsopen", libc::SYS_fsopen, 430),
    ("init_module", libc::SYS_init_module, 128),
    ("kcmp", libc::SYS_kcmp, 349),
    ("mbind", libc::SYS_mbind, 274),
    ("mount", libc::SYS_mount, 21),
    ("mount_setattr", libc::SYS_mount_setattr, 442),
    ("move_mount", libc::SYS_move_mount, 429),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, 342),
    ("open_tree", libc::SYS_open_tree, 428),
    ("perf_event_open", libc::SYS_perf_event_open, 336),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, 438),
    ("quotactl", libc::SYS_quotactl, 131),
    ("setns", libc::SYS_setns, 346),
    ("syslog", libc::SYS_syslog, 103),
    ("umount2", libc::SYS_umount2, 52),
    ("unshare", libc::SYS_unshare, 310),
    ("vhangup", libc::SYS_vhangup, 111),
];

fn steps(calls: &[(&str, i64, i64)]) -> String {
    let mut steps = String::new();
    for (_, number, number_32) in calls {
        write!(steps, "syscall 64 {number} , ").unwrap();
        if cfg!(target_arch = "x86_64") && *number_32 != 0 {
            write!(steps, "syscall 32 {number_32} , ").unwrap();
        }
    }
    steps
}

/// Whether this kernel runs 32-bit programs at all: without, the call ends the caller.
fn has_32_bit(output: &str) -> bool {
    output.contains("syscall 32 20: ok")
}

#[test]
fn no_container_may_make_a_call_that_is_never_allowed() {
    let daemon = Daemon::start(&[]);
    let all: Vec<_> = NEVER.iter().chain(&WITHOUT_CAPABILITY).copied().collect();
    // 20 is getpid there.
    let steps = format!("syscall 32 20 , {} exit 0", steps(&all));
    let output = daemon.output_of(pod("never").container("app", &steps), "never");
    let both = has_32_bit(&output);
    for (name, number, number_32) in all {
        assert!(output.contains(&format!("syscall 64 {number}: EPERM\n")), "{name}: {output}");
        if both && number_32 != 0 {
            let answer = format!("syscall 32 {number_32}: EPERM\n");
            assert!(output.contains(&answer), "32-bit {name}: {output}");
        }
    }
    daemon.stop();
}

#[test]
fn what_the_profile_does_not_know_is_absent() {
    let daemon = Daemon::start(&[]);
    // clone3, then cachestat; getpid by x32; and socketcall, which hides what it calls.
    let steps = "syscall 64 435 , syscall 64 451 , syscall x32 39 , syscall x32 0 , syscall 32 20 , \
                 syscall 32 102 1 , exit 0";
    let output = daemon.output_of(pod("absent").container("app", steps), "absent");
    for call in ["64 435", "64 451", "x32 39", "x32 0"] {
        assert!(output.contains(&format!("syscall {call}: ENOSYS\n")), "{call}: {output}");
    }
    if has_32_bit(&output) {
        assert!(output.contains("syscall 32 102 1: ENOSYS\n"), "{output}");
    }
    daemon.stop();
}

#[test]
fn arguments_are_filtered() {
    let daemon = Daemon::start(&[]);
    let (socket, clone, personality) = (libc::SYS_socket, libc::SYS_clone, libc::SYS_personality);
    // An AF_UNIX socket, AF_ALG, AF_VSOCK, AF_ALG with a bit that the kernel ignores; a clone into
    // a user namespace; ADDR_NO_RANDOMIZE, and the question for the personality.
    let steps = format!(
        "syscall 64 {socket} 1 1 , syscall 64 {socket} 38 5 , syscall 64 {socket} 40 1 , \
         syscall 64 {socket} 4294967334 5 , syscall 64 {clone} 268435473 , \
         syscall 64 {personality} 262144 , syscall 64 {personality} 4294967295 , \
         syscall 32 20 , syscall 32 359 38 5 , exit 0"
    );
    let output = daemon.output_of(pod("arguments").container("app", &steps), "arguments");
    for (call, answer) in [
        (format!("64 {socket} 1 1"), "ok"),
        (format!("64 {socket} 38 5"), "EPERM"),
        (format!("64 {socket} 40 1"), "EPERM"),
        (format!("64 {socket} 4294967334 5"), "EPERM"),
        (format!("64 {clone} 268435473"), "EPERM"),
        (format!("64 {personality} 262144"), "EPERM"),
        (format!("64 {personality} 4294967295"), "ok"),
    ] {
        assert!(output.contains(&format!("syscall {call}: {answer}\n")), "{call}: {output}");
    }
    if has_32_bit(&output) {
        assert!(output.contains("syscall 32 359 38 5: EPERM\n"), "{output}");
    }
    daemon.stop();
}

#[test]
fn every_process_of_a_pod_has_a_filter() {
    let daemon = Daemon::start(&[]);
    let steps = "cat /proc/self/status , pause";
    daemon.run(pod("filtered").with("shareProcessNamespace", true).container("app", steps));
    let pod = daemon.wait_ready("filtered");
    for container in ["app", "_infra"] {
        let pid = daemon.pid_of(&pod, container);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("Seccomp:\t2\n"), "{container}: {status}");
        assert!(status.contains("NoNewPrivs:\t1\n"), "{container}: {status}");
    }
    let keyctl = libc::SYS_keyctl.to_string();
    let output =
        daemon.podctl(&["exec", "filtered", "--", "/bin/workload", "syscall", "64", &keyctl]);
    assert!(output.stdout.contains(&format!("syscall 64 {keyctl}: EPERM")), "{output:?}");
    daemon.stop();
}

#[test]
fn a_profile_can_be_chosen() {
    let daemon = Daemon::start(&[]);
    let folder = daemon.folder().join("data/seccomp");
    std::fs::create_dir_all(&folder).unwrap();
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    });
    std::fs::write(folder.join("own.json"), profile.to_string()).unwrap();
    std::fs::write(folder.join("bad.json"), "{}").unwrap();
    // Not even the end of the process that could not execute the program.
    let nothing = json!({"defaultAction": "SCMP_ACT_ERRNO"});
    std::fs::write(folder.join("nothing.json"), nothing.to_string()).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", folder.join("link.json")).unwrap();
    let with = |profile: serde_json::Value| json!({"securityContext": {"seccompProfile": profile}});
    let (keyctl, getppid) = (libc::SYS_keyctl, libc::SYS_getppid);
    let steps = format!("syscall 64 {keyctl} 0 , syscall 64 {getppid} , exit 0");
    let run = |name: &str, profile: serde_json::Value| {
        let pod = pod(name).container_with("app", &steps, with(profile));
        daemon.output_of(pod, name)
    };

    let own = run("own", json!({"type": "Localhost", "localhostProfile": "own.json"}));
    assert!(own.contains(&format!("syscall 64 {getppid}: EOPNOTSUPP")), "{own}");
    assert!(!own.contains(&format!("syscall 64 {keyctl} 0: EPERM")), "{own}");
    let open = run("open", json!({"type": "Unconfined"}));
    assert!(!open.contains(&format!("syscall 64 {keyctl} 0: EPERM")), "{open}");
    let usual = run("usual", json!({"type": "RuntimeDefault"}));
    assert!(usual.contains(&format!("syscall 64 {keyctl} 0: EPERM")), "{usual}");

    let unusable = "CreateContainerConfigError";
    for (name, file, reason, problem) in [
        ("none", "none.json", unusable, "none.json"),
        ("link", "link.json", unusable, "link.json"),
        ("bad", "bad.json", unusable, "defaultAction"),
        ("nothing", "nothing.json", "StartError", "Operation not permitted"),
    ] {
        let profile = with(json!({"type": "Localhost", "localhostProfile": file}));
        daemon.run(pod(name).container_with("app", "exit 0", profile));
        let over = daemon.wait_over(name);
        let ended = &over["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(ended["reason"], reason, "{ended}");
        assert!(ended["message"].as_str().unwrap().contains(problem), "{ended}");
    }
    let message = daemon.refused(pod("up").container_with(
        "app",
        "exit 0",
        with(json!({"type": "Localhost", "localhostProfile": "../up.json"})),
    ));
    assert!(message.contains("seccompProfile.localhostProfile"), "{message}");
    daemon.stop();
}

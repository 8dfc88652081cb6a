//! What a container may not do and not see.

mod context;
mod escapes;
mod syscalls;
mod users;

use pod_tests::{Daemon, manifest::pod};
use serde_json::json;

#[test]
fn a_container_has_the_default_capabilities_and_three_descriptors() {
    let daemon = Daemon::start(&[]);
    let output = daemon
        .output_of(pod("caps").container("app", "fds , cat /proc/self/status , exit 0"), "caps");
    assert!(output.starts_with("fds 0 1 2\n"), "{output}");
    let field = |name: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {output}")).trim()
    };
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert_eq!(field(set), "00000000a80425fb", "{set}");
    }
    for set in ["CapInh:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    // The daemon ignores SIGPIPE and, started by `posix_spawn`, 32; and so does the workload with SIGPIPE.
    assert_eq!(field("SigIgn:"), "0000000000001000");
    daemon.run(pod("infra").container("app", "pause"));
    let infra = daemon.pid_of(&daemon.wait_ready("infra"), "_infra");
    let status = std::fs::read_to_string(format!("/proc/{infra}/status")).unwrap();
    assert!(status.contains("\nSigIgn:\t0000000000000000\n"), "{status}");
    daemon.stop();
}

#[test]
fn devices_of_the_node_are_out_of_reach() {
    let daemon = Daemon::start(&[]);
    // kmsg, fuse and tun are devices of every kernel; zero is everybody's.
    let steps = "device 1 11 , device 10 229 , device 10 200 , device 1 5 , exit 0";
    let output = daemon.output_of(pod("devices").container("app", steps), "devices");
    for device in ["1:11", "10:229", "10:200"] {
        let refused = format!("device {device} refused: Operation not permitted");
        assert!(output.contains(&refused), "{output}");
    }
    assert!(output.contains("device 1:5 opened"), "{output}");
    daemon.stop();
}

#[test]
fn the_kernels_own_files_are_masked_or_read_only() {
    let daemon = Daemon::start(&[]);
    let steps = "look /proc/kcore , look /proc/keys , look /proc/timer_list , look /proc/sysrq-trigger , \
                 touch /proc/sysrq-trigger , touch /proc/sys/kernel/domainname , touch /proc/irq/default_smp_affinity , \
                 touch /sys/kernel/uevent_seqnum , touch /sys/new , list /sys/firmware , exit 0";
    let output = daemon.output_of(pod("masked").container("app", steps), "masked");
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        // Where a kernel has no such file, there is nothing to hide.
        let hidden = ["0 bytes", "ENOENT", "EACCES"]
            .iter()
            .any(|answer| output.contains(&format!("look {path}: {answer}\n")));
        assert!(hidden, "{path}: {output}");
    }
    for line in output.lines().filter(|line| line.starts_with("touch ")) {
        let refused =
            ["EROFS", "EACCES", "ENOENT", "EPERM"].iter().any(|errno| line.ends_with(errno));
        assert!(refused, "{line}\n{output}");
    }
    assert!(output.contains("touch /proc/sys/kernel/domainname: EROFS"), "{output}");
    assert!(
        output.contains("list /sys/firmware") || output.contains("/sys/firmware: \n"),
        "{output}"
    );
    daemon.stop();
}

#[test]
fn a_container_sees_neither_the_hosts_mounts_nor_the_daemon() {
    let daemon = Daemon::start(&[]);
    let own = daemon.pid();
    let shared = pod("eyes").with("shareProcessNamespace", true).container(
        "app",
        &format!(
            "cat /proc/self/mountinfo , list /proc , look /proc/{own}/exe , look /proc/1/exe , look /proc/1/root/data , exit 0"
        ),
    );
    let output = daemon.output_of(shared, "eyes");
    // Separated by " - " from the kind of file system: ids, device, root, place, options.
    let mounts: Vec<&str> = output.lines().filter(|line| line.contains(" - ")).collect();
    assert!(mounts.len() > 5, "{output}");
    for mount in mounts {
        let place = mount.split_whitespace().nth(4).unwrap();
        let known =
            ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/sys", "/dev", "/proc", "/"];
        let below = |known: &&str| place == *known || place.starts_with(&format!("{known}/"));
        assert!(known.iter().any(below), "{mount}");
        // What is mounted on the host later must not appear here.
        assert!(!mount.contains(" shared:") && !mount.contains(" master:"), "{mount}");
    }
    assert!(output.contains(&format!("look /proc/{own}/exe: ENOENT")), "{output}");
    // Nor does one that may trace others, in whose way no security module stands.
    let tracer = json!({"securityContext": {
        "capabilities": {"add": ["SYS_PTRACE"]},
        "appArmorProfile": {"type": "Unconfined"},
    }});
    let steps = "list /proc/1/root , look /proc/1/root/data , look /proc/1/root/../proc , list /proc/1/cwd , exit 0";
    let tracer =
        pod("tracer").with("shareProcessNamespace", true).container_with("app", steps, tracer);
    assert_eq!(
        daemon.output_of(tracer, "tracer"),
        "/proc/1/root: \nlook /proc/1/root/data: ENOENT\nlook /proc/1/root/../proc: ENOENT\n/proc/1/cwd: \n"
    );
    // The infra program is small, and nothing of the daemon.
    let infra = output.lines().find_map(|line| line.strip_prefix("look /proc/1/exe: "));
    let small =
        infra.and_then(|answer| answer.strip_suffix(" bytes")).and_then(|size| size.parse().ok());
    assert!(infra == Some("EACCES") || small.is_some_and(|size: u64| size <= 2048), "{infra:?}");
    daemon.stop();
}

#[test]
fn an_unsupported_field_is_named() {
    let daemon = Daemon::start(&[]);
    let hook = json!({"lifecycle": {"preStop": {"exec": {"command": ["/bin/true"]}}}});
    let message = daemon.refused(pod("hook").container_with("app", "pause", hook));
    assert!(message.contains("spec.containers[0].lifecycle.preStop"), "{message}");
    let message = daemon.refused(pod("typo").with("hostNetwrok", true).container("app", "pause"));
    assert!(message.contains("spec.hostNetwrok"), "{message}");
    daemon.stop();

    let daemon = Daemon::start(&["--unsupported-fields=warn"]);
    let hook = json!({"lifecycle": {"preStop": {"exec": {"command": ["/bin/true"]}}}});
    daemon.run(pod("hook").container_with("app", "pause", hook));
    daemon.wait_ready("hook");
    daemon.stop();
}

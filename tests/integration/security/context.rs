//! `securityContext`: what a manifest may change about who a container is and what holds it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use pod_tests::{
    Daemon, in_vm,
    manifest::{Pod, mounts, pod},
};
use serde_json::{Value, json};

fn field<'a>(output: &'a str, name: &str) -> &'a str {
    let line = output.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {output}")).trim()
}

/// A container with this security context.
fn with(name: &str, steps: &str, context: Value) -> Pod {
    pod(name).container_with("app", steps, json!({"securityContext": context}))
}

/// Why a container was not started.
#[track_caller]
fn not_started(daemon: &Daemon, name: &str, reason: &str) -> String {
    let over = daemon.wait_over(name);
    let ended = &over["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(ended["reason"], reason, "{ended}");
    ended["message"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_container_runs_as_whom_the_manifest_says() {
    let daemon = Daemon::start(&[]);
    let steps =
        "cat /proc/self/status , touch /dev/stdout , touch /dev/stderr , touch /root-only , exit 0";
    let user = with("user", steps, json!({"runAsUser": 1234})).with(
        "securityContext",
        json!({"runAsUser": 99, "runAsGroup": 77, "supplementalGroups": [5, 6], "fsGroup": 7}),
    );
    let output = daemon.output_of(user, "user");
    assert_eq!(field(&output, "Uid:"), "1234\t1234\t1234\t1234");
    assert_eq!(field(&output, "Gid:"), "77\t77\t77\t77");
    assert_eq!(field(&output, "Groups:"), "5 6 7 77");
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        assert_eq!(field(&output, set), "0000000000000000", "{set}");
    }
    // Logs by way of /dev/stdout are what many images do.
    for path in ["/dev/stdout", "/dev/stderr"] {
        assert!(output.contains(&format!("touch {path}: ok")), "{output}");
    }
    assert!(output.contains("touch /root-only: EACCES"), "{output}");

    daemon.run(with("inside", "pause", json!({"runAsUser": 55, "runAsGroup": 56})));
    daemon.wait_ready("inside");
    let output =
        daemon.podctl(&["exec", "inside", "--", "/bin/workload", "cat", "/proc/self/status"]);
    assert_eq!(field(&output.stdout, "Uid:"), "55\t55\t55\t55");
    assert_eq!(field(&output.stdout, "Gid:"), "56\t56\t56\t56");
    daemon.stop();
}

#[test]
fn a_container_that_must_not_be_root_is_not_started_as_root() {
    let daemon = Daemon::start(&[]);
    daemon.run(with("image", "exit 0", json!({"runAsNonRoot": true})));
    let message = not_started(&daemon, "image", "CreateContainerConfigError");
    assert!(message.contains("container has runAsNonRoot and image will run as root"), "{message}");
    daemon.run(with("manifest", "exit 0", json!({"runAsNonRoot": true, "runAsUser": 0})));
    let message = not_started(&daemon, "manifest", "CreateContainerConfigError");
    assert!(message.contains("container's runAsUser breaks non-root policy"), "{message}");
    let output = daemon.output_of(
        with("other", "id , exit 0", json!({"runAsNonRoot": true, "runAsUser": 9})),
        "other",
    );
    assert!(output.contains("uid=9"), "{output}");
    daemon.stop();
}

#[test]
fn ids_and_names_are_checked() {
    let daemon = Daemon::start(&[]);
    for (context, path) in [
        (json!({"runAsUser": -1}), "runAsUser"),
        (json!({"runAsUser": 4_294_967_296_u64}), "runAsUser"),
        (json!({"runAsGroup": 2_147_483_648_u64}), "runAsGroup"),
        (json!({"capabilities": {"add": ["SYS_NOTHING"]}}), "capabilities.add[0]"),
        (json!({"procMount": "Unmasked"}), "procMount"),
        (json!({"procMount": "Sideways"}), "procMount"),
        (
            json!({"privileged": true, "allowPrivilegeEscalation": false}),
            "allowPrivilegeEscalation",
        ),
        (json!({"seccompProfile": {"type": "Localhost"}}), "seccompProfile.localhostProfile"),
        (json!({"appArmorProfile": {"type": "Sometimes"}}), "appArmorProfile.type"),
        (json!({"seLinuxOptions": {"level": "s0"}}), "seLinuxOptions"),
    ] {
        let message = daemon.refused(with("refused", "exit 0", context));
        let path = format!("spec.containers[0].securityContext.{path}");
        assert!(message.contains(&path), "{path}: {message}");
    }
    daemon.stop();
}

#[test]
fn capabilities_and_escalation_can_be_chosen() {
    let daemon = Daemon::start(&[]);
    let steps = "cat /proc/self/status , exit 0";
    let run = |name: &str, context: Value| daemon.output_of(with(name, steps, context), name);
    let dropped = run("dropped", json!({"capabilities": {"drop": ["ALL"]}}));
    for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapInh:", "CapAmb:"] {
        assert_eq!(field(&dropped, set), "0000000000000000", "{set}");
    }
    let one = run("one", json!({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}));
    assert_eq!(field(&one, "CapEff:"), "0000000000001000");
    assert_eq!(field(&one, "CapInh:"), "0000000000000000");
    assert_eq!(field(&one, "NoNewPrivs:"), "1");
    let free = run("free", json!({"allowPrivilegeEscalation": true}));
    assert_eq!(field(&free, "NoNewPrivs:"), "0");
    // The filter does not depend on it.
    assert_eq!(field(&free, "Seccomp:"), "2");
    daemon.stop();
}

#[test]
fn a_root_can_be_read_only_and_volumes_be_written() {
    let daemon = Daemon::start(&[]);
    let steps = "touch /file , touch /bin/file , touch /here/file , touch /dev/shm/file , exit 0";
    let mut fields = mounts(&[("scratch", "/here")]);
    fields["securityContext"] = json!({"readOnlyRootFilesystem": true});
    let sealed =
        pod("sealed").volume("scratch", "emptyDir", json!({})).container_with("app", steps, fields);
    let output = daemon.output_of(sealed, "sealed");
    assert_eq!(
        output,
        "touch /file: EROFS\ntouch /bin/file: EROFS\ntouch /here/file: ok\ntouch /dev/shm/file: ok\n"
    );
    daemon.stop();
}

#[test]
fn a_privileged_container_has_the_node_and_its_neighbour_has_not() {
    let daemon = Daemon::start(&[]);
    let (keyctl, steps) = (
        libc::SYS_keyctl,
        "cat /proc/self/status , list /dev , touch /sys/kernel/uevent_helper , device 10 229 , list /proc/sys/fs",
    );
    let both = pod("both")
        .container_with(
            "mighty",
            &format!("{steps} , syscall 64 {keyctl} 0 , exit 0"),
            json!({"securityContext": {"privileged": true}}),
        )
        .container("plain", "device 10 229 , list /dev , exit 0");
    daemon.run(both);
    daemon.wait_over("both");
    let mighty = daemon.logs("both", "container=mighty");
    assert_eq!(field(&mighty, "Seccomp:"), "0");
    assert_eq!(field(&mighty, "NoNewPrivs:"), "0");
    let capabilities = u64::from_str_radix(field(&mighty, "CapEff:"), 16).unwrap();
    assert!(capabilities & (1 << 21) != 0, "SYS_ADMIN: {mighty}");
    assert!(!mighty.contains(&format!("syscall 64 {keyctl} 0: EPERM")), "{mighty}");
    assert!(!mighty.contains("device 10:229 refused: Operation not permitted"), "{mighty}");
    if Path::new("/dev/kmsg").exists() {
        assert!(field(&mighty, "/dev:").contains("kmsg"), "{mighty}");
    }
    let plain = daemon.logs("both", "container=plain");
    assert!(plain.contains("device 10:229 refused: Operation not permitted"), "{plain}");
    assert!(!field(&plain, "/dev:").contains("kmsg"), "{plain}");
    daemon.stop();
}

#[test]
fn volumes_belong_to_the_pods_group() {
    let daemon = Daemon::start(&[]);
    let mut fields = mounts(&[("scratch", "/here")]);
    fields["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1000});
    let grouped = pod("grouped")
        .with("securityContext", json!({"fsGroup": 2000}))
        .volume("scratch", "emptyDir", json!({}))
        .container_with(
            "app",
            "owner /here , write /here/file 10 , owner /here/file , exit 0",
            fields,
        );
    let output = daemon.output_of(grouped, "grouped");
    assert!(output.starts_with("owner /here: 0:2000 2777\n"), "{output}");
    assert!(output.contains("owner /here/file: 1000:2000 "), "{output}");
    daemon.stop();
}

#[test]
fn a_pod_has_kernel_settings_of_its_own() {
    let daemon = Daemon::start(&[]);
    let steps = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start , cat /proc/sys/net/ipv4/ping_group_range , \
                 cat /proc/sys/kernel/shm_rmid_forced , cat /proc/sys/net/ipv4/ip_local_port_range , exit 0";
    let tuned = pod("tuned")
        .with(
            "securityContext",
            json!({"sysctls": [
                {"name": "kernel.shm_rmid_forced", "value": "1"},
                {"name": "net.ipv4.ip_local_port_range", "value": "40000 50000"},
            ]}),
        )
        .container("app", steps);
    assert_eq!(daemon.output_of(tuned, "tuned"), "0\n0\t2147483647\n1\n40000\t50000\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap(), "0\n");

    for (name, value, path) in [
        ("kernel.core_pattern", "x", "name"),
        ("net.ipv4.//.//.kernel.core_pattern", "x", "name"),
        ("net.ipv4.ip_forward", "1+kernel.core_pattern=|/evil", "value"),
        ("net.ipv4.ip_forward", "1\nkernel.core_pattern=|/evil", "value"),
    ] {
        let sysctls = json!({"sysctls": [{"name": name, "value": value}]});
        let message = daemon
            .refused(pod("refused").with("securityContext", sysctls).container("app", "exit 0"));
        let path = format!("spec.securityContext.sysctls[0].{path}");
        assert!(message.contains(&path), "{name}={value}: {message}");
    }
    let host = json!({"sysctls": [{"name": "net.ipv4.ip_forward", "value": "1"}]});
    let message = daemon.refused(
        pod("host")
            .with("hostNetwork", true)
            .with("securityContext", host)
            .container("app", "exit 0"),
    );
    assert!(message.contains("hostNetwork"), "{message}");
    daemon.stop();
}

#[test]
fn the_root_is_as_the_image_has_it() {
    let daemon = Daemon::start(&[]);
    let image = daemon.folder().join("owned");
    fs::create_dir_all(image.join("bin")).unwrap();
    fs::copy(pod_tests::binary("workload"), image.join("bin/workload")).unwrap();
    chown(&image, Some(1000), Some(2000)).unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o751)).unwrap();
    let fields = json!({
        "image": format!("dir:{}", image.display()),
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000},
    });
    let owned = pod("owned").container_with("app", "mode / , touch /new , exit 0", fields);
    assert_eq!(daemon.output_of(owned, "owned"), "mode /: 0751 of 1000:2000\ntouch /new: ok\n");
    daemon.stop();
}

#[test]
fn apparmor_holds_or_is_missed_aloud() {
    let daemon = Daemon::start(&[]);
    let profile = |kind: &str| json!({"appArmorProfile": {"type": kind}});
    let mut named = profile("Localhost");
    named["appArmorProfile"]["localhostProfile"] = json!("podscope-none");
    daemon.run(with("named", "exit 0", named));
    daemon.run(with("free", "exit 0", profile("Unconfined")));
    assert_eq!(daemon.wait_over("free")["status"]["phase"], "Succeeded");
    daemon.run(with("default", "pause", profile("RuntimeDefault")));
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.starts_with('Y'));
    assert!(enabled || !in_vm(), "the VMs' kernels have AppArmor");
    if !enabled {
        for name in ["named", "default"] {
            let message = not_started(&daemon, name, "CreateContainerConfigError");
            assert!(message.contains("AppArmor is not enabled on this node"), "{message}");
        }
        return daemon.stop();
    }
    let message = not_started(&daemon, "named", "StartError");
    assert!(message.contains("AppArmor profile (it must be loaded"), "{message}");

    // Whoever names none has the default one, and so has what is run in a container later.
    daemon.wait_ready("default");
    let cat = ["exec", "default", "--", "/bin/workload", "cat", "/proc/self/attr/current"];
    assert_eq!(daemon.podctl(&cat).success(), "podscope-default (enforce)\n");
    let look = "cat /proc/self/attr/current , exit 0";
    assert_eq!(
        daemon.output_of(pod("silent").container("app", look), "silent"),
        "podscope-default (enforce)\n"
    );
    let privileged = with("privileged", look, json!({"privileged": true}));
    assert_eq!(daemon.output_of(privileged, "privileged"), "unconfined\n");
    let mut both = profile("Localhost");
    both["appArmorProfile"]["localhostProfile"] = json!("podscope-default");
    both["privileged"] = json!(true);
    assert_eq!(daemon.output_of(with("both", look, both), "both"), "podscope-default (enforce)\n");

    // It denies what a capability and a filter that is off would allow.
    let mut able = json!({
        "capabilities": {"add": ["SYS_ADMIN"]},
        "seccompProfile": {"type": "Unconfined"},
    });
    let steps = "mkdir /there , mount proc /there , open /there/sysrq-trigger , exit 0";
    assert_eq!(
        daemon.output_of(with("held", steps, able.clone()), "held"),
        "mkdir /there: ok\nmount /there: EACCES\nopen /there/sysrq-trigger: ENOENT\n"
    );
    able["appArmorProfile"] = json!({"type": "Unconfined"});
    assert_eq!(
        daemon.output_of(with("able", steps, able), "able"),
        "mkdir /there: ok\nmount /there: ok\nopen /there/sysrq-trigger: ok\n"
    );

    // As aa-remove-unknown does with what is in none of the node's files.
    fs::write("/sys/kernel/security/apparmor/.remove", "podscope-default").unwrap();
    let again = pod("again").container("app", look);
    assert_eq!(daemon.output_of(again, "again"), "podscope-default (enforce)\n");
    daemon.stop();
}

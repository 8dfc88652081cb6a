//! Pods with user ids of their own: `hostUsers: false`.

use std::os::unix::fs::MetadataExt as _;

use pod_tests::{
    Daemon, in_vm,
    manifest::{mounts, pod},
    skip,
};
use serde_json::json;

/// Whether this kernel can; says so if not, and checks that the daemon does, too.
fn supported(daemon: &Daemon) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    // The VMs' files are on a tmpfs.
    let (oldest, says, lacks) = if version >= (5, 19) && in_vm() {
        ((6, 3), "tmpfs can since Linux 6.3", "idmapped tmpfs")
    } else {
        ((5, 19), "takes Linux 5.19", "idmapped overlayfs")
    };
    if version >= oldest {
        return true;
    }
    daemon.run(pod("old").with("hostUsers", false).container("app", "exit 0"));
    daemon.wait_for("old", "refused", |pod| pod.to_string().contains(says));
    daemon.delete("old");
    skip(&format!("Linux {} has no {lacks}", release.trim()));
    false
}

#[test]
fn root_of_a_pod_is_nobody_on_the_node() {
    let daemon = Daemon::start(&[]);
    if supported(&daemon) {
        let steps = "id , cat /proc/1/uid_map , owner / , owner /bin/workload , write /here/file 7 , \
                     owner /here/file , mkdir /new , owner /new , owner /etc/hosts , touch /etc/hosts , \
                     owner /dev , owner /dev/null , touch /dev/null , touch /dev/stdout , touch /dev/shm/x , \
                     chown /here/file 1000 , owner /here/file , hostname , pause";
        let own = pod("own")
            .with("hostUsers", false)
            .volume("scratch", "emptyDir", json!({}))
            .container_with("app", steps, mounts(&[("scratch", "/here")]));
        daemon.run(own);
        let output = daemon.wait_logged("own", "", "own\n");
        let map = output.lines().nth(1).unwrap();
        let words: Vec<u32> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!((words[0], words[2]), (0, 65_536), "{output}");
        let base = words[1];
        assert!(base >= 524_288, "{output}");
        assert!(output.starts_with("pid=1 uid=0\n"), "{output}");
        for line in [
            "owner /bin/workload: 0:0 ",
            "owner /here/file: 0:0 ",
            "owner /new: 0:0 ",
            "owner /etc/hosts: 0:0 ",
            "touch /etc/hosts: ok",
            "owner /dev: 0:0 755",
            "owner /dev/null: 0:0 666",
            "touch /dev/null: ok",
            "touch /dev/stdout: ok",
            "touch /dev/shm/x: ok",
            "chown /here/file: ok",
            "owner /here/file: 1000:0 ",
        ] {
            assert!(output.contains(line), "{line}: {output}");
        }

        let pod = daemon.pod("own");
        for container in ["app", "_infra"] {
            let pid = daemon.pid_of(&pod, container);
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let user = base + if container == "app" { 0 } else { 65_535 };
            let line = format!("Uid:\t{user}\t{user}\t{user}\t{user}\n");
            assert!(status.contains(&line), "{container}: {status}");
            for namespace in ["net", "ipc", "uts", "user"] {
                let link =
                    |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
                assert_ne!(link(&pid.to_string()), link("self"), "{namespace}");
            }
        }
        // On disk the file has the id that it has in the pod.
        let file = daemon.files_of(&pod).join("volumes/scratch/file");
        assert_eq!(file.metadata().unwrap().uid(), 1000);

        let inside =
            daemon.podctl(&["exec", "own", "--", "/bin/workload", "cat", "/proc/self/uid_map"]);
        assert_eq!(
            inside.stdout.split_whitespace().nth(1),
            Some(base.to_string().as_str()),
            "{inside:?}"
        );
    }
    daemon.stop();
}

#[test]
fn pods_have_different_ids_and_users_in_them() {
    let daemon = Daemon::start(&["--first-user-id=1048576"]);
    if supported(&daemon) {
        let steps = "cat /proc/self/uid_map , cat /proc/self/status , touch /bin/x , touch /dev/stderr , pause";
        let mut bases = Vec::new();
        for name in ["one", "two"] {
            let context = json!({"securityContext": {"runAsUser": 33, "runAsGroup": 33}});
            daemon.run(pod(name).with("hostUsers", false).container_with("app", steps, context));
            let output = daemon.wait_logged(name, "", "/dev/stderr");
            assert!(output.contains("Uid:\t33\t33\t33\t33"), "{output}");
            assert!(output.contains("CapEff:\t0000000000000000"), "{output}");
            assert!(output.contains("touch /bin/x: EACCES"), "{output}");
            assert!(output.contains("touch /dev/stderr: ok"), "{output}");
            bases.push(output.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap());
        }
        assert_eq!(bases, [1_048_576, 1_048_576 + 65_536]);
    }
    daemon.stop();
}

#[test]
fn all_capabilities_of_such_a_pod_do_nothing_to_the_node() {
    let daemon = Daemon::start(&[]);
    if supported(&daemon) {
        let host = daemon.folder().join("capable");
        std::fs::create_dir(&host).unwrap();
        std::fs::write(host.join("secret"), "x").unwrap();
        let mut fields = mounts(&[]);
        fields["securityContext"] = json!({
            "capabilities": {"add": ["ALL"]},
            "allowPrivilegeEscalation": true,
            "procMount": "Unmasked",
            "seccompProfile": {"type": "Unconfined"},
        });
        let steps = "touch /proc/sys/kernel/core_pattern , touch /proc/sysrq-trigger , look /proc/kcore , \
                     touch /proc/sys/net/ipv4/ip_forward , exit 0";
        let strong = pod("strong").with("hostUsers", false).container_with("app", steps, fields);
        let output = daemon.output_of(strong, "strong");
        for path in
            ["touch /proc/sys/kernel/core_pattern", "touch /proc/sysrq-trigger", "look /proc/kcore"]
        {
            let refused = ["EACCES", "EPERM", "ENOENT"]
                .iter()
                .any(|errno| output.contains(&format!("{path}: {errno}")));
            assert!(refused, "{path}: {output}\n{:#}", daemon.pod("strong")["status"]);
        }
        // Its own network is its own.
        assert!(output.contains("touch /proc/sys/net/ipv4/ip_forward: ok"), "{output}");
    }
    daemon.stop();
}

#[test]
fn the_hosts_network_and_own_users_do_not_go_together() {
    let daemon = Daemon::start(&[]);
    let both =
        pod("both").with("hostUsers", false).with("hostNetwork", true).container("app", "exit 0");
    assert!(daemon.refused(both).contains("spec.hostUsers"));
    let high = json!({"securityContext": {"runAsUser": 65_536}});
    let high = pod("high").with("hostUsers", false).container_with("app", "exit 0", high);
    assert!(daemon.refused(high).contains("runAsUser"));
    daemon.stop();
}

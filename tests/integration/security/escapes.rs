//! Ways out of a container that others have found, tried here. `docs/security.md` says which is
//! which.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use pod_tests::{
    Daemon,
    manifest::{mounts, pod},
};
use serde_json::json;

/// An image of its own for a test: the workload, and what `more` puts beside it.
fn image(daemon: &Daemon, name: &str, more: impl FnOnce(&Path)) -> String {
    let root = daemon.folder().join(name);
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(daemon.folder().join("rootfs/bin/workload"), root.join("bin/workload")).unwrap();
    more(&root);
    format!("dir:{}", root.display())
}

/// Why a container was not started.
#[track_caller]
fn not_started(daemon: &Daemon, name: &str) -> String {
    let over = daemon.wait_over(name);
    let ended = &over["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(ended["exitCode"], 128, "{ended}");
    ended["message"].as_str().unwrap_or_default().to_owned()
}

/// Every path below a folder, with what it is.
fn tree(folder: &Path) -> BTreeMap<PathBuf, (u32, u64)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            found.insert(entry.path(), (metadata.mode(), metadata.ino()));
        }
    }
    found
}

fn core_pattern() -> String {
    fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap()
}

#[test]
fn a_kernel_filesystem_is_not_mounted_over_a_link() {
    let daemon = Daemon::start(&[]);
    let host = daemon.folder().join("of-the-node");
    fs::create_dir(&host).unwrap();
    for name in ["proc", "sys", "dev"] {
        let image = image(&daemon, &format!("linked-{name}"), |root| {
            fs::create_dir(root.join("tmp")).unwrap();
            symlink("/tmp", root.join(name)).unwrap();
        });
        let fields = json!({"image": image});
        daemon.run(pod(name).container_with("app", "exit 0", fields));
        let message = not_started(&daemon, name);
        assert!(message.contains(&format!("`/{name}`")), "{message}");
    }
    // A /dev with a null device of the attacker's choice is covered by a fresh one.
    let before = core_pattern();
    let image = image(&daemon, "null", |root| {
        fs::create_dir(root.join("dev")).unwrap();
        symlink("/proc/sys/kernel/core_pattern", root.join("dev/null")).unwrap();
        symlink(&host, root.join("dev/shm")).unwrap();
        symlink("/proc/sysrq-trigger", root.join("dev/console")).unwrap();
    });
    let steps = "owner /dev/null , write /dev/shm/x 3 , look /proc/kcore , list /dev , exit 0";
    let output =
        daemon.output_of(pod("null").container_with("app", steps, json!({"image": image})), "null");
    assert!(output.contains("owner /dev/null: 0:0 666"), "{output}");
    assert!(!output.contains(" console"), "{output}");
    assert_eq!(core_pattern(), before);
    assert!(tree(&host).is_empty());
    daemon.stop();
}

#[test]
fn a_working_directory_is_inside() {
    let daemon = Daemon::start(&[]);
    for descriptor in 0..64 {
        let name = format!("wd-{descriptor}");
        let fields = json!({"workingDir": format!("/proc/self/fd/{descriptor}")});
        daemon.run(pod(&name).container_with("app", "cwd , exit 0", fields));
        let message = not_started(&daemon, &name);
        assert!(message.contains("working directory"), "{descriptor}: {message}");
        daemon.delete(&name);
    }
    daemon.stop();
}

#[test]
fn mount_points_that_change_meanwhile_lead_nowhere() {
    let daemon = Daemon::start(&[]);
    let host = daemon.folder().join("of-the-node");
    fs::create_dir_all(host.join("etc")).unwrap();
    fs::write(host.join("etc/secret"), "untouched").unwrap();
    // In the first pod's volume, a directory and a link out of it change places for ever; further
    // pods have a volume mounted below it meanwhile.
    let volume = daemon.folder().join("shared");
    fs::create_dir_all(volume.join("place")).unwrap();
    symlink(format!("../../../../../..{}", host.join("etc").display()), volume.join("link"))
        .unwrap();
    let shared = json!({"path": volume, "type": "Directory"});
    daemon.run(pod("racer").volume("shared", "hostPath", shared.clone()).container_with(
        "app",
        "exchange /v/place /v/link",
        mounts(&[("shared", "/v")]),
    ));
    daemon.wait_logged("racer", "", "exchanging");
    let before = tree(&host);
    let rounds = if pod_tests::in_vm() { 20 } else { 150 };
    let mut started = 0;
    for round in 0..rounds {
        let name = format!("victim-{round}");
        let victim = pod(&name)
            .volume("shared", "hostPath", shared.clone())
            .volume("own", "emptyDir", json!({}))
            .container_with(
                "app",
                "write /v/place/inner/own 5 , exit 0",
                mounts(&[("shared", "/v"), ("own", "/v/place/inner")]),
            );
        daemon.run(victim);
        let over = daemon.wait_over(&name);
        started += usize::from(over["status"]["phase"] == "Succeeded");
        daemon.delete(&name);
    }
    println!("{started} of {rounds} victims ran");
    assert_eq!(tree(&host), before, "nothing was made or changed on the host");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*host.to_string_lossy()), "{mounts}");
    daemon.stop();
}

#[test]
fn a_volume_is_never_mounted_through_a_link_of_the_image() {
    let daemon = Daemon::start(&[]);
    let host = daemon.folder().join("linked");
    fs::create_dir(&host).unwrap();
    let image = image(&daemon, "links", |root| {
        symlink(&host, root.join("absolute")).unwrap();
        let up = format!("../../../../../../../..{}", host.display());
        symlink(up, root.join("relative")).unwrap();
    });
    for name in ["absolute", "relative"] {
        let mut fields = mounts(&[("own", &format!("/{name}/below"))]);
        fields["image"] = image.as_str().into();
        let steps = format!("write /{name}/below/file 4 , exit 0");
        daemon.run(
            pod(name).volume("own", "emptyDir", json!({})).container_with("app", &steps, fields),
        );
        daemon.wait_over(name);
    }
    assert!(tree(&host).is_empty(), "{:?}", tree(&host));
    daemon.stop();
}

#[test]
fn the_daemons_program_cannot_be_reached() {
    let daemon = Daemon::start(&[]);
    let program = PathBuf::from(format!("/proc/{}/exe", daemon.pid()));
    let before = fs::metadata(&program).unwrap();
    // Not even the node's root can write by that way.
    let error = fs::File::options().write(true).open(&program).unwrap_err();
    let errno = error.raw_os_error();
    assert!(
        [Some(libc::EROFS), Some(libc::ETXTBSY), Some(libc::EPERM)].contains(&errno),
        "{error}"
    );
    let sealed = fs::File::open(&program).unwrap();
    let flags = nix::sys::statvfs::fstatvfs(&sealed).unwrap().flags();
    let seals = nix::fcntl::fcntl(&sealed, nix::fcntl::FcntlArg::F_GET_SEALS).unwrap_or(0);
    assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY) || seals != 0, "{flags:?}");
    // Until the exec that is the daemon's program, so it may well run: see above what it is worth.
    let image = image(&daemon, "self", |root| {
        fs::write(root.join("bin/own"), "#!/proc/self/exe\n").unwrap();
        fs::set_permissions(root.join("bin/own"), fs::Permissions::from_mode(0o755)).unwrap();
    });
    let own = json!({"name": "app", "image": image, "command": ["/bin/own"]});
    let manifest = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "own", "namespace": "default"},
        "spec": {"restartPolicy": "Never", "containers": [own]},
    });
    daemon.apply(&manifest);
    daemon.wait_over("own");
    // A container that watches for commands to be started in it, and writes to their programs.
    let shared = pod("watch").with("shareProcessNamespace", true);
    daemon.run(shared.container("app", "open /proc/1/exe , pause"));
    let output = daemon.wait_logged("watch", "", "open /proc/1/exe");
    assert!(["EACCES", "EPERM", "ETXTBSY"].iter().any(|errno| output.contains(errno)), "{output}");
    let after = fs::metadata(&program).unwrap();
    assert_eq!((before.len(), before.mtime()), (after.len(), after.mtime()));
    daemon.stop();
}

#[test]
fn cgroups_are_out_of_reach() {
    let daemon = Daemon::start(&[]);
    let unshare = libc::SYS_unshare;
    // CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP;
    let steps = format!(
        "touch /sys/fs/cgroup/cgroup.procs , mkdir /sys/fs/cgroup/new , syscall 64 {unshare} {flags} , \
         mount cgroup /sys , touch /sys/fs/cgroup/release_agent , exit 0"
    );
    let output = daemon.output_of(pod("cgroups").container("app", &steps), "cgroups");
    assert!(output.contains("touch /sys/fs/cgroup/cgroup.procs: EROFS"), "{output}");
    assert!(output.contains("mkdir /sys/fs/cgroup/new: EROFS"), "{output}");
    assert!(output.contains(&format!("syscall 64 {unshare} {flags}: EPERM")), "{output}");
    assert!(output.contains("mount /sys: EPERM"), "{output}");
    daemon.stop();
}

#[test]
fn terminals_and_sockets_of_the_node_are_not_the_containers() {
    let daemon = Daemon::start(&[]);
    let abstract_sockets = || {
        let text = fs::read_to_string("/proc/net/unix").unwrap();
        let inodes: Vec<String> = text
            .lines()
            .filter(|line| line.split_whitespace().nth(7).is_some_and(|name| name.starts_with('@')))
            .filter_map(|line| line.split_whitespace().nth(6).map(str::to_owned))
            .collect();
        inodes
    };
    // The daemon has no abstract sockets, which every pod with the host's network could reach.
    let inodes = abstract_sockets();
    for entry in fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        assert!(!inode.is_some_and(|inode| inodes.iter().any(|one| one == inode)), "{target}");
    }
    let socket = daemon.folder().join("run/api.sock");
    let steps = format!(
        "unix {} , abstract podscope , type-ahead /dev/tty , open /dev/console , exit 0",
        socket.display()
    );
    let host = pod("host").with("hostNetwork", true).container("app", &steps);
    let output = daemon.output_of(host, "host");
    assert!(output.contains(&format!("unix {}: ENOENT", socket.display())), "{output}");
    assert!(output.contains("abstract podscope: ECONNREFUSED"), "{output}");
    // A session of its own has no terminal to type into.
    assert!(output.contains("type-ahead /dev/tty: ENXIO"), "{output}");
    assert!(output.contains("open /dev/console: ENOENT"), "{output}");
    daemon.stop();
}

#[test]
fn what_an_image_says_stays_in_the_image() {
    let daemon = Daemon::start(&[]);
    let passwd = "root:x:0:0::/root:/bin/sh\n";
    let image = image(&daemon, "passwd", |root| {
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(root.join("etc/passwd"), passwd).unwrap();
    });
    let fields = json!({
        "image": image,
        "env": [{"name": "HOME", "value": "x\nroot2::0:0"}],
        "securityContext": {"runAsUser": 4321},
    });
    let home = pod("home").container_with("app", "cat /etc/passwd , exit 0", fields);
    assert_eq!(daemon.output_of(home, "home"), passwd);
    daemon.stop();
}

#[test]
fn a_manifest_names_no_path_of_the_daemon() {
    let daemon = Daemon::start(&[]);
    for name in ["../../etc/x", "a/b", ".."] {
        let message = daemon.refused(pod(name).container("app", "exit 0"));
        assert!(message.contains("metadata.name"), "{message}");
        let message = daemon.refused(pod("x").container(name, "exit 0"));
        assert!(message.contains("containers[0].name"), "{message}");
    }
    for (place, mode) in [("data", 0o700), ("run", 0o755)] {
        let metadata = fs::metadata(daemon.folder().join(place)).unwrap();
        assert_eq!(metadata.mode() & 0o7777, mode, "{place}");
    }
    assert_eq!(fs::metadata(daemon.folder().join("run/api.sock")).unwrap().mode() & 0o7, 0);
    daemon.stop();
}

#[test]
fn what_tells_about_the_nodes_processors_is_covered() {
    let daemon = Daemon::start(&[]);
    let mut steps = String::from("list /sys/firmware");
    let mut covered = Vec::new();
    for path in [
        "/sys/devices/system/cpu/cpu0/thermal_throttle",
        "/sys/fs/selinux",
        "/sys/devices/virtual/powercap",
    ] {
        if Path::new(path).is_dir() {
            steps.push_str(&format!(" , list {path}"));
            covered.push(path);
        }
    }
    for name in ["interrupts", "asound", "acpi", "scsi"] {
        if Path::new("/proc").join(name).exists() {
            covered.push(match name {
                "interrupts" => "/proc/interrupts",
                "asound" => "/proc/asound",
                "acpi" => "/proc/acpi",
                _ => "/proc/scsi",
            });
        }
    }
    for path in covered.iter().filter(|path| path.starts_with("/proc")) {
        let step = if Path::new(path).is_dir() { "list" } else { "look" };
        steps.push_str(&format!(" , {step} {path}"));
    }
    steps.push_str(" , cat /proc/self/mountinfo , exit 0");
    let output = daemon.output_of(pod("covered").container("app", &steps), "covered");
    for path in &covered {
        let empty = output.contains(&format!("{path}: \n"))
            || output.contains(&format!("look {path}: 0 bytes\n"));
        assert!(empty, "{path}: {output}");
    }
    // One filesystem covers all directories.
    let devices: std::collections::BTreeSet<&str> = output
        .lines()
        .filter(|line| line.contains(" - tmpfs "))
        .filter(|line| {
            let place = line.split_whitespace().nth(4).unwrap_or_default();
            place.starts_with("/sys/") || place.starts_with("/proc/")
        })
        .filter_map(|line| line.split_whitespace().nth(2))
        .filter(|device| *device != "0:0")
        .collect();
    // Files are covered with /dev/null, which is on another.
    assert!(devices.len() <= 2, "{devices:?}: {output}");
    daemon.stop();
}

#[test]
fn a_command_in_a_container_is_bounded() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("talker").container("app", "pause"));
    daemon.wait_ready("talker");
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = memory();
    let output = daemon.podctl(&["exec", "talker", "--", "/bin/workload", "flood", "512"]);
    assert!(output.stdout.len() == 32 << 20, "{} bytes", output.stdout.len());
    let grown = memory().saturating_sub(before);
    assert!(grown < 16 << 10, "the daemon grew by {grown} KiB");
    daemon.stop();
}

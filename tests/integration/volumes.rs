//! Volumes in memory, secrets, and what else of a pod comes from other objects.

use std::{fs, path::Path};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pod_tests::{
    Daemon, eventually,
    manifest::{config_map, mounts, pod, secret},
    seconds, state,
};
use serde_json::json;

/// What no file on a disk may contain.
const PASSWORD: &str = "correct-horse-battery-staple";

#[test]
fn an_empty_dir_in_memory_has_its_size_and_goes() {
    let daemon = Daemon::start(&[]);
    let fast = pod("fast")
        .volume("small", "emptyDir", json!({"medium": "Memory", "sizeLimit": "1Mi"}))
        .volume("half", "emptyDir", json!({"medium": "Memory"}))
        .container_with(
            "writer",
            "mode /small , size /small , size /half , write /small/fits 999424 , touch /half/there , \
             print ready , write /small/rest 49152 , write /small/more 1",
            mounts(&[("small", "/small"), ("half", "/half")]),
        )
        .container_with(
            "reader",
            "wait-for /half/there , print seen , pause",
            mounts(&[("half", "/half")]),
        );
    daemon.run(fast);
    let output = daemon.wait_logged("fast", "container=writer", "failed to write");
    assert!(output.contains("mode /small: 0777 of 0:0\n"), "{output}");
    assert!(output.contains("size /small: 1048576 in memory\n"), "{output}");
    assert!(output.lines().any(|line| line.starts_with("size /half") && line.ends_with("memory")));
    assert!(output.contains("ready\n"), "what fits fits: {output}");
    assert!(output.contains("No space left on device"), "{output}");
    // Containers of the pod share it.
    daemon.wait_logged("fast", "container=reader", "seen");
    daemon.delete("fast");
    daemon.assert_no_files();
    assert!(!state::State::capture().mounts.iter().any(|mount| mount.contains("/memory/pods/")));
    daemon.stop();
}

#[test]
fn a_memory_limit_is_the_size_of_a_volume_without_one() {
    let daemon = Daemon::start(&["--unenforced-limits=warn"]);
    let mut fields = mounts(&[("fast", "/fast")]);
    fields["resources"] = json!({"limits": {"memory": "64Mi"}});
    let limited = pod("limited")
        .volume("fast", "emptyDir", json!({"medium": "Memory"}))
        .container_with("app", "size /fast", fields);
    let output = daemon.output_of(limited, "limited");
    assert_eq!(output, format!("size /fast: {} in memory\n", 64 << 20));
    daemon.stop();
}

#[test]
fn a_secret_is_waited_for_and_is_never_on_a_disk() {
    let daemon = Daemon::start(&[]);
    let user = pod("user")
        .volume("keys", "secret", json!({"secretName": "login"}))
        .volume(
            "one",
            "secret",
            json!({
                "secretName": "login",
                "items": [{"key": "password", "path": "deep/pass", "mode": 0o440}],
            }),
        )
        .container_with(
            "app",
            "list /keys , mode /keys/password , mode /one/deep/pass , cat /one/deep/pass , print , \
             touch /keys/new , size /keys , pause",
            mounts(&[("keys", "/keys"), ("one", "/one")]),
        );
    daemon.run(user);
    daemon.wait_for("user", "waiting for its secret", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["reason"] == "FailedMount"
            && waiting["message"]
                .as_str()
                .is_some_and(|text| text.contains("secret \"login\" not found; apply it"))
    });
    daemon.apply(&secret("login", json!({"user": "alice", "password": PASSWORD})));
    let output = daemon.wait_logged("user", "", "size /keys");
    for expected in [
        "/keys: ..data ..version-1 password user\n",
        "mode /keys/password: 0600 of 0:0\n",
        "mode /one/deep/pass: 0440 of 0:0\n",
        PASSWORD,
        "touch /keys/new: EROFS\n",
        "in memory\n",
    ] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    // The object and the files are in memory; only the container has written it to its log.
    let places = [daemon.folder().join("data"), daemon.folder().join("run"), daemon.log_file()];
    for place in &places {
        assert_eq!(files_with(place, PASSWORD), [""; 0], "{}", place.display());
        // As the API shows it.
        assert_eq!(files_with(place, "Y29ycmVjdC1ob3JzZS1"), [""; 0], "{}", place.display());
    }
    // In memory it is: the search finds what is there.
    assert_ne!(in_memory(&daemon.folder().join("run/memory"), PASSWORD), 0);
    let answer = daemon.podctl(&["get", "secrets"]);
    assert!(answer.stdout.contains("login") && answer.stdout.contains("Opaque"), "{answer:?}");
    let answer = daemon.podctl(&["describe", "secret", "login"]);
    assert!(answer.stdout.contains("28 bytes") && !answer.stdout.contains(PASSWORD), "{answer:?}");
    daemon.delete("user");
    daemon.assert_no_files();
    daemon.stop();
}

#[test]
fn changes_of_secrets_and_config_maps_reach_running_pods() {
    let daemon = Daemon::start(&[]);
    daemon.apply(&secret("login", json!({"key": "old", "gone": "x"})));
    daemon.apply(&config_map("settings", json!({"colour": "green"})));
    let reader = pod("reader")
        .volume("login", "secret", json!({"secretName": "login"}))
        .volume("settings", "configMap", json!({"name": "settings"}))
        .container_with(
            "app",
            "cat /login/key , print ready , await /login/key new , list /login , \
             await /settings/colour blue , print changed , pause",
            mounts(&[("login", "/login"), ("settings", "/settings")]),
        );
    daemon.run(reader);
    daemon.wait_logged("reader", "", "ready");
    daemon.replace(&secret("login", json!({"key": "new", "more": "y"})));
    daemon.replace(&config_map("settings", json!({"colour": "blue"})));
    let output = daemon.wait_logged("reader", "", "changed");
    assert!(output.contains("..data"), "{output}");
    // What is gone and what has come is seen a moment after the change.
    eventually("the links are those of the new version", seconds(5), || {
        let uid = daemon.pod("reader")["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let place = daemon.folder().join("run/memory/pods").join(uid).join("_secrets/login");
        let names: Vec<_> = state::entries(&place);
        let has = |name: &str| names.iter().any(|path| path.ends_with(name));
        (has("more") && !has("gone")).then_some(())
    });
    daemon.stop();
}

#[test]
fn secrets_outlive_the_daemon_and_volumes_of_the_dead_do_not() {
    let mut daemon = Daemon::start(&[]);
    daemon.apply(&secret("login", json!({"password": PASSWORD})));
    let user = || {
        pod("user")
            .volume("keys", "secret", json!({"secretName": "login"}))
            .volume("fast", "emptyDir", json!({"medium": "Memory"}))
            .container_with(
                "app",
                "cat /keys/password , print , print ready , pause",
                mounts(&[("keys", "/keys"), ("fast", "/fast")]),
            )
    };
    daemon.run(user());
    daemon.wait_logged("user", "", "ready");
    daemon.kill();
    daemon.restart();
    let answer = daemon.api("GET", "/api/v1/namespaces/default/secrets/login", None);
    assert_eq!(answer.status, 200, "{}", answer.body);
    if daemon.pod("user").is_null() {
        daemon.assert_no_files();
        daemon.run(user());
    }
    assert!(daemon.wait_logged("user", "", "ready").contains(PASSWORD));
    daemon.stop();
}

#[test]
fn variables_come_from_objects_and_from_the_pod() {
    let daemon = Daemon::start(&[]);
    daemon.apply(&secret("login", json!({"password": PASSWORD, "user": "alice"})));
    daemon.apply(&config_map("settings", json!({"COLOUR": "green"})));
    let fields = json!({
        "envFrom": [
            {"configMapRef": {"name": "settings"}},
            {"prefix": "LOGIN_", "secretRef": {"name": "login"}},
            {"secretRef": {"name": "absent", "optional": true}},
        ],
        "env": [
            {"name": "PASS", "valueFrom": {"secretKeyRef": {"name": "login", "key": "password"}}},
            {"name": "NONE", "valueFrom": {
                "secretKeyRef": {"name": "login", "key": "no", "optional": true}}},
            {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "BOTH", "value": "$(WHO)-$(COLOUR)"},
        ],
    });
    let output = daemon.output_of(pod("env").container_with("app", "env", fields), "env");
    for expected in [
        "COLOUR=green\n",
        "LOGIN_user=alice\n",
        &format!("PASS={PASSWORD}\n"),
        "WHO=env\n",
        "IP=10.77.",
        "BOTH=env-green\n",
    ] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    assert!(!output.contains("NONE="), "{output}");

    // What is missing is waited for, and the pod goes on when it comes.
    let from = json!([{"secretRef": {"name": "later"}}]);
    daemon.run(pod("late").container_with("app", "env", json!({"envFrom": from})));
    daemon.wait_for("late", "waiting for its secret", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["reason"] == "CreateContainerConfigError"
            && waiting["message"].as_str().is_some_and(|text| text.contains("\"later\" not found"))
    });
    daemon.apply(&secret("later", json!({"HERE": "now"})));
    daemon.wait_logged("late", "", "HERE=now");
    daemon.stop();
}

#[test]
fn names_are_resolved_as_the_manifest_says() {
    let daemon = Daemon::start(&[]);
    let named = pod("named")
        .with("dnsPolicy", "None")
        .with(
            "dnsConfig",
            json!({
                "nameservers": ["9.9.9.9"],
                "searches": ["example.org"],
                "options": [{"name": "ndots", "value": "2"}],
            }),
        )
        .with("hostAliases", json!([{"ip": "10.1.2.3", "hostnames": ["db", "db.example.org"]}]))
        .container("app", "cat /etc/resolv.conf , cat /etc/hosts");
    let output = daemon.output_of(named, "named");
    assert!(
        output.starts_with("search example.org\nnameserver 9.9.9.9\noptions ndots:2\n"),
        "{output}"
    );
    assert!(output.contains("10.1.2.3\tdb\tdb.example.org\n"), "{output}");
    assert!(output.contains("127.0.0.1\tlocalhost\n"), "{output}");
    daemon.stop();
}

/// The files on a disk at or below a path that contain the text.
fn files_with(path: &Path, text: &str) -> Vec<String> {
    let mut paths = Default::default();
    state::walk(path, &mut paths);
    let found = paths.iter().filter(|path| {
        let is_file = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
        is_file && !is_in_memory(path) && contains(path, text)
    });
    found.map(|path| path.display().to_string()).collect()
}

/// How many files in memory contain the text.
fn in_memory(path: &Path, text: &str) -> usize {
    let mut paths = Default::default();
    state::walk(path, &mut paths);
    paths.iter().filter(|path| is_in_memory(path) && contains(path, text)).count()
}

fn contains(path: &Path, text: &str) -> bool {
    let bytes = fs::read(path).unwrap_or_default();
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// By the mount that is nearest: the temporary folder of the tests may itself be in memory.
fn is_in_memory(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains("/run/memory/") && state::is_tmpfs(path)
}

#[test]
fn what_is_mounted_within_a_volume_is_mounted_nowhere_else_and_survives() {
    let daemon = Daemon::start(&[]);
    let [outer, inner] = ["outer", "inner"].map(|name| daemon.folder().join(name));
    fs::create_dir_all(outer.join("x")).unwrap();
    fs::create_dir_all(&inner).unwrap();
    fs::write(inner.join("file"), "precious").unwrap();
    let bind = |source: &Path, target: &Path| {
        mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    };
    // Shared, as systemd makes all mounts.
    bind(&outer, &outer);
    mount(None::<&str>, &outer, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    let nested = pod("nested")
        .volume("outer", "hostPath", json!({"path": outer}))
        .volume("inner", "hostPath", json!({"path": inner}))
        .container_with(
            "app",
            "cat /data/x/file , print , pause",
            mounts(&[("outer", "/data"), ("inner", "/data/x")]),
        );
    daemon.run(nested);
    daemon.wait_logged("nested", "", "precious");
    let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounted.contains("/outer/x "), "{mounted}");

    // And what somebody has mounted among the pod's own files is not removed with them.
    let own = daemon.files_of(&daemon.pod("nested"));
    fs::create_dir(own.join("a stray")).unwrap();
    bind(&inner, &own.join("a stray"));
    daemon.delete("nested");
    eventually("its files are gone", seconds(5), || (!own.exists()).then_some(()));
    assert_eq!(fs::read_to_string(inner.join("file")).unwrap(), "precious");
    umount2(&outer, MntFlags::MNT_DETACH).unwrap();
    for folder in [outer, inner] {
        fs::remove_dir_all(folder).unwrap();
    }
    daemon.stop();
}

#[test]
fn files_in_etc_can_be_written_as_the_root_can() {
    let daemon = Daemon::start(&[]);
    for (read_only, result) in [(false, "ok"), (true, "EROFS")] {
        let name = if read_only { "fixed" } else { "free" };
        let steps = "touch /etc/hosts , touch /etc/hostname , touch /etc/resolv.conf";
        let fields = json!({"securityContext": {"readOnlyRootFilesystem": read_only}});
        let output = daemon.output_of(pod(name).container_with("app", steps, fields), name);
        let expected = steps.split(" , ").map(|step| format!("{step}: {result}\n"));
        assert_eq!(output, expected.collect::<String>());
    }
    daemon.stop();
}

#[test]
fn a_working_directory_is_made_if_it_is_not_there() {
    let daemon = Daemon::start(&[]);
    for read_only in [false, true] {
        let name = if read_only { "fixed" } else { "free" };
        let fields = json!({
            "workingDir": "/not/there/yet",
            "securityContext": {"readOnlyRootFilesystem": read_only},
        });
        assert_eq!(
            daemon.output_of(pod(name).container_with("app", "cwd", fields), name),
            "/not/there/yet\n"
        );
    }
    daemon.stop();
}

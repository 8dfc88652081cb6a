//! Pods from admission to removal.

use std::{fs, os::unix::fs::MetadataExt as _, time::Instant};

use pod_tests::{
    Daemon, eventually,
    manifest::{mounts, pod},
    seconds, skip, state, within,
};
use serde_json::json;

#[test]
fn a_pod_runs_and_leaves_nothing() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("first").container("app", "print hello , pause"));
    let running = daemon.wait_ready("first");
    assert_eq!(running["status"]["phase"], "Running");
    daemon.wait_logged("first", "", "hello");
    let shown = daemon.podctl(&["get", "pods"]).success();
    let lines: Vec<Vec<&str>> =
        shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[0],
        ["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP"],
        "{shown}"
    );
    assert_eq!(lines[1][..5], ["default", "first", "1/1", "Running", "0"], "{shown}");
    daemon.podctl(&["delete", "pod", "first"]).success();
    assert!(daemon.pod("first").is_null());
    daemon.assert_no_files();
    assert!(state::processes_below(daemon.cgroups()).is_empty());
    daemon.stop();
}

#[test]
fn the_daemon_keeps_nothing_open_for_pods_that_are_gone() {
    let daemon = Daemon::start(&[]);
    let open = || state::open_files(daemon.pid().as_raw());
    let cycle = |name: &str| {
        daemon.run(pod(name).container("app", "pause").container("other", "exit 0"));
        daemon.wait_for(name, "running", |pod| pod["status"]["phase"] == "Running");
        daemon.delete(name);
    };
    // Some things are opened once.
    cycle("first");
    // The connections of our own questions close a moment after their answers.
    let settled = |limit: usize| {
        eventually("the daemon has closed what it opened", seconds(15), || {
            let now = open();
            if now.len() > limit {
                println!("{} open: {now:?}", now.len());
            }
            (now.len() <= limit).then_some(())
        });
    };
    let files = open();
    for name in ["second", "third", "fourth"] {
        cycle(name);
    }
    settled(files.len());
    daemon.stop();
}

#[test]
fn the_application_is_the_first_process() {
    let daemon = Daemon::start(&[]);
    let output = daemon.output_of(pod("first").container("app", "id , exit 0"), "first");
    assert_eq!(output, "pid=1 uid=0\n");
    daemon.stop();
}

#[test]
fn a_shared_pid_namespace_has_an_infra_process_that_reaps() {
    let daemon = Daemon::start(&[]);
    let count = if pod_tests::in_vm() { 100 } else { 1000 };
    let shared = pod("shared")
        .with("shareProcessNamespace", true)
        .container("app", &format!("orphans {count} , id , pause"))
        .container("other", "pause");
    daemon.run(shared);
    let log = daemon.wait_logged("shared", "container=app", "pid=");
    assert!(!log.contains("pid=1 "), "{log}");
    let running = daemon.pod("shared");
    let infra = daemon.pid_of(&running, "_infra");
    let inside = fs::read_to_string(format!("/proc/{infra}/status")).unwrap();
    assert!(
        inside.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")),
        "{inside}"
    );
    eventually("no orphan is left, alive or dead", seconds(10), || {
        let zombies =
            fs::read_to_string(format!("/proc/{infra}/task/{infra}/children")).unwrap_or_default();
        zombies.trim().is_empty().then_some(())
    });
    let labels = [("pod", "shared"), ("container", "app")];
    // The list of children may miss one while others leave it, so the last may be alive still.
    let all = f64::from(2 * count);
    let count = |family| daemon.metrics().sum(family, &labels);
    let mut exits = 0.0;
    let counted = within(seconds(10), || {
        exits = count("podscope_process_exits_total");
        exits >= all
    });
    let forks = count("podscope_forks_total");
    match daemon.metrics().missed() {
        Some(missed) if !counted || forks < all => skip(&missed),
        _ => assert_eq!((exits, forks), (all, all)),
    }
    daemon.stop();
}

#[test]
fn command_arguments_environment_and_directory_are_the_manifests() {
    let daemon = Daemon::start(&[]);
    let fields = json!({
        "command": ["workload", "print", "$(GREETING)", "$(NOWHERE)", "$$(GREETING)", ","],
        "args": ["cwd", ",", "env", ",", "exit", "0"],
        "env": [
            {"name": "NAME", "value": "world"},
            {"name": "GREETING", "value": "hello $(NAME)"},
        ],
        "workingDir": "/bin",
    });
    let output = daemon.output_of(pod("words").container_with("app", "", fields), "words");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..2], ["hello world $(NOWHERE) $(GREETING)", "/bin"], "{output}");
    assert!(lines.contains(&"NAME=world"), "{output}");
    assert!(lines.contains(&"HOSTNAME=words"), "{output}");
    assert!(lines.iter().any(|line| line.starts_with("PATH=")), "{output}");
    daemon.stop();
}

#[test]
fn a_container_never_changes_its_image() {
    let daemon = Daemon::start(&[]);
    let steps = "touch /new , write /bin/workload2 100 , list / , exit 0";
    let output = daemon.output_of(pod("writer").container("app", steps), "writer");
    assert!(output.starts_with("touch /new: ok\n"), "{output}");
    let image = daemon.folder().join("rootfs");
    let mut files = std::collections::BTreeSet::new();
    state::walk(&image, &mut files);
    let expected = [image.clone(), image.join("bin"), image.join("bin/workload")];
    assert_eq!(files.into_iter().collect::<Vec<_>>(), expected);
    assert_ne!(fs::metadata(image.join("bin/workload")).unwrap().size(), 100);

    // And another container of the same image does not see it.
    let output = daemon.output_of(pod("reader").container("app", "look /new , exit 0"), "reader");
    assert_eq!(output, "look /new: ENOENT\n");
    daemon.stop();
}

#[test]
fn logs_are_those_of_the_run_that_is_asked_for() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("once").container("app", "print begin , log 5 , exit 3"));
    daemon.wait_over("once");
    let output = daemon.podctl(&["logs", "once"]).success();
    assert!(output.starts_with("begin\n"), "{output}");
    assert_eq!(output.lines().count(), 6, "{output}");
    let tail = daemon.podctl(&["logs", "--tail", "2", "once"]).success();
    assert_eq!(tail, "line 3\nline 4\n");
    let stamped = daemon.podctl(&["logs", "--timestamps", "--tail", "1", "once"]).success();
    let (time, text) = stamped.trim_end().split_once(' ').unwrap();
    assert!(time.starts_with("20") && time.contains('T') && text == "line 4", "{stamped}");

    let again = pod("again")
        .with("restartPolicy", "Always")
        .volume("data", "emptyDir", json!({}))
        .container_with(
            "app",
            "look /data/mark , touch /data/mark , wait-for /data/go , exit 3",
            mounts(&[("data", "/data")]),
        );
    daemon.run(again);
    daemon.wait_logged("again", "", "touch");
    // The command may be ended together with the container, since that leaves at once.
    drop(daemon.podctl(&["exec", "again", "--", "/bin/workload", "touch", "/data/go"]));
    daemon.wait_for("again", "restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
    });
    let previous = eventually("there is a previous run", seconds(10), || {
        let output = daemon.podctl(&["logs", "--previous", "again"]);
        (output.code == 0).then_some(output.stdout)
    });
    assert!(previous.starts_with("look /data/mark:"), "{previous}");
    daemon.stop();
}

#[test]
fn exec_returns_the_commands_output_and_exit_code() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("host").container("app", "pause"));
    daemon.wait_ready("host");
    let output = daemon.podctl(&[
        "exec",
        "host",
        "--",
        "/bin/workload",
        "print",
        "inside",
        ",",
        "hostname",
        ",",
        "fds",
        ",",
        "exit",
        "42",
    ]);
    assert_eq!(output.code, 42, "{output:?}");
    assert_eq!(output.stdout, "inside\nhost\nfds 0 1 2\n", "{output:?}");
    let absent = daemon.podctl(&["exec", "host", "--", "/bin/nothing"]);
    assert_ne!(absent.code, 0);
    assert!(absent.stderr.contains("/bin/nothing"), "{absent:?}");
    daemon.stop();
}

#[test]
fn a_program_that_ignores_its_end_is_killed_after_its_grace() {
    let daemon = Daemon::start(&[]);
    let stubborn = pod("stubborn").with("terminationGracePeriodSeconds", 1);
    daemon.run(stubborn.container("app", "ignore-term , print ready , pause"));
    daemon.run(
        pod("willing")
            .with("terminationGracePeriodSeconds", 60)
            .container("app", "print ready , pause"),
    );
    daemon.wait_logged("stubborn", "", "ready");
    daemon.wait_logged("willing", "", "ready");
    let began = Instant::now();
    daemon.delete("stubborn");
    let took = began.elapsed();
    assert!(took.as_millis() >= 1000 && took < seconds(5), "{took:?}");
    let began = Instant::now();
    daemon.delete("willing");
    assert!(began.elapsed() < seconds(5), "{:?}", began.elapsed());
    daemon.stop();
}

#[test]
fn the_probes_log_when_asked() {
    let daemon = Daemon::start(&["--probe-log=debug"]);
    daemon.run(pod("seen").container("app", "exit 0"));
    daemon.wait_over("seen");
    eventually("an exec is in the daemon's log", seconds(10), || {
        let log = daemon.log();
        log.lines().any(|line| line.contains("probes") && line.contains("exec")).then_some(())
    });
    daemon.stop();
}

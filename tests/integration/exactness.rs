//! Every number is exact: what a container did, and nothing else, is what /metrics says.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
};

use pod_tests::{
    Daemon, Metrics, binary, eventually,
    manifest::{mounts, pod},
    metrics::number,
    program, seconds, skip, state,
};
use serde_json::json;

/// Labels of the container `app` of a pod.
fn app(pod: &str) -> [(&str, &str); 3] {
    [("namespace", "default"), ("pod", pod), ("container", "app")]
}

/// Value of a metric of the container `app` with one label more.
#[track_caller]
fn value(metrics: &Metrics, name: &str, pod: &str, label: (&str, &str)) -> f64 {
    let [a, b, c] = app(pod);
    metrics.one(name, &[a, b, c, label])
}

/// Sum of a metric of the container `app` in one direction.
fn sum(metrics: &Metrics, name: &str, pod: &str, direction: &str) -> f64 {
    let [a, b, c] = app(pod);
    metrics.sum(name, &[a, b, c, ("direction", direction)])
}

/// Bytes and operations of a volume: read, then written.
#[track_caller]
fn file(metrics: &Metrics, pod: &str, volume: &str) -> [f64; 4] {
    let operations = |operation: &str| {
        let [a, b, c] = app(pod);
        let labels = [a, b, c, ("volume", volume), ("operation", operation)];
        metrics.one("podscope_file_operations_total", &labels)
    };
    [
        value(metrics, "podscope_file_read_bytes_total", pod, ("volume", volume)),
        operations("read"),
        value(metrics, "podscope_file_written_bytes_total", pod, ("volume", volume)),
        operations("write"),
    ]
}

/// Those that count processes.
const PROCESS_PROGRAMS: [&str; 3] = ["exec", "fork", "exit"];

#[test]
fn a_short_life_is_counted_exactly() {
    let daemon = Daemon::start(&[]);
    let earlier = daemon.metrics();
    let input = daemon.folder().join("input");
    fs::create_dir(&input).unwrap();
    fs::write(input.join("file"), vec![b'i'; 1000]).unwrap();
    daemon.run(pod("server").container("app", "greet 7000 hello"));
    daemon.wait_logged("server", "", "listening");
    let address = daemon.pod("server")["status"]["podIP"].as_str().unwrap().to_owned();

    let steps =
        format!("connect {address}:7000 , write /data/file 4096 , read /input/file 1000 , exit 7");
    let short = pod("short")
        .volume("data", "emptyDir", json!({}))
        .volume("input", "hostPath", json!({"path": input}))
        .container_with("app", &steps, mounts(&[("data", "/data"), ("input", "/input")]));
    daemon.run(short);
    let over = daemon.wait_over("short");
    let state = &over["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(state["exitCode"], 7, "{over:#}");

    let metrics = daemon.metrics();
    if let Some(missed) = metrics.missed() {
        daemon.stop();
        return skip(&missed);
    }
    assert_eq!(metrics.one("podscope_exec_total", &app("short")), 1.0);
    assert_eq!(metrics.one("podscope_forks_total", &app("short")), 0.0);
    assert_eq!(metrics.one("podscope_threads_total", &app("short")), 0.0);
    let result =
        |result| value(&metrics, "podscope_tcp_connects_total", "short", ("result", result));
    assert_eq!(result("established"), 1.0);
    assert_eq!(result("refused"), 0.0);
    assert_eq!(metrics.sum("podscope_tcp_connects_total", &app("short")), 1.0);
    assert_eq!(metrics.one("podscope_tcp_connect_duration_seconds_count", &app("short")), 1.0);
    assert_eq!(file(&metrics, "short", "data"), [0.0, 0.0, 4096.0, 1.0]);
    assert_eq!(file(&metrics, "short", "input"), [1000.0, 1.0, 0.0, 0.0]);
    assert_eq!(file(&metrics, "short", "rootfs"), [0.0; 4]);
    let exits = |code| value(&metrics, "podscope_process_exits_total", "short", ("code", code));
    assert_eq!(exits("2-125"), 1.0);
    assert_eq!(metrics.sum("podscope_process_exits_total", &app("short")), 1.0);
    assert_eq!(metrics.sum("podscope_process_signals_total", &app("short")), 0.0);
    assert_eq!(metrics.one("podscope_container_last_exit_code", &app("short")), 7.0);
    assert_eq!(metrics.one("podscope_tcp_accepts_total", &app("server")), 1.0);

    // What is deleted goes into the totals of its namespace.
    daemon.delete("short");
    let metrics = daemon.metrics();
    assert!(metrics.find("podscope_exec_total", &app("short")).is_none());
    let labels = [("namespace", "default")];
    let total = |name| metrics.sum(name, &labels) - earlier.sum(name, &labels);
    assert_eq!(total("podscope_completed_pods_total"), 1.0);
    assert_eq!(total("podscope_completed_exec_total"), 1.0);
    assert_eq!(total("podscope_completed_process_exits_total"), 1.0);
    assert_eq!(total("podscope_completed_file_written_bytes_total"), 4096.0);
    daemon.stop();
}

#[test]
fn every_call_that_moves_bytes_is_counted_exactly() {
    let daemon = Daemon::start(&[]);
    let mode: Vec<_> =
        daemon.metrics().about("podscope_probe_info").lines().map(String::from).collect();
    println!("{}", mode.join("\n"));
    let cases = [
        ("write", "write /data/file 101", [0.0, 0.0, 101.0, 1.0]),
        ("pwrite", "pwrite /data/file 203", [0.0, 0.0, 203.0, 1.0]),
        ("writev", "writev /data/file 307", [0.0, 0.0, 307.0, 1.0]),
        ("read", "write /data/file 500 , read /data/file 401", [401.0, 1.0, 500.0, 1.0]),
        ("pread", "write /data/file 500 , pread /data/file 409", [409.0, 1.0, 500.0, 1.0]),
        ("readv", "write /data/file 500 , readv /data/file 419", [419.0, 1.0, 500.0, 1.0]),
        (
            "sendfile",
            "write /data/file 900 , sendfile /data/file /data/copy 601",
            [601.0, 1.0, 1501.0, 2.0],
        ),
        (
            "copy-range",
            "write /data/file 900 , copy-range /data/file /data/copy 607",
            [607.0, 1.0, 1507.0, 2.0],
        ),
    ];
    for (name, steps, _) in cases {
        let one = pod(name).volume("data", "emptyDir", json!({}));
        daemon.run(one.container_with("app", steps, mounts(&[("data", "/data")])));
    }
    let mut wrong = Vec::new();
    for (name, _, expected) in cases {
        let over = daemon.wait_over(name);
        assert_eq!(over["status"]["phase"], "Succeeded", "{name}: {}", daemon.logs(name, ""));
        let counted = file(&daemon.metrics(), name, "data");
        if counted != expected {
            if let Some(missed) = daemon.metrics().missed() {
                daemon.stop();
                return skip(&missed);
            }
            wrong.push(format!("{name}: {counted:?} and not {expected:?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "read bytes and operations, written bytes and operations:\n{wrong:#?}"
    );
    daemon.stop();
}

#[test]
fn a_tcp_transfer_agrees_with_the_interface() {
    const BYTES: u64 = 3_000_000;
    let daemon = Daemon::start(&[]);
    daemon.run(pod("server").container("app", "serve 7000"));
    daemon.wait_logged("server", "", "listening");
    let server = daemon.pod("server");
    let address = server["status"]["podIP"].as_str().unwrap();
    let steps = format!("wait-for /go , send {address}:7000 {BYTES}");
    daemon.run(pod("client").container("app", &steps));
    let client = daemon.wait_ready("client");

    let links = [state::host_end(&server), state::host_end(&client)];
    let before = links.each_ref().map(|link| state::interface(link));
    for name in ["server", "client"] {
        assert_eq!(daemon.metrics().sum("podscope_network_packets_total", &app(name)), 0.0);
    }
    daemon.podctl(&["exec", "client", "--", "/bin/workload", "touch", "/go"]).success();
    daemon.wait_logged("client", "", "sent");
    daemon.wait_logged("server", "", &format!("received {BYTES}"));

    // The last acknowledgements may still be on their way.
    eventually("counters and interfaces agree", seconds(10), || {
        let metrics = daemon.metrics();
        let now = links.each_ref().map(|link| state::interface(link));
        let mut problems = Vec::new();
        for (index, name) in ["server", "client"].into_iter().enumerate() {
            // What the host's end receives, the pod transmits.
            for (side, direction) in ["transmit", "receive"].into_iter().enumerate() {
                let count = |metric| sum(&metrics, metric, name, direction);
                let bytes = number(count("podscope_network_bytes_total"));
                let packets = number(count("podscope_network_packets_total"));
                let (old, new) = (before[index][side], now[index][side]);
                let seen = (new.0 - old.0, new.1 - old.1);
                if let Some(problem) = state::unexplained((bytes, packets), seen) {
                    problems.push(format!("{name} {direction}: {problem}"));
                }
            }
        }
        if !problems.is_empty() {
            println!("{}", problems.join("\n"));
        }
        problems.is_empty().then_some(())
    });
    let metrics = daemon.metrics();
    let sent = number(sum(&metrics, "podscope_network_bytes_total", "client", "transmit"));
    assert!(sent > BYTES && sent < BYTES + BYTES / 10, "{sent}");
    let segments = sum(&metrics, "podscope_network_segments_total", "client", "transmit");
    assert!(segments >= sum(&metrics, "podscope_network_packets_total", "client", "transmit"));
    daemon.stop();
}

#[test]
fn a_refused_connect_counts_as_refused() {
    let daemon = Daemon::start(&[]);
    let output = daemon.output_of(
        pod("refused").container("app", "connect 127.0.0.1:9 , connect 127.0.0.1:9 , exit 0"),
        "refused",
    );
    assert_eq!(output, "connect: ECONNREFUSED\nconnect: ECONNREFUSED\n");
    let metrics = daemon.metrics();
    let result =
        |result| value(&metrics, "podscope_tcp_connects_total", "refused", ("result", result));
    assert_eq!(result("refused"), 2.0);
    assert_eq!(metrics.sum("podscope_tcp_connects_total", &app("refused")), 2.0);
    assert_eq!(metrics.find("podscope_tcp_connect_duration_seconds_count", &app("refused")), None);
    daemon.stop();
}

#[test]
fn processes_and_threads_are_counted_apart() {
    let daemon = Daemon::start(&[]);
    let steps = "threads 20 , sleep-ms 50 , exit 0";
    daemon.run(pod("threads").container("app", steps));
    daemon.run(pod("forks").container("app", "fork 30 , exit 0"));
    daemon.run(pod("nothing").container("app", "exec-nothing 10 , exit 0"));
    daemon.run(
        pod("signal").container("app", "fork 1 , end-child 9 , end-child 6 , end-child 6 , abort"),
    );
    let count = |metrics: &Metrics, name: &str, pod| metrics.sum(name, &app(pod));
    for name in ["threads", "forks", "nothing", "signal"] {
        daemon.wait_over(name);
    }
    let metrics = daemon.metrics();
    if let Some(missed) = metrics.missed_by(&PROCESS_PROGRAMS) {
        daemon.stop();
        return skip(&missed);
    }
    // Exit of a process with many threads is one exit.
    assert_eq!(count(&metrics, "podscope_threads_total", "threads"), 20.0);
    assert_eq!(count(&metrics, "podscope_forks_total", "threads"), 0.0);
    assert_eq!(count(&metrics, "podscope_process_exits_total", "threads"), 1.0);
    assert_eq!(count(&metrics, "podscope_forks_total", "forks"), 30.0);
    assert_eq!(count(&metrics, "podscope_threads_total", "forks"), 0.0);
    assert_eq!(count(&metrics, "podscope_process_exits_total", "forks"), 31.0);
    assert_eq!(count(&metrics, "podscope_exec_total", "nothing"), 1.0);
    let signals =
        |signal| value(&metrics, "podscope_process_signals_total", "signal", ("signal", signal));
    assert_eq!(signals("SIGKILL"), 1.0);
    assert_eq!(signals("SIGABRT"), 2.0);
    // The kernel lets no first process of a PID namespace abort, so libc has it crash.
    assert_eq!(signals("SIGSEGV"), 1.0);
    assert_eq!(count(&metrics, "podscope_process_exits_total", "signal"), 1.0);
    assert_eq!(count(&metrics, "podscope_container_last_exit_code", "signal"), 139.0);
    daemon.stop();
}

#[test]
fn no_exit_of_many_is_lost() {
    let count = if pod_tests::in_vm() { 60 } else { 200 };
    let daemon = Daemon::start(&[]);
    daemon.run(pod("many").container("app", &format!("spawn {count} , exit 0")));
    assert_eq!(
        daemon.wait_over("many")["status"]["phase"],
        "Succeeded",
        "{}",
        daemon.logs("many", "")
    );
    let metrics = daemon.metrics();
    if let Some(missed) = metrics.missed() {
        daemon.stop();
        return skip(&missed);
    }
    let expected = f64::from(count) + 1.0;
    assert_eq!(metrics.one("podscope_exec_total", &app("many")), expected);
    assert_eq!(value(&metrics, "podscope_process_exits_total", "many", ("code", "0")), expected);
    assert_eq!(metrics.sum("podscope_process_exits_total", &app("many")), expected);
    let lost = metrics.series("podscope_events_lost_total", &[]);
    // What the kernel skipped was in another test.
    let lost: Vec<_> =
        lost.filter(|lost| lost.value > 0.0 && lost.labels["kind"] != "missed").collect();
    assert!(lost.is_empty(), "{lost:?}");
    daemon.stop();
}

#[test]
fn what_runs_outside_pods_adds_nothing() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("idle").volume("data", "emptyDir", json!({})).container_with(
        "app",
        "pause",
        mounts(&[("data", "/data")]),
    ));
    daemon.wait_ready("idle");
    let counters = |metrics: &Metrics| {
        [
            "podscope_exec_total",
            "podscope_forks_total",
            "podscope_threads_total",
            "podscope_process_exits_total",
            "podscope_process_signals_total",
            "podscope_network_bytes_total",
            "podscope_tcp_connects_total",
            "podscope_tcp_accepts_total",
            "podscope_file_read_bytes_total",
            "podscope_file_written_bytes_total",
            "podscope_file_operations_total",
        ]
        .map(|name| metrics.sum(name, &[]))
    };
    let before = counters(&daemon.metrics());

    let file = daemon.folder().join("outside");
    for _ in 0..10 {
        fs::write(&file, [0; 1000]).unwrap();
        fs::read(&file).unwrap();
        program::run(
            Command::new(binary("workload")).args(["fork", "2", ",", "exit", "3"]),
            seconds(10),
        );
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(&[0; 10_000]).unwrap();
    server.read_exact(&mut [0; 10_000]).unwrap();

    assert_eq!(counters(&daemon.metrics()), before);
    daemon.stop();
}

#[test]
fn what_runs_in_nested_cgroups_counts_for_the_container() {
    let daemon = Daemon::start(&[]);
    let steps = "wait-for /go , write /data/file 4096 , connect 127.0.0.1:9 , spawn 3 , pause";
    let nested = pod("nested").volume("data", "emptyDir", json!({}));
    daemon.run(nested.container_with("app", steps, mounts(&[("data", "/data")])));
    let running = daemon.wait_ready("nested");
    let app_pid = daemon.pid_of(&running, "app");
    let inner = daemon.cgroup(&running, "app").join("one/two");
    fs::create_dir_all(&inner).unwrap();
    fs::write(inner.join("cgroup.procs"), app_pid.to_string()).unwrap();
    // Where the container's own cgroup has controllers, it may not have processes beside children.
    fs::write(format!("/proc/{app_pid}/root/go"), "").unwrap();

    eventually("all is counted", seconds(10), || {
        let metrics = daemon.metrics();
        let exits = metrics.sum("podscope_process_exits_total", &app("nested"));
        (exits >= 3.0 || metrics.missed_by(&PROCESS_PROGRAMS).is_some()).then_some(())
    });
    let metrics = daemon.metrics();
    if let Some(missed) = metrics.missed_by(&PROCESS_PROGRAMS) {
        daemon.stop();
        return skip(&missed);
    }
    assert_eq!(file(&metrics, "nested", "data"), [0.0, 0.0, 4096.0, 1.0]);
    assert_eq!(
        value(&metrics, "podscope_tcp_connects_total", "nested", ("result", "refused")),
        1.0
    );
    assert!(metrics.sum("podscope_network_packets_total", &app("nested")) > 0.0);
    assert_eq!(metrics.one("podscope_exec_total", &app("nested")), 4.0);
    assert_eq!(metrics.sum("podscope_process_exits_total", &app("nested")), 3.0);
    daemon.stop();
}

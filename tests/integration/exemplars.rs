//! Histograms name who was slowest, and the trace that it was part of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use pod_tests::{
    Daemon, eventually, http, in_vm,
    manifest::{Pod, config_map, mounts, pod},
    netns::{infra, kernel_count},
    seconds, state,
};
use serde_json::{Value, json};

use super::tcp::{drop_incoming, drop_no_more};

/// As in W3C's Trace Context, and the two ids in it.
pub(super) const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// An exemplar, and the bucket that it is in.
#[derive(Debug)]
struct Exemplar {
    labels: BTreeMap<String, String>,
    value: f64,
    time: f64,
    bound: f64,
    count: f64,
}

impl Exemplar {
    /// The exemplar of the only histogram of that name with these labels, if it has one.
    fn find(daemon: &Daemon, name: &str, labels: &[(&str, &str)]) -> Option<Self> {
        let address = daemon.metrics_address();
        let accept = "Accept: application/openmetrics-text; version=1.0.0";
        let (_, page) = http::bytes(address, "/metrics", accept).unwrap();
        let page = String::from_utf8(page).unwrap();
        let mut found = page.lines().filter_map(|line| {
            let (series, exemplar) = line.split_once(" # {")?;
            let (series, count) = series.rsplit_once("} ")?;
            let series = of_text(series.strip_prefix(&format!("{name}_bucket{{"))?);
            if !labels.iter().all(|(label, value)| series.get(*label).is_some_and(|is| is == value))
            {
                return None;
            }
            let (labels, observed) = exemplar.split_once("} ")?;
            let (value, time) = observed.split_once(' ')?;
            Some(Self {
                labels: of_text(labels),
                value: value.parse().unwrap(),
                time: time.parse().unwrap(),
                bound: series["le"].parse().unwrap(),
                count: count.parse().unwrap(),
            })
        });
        let exemplar = found.next();
        assert!(found.next().is_none(), "a histogram has one: {name} {labels:?}");
        exemplar
    }

    fn pid(&self) -> i32 {
        self.labels["pid"].parse().unwrap()
    }

    /// The trace and the span that are named.
    fn trace(&self) -> Option<(&str, &str)> {
        Some((self.labels.get("trace_id")?, self.labels.get("span_id")?))
    }

    /// It is one of those that its bucket has, it took at least so long, and it was after `began`.
    #[track_caller]
    fn check(&self, least: f64, began: f64) {
        assert!(self.count >= 1.0, "{self:?}");
        assert!(self.value >= least, "{self:?}");
        assert!(self.value <= self.bound && self.value > self.bound / 4.0, "{self:?}");
        assert!(self.time > began && self.time < now(), "{self:?}, {began}, {}", now());
    }
}

/// Labels as they stand in the text.
fn of_text(labels: &str) -> BTreeMap<String, String> {
    let labels = labels.split(',').filter_map(|label| label.split_once('='));
    labels.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect()
}

/// Seconds of Unix time.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A container of which all processes are told of the trace.
fn traced() -> Value {
    json!({"env": [{"name": "TRACEPARENT", "value": TRACEPARENT}]})
}

/// Adds a field that says where volume `data` is.
fn with_data(mut fields: Value) -> Value {
    fields["volumeMounts"] = mounts(&[("data", "/data")])["volumeMounts"].clone();
    fields
}

#[test]
fn exemplars_of_files_name_the_slowest_and_its_trace() {
    let daemon = Daemon::start(&[]);
    let began = now();
    let folder = daemon.folder().join("exemplars");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "12345").unwrap();
    let names = ["told", "looked", "plain"];
    for name in names {
        mkfifo(&folder.join(name), Mode::from_bits_truncate(0o644)).unwrap();
    }
    daemon.apply(&config_map("trace", json!({"parent": TRACEPARENT})));
    let from_map = json!({"env": [{"name": "TRACEPARENT", "valueFrom": {
        "configMapKeyRef": {"name": "trace", "key": "parent"}}}]});
    // An open waits for who opens the other end. A child of `told` does, and is gone when it is asked for.
    let slow = pod("slow")
        .volume("data", "hostPath", json!({"path": folder, "type": "Directory"}))
        .container_with(
            "told",
            "run cat /data/told , cat /data/file , print done , pause",
            with_data(traced()),
        )
        .container_with(
            "looked",
            "cat /data/looked , run cat /data/file , print done , pause",
            with_data(from_map),
        )
        .container_with(
            "plain",
            "cat /data/plain , run cat /data/file , print done , pause",
            with_data(json!({})),
        );
    daemon.run(slow);
    daemon.wait_ready("slow");
    thread::sleep(Duration::from_millis(500));
    for name in names {
        File::options().write(true).open(folder.join(name)).unwrap();
    }
    for name in names {
        daemon.wait_logged("slow", &format!("container={name}"), "done");
    }

    let open = |container| {
        let labels = [("container", container), ("volume", "data"), ("operation", "open")];
        let exemplar =
            Exemplar::find(&daemon, "podscope_file_operation_duration_seconds", &labels).unwrap();
        println!("{container}: {exemplar:?}");
        exemplar.check(0.3, began);
        (exemplar.pid(), exemplar)
    };
    let first = |container| daemon.pid_of(&daemon.pod("slow"), container).as_raw();
    let (pid, told) = open("told");
    assert_ne!(pid, first("told"));
    assert_eq!(told.trace(), Some((TRACE, SPAN)));
    let (pid, looked) = open("looked");
    assert_eq!(pid, first("looked"));
    assert_eq!(looked.trace(), Some((TRACE, SPAN)));
    let (pid, plain) = open("plain");
    assert_eq!(pid, first("plain"));
    assert_eq!(plain.trace(), None);
    assert_eq!(plain.labels.len(), 1);
    // What was observed once is told as the same from scrape to scrape.
    let again = open("looked").1;
    assert_eq!((again.time, again.value, again.labels), (looked.time, looked.value, looked.labels));
    daemon.stop();
}

/// Adds container `app`, which is part of the trace.
fn client(steps: &str) -> Pod {
    pod("client").container_with("app", steps, traced())
}

#[test]
fn exemplars_of_the_network_name_the_slowest_and_its_trace() {
    let daemon = Daemon::start(&[]);
    let began = now();
    let server = pod("server").container("app", "greet 7000 hello");
    daemon.run(server.container("names", "dns-serve 300"));
    for container in ["app", "names"] {
        daemon.wait_logged("server", &format!("container={container}"), "listening");
    }
    let server = daemon.pod("server")["status"]["podIP"].as_str().unwrap().to_owned();
    let fast = format!("run connect {server}:7000 , run dns-ask {server} tcp noerror");
    let steps = format!(
        "{fast} , wait-for /go , connect {server}:7000 , dns-ask {server} udp noerror , {fast} , \
         print done , pause"
    );
    daemon.run(client(&steps));
    daemon.wait_ready("client");
    let of_server = infra(&daemon, "server");
    let (connect, dns) = ("podscope_tcp_connect_duration_seconds", "podscope_dns_duration_seconds");
    let labels = [("pod", "client"), ("container", "app")];
    eventually("two quick ones are over", seconds(20), || {
        let metrics = daemon.metrics();
        (metrics.sum(&format!("{connect}_count"), &labels) == 2.0).then_some(())
    });
    let quick = Exemplar::find(&daemon, connect, &labels).unwrap();
    // Over TCP nobody is named.
    assert!(Exemplar::find(&daemon, dns, &labels).is_none());

    // The first packet is lost, and sent again after a second.
    let pid = daemon.pid_of(&daemon.pod("client"), "app");
    drop_incoming(of_server, &["tcp dport 7000"]);
    fs::write(format!("/proc/{pid}/root/go"), "").unwrap();
    let of_client = infra(&daemon, "client");
    eventually("its client waits", seconds(20), || {
        let open = kernel_count(of_client, ("snmp", "Tcp:", "ActiveOpens"));
        (open >= 3).then_some(())
    });
    thread::sleep(Duration::from_millis(300));
    drop_no_more(of_server);
    daemon.wait_logged("client", "", "done");

    let slowest = Exemplar::find(&daemon, connect, &labels).unwrap();
    println!("{quick:?}\n{slowest:?}");
    slowest.check(0.9, began);
    assert!(slowest.value > quick.value);
    assert_eq!(slowest.pid(), pid.as_raw());
    assert_ne!(quick.pid(), pid.as_raw());
    assert_eq!((slowest.trace(), quick.trace()), (Some((TRACE, SPAN)), Some((TRACE, SPAN))));
    let slowest = Exemplar::find(&daemon, dns, &labels).unwrap();
    println!("{slowest:?}");
    slowest.check(0.3, began);
    assert_eq!(slowest.pid(), pid.as_raw());
    assert_eq!(slowest.trace(), Some((TRACE, SPAN)));
    // Who answers has begun nothing.
    assert!(Exemplar::find(&daemon, connect, &[("pod", "server")]).is_none());
    daemon.stop();
}

#[test]
fn exemplars_are_of_one_piece_while_many_write_them() {
    const READERS: usize = 4;
    let count = if in_vm() { "100000" } else { "2000000" };
    let daemon = Daemon::start(&[]);
    let began = now();
    let steps = "write /data/file 4096 , print done , pause";
    daemon.run(pod("busy").volume("data", "emptyDir", json!({})).container_with(
        "app",
        steps,
        with_data(traced()),
    ));
    daemon.wait_logged("busy", "", "done");
    let procs = daemon.cgroup(&daemon.pod("busy"), "app").join("cgroup.procs");
    let labels = [("volume", "data"), ("operation", "read")];
    let name = "podscope_file_operation_duration_seconds";
    let mut seen = Vec::<Exemplar>::new();
    let read = ["exec", "busy", "--", "/bin/workload", "time-reads", "/data/file", count, "1"];
    // Whatever happens, the thread below ends, and with it this test.
    let is_over = AtomicBool::new(false);
    let deadline = Instant::now() + seconds(60);
    let pids = thread::scope(|scope| {
        // Beside the scrapes: while one takes long, somebody may come and go.
        let pids = scope.spawn(|| {
            let mut pids = BTreeSet::new();
            while !is_over.load(Ordering::Relaxed) && Instant::now() < deadline {
                pids.extend(state::pids(&procs));
                thread::sleep(Duration::from_millis(10));
            }
            pids
        });
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(|| daemon.podctl(&read))).collect();
        while !readers.iter().all(|reader| reader.is_finished()) {
            seen.extend(Exemplar::find(&daemon, name, &labels));
        }
        // A process that does not say in time what it is part of is asked again by the next scrape.
        seen.push(eventually("the trace is known", seconds(10), || {
            Exemplar::find(&daemon, name, &labels).filter(|exemplar| exemplar.trace().is_some())
        }));
        is_over.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| drop(reader.join().unwrap().success()));
        pids.join().unwrap()
    });
    println!("{} scrapes, {} processes", seen.len(), pids.len());
    assert!(pids.len() > READERS && seen.len() > 1, "{seen:?}");
    for exemplar in &seen {
        exemplar.check(0.0, began);
        assert!(pids.contains(&exemplar.pid()), "{exemplar:?}, {pids:?}");
        assert!(exemplar.trace().is_none_or(|trace| trace == (TRACE, SPAN)), "{exemplar:?}");
    }
    // A task that is preempted within the probe goes on with what it saw, however late that is.
    let is_preempted = daemon.metrics().missed().is_some();
    for pair in seen.windows(2) {
        let [before, after] = pair else { unreachable!() };
        // But for who comes at the same instant on another CPU, only what is slower takes the place.
        let is_later = after.time >= before.time;
        let is_old = after.time - before.time > 59.0;
        let is_close = after.time - before.time < 0.01;
        let is_slowest = is_later && (is_old || is_close || after.value >= before.value);
        assert!(is_slowest || is_preempted, "{before:?}, {after:?}");
    }
    seen.dedup_by_key(|exemplar| (exemplar.value.to_bits(), exemplar.time.to_bits()));
    let slowest: Vec<_> = seen.iter().map(|exemplar| (exemplar.value, exemplar.time)).collect();
    println!("{slowest:?}");
    daemon.stop();
}

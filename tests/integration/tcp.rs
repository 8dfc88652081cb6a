//! What is said of TCP connections is what the kernel itself counts in the pod's network namespace.

use std::{collections::BTreeMap, fs, process::Command, thread};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pod_tests::{
    Daemon, Metrics, binary, eventually,
    manifest::pod,
    netns::{infra, inside},
    program, seconds,
};

/// The kernel's counters of a pod's network namespace, by the names that it gives them.
struct Kernel(BTreeMap<String, u64>);

impl Kernel {
    fn read(pid: Pid) -> Self {
        let mut counters = BTreeMap::new();
        for table in ["snmp", "netstat"] {
            let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap();
            let lines: Vec<_> = text.lines().collect();
            for pair in lines.chunks(2) {
                let names = pair[0].split_whitespace();
                for (name, value) in names.zip(pair[1].split_whitespace()).skip(1) {
                    if pair[0].starts_with("Tcp") {
                        counters.insert(name.to_owned(), value.parse().unwrap_or(0));
                    }
                }
            }
        }
        Self(counters)
    }

    #[track_caller]
    fn count(&self, name: &str) -> f64 {
        let count = self.0.get(name).unwrap_or_else(|| panic!("no {name}"));
        u32::try_from(*count).unwrap().into()
    }
}

/// A pod with its numbers, and the kernel's.
struct Seen<'a> {
    pod: &'a str,
    metrics: Metrics,
    kernel: Kernel,
}

impl<'a> Seen<'a> {
    fn new(daemon: &Daemon, pod: &'a str) -> Self {
        let infra = infra(daemon, pod);
        let kernel = Kernel::read(infra);
        Self { pod, metrics: daemon.metrics(), kernel }
    }

    /// The sum of all containers' series that have these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let name = format!("podscope_tcp_{name}");
        self.metrics.sum(&name, &[&[("pod", self.pod)], labels].concat())
    }

    /// Our number and the kernel's, where they are not the same.
    fn differences(&self, but: &str) -> Vec<String> {
        let failed = self.sum("connects_total", &[])
            - self.sum("connects_total", &[("result", "established")]);
        let open = ["established", "close_wait"];
        let open = open.map(|state| self.sum("connections", &[("state", state)]));
        let pairs = [
            ("ActiveOpens", self.sum("connects_total", &[])),
            ("AttemptFails", failed),
            ("PassiveOpens", self.sum("accepts_total", &[])),
            ("CurrEstab", open.iter().sum()),
            ("RetransSegs", self.sum("retransmits_total", &[])),
        ];
        let pairs = pairs.into_iter().filter(|(name, _)| *name != but);
        let differ = pairs.filter(|(name, ours)| self.kernel.count(name) != *ours);
        differ
            .map(|(name, ours)| format!("{}: {name} {} {ours}", self.pod, self.kernel.count(name)))
            .chain(self.unbalanced())
            .collect()
    }

    /// Every connection is open or over.
    fn unbalanced(&self) -> Option<String> {
        let made = self.sum("connects_total", &[("result", "established")])
            + self.sum("accepts_total", &[]);
        let there = self.sum("connections", &[]) + self.sum("closes_total", &[]);
        (made != there).then(|| format!("{}: {made} made, {there} open or over", self.pod))
    }
}

/// Waits until our numbers of these pods are the kernel's.
#[track_caller]
fn agree<'a>(daemon: &Daemon, pods: &[&'a str]) -> Vec<Seen<'a>> {
    agree_but(daemon, pods, "")
}

/// As [`agree`], but for one of the kernel's numbers.
#[track_caller]
fn agree_but<'a>(daemon: &Daemon, pods: &[&'a str], but: &str) -> Vec<Seen<'a>> {
    let mut differences = Vec::new();
    let agreed = pod_tests::within(seconds(10), || {
        let seen = pods.iter().map(|pod| Seen::new(daemon, pod));
        differences = seen.flat_map(|seen| seen.differences(but)).collect();
        differences.is_empty()
    });
    assert!(agreed, "the kernel's number and ours:\n{differences:#?}");
    pods.iter().map(|pod| Seen::new(daemon, pod)).collect()
}

/// Changes the packet filter of a process' network namespace.
#[track_caller]
fn filter(pid: Pid, change: &str) {
    let change = change.to_owned();
    inside(pid, move || {
        let words = change.split_whitespace();
        program::run(Command::new("nft").args(words), seconds(10)).success();
    });
}

/// Drops what comes to a process' network namespace and matches one of these.
#[track_caller]
pub(super) fn drop_incoming(pid: Pid, matches: &[&str]) {
    filter(pid, "add table ip loss");
    filter(pid, "add chain ip loss input { type filter hook input priority 0 ; }");
    for matches in matches {
        filter(pid, &format!("add rule ip loss input {matches} drop"));
    }
}

#[track_caller]
pub(super) fn drop_no_more(pid: Pid) {
    filter(pid, "delete table ip loss");
}

/// Starts pod `server`, with a container for each of these steps, and returns its address.
#[track_caller]
fn serve(daemon: &Daemon, containers: &[(&str, &str)]) -> String {
    let server = pod("server");
    let server = containers.iter().fold(server, |pod, (name, steps)| pod.container(name, steps));
    daemon.run(server);
    for (name, _) in containers {
        daemon.wait_logged("server", &format!("container={name}"), "listening");
    }
    daemon.pod("server")["status"]["podIP"].as_str().unwrap().to_owned()
}

/// Lets a process go on that waits for a file.
#[track_caller]
fn go(process: Pid) {
    fs::write(format!("/proc/{process}/root/go"), "").unwrap();
}

#[test]
fn tcp_connections_of_all_kinds_agree_with_the_kernel() {
    let count = if pod_tests::in_vm() { 100 } else { 400 };
    let daemon = Daemon::start(&[]);
    let address = serve(&daemon, &[("app", "greet 7000 hello"), ("hoard", "hoard 7001")]);
    let steps = format!(
        "fetch-many {address}:7000 {count} , cut {address}:7001 7 , connect {address}:9 , \
         connect {address}:9 , leave-unread {address}:7000 , dial {address}:7001 5 , \
         print done , pause"
    );
    daemon.run(pod("client").container("app", &steps));
    daemon.wait_logged("client", "", "done");

    let [server, client] = &agree(&daemon, &["server", "client"])[..] else { unreachable!() };
    let count = f64::from(count);
    let connects = |result| client.sum("connects_total", &[("result", result)]);
    assert_eq!(connects("established"), count + 13.0);
    assert_eq!(connects("refused"), 2.0);
    assert_eq!(client.sum("connections", &[("state", "established")]), 5.0);
    let closes = |seen: &Seen<'_>, reason| seen.sum("closes_total", &[("reason", reason)]);
    assert_eq!(closes(client, "closed"), count);
    assert_eq!(closes(client, "aborted"), 8.0);
    assert_eq!(client.kernel.count("EstabResets"), 8.0);
    assert_eq!(client.sum("resets_total", &[("direction", "transmit")]), 8.0);
    // What the server still sends to the connection that was aborted meets no socket any more, and is
    // answered by another one.
    assert!((8.0..=9.0).contains(&client.kernel.count("OutRsts")));
    // Those of the two refused connects.
    assert_eq!(client.sum("resets_total", &[("direction", "receive")]), 2.0);

    assert_eq!(server.sum("accepts_total", &[("container", "app")]), count + 1.0);
    assert_eq!(server.sum("accepts_total", &[("container", "hoard")]), 12.0);
    assert_eq!(server.sum("connections", &[("container", "hoard")]), 5.0);
    assert_eq!(server.sum("connections", &[("container", "app")]), 0.0);
    assert_eq!(server.sum("closes_total", &[("container", "hoard"), ("reason", "reset")]), 7.0);
    // That of what was left unread comes before the server has closed or after, and then is not there.
    assert!((7.0..=8.0).contains(&server.kernel.count("EstabResets")));
    let to_hoard = [("container", "hoard"), ("direction", "receive")];
    assert_eq!(server.sum("resets_total", &to_hoard), 7.0);
    // Where nobody listens there is no socket that the reset could be counted for.
    assert_eq!(server.kernel.count("OutRsts"), 2.0);
    assert_eq!(server.sum("resets_total", &[("direction", "transmit")]), 0.0);
    assert_eq!(server.metrics.sum("podscope_events_lost_total", &[("kind", "connection")]), 0.0);
    for seen in [server, client] {
        let ended = seen.sum("closes_total", &[]);
        assert_eq!(seen.sum("min_rtt_seconds_count", &[]), ended, "each has a least time");
        assert!(seen.sum("rtt_seconds_count", &[]) >= ended);
    }
    daemon.stop();
}

#[test]
fn tcp_connections_are_counted_down_while_no_daemon_looks() {
    let mut daemon = Daemon::start(&[]);
    // A second container keeps the pod's network when the first is over.
    let keeper = ("keeper", "print listening , pause");
    let address = serve(&daemon, &[("app", "hoard 7001"), keeper]);
    let steps = format!(
        "bequeath {address}:7001 100 , wait-for /go , dial {address}:7001 30 , print done , pause"
    );
    let client = pod("client").container("app", &steps);
    daemon.run(client.container("keeper", "pause"));
    let steps = format!("dial {address}:7001 10 , print done , pause");
    daemon.run(pod("other").container("app", &steps).container("keeper", "pause"));
    daemon.wait_logged("client", "container=app", "bequeathed");
    daemon.wait_logged("other", "container=app", "done");
    // The child's copy of the socket was the last one.
    eventually("the connection is over", seconds(10), || {
        let closed = [("pod", "client"), ("reason", "closed")];
        (daemon.metrics().sum("podscope_tcp_closes_total", &closed) == 1.0).then_some(())
    });
    let states = |daemon: &Daemon, pod| {
        let metrics = daemon.metrics();
        ["established", "close_wait", "closing"]
            .map(|state| metrics.sum("podscope_tcp_connections", &[("pod", pod), ("state", state)]))
    };
    eventually("the server sees who has closed", seconds(10), || {
        (states(&daemon, "server") == [10.0, 1.0, 0.0]).then_some(())
    });

    // Thirty connections are made, and ten lose their process.
    let processes = ["client", "other"].map(|pod| daemon.pid_of(&daemon.pod(pod), "app"));
    daemon.kill();
    go(processes[0]);
    kill(processes[1], Signal::SIGKILL).unwrap();
    thread::sleep(seconds(1));
    daemon.restart();
    daemon.wait_logged("client", "container=app", "done");

    eventually("the next daemon knows all of them", seconds(10), || {
        let seen = [states(&daemon, "server"), states(&daemon, "client"), states(&daemon, "other")];
        (seen == [[30.0, 11.0, 0.0], [30.0, 0.0, 0.0], [0.0; 3]]).then_some(())
    });
    agree(&daemon, &["server", "client", "other"]);

    kill(processes[0], Signal::SIGKILL).unwrap();
    eventually("none is established", seconds(10), || {
        (states(&daemon, "server") == [0.0, 41.0, 0.0]).then_some(())
    });
    kill(daemon.pid_of(&daemon.pod("server"), "app"), Signal::SIGKILL).unwrap();
    eventually("none is left", seconds(10), || {
        (states(&daemon, "server") == [0.0; 3]).then_some(())
    });
    daemon.stop();
}

/// Connects that fail before their first packet are counted once, by what the call returns; all others by
/// what becomes of the connection, whatever the program asks and how often.
#[test]
fn tcp_connects_that_send_nothing_are_counted_once() {
    let daemon = Daemon::start(&[]);
    let address = serve(&daemon, &[("app", "hoard 7001")]);
    let unsent = |how: &str, peers: &[(&str, u32)]| {
        let steps = peers.iter().map(|(peer, count)| format!("attempt {how} {peer} {count} , "));
        steps.collect::<String>()
    };
    let mut steps = "wait-for /go , ".to_owned();
    for how in ["blocking", "nonblocking"] {
        steps += &unsent(how, &NO_ROUTE);
        steps += &unsent(how, &[("203.0.113.1:7", 3), ("192.0.2.1:7", 2)]);
    }
    // None of these is to be counted for want of a route.
    steps += &unsent("udp", &NO_ROUTE);
    steps += &format!("dial {address}:7001 2 , ");
    for how in ["blocking", "nonblocking"] {
        steps += &unsent(how, &[(&format!("{address}:7001"), 3)]);
    }
    steps += "print narrow , wait-for /wide , ";
    // And these are counted when they end, not when the program hears of it.
    steps += &unsent("blocking", &[(&format!("{address}:9"), 2)]);
    for peer in [format!("{address}:9"), format!("{address}:7001")] {
        steps += &unsent("again", &[(&peer, 4)]);
    }
    steps += "attempt again 10.77.0.250:7 1 , attempt mptcp [2001:db8::1]:7 1 , print done , pause";
    daemon.run(pod("client").container("app", &steps));
    daemon.wait_ready("client");
    let client = infra(&daemon, "client");
    let process = daemon.pid_of(&daemon.pod("client"), "app");
    inside(client, || {
        for route in
            ["unreachable 198.51.100.0/24", "prohibit 203.0.113.0/24", "blackhole 192.0.2.0/24"]
        {
            let words = ["route", "add"].into_iter().chain(route.split_whitespace());
            program::run(Command::new("ip").args(words), seconds(10)).success();
        }
        fs::write(PORTS, "61000 61001").unwrap();
    });
    go(process);
    daemon.wait_logged("client", "", "narrow");
    inside(client, || fs::write(PORTS, "32768 60999").unwrap());
    fs::write(format!("/proc/{process}/root/wide"), "").unwrap();
    let log = daemon.wait_logged("client", "", "done");

    let mut seen = Seen::new(&daemon, "client");
    let connects = |seen: &Seen<'_>, result| seen.sum("connects_total", &[("result", result)]);
    eventually("all have ended", seconds(10), || {
        seen = Seen::new(&daemon, "client");
        (connects(&seen, "refused") == 6.0).then_some(())
    });
    // That of MPTCP among them, if the kernel has it.
    let mptcp = log.contains("attempt mptcp: Err(ENETUNREACH)");
    let no_route: u32 = NO_ROUTE.iter().map(|(_, count)| count).sum();
    let no_route = f64::from(2 * no_route + u32::from(mptcp));
    // The network's word is the other one.
    assert_eq!(connects(&seen, "unreachable"), no_route + 1.0);
    assert_eq!(connects(&seen, "denied"), 6.0);
    assert_eq!(connects(&seen, "other"), 4.0);
    assert_eq!(connects(&seen, "no_port"), 6.0);
    assert_eq!(connects(&seen, "established"), 6.0);
    assert_eq!(seen.sum("connects_total", &[]), seen.kernel.count("ActiveOpens") + no_route + 16.0);
    assert_eq!(seen.kernel.count("AttemptFails"), 7.0);
    assert_eq!(seen.unbalanced(), None);

    // The last of them are remembered one by one.
    let path = "/apis/podscope.dev/v1/namespaces/default/pods/client/events?kind=connect_failure";
    let told = daemon.api("GET", path, None).body;
    for (error, address, count) in [
        ("EADDRNOTAVAIL", &*address, 6),
        ("ECONNREFUSED", &*address, 6),
        ("EHOSTUNREACH", "10.77.0.250", 1),
        ("ENETUNREACH", "2001:db8::1", usize::from(mptcp)),
    ] {
        let has = |line: &&str| {
            line.contains(&format!("\"{error}\"")) && line.contains(&format!("\"{address}\""))
        };
        assert_eq!(told.lines().filter(has).count(), count, "{error} of {address}: {told}");
    }
    daemon.stop();
}

/// Where a pod has no way to, and how often it is tried.
const NO_ROUTE: [(&str, u32); 4] = [
    ("224.0.0.1:7", 3),
    ("[::ffff:224.0.0.1]:7", 2),
    ("[2001:db8::1]:7", 3),
    ("198.51.100.1:7", 1),
];

/// The ports that connections begin from.
const PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";

#[test]
fn tcp_losses_agree_with_the_kernel() {
    let daemon = Daemon::start(&[]);
    let address = serve(&daemon, &[("app", "serve 7000"), ("hoard", "hoard 7001")]);
    let steps = format!(
        "wait-for /go , send-within {address}:7001 1500 , connect {address}:7009 , \
         send {address}:7000 1000000"
    );
    daemon.run(pod("client").container("app", &steps));
    // Nobody has this address.
    let steps = "connect 10.77.0.250:7 , print done , pause";
    daemon.run(pod("stray").container("app", steps));
    daemon.wait_ready("client");
    let [server, client] = ["server", "client"].map(|pod| infra(&daemon, pod));
    inside(client, || fs::write("/proc/sys/net/ipv4/tcp_syn_retries", "1").unwrap());
    // Handshakes pass, and what is longer does not.
    let long =
        ["tcp dport 7009", "ip length > 100 tcp dport 7000", "ip length > 100 tcp dport 7001"];
    drop_incoming(server, &long);
    go(daemon.pid_of(&daemon.pod("client"), "app"));

    daemon.wait_logged("client", "", "send-within: ETIMEDOUT");
    daemon.wait_logged("client", "", "connect: ETIMEDOUT");
    let timeouts = Kernel::read(client).count("TCPTimeouts");
    eventually("what is sent last is lost", seconds(20), || {
        (Kernel::read(client).count("TCPTimeouts") >= timeouts + 2.0).then_some(())
    });
    drop_no_more(server);
    daemon.wait_logged("client", "", "sent 1000000");
    let stray = daemon.wait_logged("stray", "", "done");
    assert_eq!(stray, "connect: EHOSTUNREACH\ndone\n");

    let pods = ["server", "client", "stray"];
    let [server, client, stray] = &agree(&daemon, &pods)[..] else { unreachable!() };
    assert_eq!(client.sum("connects_total", &[("result", "timed_out")]), 1.0);
    assert_eq!(stray.sum("connects_total", &[("result", "unreachable")]), 1.0);
    assert_eq!(client.sum("closes_total", &[("reason", "timed_out")]), 1.0);
    assert_eq!(client.kernel.count("EstabResets"), 1.0);
    assert_eq!(client.sum("timeouts_total", &[]), client.kernel.count("TCPTimeouts"));
    let again = |segment| client.sum("retransmits_total", &[("segment", segment)]);
    assert_eq!(again("syn"), client.kernel.count("TCPSynRetrans"));
    assert!(
        again("syn") >= 1.0 && again("data") >= 3.0,
        "{}",
        client.metrics.about("podscope_tcp_re")
    );
    assert_eq!(server.sum("retransmits_total", &[]), 0.0);
    daemon.stop();
}

#[test]
fn tcp_answers_that_are_lost_count_for_the_server() {
    let daemon = Daemon::start(&[]);
    let address = serve(&daemon, &[("app", "greet 7000 hello")]);
    let steps = format!("wait-for /go , connect {address}:7000 , print done , pause");
    daemon.run(pod("client").container("app", &steps));
    daemon.wait_ready("client");
    let [server, client] = ["server", "client"].map(|pod| infra(&daemon, pod));
    drop_incoming(client, &["tcp sport 7000"]);
    go(daemon.pid_of(&daemon.pod("client"), "app"));
    eventually("an answer is sent again", seconds(20), || {
        (Kernel::read(server).count("RetransSegs") >= 2.0).then_some(())
    });
    drop_no_more(client);
    daemon.wait_logged("client", "", "done");

    // Each answer that gets through after all is acknowledged, and for each acknowledgement that comes
    // before the first is done with the kernel counts a connection, of which it keeps one.
    let seen = agree_but(&daemon, &["server", "client"], "PassiveOpens");
    let [server, client] = &seen[..] else { unreachable!() };
    let answers = server.sum("retransmits_total", &[("segment", "syn_ack")]);
    assert_eq!(answers, server.kernel.count("TCPSynRetrans"));
    assert!(answers >= 2.0);
    assert!(client.sum("retransmits_total", &[("segment", "syn")]) >= 1.0);
    assert_eq!(server.sum("accepts_total", &[]), 1.0);
    assert!(server.kernel.count("PassiveOpens") >= 1.0);
    daemon.stop();
}

#[test]
fn tcp_round_trips_are_what_the_kernel_tells_the_program() {
    const PINGS: u32 = 50;
    let daemon = Daemon::start(&[]);
    let address = serve(&daemon, &[("app", "echo 7000")]);
    let steps = format!("measure {address}:7000 {PINGS} , pause");
    daemon.run(pod("client").container("app", &steps));
    let told = daemon.wait_logged("client", "", "measured");
    let told: Vec<f64> =
        told.split_whitespace().skip(1).map(|number| number.parse().unwrap()).collect();
    let [sum, first, last, least] = told[..] else { panic!("{told:?}") };
    let seen = Seen::new(&daemon, "client");
    let near = |ours: f64, micros: f64| (ours * 1e6 - micros).abs() < 0.5;
    assert_eq!(seen.sum("rtt_seconds_count", &[]), f64::from(PINGS) + 2.0);
    let ours = ["rtt_seconds_sum", "min_rtt_seconds_sum"].map(|name| seen.sum(name, &[]));
    // Before Linux 6.10 each round trip tells of those before it.
    assert!(near(ours[0], sum) || near(ours[0], sum + first - last), "{ours:?} {told:?}");
    assert!(near(ours[1], least), "{ours:?} {told:?}");
    assert_eq!(seen.sum("min_rtt_seconds_count", &[]), 1.0);
    daemon.stop();
}

#[test]
fn tcp_probes_tell_what_many_short_connections_cost() {
    let count = if pod_tests::in_vm() { 200 } else { 10_000 };
    let daemon = Daemon::start(&["--probe-timing=always"]);
    let mut server =
        Command::new(binary("workload")).args(["greet", "7100", "hello"]).spawn().unwrap();
    let fetch = |port: u32| format!("fetch-many 127.0.0.1:{port} {count}");
    let mut outside = Command::new(binary("workload"));
    outside.args(["wait-for-listener", "7100", ","]).args(fetch(7100).split_whitespace());
    let outside = microseconds(&program::run(&mut outside, seconds(60)).success());
    program::end(&mut server);

    let before = daemon.metrics();
    let steps = format!("wait-for-listener 7101 , {}", fetch(7101));
    let inside = pod("inside").with("hostNetwork", true).container("server", "greet 7101 hello");
    daemon.run(inside.container("client", &steps));
    let inside = microseconds(&daemon.wait_logged("inside", "container=client", "fetched"));
    let after = daemon.metrics();
    let each = |micros: f64| micros / f64::from(count);
    println!(
        "COST connection: {:.1} us outside pods, {:.1} us in a pod",
        each(outside),
        each(inside)
    );
    for program in ["tcp", "net_ingress", "net_egress"] {
        let difference = |name: &str| {
            let labels = [("program", program)];
            after.one(name, &labels) - before.one(name, &labels)
        };
        let runs = difference("podscope_bpf_program_runs_total");
        let nanos = difference("podscope_bpf_program_seconds_total") * 1e9;
        let (each_run, runs) = (nanos / runs, runs / f64::from(count));
        println!("COST {program}: {each_run:.0} ns, {runs:.1} runs for a connection's two ends");
    }
    assert_eq!(after.sum("podscope_tcp_accepts_total", &[("pod", "inside")]), f64::from(count));
    daemon.stop();
}

/// What the workload says that it took.
fn microseconds(output: &str) -> f64 {
    let words: Vec<&str> = output.split_whitespace().collect();
    words[words.len() - 2].parse().unwrap()
}

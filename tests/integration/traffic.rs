//! Packets, name servers and what the kernel drops, counted exactly.

use std::{fs, net::UdpSocket, process::Command, thread};

use pod_tests::{
    Daemon, Metrics, eventually,
    manifest::pod,
    metrics::number,
    netns::{infra, kernel_count},
    program, seconds, skip,
};
use serde_json::Value;

/// Bytes of the headers of a datagram: IPv4 and UDP.
const HEADERS: u32 = 28;

/// Metrics of one container, by labels beside its name.
struct Of<'a>(&'a Metrics, &'a str, &'a str);

impl Of<'_> {
    fn sum(&self, metric: &str, labels: &[(&str, &str)]) -> f64 {
        let of = [&[("pod", self.1), ("container", self.2)], labels].concat();
        self.0.sum(metric, &of)
    }

    /// Packets and bytes by direction, receive before transmit.
    fn traffic(&self, scope: &str) -> [(f64, f64); 2] {
        ["receive", "transmit"].map(|direction| {
            let labels = [("direction", direction), ("scope", scope), ("family", "ipv4")];
            let sum = |name: &str| self.sum(name, &labels);
            assert_eq!(
                sum("podscope_network_packets_total"),
                sum("podscope_network_segments_total"),
                "no packet is so large"
            );
            (sum("podscope_network_packets_total"), sum("podscope_network_bytes_total"))
        })
    }
}

/// What so many datagrams of so many bytes are, packets and bytes.
fn datagrams(count: u32, bytes: u32) -> (f64, f64) {
    (f64::from(count), f64::from(count * (bytes + HEADERS)))
}

fn address(pod: &Value) -> &str {
    pod["status"]["podIP"].as_str().unwrap()
}

/// Bytes and packets that an interface of a pod has sent.
fn sent(daemon: &Daemon, pod: &Value, interface: &str) -> (u64, u64) {
    let table = fs::read_to_string(format!("/proc/{}/net/dev", daemon.pid_of(pod, "_infra")));
    let table = table.unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{interface}:")));
    let numbers: Vec<u64> =
        line.unwrap().split_whitespace().map(|word| word.parse().unwrap()).collect();
    (numbers[8], numbers[9])
}

/// An interface of the node's with an address, for as long as a test runs.
struct Interface(&'static str);

impl Interface {
    /// `None` if there is no program to make it.
    fn make(name: &'static str, address: &str) -> Option<Self> {
        program::find("ip")?;
        let made = Self(name);
        made.ip(&["link", "add", name, "type", "bridge"]);
        made.ip(&["address", "add", address, "dev", name]);
        made.ip(&["link", "set", name, "up"]);
        Some(made)
    }

    fn ip(&self, arguments: &[&str]) {
        program::run(Command::new("ip").args(arguments), seconds(10));
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        self.ip(&["link", "delete", self.0]);
    }
}

#[test]
fn traffic_is_told_apart_by_who_is_at_the_other_end() {
    let daemon = Daemon::start(&[]);
    // Of a range that is for tests of networks, and of which nothing leaves this node.
    let interface = Interface::make("ps-traffic", "198.18.77.1/24");
    daemon.run(pod("server").container("app", "udp-echo 7000"));
    daemon.wait_logged("server", "", "listening");
    let server = daemon.pod("server");
    let node = UdpSocket::bind("10.77.0.1:0").unwrap();
    let port = node.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = node.recv_from(&mut buffer) {
            node.send_to(&buffer[..length], from).unwrap();
        }
    });
    let steps = format!(
        "wait-for /go , udp-call {}:7000 10 100 , udp-call 127.0.0.1:7001 7 200 , \
         udp-call 10.77.0.1:{port} 5 300 , udp-call [::1]:7002 3 50 , print done , pause",
        address(&server)
    );
    let client = pod("client")
        .container("app", &steps)
        .container("local", "udp-echo 7001")
        .container("local6", "udp-echo6 7002");
    daemon.run(client);
    let client = daemon.wait_ready("client");
    for container in ["local", "local6"] {
        daemon.wait_logged("client", &format!("container={container}"), "listening");
    }
    let before = sent(&daemon, &client, "lo");
    let go = ["exec", "client", "-c", "app", "--", "/bin/workload", "touch", "/go"];
    daemon.podctl(&go).success();
    daemon.wait_logged("client", "container=app", "done");
    let after = sent(&daemon, &client, "lo");

    let metrics = daemon.metrics();
    let app = Of(&metrics, "client", "app");
    assert_eq!(app.traffic("pod"), [datagrams(10, 100); 2]);
    assert_eq!(app.traffic("loopback"), [datagrams(7, 200); 2]);
    assert_eq!(app.traffic("node"), [datagrams(5, 300); 2]);
    assert_eq!(app.traffic("external"), [(0.0, 0.0); 2]);
    assert_eq!(Of(&metrics, "client", "local").traffic("loopback"), [datagrams(7, 200); 2]);
    assert_eq!(Of(&metrics, "server", "app").traffic("pod"), [datagrams(10, 100); 2]);
    let ipv6 = [("family", "ipv6"), ("scope", "loopback"), ("direction", "receive")];
    // IPv6 has a header of 40 bytes.
    assert_eq!(app.sum("podscope_network_bytes_total", &ipv6), 3.0 * 98.0);
    assert_eq!(app.sum("podscope_network_packets_total", &[("family", "ipv6")]), 6.0);
    let udp = [("direction", "transmit")];
    assert_eq!(app.sum("podscope_udp_datagrams_total", &udp), 25.0);
    assert_eq!(
        app.sum("podscope_udp_bytes_total", &udp),
        app.sum("podscope_network_bytes_total", &udp)
    );

    // The interface `lo` counts the same, of all containers, and without a header of its own.
    let labels = [("pod", "client"), ("scope", "loopback"), ("direction", "transmit")];
    let sum = |name: &str| metrics.sum(name, &labels);
    let counted = (sum("podscope_network_bytes_total"), sum("podscope_network_packets_total"));
    let seen = ((after.0 - before.0) as f64, (after.1 - before.1) as f64);
    assert_eq!(counted, seen);

    // Addresses that the node gets later are its own, too; their neighbours' are not.
    match interface {
        None => skip("no program `ip` to give the node another address"),
        Some(_interface) => {
            let send = |address: &str, count: &str| {
                let send = ["/bin/workload", "udp-send", address, count, "100"];
                let exec = ["exec", "client", "-c", "app", "--"];
                daemon.podctl(&[&exec[..], &send[..]].concat()).success();
                let metrics = daemon.metrics();
                let app = Of(&metrics, "client", "app");
                ["node", "external"].map(|scope| app.traffic(scope)[1])
            };
            let [_, (packets, bytes)] = eventually("the address is known", seconds(10), || {
                let [node, external] = send("198.18.77.1:9", "1");
                (node.0 > 5.0).then_some([node, external])
            });
            let [_, after] = send("198.18.77.2:9", "6");
            assert_eq!((after.0 - packets, after.1 - bytes), datagrams(6, 100));
        }
    }
    daemon.stop();
}

#[test]
fn every_dns_query_is_counted_with_its_answer() {
    const DELAY: u32 = 50;
    let daemon = Daemon::start(&[]);
    daemon.run(pod("names").container("app", &format!("dns-serve {DELAY}")));
    daemon.wait_logged("names", "", "listening");
    let names = daemon.pod("names");
    let server = address(&names);
    let asks = [
        ("udp", "noerror", "0"),
        ("udp", "nxdomain", "3"),
        ("udp", "servfail", "2"),
        ("udp", "refused", "5"),
        ("udp", "notimp", "4"),
        ("udp", "silent", "EAGAIN"),
        ("udp", "noerror", "0"),
        ("tcp", "noerror", "0"),
        ("tcp", "nxdomain", "3"),
        ("tcp-in-two", "noerror", "0"),
        ("tcp-in-two", "servfail", "2"),
    ];
    let steps = asks.map(|(protocol, name, _)| format!("dns-ask {server} {protocol} {name}"));
    let asker = pod("asker").container("app", &format!("{} , exit 0", steps.join(" , ")));
    let output = daemon.output_of(asker, "asker");
    let expected = asks.map(|(_, name, code)| format!("dns {name}: {code}\n"));
    assert_eq!(output, expected.concat());

    let metrics = daemon.metrics();
    let asker = Of(&metrics, "asker", "app");
    assert_eq!(asker.sum("podscope_dns_queries_total", &[]), 11.0);
    let answers = ["noerror", "nxdomain", "servfail", "refused", "other"]
        .map(|outcome| asker.sum("podscope_dns_responses_total", &[("outcome", outcome)]));
    assert_eq!(answers, [4.0, 2.0, 2.0, 1.0, 1.0]);
    assert_eq!(asker.sum("podscope_dns_duration_seconds_count", &[]), 10.0);
    let seconds = asker.sum("podscope_dns_duration_seconds_sum", &[]);
    let least = f64::from(10 * DELAY) / 1e3;
    println!("10 answers took {seconds} s, of which the server slept {least}");
    // Where instructions are emulated, anything may take long.
    let most = if pod_tests::in_vm() { f64::INFINITY } else { 2.0 * least };
    assert!((least..most).contains(&seconds), "{seconds}");
    // Who answers asks nothing.
    let names = Of(&metrics, "names", "app");
    assert_eq!(names.sum("podscope_dns_queries_total", &[]), 0.0);
    assert_eq!(names.sum("podscope_dns_responses_total", &[]), 0.0);
    daemon.stop();
}

#[test]
fn what_a_pod_cannot_take_is_counted_exactly() {
    const COUNT: u32 = 2000;
    let daemon = Daemon::start(&[]);
    let steps = format!("udp-overflow {COUNT} , listen-overflow 4 , print done , pause");
    daemon.run(pod("full").container("app", &steps));
    daemon.run(pod("idle").container("app", "pause"));
    daemon.wait_logged("full", "", "done");
    daemon.wait_ready("full");
    daemon.wait_ready("idle");
    let infra = infra(&daemon, "full");
    let log = daemon.logs("full", "");
    let kept = log.lines().find_map(|line| line.strip_prefix("kept ")?.parse::<u32>().ok());
    let lost = f64::from(COUNT - kept.unwrap());
    assert!(lost > 0.0, "{log}");
    // Connections that are tried again may still be counted.
    eventually("the kernel and the metrics agree", seconds(20), || {
        let metrics = daemon.metrics();
        let of = |pod: &str, name: &str| metrics.one(name, &[("pod", pod)]);
        let expected = [
            ("podscope_pod_listen_overflows_total", ("netstat", "TcpExt:", "ListenOverflows")),
            ("podscope_pod_listen_drops_total", ("netstat", "TcpExt:", "ListenDrops")),
            ("podscope_pod_udp_receive_errors_total", ("snmp", "Udp:", "InErrors")),
            ("podscope_pod_udp_receive_buffer_errors_total", ("snmp", "Udp:", "RcvbufErrors")),
        ];
        for (name, _) in expected {
            assert_eq!(of("idle", name), 0.0, "{name}");
            assert!(of("full", name) > 0.0, "{name}");
        }
        assert_eq!(of("full", "podscope_pod_udp_receive_buffer_errors_total"), lost);
        let agree =
            |&(name, entry): &(&str, _)| number(of("full", name)) == kernel_count(infra, entry);
        expected.iter().all(agree).then_some(())
    });
    // They do not go with the pod's network namespace.
    let before = daemon.metrics();
    daemon.delete("full");
    let after = daemon.metrics();
    for name in ["listen_overflows", "listen_drops", "udp_receive_errors"] {
        let counted = before.one(&format!("podscope_pod_{name}_total"), &[("pod", "full")]);
        let completed = format!("podscope_completed_{name}_total");
        assert_eq!(after.sum(&completed, &[]) - before.sum(&completed, &[]), counted, "{name}");
    }
    daemon.stop();
}

//! What the kernel drops of a pod, by its own reasons, is what it counts itself in the pod's network
//! namespace.

use std::{
    io::ErrorKind,
    net::{TcpStream, UdpSocket},
    process::Command,
};

use nix::unistd::Pid;
use pod_tests::{
    Daemon, Metrics,
    manifest::pod,
    metrics::number,
    netns::{infra, inside, kernel_count},
    program, seconds, skip,
};

const OF_POD: &str = "podscope_pod_dropped_packets_total";
const OF_CONTAINER: &str = "podscope_network_dropped_packets_total";

/// Whether this kernel tells why it drops packets; if not, says so aloud.
fn is_told(daemon: &Daemon) -> bool {
    let metrics = daemon.metrics();
    let probe = [("probe", "packet_drop")];
    let status = metrics.series("podscope_probe_info", &probe).next().unwrap();
    let is_told = status.labels["mode"] == "tracepoint";
    if !is_told {
        skip(&status.labels["reason"]);
        assert!(!metrics.text.contains("dropped_packets"), "absent, not 0");
    }
    is_told
}

/// Packets of a pod that were dropped for a reason, and those of them that are of its containers'
/// sockets.
fn drops(metrics: &Metrics, pod: &str, reason: &str) -> (u64, u64) {
    let labels = [("pod", pod), ("reason", reason)];
    let sum = |name| metrics.series(name, &labels).map(|sample| number(sample.value)).sum();
    (sum(OF_POD), sum(OF_CONTAINER))
}

/// Waits until so many were dropped.
#[track_caller]
fn wait_dropped(daemon: &Daemon, pod: &str, reason: &str, expected: (u64, u64)) {
    let mut last = Metrics::parse(String::new());
    let is_so = pod_tests::within(seconds(5), || {
        last = daemon.metrics();
        drops(&last, pod, reason) == expected
    });
    let (pods, containers) = (last.about(OF_POD), last.about(OF_CONTAINER));
    assert!(is_so, "{pod}, {reason}: {expected:?} is not among\n{pods}\n{containers}");
}

/// Runs `nft` in the network namespace of a process.
#[track_caller]
fn nft(pid: Pid, words: &str) -> String {
    let words = words.to_owned();
    inside(pid, move || {
        program::run(Command::new("nft").args(words.split_whitespace()), seconds(10)).success()
    })
}

/// Sends datagrams from the node.
fn send(address: &str, port: u16, count: u32) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    for _ in 0..count {
        socket.send_to(&[b'x'; 100], (address, port)).unwrap();
    }
}

fn address(daemon: &Daemon, pod: &str) -> String {
    daemon.wait_ready(pod)["status"]["podIP"].as_str().unwrap().to_owned()
}

#[test]
fn drops_for_want_of_room_are_the_containers_own() {
    const COUNT: u64 = 2000;
    let daemon = Daemon::start(&[]);
    let steps = format!("udp-overflow {COUNT} , print done , pause");
    daemon.run(pod("full").container("app", &steps).container("other", "pause"));
    // It has the node's network, and its socket is its own all the same.
    daemon.run(pod("host").with("hostNetwork", true).container("app", &steps));
    for pod in ["full", "host"] {
        daemon.wait_logged(pod, "container=app", "done");
    }
    if is_told(&daemon) {
        for pod in ["full", "host"] {
            let log = daemon.logs(pod, "container=app");
            let kept = log.lines().find_map(|line| line.strip_prefix("kept ")?.parse().ok());
            let lost = COUNT - kept.unwrap_or(COUNT);
            assert!(lost > 0, "{log}");
            wait_dropped(&daemon, pod, "socket_rcvbuff", (lost, lost));
        }
        let labels = [("pod", "full"), ("container", "app"), ("reason", "socket_rcvbuff")];
        let of_app = number(daemon.metrics().one(OF_CONTAINER, &labels));
        assert_eq!(of_app, kernel_count(infra(&daemon, "full"), ("snmp", "Udp:", "RcvbufErrors")));
    }
    daemon.stop();
}

#[test]
fn drops_without_a_socket_are_the_pods() {
    let mut daemon = Daemon::start(&[]);
    daemon.run(pod("shut").container("app", "pause"));
    daemon.run(pod("idle").container("app", "pause"));
    let shut = address(&daemon, "shut");
    if is_told(&daemon) {
        let connect = || {
            let refused = TcpStream::connect((shut.as_str(), 9)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        };
        send(&shut, 9, 7);
        (0..5).for_each(|_| connect());
        wait_dropped(&daemon, "shut", "no_socket", (12, 0));
        let kernels = |entry| kernel_count(infra(&daemon, "shut"), entry);
        assert_eq!(kernels(("snmp", "Udp:", "NoPorts")) + kernels(("snmp", "Tcp:", "OutRsts")), 12);

        // It is counted while no daemon looks, and the next one goes on.
        daemon.kill();
        send(&shut, 9, 3);
        daemon.restart();
        connect();
        wait_dropped(&daemon, "shut", "no_socket", (16, 0));
        assert_eq!(drops(&daemon.metrics(), "idle", "no_socket"), (0, 0));

        // They outlive the pod.
        daemon.delete("shut");
        let completed = "podscope_completed_dropped_packets_total";
        assert_eq!(daemon.metrics().one(completed, &[("reason", "no_socket")]), 16.0);
    }
    daemon.stop();
}

#[test]
fn drops_by_a_packet_filter_are_counted_exactly() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("walled").container("app", "udp-echo 7000"));
    daemon.wait_logged("walled", "", "listening");
    let walled = address(&daemon, "walled");
    if is_told(&daemon) {
        let infra = infra(&daemon, "walled");
        nft(infra, "add table ip wall");
        for (hook, port) in [("input", 7000), ("output", 7001)] {
            nft(
                infra,
                &format!("add chain ip wall {hook} {{ type filter hook {hook} priority 0 ; }}"),
            );
            nft(infra, &format!("add rule ip wall {hook} udp dport {port} counter drop"));
        }
        send(&walled, 7000, 11);
        wait_dropped(&daemon, "walled", "netfilter_drop", (11, 0));
        for _ in 0..2 {
            let send = ["/bin/workload", "udp-send", "198.18.77.2:7001", "1", "100"];
            // That is told to who sends it.
            let said = daemon.podctl(&[&["exec", "walled", "--"], &send[..]].concat());
            assert!(said.stdout.contains("not permitted"), "{said:?}");
        }
        wait_dropped(&daemon, "walled", "netfilter_drop", (13, 2));
        let table = nft(infra, "list table ip wall");
        for counted in ["counter packets 11 ", "counter packets 2 "] {
            assert!(table.contains(counted), "{table}");
        }
    }
    daemon.stop();
}

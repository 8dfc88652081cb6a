//! Pods on the network.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use pod_tests::{Daemon, eventually, manifest::pod, met_limit, policy::forbid_connects, seconds};

#[test]
fn a_pod_is_reached_by_its_address() {
    let daemon = Daemon::start(&[]);
    let web = pod("web")
        .container("server", "greet 8080 welcome")
        .container("sidecar", "wait-for-listener 8080 , connect 127.0.0.1:8080 , pause");
    daemon.run(web);
    daemon.wait_logged("web", "container=server", "listening");
    let address = daemon.pod("web")["status"]["podIP"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.77."), "{address}");

    // From the host.
    let mut answer = String::new();
    let mut stream = TcpStream::connect((address.as_str(), 8080)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "welcome");

    // Whoever gets the address next is found at the same link.
    let octets = address.parse::<Ipv4Addr>().unwrap().octets();
    let expected = octets.map(|octet| format!("{octet:02x}")).join(":");
    let cat = ["exec", "web", "-c", "server", "--", "/bin/workload", "cat"];
    let link = daemon.podctl(&[&cat[..], &["/sys/class/net/eth0/address"]].concat()).success();
    assert_eq!(link, format!("0a:58:{expected}\n"));

    // From another container of the pod on localhost, and from another pod.
    daemon.wait_logged("web", "container=sidecar", "connect: ok");
    let steps = format!("connect {address}:8080 , connect {address}:8081 , exit 0");
    let output = daemon.output_of(pod("client").container("app", &steps), "client");
    assert_eq!(output, "connect: ok\nconnect: ECONNREFUSED\n");

    // The containers of a pod are told apart.
    let metrics = daemon.metrics();
    let accepts = |container| {
        metrics.one("podscope_tcp_accepts_total", &[("pod", "web"), ("container", container)])
    };
    assert_eq!(accepts("server"), 3.0);
    assert_eq!(accepts("sidecar"), 0.0);
    let connects = |container| {
        metrics.sum("podscope_tcp_connects_total", &[("pod", "web"), ("container", container)])
    };
    assert_eq!(connects("server"), 0.0);
    assert_eq!(connects("sidecar"), 1.0);
    daemon.stop();
}

#[test]
fn a_pod_on_the_hosts_network_is_the_host() {
    let daemon = Daemon::start(&[]);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = pod("host").with("hostNetwork", true);
    daemon.run(host.container("app", &format!("greet {port} host")));
    daemon.wait_logged("host", "", "listening");
    let mut answer = String::new();
    TcpStream::connect(("127.0.0.1", port)).unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "host");
    eventually("the accept is counted", seconds(5), || {
        let accepts = daemon.metrics().one("podscope_tcp_accepts_total", &[("pod", "host")]);
        (accepts == 1.0).then_some(())
    });
    daemon.stop();
}

/// Connections that the kernel keeps track of in this network namespace.
fn tracked() -> u64 {
    let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
    count.trim().parse().unwrap()
}

#[test]
fn a_pod_does_not_take_all_connections_of_the_node() {
    let daemon = Daemon::start(&["--pod-connections=100"]);
    assert_eq!(daemon.metrics().one("podscope_pod_connections_limit", &[]), 100.0);
    let before = tracked();
    daemon.run(pod("greedy").container("app", "flows 10.77.0.1 20000 300 , print done , pause"));
    daemon.wait_logged("greedy", "", "done");
    let taken = tracked().saturating_sub(before);
    // With the few that the test itself has; how many were refused is counted below.
    assert!(taken < 150, "{taken} connections");

    let listener = TcpListener::bind("10.77.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.accept().unwrap().0.write_all(b"welcome").unwrap());
    let modest = pod("modest").container("app", &format!("fetch 10.77.0.1:{port}"));
    assert_eq!(daemon.output_of(modest, "modest"), "fetch: welcome\n");

    let refused =
        |pod| daemon.metrics().one("podscope_pod_connections_refused_total", &[("pod", pod)]);
    let refused_to_greedy = eventually("what was refused is counted", seconds(20), || {
        let refused = refused("greedy");
        (refused >= 200.0).then_some(refused)
    });
    assert_eq!(refused_to_greedy, 200.0);
    assert_eq!(refused("modest"), 0.0);
    daemon.wait_for("greedy", "told of its limit", |pod| met_limit(pod, "ConnectionsLimit"));
    let events = daemon.podctl(&["get", "events"]).stdout;
    assert!(events.contains("The pod has 100 connections, as many as it may"), "{events}");
    for (name, told) in [("greedy", true), ("modest", false)] {
        let shown = daemon.podctl(&["describe", "pod", name]).stdout;
        assert_eq!(shown.contains("The pod has 100 connections"), told, "{shown}");
    }
    daemon.stop();
}

/// The kernel lets the program have a say before TCP hears of the attempt.
#[test]
fn a_connect_that_another_program_forbids_is_denied() {
    let daemon = Daemon::start(&[]);
    let steps = "wait-for /go , attempt blocking 127.0.0.1:7 3 , attempt nonblocking 127.0.0.1:7 2 , \
                 attempt udp 127.0.0.1:7 1 , attempt blocking [::1]:7 1 , print done , pause";
    daemon.run(pod("fenced").container("app", steps));
    let fenced = daemon.wait_ready("fenced");
    let process = daemon.pid_of(&fenced, "app");
    forbid_connects(&daemon.cgroup(&fenced, "app"));
    fs::write(format!("/proc/{process}/root/go"), "").unwrap();
    let log = daemon.wait_logged("fenced", "", "done");
    assert!(log.contains("attempt blocking: Err(EPERM)"), "{log}");

    let connects = |result| {
        let labels = [("pod", "fenced"), ("result", result)];
        daemon.metrics().one("podscope_tcp_connects_total", &labels)
    };
    assert_eq!((connects("denied"), connects("refused")), (5.0, 1.0), "{log}");
    let path = "/apis/podscope.dev/v1/namespaces/default/pods/fenced/events?kind=connect_failure";
    let told = daemon.api("GET", path, None).body;
    assert_eq!(told.matches("\"EPERM\"").count(), 5, "{told}");
    daemon.stop();
}

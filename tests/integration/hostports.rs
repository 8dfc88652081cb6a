//! Ports of the node that lead to pods.

use std::{
    io::Read as _,
    net::{TcpListener, TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

use pod_tests::{Daemon, eventually, in_vm, manifest::pod, program, seconds, skip};
use serde_json::{Value, json};

/// A port that nobody has right now.
fn free_port() -> u16 {
    TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

fn ports(list: Value) -> Value {
    json!({"ports": list})
}

/// What is told by whoever listens there, if anybody does.
pub(crate) fn fetch(address: &str) -> Option<String> {
    let address = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

#[test]
fn a_host_port_is_reached_from_everywhere_and_goes_with_its_pod() {
    let daemon = Daemon::start(&[]);
    let port = free_port();
    let list = json!([{"containerPort": 8080, "hostPort": port}]);
    daemon.run(
        pod("web")
            .container_with("server", "greet 8080 welcome", ports(list))
            .container("self", &format!("wait-for-listener 8080 , fetch 10.77.0.1:{port} , pause")),
    );
    daemon.wait_logged("web", "container=server", "listening");

    // From the node, by its address and by way of its loopback.
    assert_eq!(fetch(&format!("10.77.0.1:{port}")).as_deref(), Some("welcome"));
    assert_eq!(fetch(&format!("127.0.0.1:{port}")).as_deref(), Some("welcome"));
    // From the pod itself, and from another.
    let output = daemon.wait_logged("web", "container=self", "fetch");
    assert_eq!(output, "fetch: welcome\n");
    let steps = format!("fetch 10.77.0.1:{port}");
    let output = daemon.output_of(pod("other").container("app", &steps), "other");
    assert_eq!(output, "fetch: welcome\n");
    // The pod's own loopback is its own.
    let steps = format!("fetch 127.0.0.1:{port}");
    let output = daemon.output_of(pod("inner").container("app", &steps), "inner");
    assert_eq!(output, "fetch: ECONNREFUSED\n");

    // A second pod with the port waits, and gets it when the first is gone.
    let list = json!([{"containerPort": 8081, "hostPort": port}]);
    let second = pod("second").container_with("server", "greet 8081 second", ports(list));
    let refused = daemon.api(
        "POST",
        "/api/v1/namespaces/default/pods",
        Some(&second.clone().into_value(&daemon.image())),
    );
    daemon.delete("web");
    if refused.status != 201 {
        daemon.run(second);
    }
    daemon.wait_logged("second", "", "listening");
    eventually("the port leads to the second pod", seconds(5), || {
        (fetch(&format!("127.0.0.1:{port}"))? == "second").then_some(())
    });
    daemon.delete("second");
    assert_eq!(fetch(&format!("127.0.0.1:{port}")), None);
    assert_eq!(fetch(&format!("10.77.0.1:{port}")), None);
    daemon.stop();
}

#[test]
fn a_host_port_has_a_protocol_and_an_address() {
    let daemon = Daemon::start(&[]);
    let (tcp, udp) = (free_port(), free_port());
    let list = json!([
        {"containerPort": 8080, "hostPort": tcp, "hostIP": "127.0.0.1"},
        {"containerPort": 5353, "hostPort": udp, "protocol": "UDP"},
    ]);
    daemon.run(
        pod("both")
            .container_with("tcp", "greet 8080 local", ports(list))
            .container("udp", "udp-echo 5353"),
    );
    daemon.wait_logged("both", "container=tcp", "listening");
    daemon.wait_logged("both", "container=udp", "listening");
    assert_eq!(fetch(&format!("127.0.0.1:{tcp}")).as_deref(), Some("local"));
    assert_eq!(fetch(&format!("10.77.0.1:{tcp}")), None, "only on the loopback");
    assert_eq!(fetch(&format!("127.0.0.1:{udp}")), None, "only by UDP");

    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for address in ["10.77.0.1", "127.0.0.1"] {
        let mut answer = [0; 16];
        // Connected, so that an answer from another address would not count.
        socket.connect((address, udp)).unwrap();
        socket.send(b"hello").unwrap();
        let length = socket.recv(&mut answer).unwrap();
        assert_eq!(&answer[..length], b"hello");
    }
    daemon.stop();
}

#[test]
fn a_port_that_a_process_has_is_not_taken_from_it() {
    let daemon = Daemon::start(&[]);
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let list = json!([{"containerPort": 8080, "hostPort": port}]);
    daemon.run(pod("web").container_with("server", "greet 8080 welcome", ports(list)));
    daemon.wait_for("web", "waiting for its port", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["message"].as_str().is_some_and(|text| {
            text.contains(&format!("the host port {port}/tcp"))
                && text.contains("a process of the node listens on it")
        })
    });
    drop(listener);
    daemon.wait_logged("web", "", "listening");
    assert_eq!(fetch(&format!("127.0.0.1:{port}")).as_deref(), Some("welcome"));
    daemon.stop();
}

#[test]
fn a_killed_daemons_ports_lead_nowhere_after_the_next_start() {
    let mut daemon = Daemon::start(&[]);
    let port = free_port();
    let list = json!([{"containerPort": 8080, "hostPort": port}]);
    daemon.run(pod("web").container_with("server", "greet 8080 welcome", ports(list)));
    daemon.wait_logged("web", "", "listening");
    daemon.kill();
    // As long as nobody sweeps, what runs is reached.
    assert_eq!(fetch(&format!("127.0.0.1:{port}")).as_deref(), Some("welcome"));
    daemon.restart();
    if daemon.pod("web").is_null() {
        assert_eq!(fetch(&format!("127.0.0.1:{port}")), None);
    } else {
        assert_eq!(fetch(&format!("127.0.0.1:{port}")).as_deref(), Some("welcome"));
    }
    daemon.stop();
}

/// The bridge takes packets for 127.0.0.0/8 only as answers: a pod that sends some reaches nothing
/// that listens on the node's loopback.
#[test]
fn pods_do_not_reach_the_nodes_loopback() {
    if in_vm() {
        return skip("the VMs have no nsenter, ip and bash");
    }
    let daemon = Daemon::start(&[]);
    let port = free_port();
    let list = json!([{"containerPort": 8080, "hostPort": port}]);
    daemon.run(pod("web").container_with("server", "greet 8080 welcome", ports(list)));
    daemon.wait_logged("web", "", "listening");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let secret = listener.local_addr().unwrap().port();

    // In the pod's namespace, with the node's rights: worse than any pod.
    let pid = daemon.pid_of(&daemon.pod("web"), "server").to_string();
    let inside = |words: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &pid]).args(words);
        program::run(&mut command, seconds(20))
    };
    assert_eq!(
        inside(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet"]).code,
        0
    );
    assert_eq!(inside(&["ip", "addr", "del", "127.0.0.1/8", "dev", "lo"]).code, 0);
    assert_eq!(inside(&["ip", "route", "flush", "table", "local", "127.0.0.0/8"]).code, 0);
    let route = ["ip", "route", "add", "127.0.0.0/8", "via", "10.77.0.1", "dev", "eth0"];
    assert_eq!(inside(&route).code, 0);
    let probe = format!("exec 3<>/dev/tcp/127.0.0.1/{secret}");
    assert_ne!(inside(&["timeout", "2", "bash", "-c", &probe]).code, 0);
    assert!(listener.accept().is_err(), "a pod reached the node's loopback");

    // Nor does a neighbour of the node reach what is published there alone.
    let port = free_port();
    let list = json!([{"containerPort": 8080, "hostPort": port, "hostIP": "127.0.0.1"}]);
    daemon.run(pod("private").container_with("server", "greet 8080 private", ports(list)));
    daemon.wait_logged("private", "", "listening");
    assert_eq!(fetch(&format!("127.0.0.1:{port}")).as_deref(), Some("private"));
    let node = |words: &[&str]| {
        let output = program::run(Command::new("ip").args(words), seconds(20));
        assert_eq!(output.code, 0, "{}", output.stderr);
    };
    // It goes with the pod's namespace.
    let link = format!("nb{port}");
    node(&["link", "add", &link, "type", "veth", "peer", "name", "eth9", "netns", &pid]);
    node(&["addr", "add", "192.0.2.1/24", "dev", &link]);
    node(&["link", "set", &link, "up"]);
    assert_eq!(inside(&["ip", "addr", "add", "192.0.2.2/24", "dev", "eth9"]).code, 0);
    assert_eq!(inside(&["ip", "link", "set", "eth9", "up"]).code, 0);
    let route = ["ip", "route", "replace", "127.0.0.0/8", "via", "192.0.2.1", "dev", "eth9"];
    assert_eq!(inside(&route).code, 0);
    let probe = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
    assert_ne!(inside(&["timeout", "2", "bash", "-c", &probe]).code, 0);
    daemon.stop();
}

/// The table that has a text.
fn table_with(text: &str) -> Option<String> {
    let ruleset =
        program::run(Command::new("nft").args(["list", "ruleset"]), seconds(20)).success();
    let mut table = None;
    for line in ruleset.lines() {
        if let Some(name) = line.strip_prefix("table ip ") {
            table = Some(name.trim_end_matches(" {").to_owned());
        } else if line.contains(text) {
            return table;
        }
    }
    None
}

#[test]
fn rules_that_somebody_flushes_come_back() {
    let daemon = Daemon::start(&[]);
    let port = free_port();
    let list = json!([{"containerPort": 8080, "hostPort": port}]);
    daemon.run(pod("web").container_with("server", "greet 8080 welcome", ports(list)));
    daemon.wait_logged("web", "", "listening");
    let element = format!("tcp . {port} : ");
    let table = table_with(&element).expect("the port is published");
    let deleted = Command::new("nft").args(["delete", "table", "ip", &table]).status();
    assert!(deleted.unwrap().success());
    let address = format!("10.77.0.1:{port}");
    assert_eq!(fetch(&address), None);
    eventually("the port leads to the pod again", seconds(60), || {
        (fetch(&address)? == "welcome").then_some(())
    });
    assert_eq!(table_with(&element), Some(table));
    daemon.stop();
}

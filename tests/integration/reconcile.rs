//! Podscope's numbers against the kernel's own.

use std::{fs, path::Path};

use pod_tests::{
    Daemon, Metrics, eventually, in_vm,
    manifest::{mounts, pod},
    seconds, skip,
};
use serde_json::json;

/// Bytes that a client sends.
const BYTES: f64 = 1_000_000.0;

/// What may pass without belonging to a socket of a container: ARP, neighbour discovery, a last
/// acknowledgement.
const BYTES_BESIDE: f64 = 4096.0;
const PACKETS_BESIDE: f64 = 50.0;

fn difference(metrics: &Metrics, what: &str, pod: &str, direction: &str) -> f64 {
    let name = format!("podscope_reconcile_difference_network_{what}");
    metrics.one(&name, &[("pod", pod), ("direction", direction)])
}

#[test]
fn a_blind_probe_shows_as_a_difference() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("server").container("app", "serve 7000"));
    daemon.wait_logged("server", "", "listening");
    let server = daemon.pod("server");
    let address = server["status"]["podIP"].as_str().unwrap();
    let send = |name: &str| {
        let steps = format!("send {address}:7000 {BYTES}");
        daemon.run(pod(name).container("app", &steps));
        daemon.wait_logged(name, "", "sent");
    };

    send("first");
    eventually("what is counted is what passed", seconds(10), || {
        let metrics = daemon.metrics();
        let mut found = Vec::new();
        for pod in ["server", "first"] {
            for direction in ["receive", "transmit"] {
                let labels = [("pod", pod), ("direction", direction)];
                let own = metrics.sum("podscope_network_bytes_total", &labels);
                let bytes = difference(&metrics, "bytes", pod, direction);
                let packets = difference(&metrics, "packets", pod, direction);
                found.push((pod, direction, own, bytes, packets));
            }
        }
        println!("{found:?}");
        let is_small = |bytes: f64, packets: f64| {
            (0.0..BYTES_BESIDE).contains(&bytes) && (0.0..PACKETS_BESIDE).contains(&packets)
        };
        found.iter().all(|(.., bytes, packets)| is_small(*bytes, *packets)).then_some(())
    });

    // The program is detached behind the daemon's back.
    let uid = server["metadata"]["uid"].as_str().unwrap();
    let link = daemon.folder().join("bpf/pods").join(uid).join("net_ingress-app");
    fs::remove_file(&link).unwrap();
    send("second");
    let metrics = daemon.metrics();
    let missing = difference(&metrics, "bytes", "server", "receive");
    println!("{missing} bytes are missing");
    assert!(missing >= BYTES, "{missing}");
    assert!(difference(&metrics, "packets", "server", "receive") > 0.0);
    // The others see as before.
    assert!(difference(&metrics, "bytes", "server", "transmit") < BYTES_BESIDE);
    assert!(difference(&metrics, "bytes", "second", "transmit") < BYTES_BESIDE);
    for name in ["first", "second", "server"] {
        daemon.delete(name);
    }
    daemon.stop();
}

/// Detaches a program that is attached once for the node, behind the daemon's back.
fn detach(daemon: &Daemon, program: &str) {
    let objects = fs::read_dir(daemon.folder().join("bpf")).unwrap();
    let links = objects.map(|object| object.unwrap().path().join("links").join(program));
    let links: Vec<_> = links.filter(|link| link.exists()).collect();
    assert_eq!(links.len(), 1, "{program}");
    fs::remove_file(&links[0]).unwrap();
}

#[test]
fn processes_that_memory_has_ended_are_those_that_were_killed() {
    // It is not for other tests afterwards.
    let daemon = Daemon::start(&["--hold-seconds=600"]);
    let run = |name: &str| {
        let fields = json!({"resources": {"limits": {"memory": "16Mi"}}});
        daemon.run(pod(name).container_with("app", "hold-memory 67108864", fields));
        daemon.wait_over(name);
        let metrics = daemon.metrics();
        let killed = [("pod", name), ("event", "oom_kill")];
        let difference = "podscope_reconcile_difference_oom_kills";
        let found = (
            metrics.one("podscope_memory_events_total", &killed),
            metrics.one(difference, &[("pod", name)]),
        );
        println!("{name}: {} killed, difference {}", found.0, found.1);
        found
    };
    if !fs::read_to_string(daemon.cgroups().join("cgroup.controllers")).unwrap().contains("memory")
    {
        daemon.stop();
        return skip("cgroup v2 has no memory controller here");
    }
    let (killed, difference) = run("hungry");
    assert!(killed >= 1.0 && (0.0..=1.0).contains(&difference) && difference < killed);
    detach(&daemon, "exit");
    let (killed, difference) = run("unseen");
    assert!(killed >= 1.0);
    assert_eq!(difference, killed);
    daemon.stop();
}

#[test]
fn requests_that_nobody_counts_show_as_a_difference() {
    let disk = Path::new("/disk");
    let daemon = Daemon::start(&["--hold-seconds=600"]);
    if !in_vm() || !disk.exists() {
        daemon.stop();
        return skip("no disk of the test's own");
    }
    let folder = disk.join(format!("reconcile-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let run = |name: &str| {
        let steps = format!("write-direct /disk/{name} 20 , pause");
        let writer = pod(name).volume("disk", "hostPath", json!({"path": folder}));
        daemon.run(writer.container_with("app", &steps, mounts(&[("disk", "/disk")])));
        daemon.wait_ready(name);
    };
    let numbers = |name: &str| {
        let (metrics, labels) = (daemon.metrics(), [("pod", name), ("operation", "write")]);
        let find = |name: &str| metrics.find(name, &labels);
        let found = [
            find("podscope_io_bytes_total")?,
            find("podscope_reconcile_difference_block_bytes")?,
            find("podscope_io_operations_total")?,
            find("podscope_reconcile_difference_block_operations")?,
        ];
        println!("{name}: {found:?}");
        Some(found)
    };
    run("seen");
    if numbers("seen").is_none() {
        skip("no io controller");
    } else {
        eventually("the device and the cgroup agree", seconds(60), || {
            let [bytes, difference, operations, beside] = numbers("seen")?;
            let is_bound = (0.0..operations).contains(&beside);
            (bytes > 0.0 && difference == 0.0 && is_bound).then_some(())
        });
        detach(&daemon, "block_done");
        run("unseen");
        eventually("all that is written is missing", seconds(60), || {
            let [bytes, difference, operations, beside] = numbers("unseen")?;
            (bytes > 0.0 && difference == bytes && beside == operations).then_some(())
        });
    }
    for name in ["seen", "unseen"] {
        drop(daemon.api("DELETE", &format!("/api/v1/namespaces/default/pods/{name}"), None));
        daemon.wait_for(name, "gone", serde_json::Value::is_null);
    }
    fs::remove_dir_all(&folder).unwrap();
    daemon.stop();
}

//! Podscope's numbers against the kernel's own.

use std::fs;

use pod_tests::{Daemon, Metrics, eventually, manifest::pod, seconds};

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

//! What this kernel lets the probes see: `docs/kernels.md` is made from what this test says.

use pod_tests::Daemon;

/// What has to work on every kernel, in whatever mode.
const ALWAYS: [&str; 7] =
    ["exec", "fork", "exit", "network_receive", "network_transmit", "tcp", "file_read"];

#[test]
fn probes_are_attached_or_say_why_not() {
    let daemon = Daemon::start(&[]);
    let metrics = daemon.metrics();
    let mut on = Vec::new();
    for sample in metrics.series("podscope_probe_info", &[]) {
        let label = |name: &str| sample.labels[name].as_str();
        let (probe, mode, reason) = (label("probe"), label("mode"), label("reason"));
        println!("PROBE {probe} {mode} {reason}");
        if mode == "off" {
            assert!(!reason.is_empty(), "{probe} is off and does not say why");
        } else {
            on.push(probe);
        }
    }
    for probe in ALWAYS {
        assert!(on.contains(&probe), "{probe} is off\n{}", metrics.about("podscope_probe_info"));
    }
    daemon.stop();
}

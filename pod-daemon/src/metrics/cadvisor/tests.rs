//! What a scrape of /metrics/cadvisor looks like.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::{Command, Stdio},
};

use super::{
    document::{Bound, NAMES, left_out},
    *,
};
use crate::{
    cgroup::stats::{Details, Stats},
    metrics::{
        format::Format,
        of_domains,
        sheet::{self, Sink},
        tests::{series, skip, written},
    },
};

fn page(reading: &Reading) -> String {
    let fill = |sink: &mut dyn Sink| sheet::fill(of_domains(&DOMAINS), reading, sink);
    String::from_utf8(written(Format::Text, fill)).unwrap()
}

/// Type and labels of each metric that the kubelet has, by name.
fn known() -> BTreeMap<&'static str, (&'static str, BTreeSet<&'static str>)> {
    let lines = NAMES.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split(" ! ").next().unwrap().split(' ');
            (words.next().unwrap(), (words.next().unwrap(), words.collect()))
        })
        .collect()
}

#[test]
fn every_metric_is_as_cadvisor_has_it_or_left_out_for_a_reason() {
    let mut known = known();
    for (name, _) in left_out() {
        known.remove(name);
    }
    let served: BTreeMap<_, _> = of_domains(&DOMAINS)
        .map(|family| {
            let labels: BTreeSet<_> = family.labels.iter().map(|label| label.name).collect();
            (family.name, (family.kind.label(), labels))
        })
        .collect();
    assert_eq!(served, known);
    assert_eq!(reading::LABELS, ["container", "id", "image", "name", "namespace", "pod"]);
}

#[test]
fn a_scrape_has_every_family_of_the_tables() {
    let text = page(&sample::reading());
    for family in of_domains(&DOMAINS) {
        let line = format!("# TYPE {} {}\n", family.name, family.kind.label());
        assert!(text.contains(&line), "no {}", family.name);
    }
}

#[test]
fn series_carry_cadvisors_labels_units_and_values() {
    let text = page(&sample::reading());
    let series = series(&text);
    let app = r#"container="app",id="/podscope/u/app",image="oci:/web:1",name="c1",namespace="default",pod="web""#;
    let pod = r#"container="",id="/podscope/u",image="",name="",namespace="default",pod="web""#;
    let infra = r#"container="",id="/podscope/u/_infra",image="podscope.dev/pause:1",name="u",namespace="default",pod="web""#;
    for (name, labels, more, value) in [
        ("container_cpu_usage_seconds_total", app, r#",cpu="total""#, 3.5),
        ("container_cpu_user_seconds_total", pod, "", 2.5),
        ("container_cpu_cfs_throttled_seconds_total", app, "", 0.25),
        ("container_spec_cpu_quota", app, "", 50_000.0),
        ("container_spec_cpu_shares", app, "", 2.0),
        ("container_pressure_io_waiting_seconds_total", app, "", 1.5),
        ("container_pressure_io_stalled_seconds_total", app, "", 0.5),
        ("container_memory_working_set_bytes", pod, "", 4000.0),
        ("container_oom_events_total", app, "", 1.0),
        ("container_network_receive_bytes_total", infra, r#",interface="eth0""#, 300.0),
        ("container_network_transmit_packets_dropped_total", infra, r#",interface="a\"b""#, 2.0),
        ("container_fs_writes_bytes_total", app, r#",device="4095:1""#, 2.0),
        (
            "container_blkio_device_usage_total",
            app,
            r#",device="4095:2",major="4095",minor="2",operation="Read""#,
            1.0,
        ),
        ("container_threads_max", app, "", 0.0),
    ] {
        let name = format!("{name}{{{labels}{more}}}");
        assert_eq!(series.get(&*name), Some(&value), "{name}");
    }
    let node = r#"machine_cpu_cores{boot_id="boot",machine_id="",system_uuid=""}"#;
    assert_eq!(series.get(node), Some(&4.0));
    for absent in ["container_network_receive_bytes_total", "container_oom_events_total"] {
        assert!(!text.contains(&format!("{absent}{{{pod}")), "{absent}");
    }
}

#[test]
fn there_are_as_many_series_as_the_documentation_says() {
    let Bound { cgroup, device, interface, node } = Bound::new();
    // OOM kills are the containers'.
    let expected = 3 * (cgroup + 2 * device) - 2 + 2 * interface + node;
    assert_eq!(series(&page(&sample::reading())).len(), expected);
}

#[test]
fn what_has_no_controller_has_no_series() {
    let mut reading = sample::reading();
    for cgroup in reading.cgroups_mut() {
        let stats = Stats { cpu: cgroup.details.stats.cpu, ..Stats::default() };
        cgroup.details = Details { stats, ..Details::default() };
        cgroup.interfaces.clear();
    }
    let text = page(&reading);
    let names: BTreeSet<_> =
        series(&text).into_keys().map(|name| name.split('{').next().unwrap().to_owned()).collect();
    let expected = [
        "cadvisor_version_info",
        "container_cpu_system_seconds_total",
        "container_cpu_usage_seconds_total",
        "container_cpu_user_seconds_total",
        "container_last_seen",
        "container_start_time_seconds",
        "machine_cpu_cores",
        "machine_memory_bytes",
    ];
    assert_eq!(names, expected.map(str::to_owned).into());
}

#[test]
fn throttling_is_shown_with_a_limit_only() {
    let mut reading = sample::reading();
    for cgroup in reading.cgroups_mut() {
        cgroup.details.settings.cpu_quota_us = Some(0);
    }
    let text = page(&reading);
    assert!(!text.contains("_cfs_") && !text.contains("container_spec_cpu_quota"));
    assert!(text.contains("container_spec_cpu_period"));
}

#[test]
fn promtool_finds_nothing_but_cadvisors_own_names() {
    let text = page(&sample::reading());
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = child else { return skip("promtool is not installed") };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let about: BTreeSet<_> = said.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(about, ["cadvisor_version_info", "container_memory_failcnt"].into(), "{said}");
}

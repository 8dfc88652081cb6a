//! What a scrape looks like.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::{Command, Stdio},
};

use super::{document::Bound, *};

/// What a scrape with that reading says.
fn page(reading: &Reading) -> String {
    render(families(reading), reading, 0).unwrap()
}

/// Series of the rendered text, as name with labels and value.
pub(super) fn series(text: &str) -> BTreeMap<&str, f64> {
    let mut series = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(series.insert(name, value.parse().unwrap()).is_none(), "twice: {name}");
    }
    series
}

#[test]
fn a_scrape_has_every_family_of_the_tables() {
    let text = page(&sample::reading(1));

    // No container of the sample waits, and all have the memory controller.
    let absent = ["podscope_container_waiting_reason", "podscope_memory_resident_bytes"];
    let families = DOMAINS.iter().flat_map(|domain| domain.families);
    for family in families.filter(|family| !absent.contains(&family.name)) {
        let line = format!("# TYPE {} {}\n", family.name, family.kind.label());
        assert!(text.contains(&line), "no {}", family.name);
    }
}

#[test]
fn series_carry_labels_and_values() {
    let text = page(&sample::reading(2));
    let series = series(&text);

    for (name, value) in [
        (r#"podscope_exec_total{namespace="default",pod="web-1",container="app"}"#, 5.0),
        (
            r#"podscope_process_exits_total{namespace="default",pod="web-0",container="job",code="2-125"}"#,
            7.0,
        ),
        (
            r#"podscope_process_signals_total{namespace="default",pod="web-0",container="app",signal="SIGKILL"}"#,
            1.0,
        ),
        (
            r#"podscope_network_bytes_total{namespace="default",pod="web-0",container="app",direction="transmit",family="ipv6",scope="external"}"#,
            1600.0,
        ),
        (
            r#"podscope_file_operations_total{namespace="default",pod="web-1",container="job",volume="data",operation="write"}"#,
            1.0,
        ),
        (
            r#"podscope_cpu_seconds_total{namespace="default",pod="web-0",container="app",mode="user"}"#,
            2.5,
        ),
        (r#"podscope_cpu_limit_cores{namespace="default",pod="web-0",container="app"}"#, 0.25),
        (
            r#"podscope_memory_working_set_bytes{namespace="default",pod="web-0",container="app"}"#,
            4000.0,
        ),
        (
            r#"podscope_pressure_seconds_total{namespace="default",pod="web-0",container="app",resource="io",kind="full"}"#,
            0.5,
        ),
        (
            r#"podscope_container_state{namespace="default",pod="web-0",container="job",state="terminated"}"#,
            1.0,
        ),
        (
            r#"podscope_container_last_exit_code{namespace="default",pod="web-0",container="app"}"#,
            137.0,
        ),
        (
            r#"podscope_container_last_exit_info{namespace="default",pod="web-0",container="app",reason="OOMKilled",signal="SIGKILL"}"#,
            1.0,
        ),
        (r#"podscope_limit_unenforced{namespace="default",pod="web-0",controller="memory"}"#, 1.0),
        (r#"podscope_completed_pods_total{namespace="default"}"#, 2.0),
        ("process_max_fds", 1024.0),
    ] {
        assert_eq!(series.get(name), Some(&value), "{name}");
    }
}

#[test]
fn a_histogram_is_cumulative_and_its_count_is_its_last_bucket() {
    let text = page(&sample::reading(1));
    let series = series(&text);
    let at = |name: &str, le: &str| {
        let labels = r#"namespace="default",pod="web-0",container="app""#;
        series[&*format!("podscope_tcp_connect_duration_seconds{name}{{{labels}{le}}}")]
    };

    // 2 connections took at most 122 µs and more than 61 µs; one took longer than 16 s.
    assert_eq!(at("_bucket", r#",le="0.00006103515625""#), 0.0);
    assert_eq!(at("_bucket", r#",le="0.000244140625""#), 2.0);
    assert_eq!(at("_bucket", r#",le="16""#), 2.0);
    assert_eq!(at("_bucket", r#",le="+Inf""#), 3.0);
    assert_eq!(at("_count", ""), 3.0);
    assert_eq!(at("_sum", ""), 0.005);
}

#[test]
fn there_are_as_many_series_as_the_documentation_says() {
    let count = |pods| series(&page(&sample::reading(pods))).len();
    let Bound { pod, container, volume, pod_volume } = Bound::new();

    // No container of the sample waits, all have the memory controller, and in each a signal has
    // ended one process.
    let absent = 2;
    let signals = 1;
    let expected = pod + 2 * pod_volume + 2 * (container - absent + signals + 3 * volume);
    assert_eq!(count(3) - count(2), expected);
}

#[test]
fn what_a_probe_counts_is_absent_while_it_is_off() {
    let mut reading = sample::reading(1);
    for probe in &mut reading.probes {
        probe.mode = "off".into();
    }

    let text = page(&reading);

    assert!(!text.contains("podscope_exec_total") && !text.contains("podscope_file_written"));
    assert!(text.contains("podscope_forks_total") && text.contains("podscope_file_read_bytes"));
    assert!(text.contains(r#"podscope_probe_info{probe="exec",mode="off",reason=""} 1"#));
}

#[test]
fn the_prometheus_crate_accepts_every_family_once() {
    let descriptors = descriptors().unwrap();
    let names: BTreeSet<_> = descriptors.iter().map(|desc| &desc.fq_name).collect();

    assert_eq!(names.len(), descriptors.len());
}

#[test]
fn who_gathers_gets_what_a_scrape_gets() {
    let reading = sample::reading(2);

    let gathered = TextEncoder.encode_to_string(&collect(&reading)).unwrap();

    assert_eq!(gathered, page(&reading));
}

#[test]
fn promtool_finds_nothing_to_criticise() {
    let text = page(&sample::reading(2));
    let child = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn();
    let Ok(mut promtool) = child else { return skip("promtool is not installed") };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(promtool.wait().unwrap().success());
}

#[expect(clippy::print_stderr, reason = "a skip is said aloud")]
pub(super) fn skip(reason: &str) {
    eprintln!("SKIPPED: {reason}");
}

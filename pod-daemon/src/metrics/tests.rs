//! What a scrape looks like.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::{Command, Stdio},
};

use pod_ebpf::latency::Latency;
use prometheus::TextEncoder;

use super::{bound::Bound, family::Kind, *};

/// What a scrape with that reading says.
pub(super) fn page(reading: &Reading) -> String {
    String::from_utf8(written(Format::Text, |sink| fill(reading, sink))).unwrap()
}

/// A page in that format.
pub(super) fn written(format: Format, fill: impl FnOnce(&mut dyn Sink)) -> Vec<u8> {
    let mut page = Vec::new();
    assert!(write(
        format,
        &mut |piece| {
            page.extend(piece);
            true
        },
        fill
    ));
    page
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

    // No container of the sample waits, all have the memory controller, and no pod is deleted.
    let absent = [
        "podscope_container_waiting_reason",
        "podscope_memory_resident_bytes",
        "podscope_pod_deleted_timestamp_seconds",
    ];
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
        (
            r#"podscope_reconcile_difference_network_bytes{namespace="default",pod="web-0",direction="transmit"}"#,
            2.0,
        ),
        // Of both containers.
        (
            r#"podscope_pod_dropped_packets_total{namespace="default",pod="web-0",reason="no_socket"}"#,
            4.0,
        ),
        (
            r#"podscope_network_dropped_packets_total{namespace="default",pod="web-0",container="app",reason="socket_rcvbuff"}"#,
            3.0,
        ),
        (r#"podscope_completed_pods_total{namespace="default"}"#, 2.0),
        (r#"podscope_completed_exec_total{namespace="default"}"#, 20.0),
        (r#"podscope_completed_restarts_total{namespace="default"}"#, 12.0),
        (r#"podscope_completed_file_operations_total{namespace="default",operation="read"}"#, 12.0),
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
fn a_histogram_appears_with_its_first_duration() {
    let mut reading = sample::reading(1);
    for container in &mut reading.pods[0].containers {
        container.tcp.connect_latency = Latency::ZERO;
    }
    let pod = archive::Held::of(&reading.pods[0], &[]);
    let has = |reading: &Reading| {
        page(reading).contains("\npodscope_tcp_connect_duration_seconds_bucket")
    };
    assert!(!has(&reading));
    reading.held.push(Arc::new(pod));
    assert!(!has(&reading));
    reading.pods[0].containers[0].tcp.connect_latency.buckets[9] = 1;
    assert!(has(&reading));
}

#[test]
fn there_are_as_many_series_as_the_documentation_says() {
    let count = |pods| series(&page(&sample::reading(pods))).len();
    let Bound { pod, container, volume, pod_volume, total, .. } = Bound::new();

    // No container of the sample waits, all have the memory controller, and in each a signal has
    // ended one process and one reason let packets of its sockets be dropped; another one is its pod's.
    let absent = 2;
    let (signals, reasons) = (1, 1);
    // And none is deleted.
    let of_pod = pod - 1 + 2 * reasons + 2 * pod_volume;
    let expected = of_pod + 2 * (container - absent + signals + reasons + 3 * volume);
    assert_eq!(count(3) - count(2), expected);
    let text = page(&sample::reading(0));
    let names = series(&text).into_keys().filter(|name| name.starts_with("podscope_completed_"));
    let absent = [
        "podscope_completed_process_signals_total",
        "podscope_completed_dropped_packets_total",
        "podscope_completed_network_dropped_packets_total",
    ];
    let names = names.filter(|name| !absent.iter().any(|absent| name.starts_with(absent)));
    assert_eq!(names.count(), total);
}

#[test]
fn what_a_probe_counts_is_absent_while_it_is_off() {
    let mut reading = sample::reading(1);
    for probe in &mut reading.probes {
        probe.mode = "off".into();
    }

    let text = page(&reading);

    let has = |name: &str| text.contains(&format!("\n{name}{{"));
    assert!(!has("podscope_exec_total") && !has("podscope_file_written_bytes_total"));
    assert!(has("podscope_forks_total") && has("podscope_file_read_bytes_total"));
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

/// The exemplar of the sample's histograms.
const SLOWEST: &str =
    r#" # {pid="4713",trace_id="0af7651916cd43dd8448eb211c80319c",span_id="b7ad6b7169203331"}"#;

#[test]
fn open_metrics_has_exemplars_and_an_end() {
    let reading = sample::reading(1);
    let page = written(Format::OpenMetrics, |sink| fill(&reading, sink));
    let text = String::from_utf8(page).unwrap();
    let labels = r#"namespace="default",pod="web-0",container="app""#;
    let kills = format!(r#"podscope_container_oom_kills_total{{{labels},limit="container"}} 1"#);
    for line in [
        "# TYPE podscope_exec counter",
        "# TYPE podscope_pod_phase gauge",
        &format!(r#"podscope_exec_total{{{labels}}} 5 # {{pid="4711"}} 1"#),
        &format!(r#"{kills} # {{pid="4712"}} 1"#),
        // Of those that were not killed there is none to name.
        &format!(r#"podscope_container_oom_kills_total{{{labels},limit="node"}} 0"#),
        &format!(r#"podscope_tcp_connect_duration_seconds_bucket{{{labels},le="16.0"}} 2"#),
        // On the first bucket that counts it, and on no other.
        &format!(
            r#"podscope_tcp_connect_duration_seconds_bucket{{{labels},le="+Inf"}} 3{SLOWEST} 60 1700000000.012"#
        ),
        &format!(
            r#"podscope_dns_duration_seconds_bucket{{{labels},le="0.0009765625"}} 5{SLOWEST} 0.0009 1700000000.012"#
        ),
        &format!(
            r#"podscope_file_operation_duration_seconds_bucket{{{labels},volume="data",operation="fsync",le="0.000003814697265625"}} 1{SLOWEST} 0.0000019 1700000000.012"#
        ),
        &format!(
            r#"podscope_file_operation_duration_seconds_bucket{{{labels},volume="data",operation="fsync",le="0.0000152587890625"}} 1"#
        ),
    ] {
        assert!(text.lines().any(|other| other == line), "{line}");
    }
    let named = text.lines().filter_map(|line| line.split_once(" # {"));
    for (series, exemplar) in named {
        assert!(series.contains("_bucket{") || series.contains("_total{"), "{series}");
        let labels = exemplar.split_once('}').unwrap().0;
        assert!(labels.len() < 128, "{labels}");
    }
    assert!(text.ends_with("\n# EOF\n") && !text.contains("\n\n"));
    let numbers = text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(numbers, page_lines(&reading));
}

/// How many series a page has as text.
fn page_lines(reading: &Reading) -> usize {
    series(&page(reading)).len()
}

#[test]
fn protocol_buffers_have_every_family_behind_its_length() {
    let reading = sample::reading(1);
    let page = written(Format::Protobuf, |sink| fill(&reading, sink));
    let mut rest = &page[..];
    let mut names = Vec::new();
    let varint = |rest: &mut &[u8]| {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = rest[0];
            *rest = &rest[1..];
            number |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break number;
            }
        }
    };
    while !rest.is_empty() {
        let length = varint(&mut rest);
        let (mut family, others) = rest.split_at(length);
        rest = others;
        assert_eq!(varint(&mut family), 1 << 3 | 2, "the name comes first");
        let length = varint(&mut family);
        names.push(str::from_utf8(&family[..length]).unwrap().to_owned());
    }
    let families = collect(&reading);
    let expected: Vec<_> = families.iter().map(MetricFamily::name).collect();
    assert_eq!(names, expected);
}

#[test]
fn a_pod_that_is_gone_has_the_series_that_say_what_it_was() {
    let living = page(&sample::reading(1));
    let mut reading = sample::reading(1);
    let pod = reading.pods.remove(0);
    reading.held.push(Arc::new(archive::Held::of(&pod, &[])));
    let held = page(&reading);
    let (living, held) = (series(&living), series(&held));
    for (name, value) in living.iter().filter(|(name, _)| name.contains("pod=\"web-0\"")) {
        let family = name.split('{').next().unwrap();
        let of_histogram = ["_bucket", "_sum", "_count"].map(|end| family.strip_suffix(end));
        let is_held = of_domains(&DOMAINS).any(|other| match other.kind {
            Kind::Counter => other.name == family,
            Kind::Gauge => other.name == family && other.is_kept,
            Kind::Histogram => of_histogram.contains(&Some(other.name)),
        });
        assert_eq!(held.get(name), is_held.then_some(value), "{name}");
    }
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

/// A page of one pod with series of its own and `others` without.
fn page_with(others: usize) -> String {
    let mut reading = sample::reading(1 + others);
    reading.pods[1..].iter_mut().for_each(|pod| pod.is_other = true);
    reading.others.folded = others as u64;
    reading.other = Other::of(&reading);
    page(&reading)
}

#[test]
fn pods_without_series_of_their_own_are_added_up() {
    let (text, all) = (page_with(3), page(&sample::reading(4)));
    let (folded, all) = (series(&text), series(&all));
    let is_missing = |name: &str| !name.contains("web-0") && name.contains("web-");
    assert!(!folded.keys().any(|name| is_missing(name)));
    let of_other = |name: &str| name.contains(r#"pod="__other__""#);
    let family = |name: &str| name.split('{').next().unwrap().to_owned();
    let mut sums = BTreeMap::<String, [f64; 2]>::new();
    for (name, value) in folded.iter().filter(|(name, _)| of_other(name)) {
        sums.entry(family(name)).or_default()[0] += value;
    }
    for (name, value) in all.iter().filter(|(name, _)| is_missing(name)) {
        sums.entry(family(name)).or_default()[1] += value;
    }
    let apart =
        of_domains(&DOMAINS).filter(|family| !family.is_summable()).map(|family| family.name);
    let apart: BTreeSet<_> = apart.collect();
    for (name, [folded, all]) in sums {
        if apart.contains(&*name) {
            // The cost of probes is added up by the ledger.
            assert_eq!(folded, 0.0, "{name}");
        } else {
            assert!(all > 0.0 || folded == all, "{name}");
            let (difference, steps) = ((folded - all).abs(), 100.0 / f64::from(1 << 20));
            assert!(
                difference < steps || all > 1e3 && difference < all / 1e9,
                "{name}: {folded}, {all}"
            );
        }
    }
    let count = folded.keys().filter(|name| of_other(name)).count();
    assert!(count <= Bound::new().other, "{count}");
    assert_eq!(folded["podscope_pods_folded_total"], 3.0);
    let with_pod =
        folded.keys().filter(|name| name.contains("{namespace=") && name.contains("pod=\""));
    assert_eq!(folded["podscope_series"], with_pod.count() as f64);
}

#[test]
fn a_pod_comes_to_no_more_than_its_bound() {
    let bound = Bound::new();
    let pod = sample::pod(0);
    let text = page(&sample::reading(1));
    let count = series(&text).keys().filter(|name| name.contains("web-0")).count();
    let names = ["app", "job"].map(|_| 2 + 1);
    assert_eq!(pod.containers.iter().map(|c| c.about.volume_count).collect::<Vec<_>>(), names);
    let about = &*pod.about;
    assert!(count <= bound.of(about), "{count} of {}", bound.of(about));
    let containers = about.containers[..1].to_vec();
    let small = crate::node::PodSnapshot { containers, ..about.clone() };
    assert!(1000 * bound.of(&small) + bound.other <= Hold::default().ceiling);
}

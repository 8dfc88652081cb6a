//! What is held, what is added up, and what is on disk between the two.

use std::fs;

use super::*;
use crate::metrics::sample;

/// An archive as a daemon has it, without the probes.
struct Store {
    files: Files,
    place: tempfile::TempDir,
}

impl Store {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        Self { files: Files::new(place.path()), place }
    }
}

fn held(index: usize) -> Held {
    Held::of(&sample::pod(index), &[])
}

#[test]
fn what_is_held_is_the_same_for_the_next_daemon() {
    let store = Store::new();
    let pod = held(1);
    store.files.hold(&pod).unwrap();
    let (completed, pods) = store.files.read();
    assert!(completed.folded.is_empty());
    assert_eq!(pods.len(), 1);
    assert_eq!((&pods[0].name, &pods[0].rows), (&pod.name, &pod.rows));
    assert!(pod.rows.rows.len() > 100, "{}", pod.rows.rows.len());
}

#[test]
fn what_is_in_the_totals_is_not_held_again() {
    let store = Store::new();
    let pod = held(1);
    store.files.hold(&pod).unwrap();
    let file = store.files.pod_file(&pod);
    let text = fs::read(&file).unwrap();
    let mut completed = Completed::default();
    pod.add_to(Arc::make_mut(&mut completed.namespaces));
    completed.folded.insert(pod.uid.clone());
    store.files.fold(&mut completed).unwrap();
    assert!(!file.exists() && completed.folded.is_empty());

    // Killed before the file was removed.
    fs::write(&file, text).unwrap();
    let (stored, pods) = store.files.read();
    assert!(pods.is_empty() && !file.exists());
    assert_eq!(stored.namespaces, completed.namespaces);
}

#[test]
fn totals_are_the_same_for_the_next_daemon() {
    let mut totals = Sums::default();
    (0..3).for_each(|index| held(index).add_to(&mut totals));
    let text = serde_json::to_string(&totals).unwrap();
    assert_eq!(serde_json::from_str::<Sums>(&text).unwrap(), totals);
    assert_eq!(totals.pods().collect::<Vec<_>>(), [("default", 3)]);
}

#[test]
fn of_many_namespaces_the_oldest_are_added_up() {
    let family = row::family("podscope_exec_total").unwrap();
    let mut totals = Sums::default();
    let mut add = |number: i64, namespace: String| {
        let mut pod = held(0);
        (pod.namespace, pod.died) = (namespace, Timestamp::from_second(number).unwrap());
        pod.add_to(&mut totals);
        totals.clone()
    };
    let count = |totals: &Sums| {
        let sums = totals.sums(family).map(|(_, sum)| sum.clone());
        let sum = sums.reduce(|mut sum, next| {
            sum.add(&next);
            sum
        });
        let pods: u64 = totals.pods().map(|(_, pods)| pods).sum();
        (totals.pods().count(), pods, sum.unwrap())
    };
    // The first of them has the last pod.
    let most = i64::try_from(MOST_NAMESPACES).unwrap();
    for number in (0..most).chain([0]) {
        add(number + 1, format!("job-{number}"));
    }
    add(most + 2, "job-0".to_owned());
    for more in 0..50 {
        let totals = add(1000 + more, format!("more-{more}"));
        let pods = u64::try_from(most + 3 + more).unwrap();
        assert_eq!(count(&totals), (MOST_NAMESPACES + 1, pods, Kept::Count(2 * 5 * pods)));
    }
    let pods: std::collections::BTreeMap<_, _> = totals.pods().collect();
    assert_eq!((pods["__other__"], pods["job-0"], pods.get("job-50")), (50, 3, None));
    assert_eq!(pods["job-51"], 1);
    let text = serde_json::to_string(&totals).unwrap();
    assert_eq!(serde_json::from_str::<Sums>(&text).unwrap(), totals);

    // Of an earlier version, which had no bound.
    let many = (0..300).map(|number| format!(r#""job-{number}":{{"pods":1,"sums":{{}}}}"#));
    let text = format!("{{{}}}", many.collect::<Vec<_>>().join(","));
    let totals: Sums = serde_json::from_str(&text).unwrap();
    let pods: std::collections::BTreeMap<_, _> = totals.pods().collect();
    assert_eq!((pods.len(), pods["__other__"]), (MOST_NAMESPACES + 1, 200));
}

#[test]
fn what_is_held_has_no_series_twice_when_a_label_is_gone() {
    let stored = |labels: &str, value: u64| {
        format!(
            r#"{{"name":"podscope_memory_page_faults_total","container":"app","labels":{labels},"value":{value}}}"#
        )
    };
    let text =
        format!("[{},{}]", stored(r#"{"type":"minor"}"#, 40), stored(r#"{"type":"major"}"#, 2));
    let rows = Rows::restored(serde_json::from_str(&text).unwrap());
    let values: Vec<_> = rows.rows.iter().map(|row| &row.value).collect();
    assert_eq!(values, [&Kept::Count(42)]);
}

#[test]
fn totals_of_the_first_layout_go_on() {
    let store = Store::new();
    let text = r#"{"namespaces":{"a":{"pods":2,"restarts":3,"execs":4,"exits":5,"received_bytes":6,
        "transmitted_bytes":7,"read_bytes":8,"written_bytes":9}},"removing":["b"]}"#;
    fs::write(store.place.path().join("completed.json"), text).unwrap();
    let (completed, _) = store.files.read();
    let sums = |name| {
        let family = row::family(name).unwrap();
        let sums = completed.namespaces.sums(family);
        sums.map(|(labels, sum)| (labels.join(" "), sum.clone())).collect::<Vec<_>>()
    };
    assert_eq!(sums("podscope_exec_total"), [("a".to_owned(), Kept::Count(4))]);
    assert_eq!(sums("podscope_network_bytes_total").len(), 2);
    assert_eq!(sums("podscope_container_restarts_total")[0].1, Kept::Count(3));
    assert!(completed.folded.is_empty(), "there is no pod b");
}

#[test]
fn a_label_that_is_new_or_gone_changes_no_sum() {
    let text = r#"{"a":{"pods":1,"sums":{"podscope_network_bytes_total":[
        [[["direction","receive"],["gone","x"]],5],[[["direction","receive"],["gone","y"]],7]],
        "podscope_of_another_daemon_total":[[[],3]]}}}"#;
    let totals: Sums = serde_json::from_str(text).unwrap();
    let family = row::family("podscope_network_bytes_total").unwrap();
    let sums: Vec<_> = totals.sums(family).map(|(_, sum)| sum.clone()).collect();
    assert_eq!(sums, [Kept::Count(12)]);
    // What this daemon does not know is kept for one that does.
    let text = serde_json::to_string(&totals).unwrap();
    assert!(text.contains("podscope_of_another_daemon_total"), "{text}");
}

#[test]
fn a_histogram_is_summed_bucket_by_bucket() {
    let mut totals = Sums::default();
    (0..2).for_each(|index| held(index).add_to(&mut totals));
    let family = row::family("podscope_tcp_connect_duration_seconds").unwrap();
    let (_, sum) = totals.sums(family).next().unwrap();
    let mut seen = false;
    sum.with(family.kind, |value| {
        let sheet::Value::Latency(latency) = value else { panic!("it is no histogram") };
        // Two pods of two containers.
        assert_eq!((latency.sum_ns, latency.count()), (4 * 5_000_000, 4 * 3));
        assert_eq!((latency.buckets[9], latency.buckets[27]), (8, 4));
        seen = true;
    });
    assert!(seen);
}

#[test]
fn what_others_came_to_does_not_depend_on_the_order() {
    let pods: Vec<Held> = (0..4).map(held).collect();
    let mut first = Sums::default();
    let mut second = Sums::default();
    pods.iter().for_each(|pod| first.add_other(&pod.rows.rows));
    pods.iter().rev().for_each(|pod| second.add_other(&pod.rows.rows));
    assert_eq!(first, second);
    let family = row::family("podscope_file_read_bytes_total").unwrap();
    let sums: Vec<_> = first.of_pods(family).collect();
    // Four pods of two containers with three volumes.
    assert_eq!(sums, [(vec!["__other__"], &Kept::Count(4 * 2 * 3 * 1000))]);
    let text = serde_json::to_string(&first).unwrap();
    assert_eq!(serde_json::from_str::<Sums>(&text).unwrap(), first);
}

#[test]
fn who_has_no_series_is_known_to_the_next_daemon() {
    let store = Store::new();
    let mut completed = Completed::default();
    completed.others.insert("1".to_owned());
    Arc::make_mut(&mut completed.other).add_other(&held(1).rows.rows);
    store.files.store(&completed).unwrap();
    let (stored, _) = store.files.read();
    assert_eq!((stored.others, stored.other), (completed.others, completed.other));
}

#[test]
fn fractions_are_added_in_steps() {
    let steps = [0.1, 0.2, 0.3].map(|number| Kept::Number(number).in_steps());
    let sum = |order: [usize; 3]| {
        let mut sum = steps[order[0]].clone();
        order[1..].iter().for_each(|index| sum.add(&steps[*index]));
        sum
    };
    assert_eq!(sum([0, 1, 2]), sum([2, 1, 0]));
    assert_eq!(Kept::Count(7).in_steps(), Kept::Count(7));
}

#[test]
fn a_time_is_kept_in_seconds() {
    assert_eq!(Kept::of(sheet::Value::Microseconds(100_000)), Kept::Number(0.1));
}

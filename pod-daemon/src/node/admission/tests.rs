use serde_json::{Value, json};

use super::*;
use crate::manifest::demand::{ADDRESSES, CONTAINERS, CPU, MEMORY, VOLUMES};

struct Node {
    admission: Arc<Admission>,
    preemptions: mpsc::UnboundedReceiver<Preemption>,
}

/// A node of two CPUs and 1 GiB.
fn node() -> Node {
    let mut capacity = Totals::default();
    capacity[CPU] = 2000;
    capacity[MEMORY] = 1 << 30;
    capacity[CONTAINERS] = 8;
    capacity[VOLUMES] = 16;
    capacity[ADDRESSES] = 8;
    let (admission, preemptions) = Admission::new(capacity, capacity);
    Node { admission, preemptions }
}

fn ask(name: &str, priority: i32, resources: Value, more: Value) -> Ask {
    let mut spec = json!({
        "priority": priority,
        "containers": [{"name": "c", "resources": {"requests": resources}}],
    });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    let spec: PodSpec = serde_json::from_value(spec).unwrap();
    Ask::of(&Key::new("default", name), &spec)
}

fn cpu(name: &str, priority: i32, amount: &str) -> Ask {
    ask(name, priority, json!({"cpu": amount}), json!({}))
}

fn is_in(ticket: &mut Ticket) -> bool {
    ticket.verdict() == Verdict::Admitted
}

fn why(ticket: &mut Ticket) -> String {
    match ticket.verdict() {
        Verdict::Waiting(message) => message,
        Verdict::Admitted => String::new(),
    }
}

impl Node {
    fn victims(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        while let Ok(preemption) = self.preemptions.try_recv() {
            names.push(preemption.victim.name);
        }
        names
    }
}

#[test]
fn a_pod_is_admitted_whole_or_not_at_all() {
    let node = node();
    let mut first = node.admission.ask(cpu("first", 0, "1500m"));
    let both = json!({"cpu": "1", "memory": "2Gi"});
    let mut second = node.admission.ask(ask("second", 0, both, json!({})));
    assert!(is_in(&mut first));
    assert_eq!(
        why(&mut second),
        "0/1 nodes are available: 1 Insufficient cpu (asked 1, free 500m of 2), \
         1 Insufficient memory (asked 2Gi, free 1Gi of 1Gi)."
    );
    let occupancy = node.admission.occupancy();
    assert_eq!((occupancy.requested[CPU], occupancy.requested[MEMORY]), (1500, 0));
    let waiting: Vec<_> = occupancy.waiting.into_iter().collect();
    assert_eq!(waiting, [("cpu".to_owned(), 1), ("memory".to_owned(), 1)]);
    // What is smaller does not wait behind it.
    assert!(is_in(&mut node.admission.ask(cpu("third", 0, "500m"))));
}

#[test]
fn who_waits_starts_by_priority_and_then_by_age() {
    let node = node();
    let running = node.admission.ask(cpu("running", 9, "2"));
    let mut old = node.admission.ask(cpu("old", 0, "1500m"));
    let mut young = node.admission.ask(cpu("young", 0, "1500m"));
    let mut high = node.admission.ask(cpu("high", 5, "1500m"));
    assert!(!is_in(&mut old) && !is_in(&mut young) && !is_in(&mut high));
    drop(running);
    assert!(!is_in(&mut old) && !is_in(&mut young) && is_in(&mut high));
    drop(high);
    assert!(is_in(&mut old) && !is_in(&mut young));
    drop(old);
    assert!(is_in(&mut young));
    drop(young);
    assert_eq!(node.admission.occupancy().requested, Totals::default());
}

#[test]
fn a_higher_priority_pushes_out_a_lower_one_and_waits_for_it() {
    let mut node = node();
    let mut low = node.admission.ask(cpu("low", 1, "1"));
    let mut lower = node.admission.ask(cpu("lower", 0, "1"));
    assert!(is_in(&mut low) && is_in(&mut lower));
    let mut high = node.admission.ask(cpu("high", 5, "1"));
    assert_eq!(node.victims(), ["lower"]);
    let message = why(&mut high);
    assert!(message.ends_with("preemption: waiting for 1 pod(s) to leave"), "{message}");
    // What is promised to one is not there for another, and nobody is sent away twice.
    let mut same = node.admission.ask(cpu("same", 1, "500m"));
    assert!(!is_in(&mut same));
    assert_eq!(node.victims(), [""; 0]);
    drop(lower);
    assert!(is_in(&mut high) && !is_in(&mut same));
    assert_eq!(node.admission.disruptions(), [("Preempted", 1), ("Evicted", 0)]);
}

#[test]
fn nobody_is_pushed_out_for_nothing() {
    let mut node = node();
    let _low = node.admission.ask(cpu("low", 0, "1"));
    let _equal = node.admission.ask(cpu("equal", 5, "1"));
    // Too large even for an empty node.
    let _large = node.admission.ask(cpu("large", 9, "3"));
    // The room of a lower one is not enough, and equal ones stay.
    let _wide = node.admission.ask(cpu("wide", 5, "1500m"));
    let never = json!({"preemptionPolicy": "Never"});
    let _polite = node.admission.ask(ask("polite", 9, json!({"cpu": "1"}), never));
    assert_eq!(node.victims(), [""; 0]);
}

#[test]
fn room_that_is_about_to_appear_is_waited_for() {
    let mut node = node();
    let going = node.admission.ask(cpu("going", 7, "1"));
    let _low = node.admission.ask(cpu("low", 0, "1"));
    node.admission.leaving(&Key::new("default", "going"));
    let mut high = node.admission.ask(cpu("high", 5, "1"));
    assert_eq!(node.victims(), [""; 0]);
    drop(going);
    assert!(is_in(&mut high));
}

#[test]
fn a_port_of_the_node_is_for_one_pod() {
    let node = node();
    let web = |name: &str, address: &str| {
        let ports = json!([{"containerPort": 80, "hostPort": 8080, "hostIP": address}]);
        ask(name, 0, json!({}), json!({"containers": [{"name": "c", "ports": ports}]}))
    };
    let mut first = node.admission.ask(web("first", "10.0.0.1"));
    let mut other = node.admission.ask(web("other", "10.0.0.2"));
    let mut all = node.admission.ask(web("all", "0.0.0.0"));
    assert!(is_in(&mut first) && is_in(&mut other));
    let message = why(&mut all);
    assert!(message.contains("8080/TCP is taken by default/first"), "{message}");
    drop(first);
    assert!(!is_in(&mut all));
    drop(other);
    assert!(is_in(&mut all));
}

#[test]
fn a_pod_that_has_ended_keeps_its_counters_only() {
    let node = node();
    let mut job = node.admission.ask(cpu("job", 0, "2"));
    let mut next = node.admission.ask(cpu("next", 0, "2"));
    assert!(is_in(&mut job) && !is_in(&mut next));
    job.settle();
    assert!(is_in(&mut next));
    assert_eq!(node.admission.occupancy().requested[CONTAINERS], 2);
}

#[test]
fn a_pod_that_runs_already_is_admitted_whatever_there_is() {
    let node = node();
    let mut first = node.admission.admit_running(cpu("first", 0, "2"));
    let mut second = node.admission.admit_running(cpu("second", 0, "2"));
    let mut third = node.admission.ask(cpu("third", 0, "1m"));
    assert!(is_in(&mut first) && is_in(&mut second) && !is_in(&mut third));
    drop(first);
    assert!(!is_in(&mut third));
    drop(second);
    assert!(is_in(&mut third));
}

#[test]
fn nobody_starts_on_a_full_disk() {
    let mut node = node();
    node.admission.set_pressure(Some("1Mi is free".to_owned()));
    let mut pod = node.admission.ask(cpu("pod", 9, "1"));
    assert_eq!(
        why(&mut pod),
        "0/1 nodes are available: 1 node(s) had disk pressure (1Mi is free)."
    );
    assert_eq!(node.victims(), [""; 0]);
    node.admission.set_pressure(None);
    assert!(is_in(&mut pod));
}

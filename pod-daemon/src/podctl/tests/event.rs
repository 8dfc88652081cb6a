//! Events in tables, and in the description of a pod.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Buffer, Output, check, podctl, run, serve};
use crate::api::fake::Served;

fn ago(seconds: i64) -> String {
    (Timestamp::now() - SignedDuration::from_secs(seconds)).to_string()
}

fn event(reason: &str, kind: &str, count: u32, [first, last]: [i64; 2]) -> Value {
    json!({
        "metadata": {},
        "involvedObject": {
            "kind": "Pod", "name": "web", "uid": "uid-1", "fieldPath": "spec.containers{app}",
        },
        "reason": reason, "type": kind, "count": count, "message": "it did\n",
        "firstTimestamp": ago(first), "lastTimestamp": ago(last),
        "source": {"component": "podscope", "host": "here"},
    })
}

fn populate(served: &Served) {
    served.node.change("default", "web", |_| {});
    served.node.happen("default", "web.1", event("BackOff", "Warning", 3, [7200, 600]));
    served.node.happen("default", "web.2", event("Started", "Normal", 1, [1800, 1800]));
}

#[tokio::test]
async fn events_are_listed() {
    let served = serve();
    check(&served, "get events", 0, "", "No resources found in default namespace.\n").await;
    populate(&served);
    let table = "\
NAMESPACE   LAST SEEN            TYPE      REASON    OBJECT    MESSAGE
default     10m (x3 over 120m)   Warning   BackOff   pod/web   it did
default     30m                  Normal    Started   pod/web   it did
";
    check(&served, "get ev", 0, table, "").await;
    let wide = podctl(&served, "get events -o wide").await.out;
    let mut lines = wide.lines();
    let titles: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(titles[titles.len() - 6..], ["SOURCE", "MESSAGE", "FIRST", "SEEN", "COUNT", "NAME"]);
    let first = lines.next().unwrap();
    for part in ["spec.containers{app}", "podscope, here", "120m", "web.1"] {
        assert!(first.contains(part), "{first}");
    }
    check(&served, "get events -o name", 0, "event/web.1\nevent/web.2\n", "").await;
    let chosen = "get events -o name --field-selector type!=Normal";
    check(&served, chosen, 0, "event/web.1\n", "").await;
    let one: Value =
        serde_json::from_str(&podctl(&served, "get event web.2 -o json").await.out).unwrap();
    assert_eq!((&one["kind"], &one["reason"]), (&json!("Event"), &json!("Started")));
}

#[tokio::test]
async fn events_are_watched() {
    let served = serve();
    populate(&served);
    let words = ["podctl", "--socket", served.socket.to_str().unwrap()];
    let words = words.into_iter().chain(["get", "events", "-w", "-o", "name"]);
    let (out, err) = (Buffer::default(), Buffer::default());
    let mut output = Output::new(out.clone(), err.clone());
    let changes = async {
        let until = async |lines: usize| {
            while out.text().lines().count() < lines {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        until(2).await;
        served.node.happen("default", "web.1", event("BackOff", "Warning", 4, [9, 0]));
        until(3).await;
        served.shutdown.cancel();
    };
    let (code, ()) = tokio::join!(run(words, &mut output), changes);
    assert_eq!((code, err.text().as_str()), (0, ""));
    assert_eq!(out.text(), "event/web.1\nevent/web.2\nevent/web.1\n");
}

#[tokio::test]
async fn a_description_ends_with_what_has_happened() {
    let served = serve();
    populate(&served);
    served.node.change("default", "quiet", |_| {});
    let shown = podctl(&served, "describe pod quiet").await.out;
    assert!(shown.ends_with("Events:       <none>\n"), "{shown}");
    let shown = podctl(&served, "describe pod web").await.out;
    let table = "\
Events:
  Type     Reason   Age                 From            Message
  ----     ------   ---                 ----            -------
  Normal   Started  30m                 podscope, here  it did
  Warning  BackOff  10m (x3 over 120m)  podscope, here  it did
";
    assert!(shown.ends_with(table), "{shown}");
}

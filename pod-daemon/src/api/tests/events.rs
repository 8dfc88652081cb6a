//! Events: chosen by their fields, watched, and not to be changed.

use serde_json::{Value, json};

use super::{Events, call, get, open, serve};

const EVENTS: &str = "/api/v1/namespaces/default/events";

fn event(pod: &str, reason: &str, kind: &str) -> Value {
    json!({
        "metadata": {},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": pod, "uid": "u1",
            "fieldPath": "spec.containers{app}",
        },
        "reason": reason, "type": kind, "message": "m", "count": 1,
        "source": {"component": "podscope", "host": "here"},
        "reportingComponent": "podscope",
    })
}

#[tokio::test]
async fn events_are_chosen_by_their_fields() {
    let served = serve();
    served.node.happen("default", "web.1", event("web", "Started", "Normal"));
    served.node.happen("default", "web.2", event("web", "BackOff", "Warning"));
    served.node.happen("default", "db.3", event("db", "Started", "Normal"));
    served.node.happen("other", "x.4", event("x", "Started", "Normal"));
    let names = async |path: String| {
        let (code, list) = get(&served, &path).await;
        assert_eq!((code, &list["kind"]), (200, &json!("EventList")), "{list}");
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|event| event["metadata"]["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(names("/api/v1/events".to_owned()).await, "db.3 web.1 web.2 x.4");
    for (selector, expected) in [
        ("", "db.3 web.1 web.2"),
        ("involvedObject.name=web", "web.1 web.2"),
        ("involvedObject.name!=web", "db.3"),
        ("involvedObject.name=web,reason=Started", "web.1"),
        ("involvedObject.uid=u1,type!=Normal", "web.2"),
        ("involvedObject.uid=u2", ""),
        // As `kubectl describe` and `kubectl events --for` ask.
        (
            "involvedObject.name=db,involvedObject.namespace=default,involvedObject.kind=Pod,\
             involvedObject.apiVersion=v1",
            "db.3",
        ),
        (
            "involvedObject.fieldPath=spec.containers{app},source=podscope,metadata.name=db.3",
            "db.3",
        ),
        ("reportingComponent=kubelet", ""),
    ] {
        let selector = selector.replace('=', "%3D").replace('{', "%7B").replace('}', "%7D");
        assert_eq!(names(format!("{EVENTS}?fieldSelector={selector}")).await, expected);
    }
    assert_eq!(names(format!("{EVENTS}?labelSelector=app")).await, "");
    let (code, refused) = get(&served, &format!("{EVENTS}?fieldSelector=status.phase%3Dx")).await;
    assert_eq!(code, 400);
    assert!(refused["message"].as_str().unwrap().contains("`involvedObject.uid`"), "{refused}");

    let (code, one) = get(&served, &format!("{EVENTS}/web.2")).await;
    assert_eq!((code, &one["kind"], &one["reason"]), (200, &json!("Event"), &json!("BackOff")));
    let (code, status) = get(&served, &format!("{EVENTS}/web.9")).await;
    assert_eq!((code, &status["details"]["kind"]), (404, &json!("events")));
}

#[tokio::test]
async fn events_are_watched_and_not_changed_from_outside() {
    let served = serve();
    served.node.happen("default", "web.1", event("web", "Started", "Normal"));
    let query = "watch=1&sendInitialEvents=true&fieldSelector=reason%3DStarted";
    let answer = open(&served, "GET", &format!("{EVENTS}?{query}"), "").await;
    let mut changes = Events(answer.into_body(), String::new());
    served.node.happen("default", "web.2", event("web", "BackOff", "Warning"));
    served.node.happen("other", "x.3", event("x", "Started", "Normal"));
    served.node.happen("default", "web.1", event("web", "Started", "Normal"));
    changes.expect("ADDED", "web.1").await;
    let (kind, bookmark) = changes.next().await.unwrap();
    assert_eq!((kind.as_str(), &bookmark["kind"]), ("BOOKMARK", &json!("Event")));
    changes.expect("MODIFIED", "web.1").await;

    for (method, path) in [("POST", EVENTS), ("DELETE", EVENTS)] {
        assert_eq!(call(&served, method, path, json!({})).await.0, 405, "{method}");
    }
    let one = format!("{EVENTS}/web.1");
    for method in ["PUT", "PATCH", "DELETE"] {
        let (code, status) = call(&served, method, &one, json!({})).await;
        assert_eq!((code, &status["reason"]), (405, &json!("MethodNotAllowed")), "{method}");
    }
    let (_, resources) = get(&served, "/api/v1").await;
    let resources = resources["resources"].as_array().unwrap();
    let own = resources.iter().find(|resource| resource["name"] == "events").unwrap();
    assert_eq!(own["shortNames"], json!(["ev"]));
    assert_eq!(own["verbs"], json!(["get", "list", "watch"]));
}

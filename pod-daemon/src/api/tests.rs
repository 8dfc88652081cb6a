//! The API over a real socket, with a node that is none behind it.

mod events;
mod exec;

use std::{fs, io::Write as _, path::Path, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::UnixStream, time::timeout};

use super::fake::{Served, serve};

const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn open(served: &Served, method: &str, path: &str, body: &str) -> Response<Incoming> {
    let stream = TokioIo::new(UnixStream::connect(&served.socket).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let kind = if body.starts_with('{') { "application/json" } else { "application/yaml" };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "x")
        .header("content-type", kind)
        .body(Full::<Bytes>::from(body.to_owned()))
        .unwrap();
    sender.send_request(request).await.unwrap()
}

async fn text(served: &Served, path: &str) -> String {
    let answer = open(served, "GET", path, "").await;
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

async fn call(served: &Served, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = open(served, method, path, &body).await;
    let code = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap())
}

async fn get(served: &Served, path: &str) -> (u16, Value) {
    call(served, "GET", path, Value::Null).await
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "a", "image": "dir:/"}]},
    })
}

fn map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}})
}

/// Reads the events of a watch.
struct Events(Incoming, String);

impl Events {
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((line, rest)) = self.1.split_once('\n') {
                let event: Value = serde_json::from_str(line).unwrap();
                self.1 = rest.to_owned();
                return Some((event["type"].as_str().unwrap().to_owned(), event["object"].clone()));
            }
            let frame = timeout(Duration::from_secs(10), self.0.frame()).await.unwrap()?;
            self.1.push_str(str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
        }
    }

    async fn expect(&mut self, kind: &str, name: &str) -> Value {
        let (found, object) = self.next().await.unwrap();
        assert_eq!((found.as_str(), object["metadata"]["name"].as_str()), (kind, Some(name)));
        object
    }
}

async fn watch(served: &Served, query: &str) -> Events {
    let answer = open(served, "GET", &format!("{PODS}?watch=true{query}"), "").await;
    assert_eq!(answer.status(), 200);
    Events(answer.into_body(), String::new())
}

#[tokio::test]
async fn pods_are_created_read_listed_and_deleted() {
    let served = serve();
    let (code, created) = call(&served, "POST", PODS, pod("web")).await;
    assert_eq!((code, &created["kind"]), (201, &json!("Pod")));
    assert_eq!(created["metadata"]["namespace"], "default");
    assert_eq!(created["spec"]["restartPolicy"], "Always");
    assert_eq!(created["status"]["phase"], "Pending");

    let (code, again) = call(&served, "POST", PODS, pod("web")).await;
    assert_eq!((code, &again["reason"]), (409, &json!("AlreadyExists")));
    assert_eq!(again["kind"], "Status");

    let mut other = pod("db");
    other["metadata"]["namespace"] = "other".into();
    let (code, refused) = call(&served, "POST", PODS, other.clone()).await;
    assert_eq!((code, &refused["reason"]), (400, &json!("BadRequest")));
    assert_eq!(call(&served, "POST", "/api/v1/namespaces/other/pods", other).await.0, 201);

    assert_eq!(get(&served, &format!("{PODS}/web")).await.1["metadata"]["name"], "web");
    let (code, missing) = get(&served, &format!("{PODS}/nope")).await;
    assert_eq!((code, &missing["reason"]), (404, &json!("NotFound")));
    assert_eq!(missing["message"], "pods \"nope\" not found");
    assert_eq!(missing["details"]["name"], "nope");

    let names = async |path: &str| {
        let (_, list) = get(&served, path).await;
        assert_eq!(list["kind"], "PodList");
        assert_eq!(list["metadata"]["resourceVersion"], "4");
        let items = list["items"].as_array().unwrap().clone();
        let names = items.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>().join(",")
    };
    assert_eq!(names(PODS).await, "web");
    assert_eq!(names("/api/v1/pods").await, "web,db");
    assert_eq!(names("/api/v1/pods?labelSelector=app%20in%20(db)").await, "db");
    assert_eq!(names("/api/v1/pods?fieldSelector=metadata.name%3Dweb").await, "web");
    assert_eq!(names("/api/v1/pods?fieldSelector=status.phase!=Pending").await, "");
    assert_eq!(names("/api/v1/pods?fieldSelector=spec.hostNetwork=false").await, "web,db");
    assert_eq!(names("/api/v1/pods?fieldSelector=spec.restartPolicy=Never").await, "");
    assert_eq!(get(&served, "/api/v1/pods?fieldSelector=spec.x=1").await.0, 400);

    let wrong = json!({"preconditions": {"uid": "x"}});
    assert_eq!(call(&served, "DELETE", &format!("{PODS}/web"), wrong).await.0, 409);
    let wrong = json!({"preconditions": {"resourceVersion": "1"}});
    assert_eq!(call(&served, "DELETE", &format!("{PODS}/web"), wrong).await.0, 409);
    // As kubectl asks for a dry run.
    let dry = json!({"kind": "DeleteOptions", "dryRun": ["All"]});
    assert_eq!(call(&served, "DELETE", &format!("{PODS}/web"), dry).await.0, 400);
    let (_, there) = get(&served, &format!("{PODS}/web")).await;
    assert_eq!(there["metadata"]["deletionTimestamp"], Value::Null);
    let options = json!({"gracePeriodSeconds": 3});
    let (code, deleted) = call(&served, "DELETE", &format!("{PODS}/web"), options).await;
    assert_eq!((code, &deleted["metadata"]["deletionGracePeriodSeconds"]), (200, &json!(3)));
    let path = "/api/v1/namespaces/other/pods/db?gracePeriodSeconds=5";
    let (_, deleted) = call(&served, "DELETE", path, Value::Null).await;
    assert_eq!(deleted["metadata"]["deletionGracePeriodSeconds"], 5);
    assert_eq!(call(&served, "DELETE", &format!("{PODS}/nope"), Value::Null).await.0, 404);
}

#[tokio::test]
async fn an_invalid_pod_is_refused_with_every_cause() {
    let served = serve();
    let mut invalid = pod("web");
    invalid["spec"]["containers"][0]["stdin"] = true.into();
    invalid["spec"]["nope"] = 1.into();
    let (code, status) = call(&served, "POST", PODS, invalid.clone()).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")));
    let mut fields: Vec<_> = status["details"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| cause["field"].as_str().unwrap())
        .collect();
    fields.sort_unstable();
    assert_eq!(fields, ["spec.containers[0].stdin", "spec.nope"]);

    let path = format!("{PODS}?fieldValidation=Warn");
    let answer = open(&served, "POST", &path, &invalid.to_string()).await;
    assert_eq!(answer.status(), 201);
    let warnings: Vec<_> =
        answer.headers().get_all("warning").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(warnings.len(), 2);
    assert!(warnings.contains(&"299 - \"spec.nope: is unknown, ignored\""), "{warnings:?}");

    assert_eq!(open(&served, "POST", PODS, "{nonsense").await.status(), 400);
    assert_eq!(open(&served, "POST", PODS, "").await.status(), 400);
    assert_eq!(open(&served, "POST", &format!("{PODS}?dryRun=All"), "").await.status(), 400);
    let large = format!("{{\"x\": \"{}\"}}", "x".repeat(4 << 20));
    assert_eq!(open(&served, "POST", PODS, &large).await.status(), 413);
    let yaml =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: z}\nspec: {containers: [{name: a, image: b}]}";
    assert_eq!(open(&served, "POST", PODS, yaml).await.status(), 201);
}

#[tokio::test]
async fn a_watch_misses_nothing() {
    let served = serve();
    served.node.change("default", "a", |_| {});
    served.node.change("other", "x", |_| {});

    let mut all = watch(&served, "&sendInitialEvents=true").await;
    let version = get(&served, PODS).await.1["metadata"]["resourceVersion"].clone();
    let from = format!("&resourceVersion={}", version.as_str().unwrap());
    let mut rest = watch(&served, &from).await;
    let mut one = watch(&served, "&fieldSelector=metadata.name=b").await;
    served.node.change("default", "b", |_| {});
    served.node.change("other", "x", |_| {});
    served.node.change("default", "a", |_| {});
    served.node.remove("default", "b");

    all.expect("ADDED", "a").await;
    let (kind, bookmark) = all.next().await.unwrap();
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    for events in [&mut all, &mut rest] {
        assert_eq!(events.expect("ADDED", "b").await["kind"], "Pod");
        events.expect("MODIFIED", "a").await;
        events.expect("DELETED", "b").await;
    }
    one.expect("ADDED", "b").await;
    one.expect("DELETED", "b").await;

    // The list is not the newest any more.
    let answer = open(&served, "GET", &format!("{PODS}?watch=1{from}"), "").await;
    assert_eq!(answer.status(), 410);

    let mut short = watch(&served, "&timeoutSeconds=0").await;
    short.expect("ADDED", "a").await;
    assert_eq!(short.next().await, None);

    // All streams end with the server, which does not wait for its clients.
    served.shutdown.cancel();
    assert_eq!(all.next().await, None);
    drop((all, rest, one));
    timeout(Duration::from_secs(10), served.server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn what_leaves_the_selection_is_gone_to_who_watches_it() {
    let served = serve();
    let phase = |phase: &'static str| {
        move |pod: &mut k8s_openapi::api::core::v1::Pod| {
            pod.status.get_or_insert_default().phase = Some(phase.to_owned());
        }
    };
    served.node.change("default", "a", phase("Running"));
    served.node.change("default", "b", phase("Pending"));
    let mut running = watch(&served, "&fieldSelector=status.phase=Running").await;
    served.node.change("default", "b", phase("Running"));
    served.node.change("default", "a", phase("Succeeded"));
    // Nobody is told twice.
    served.node.remove("default", "a");
    served.node.change("default", "b", phase("Running"));
    served.node.remove("default", "b");

    running.expect("ADDED", "a").await;
    running.expect("ADDED", "b").await;
    let gone = running.expect("DELETED", "a").await;
    assert_eq!(gone["status"]["phase"], "Succeeded");
    running.expect("MODIFIED", "b").await;
    running.expect("DELETED", "b").await;
}

#[tokio::test]
async fn a_watcher_that_falls_behind_is_told() {
    let served = serve();
    let mut events = watch(&served, "").await;
    // More than the channel and the socket can hold; the test's thread is the server's too.
    for _ in 0..200 {
        served.node.change("default", "a", |_| {});
    }
    let (kind, status) = events.next().await.unwrap();
    assert_eq!((kind.as_str(), &status["code"]), ("ERROR", &json!(410)));
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn config_maps_are_created_replaced_and_deleted() {
    let served = serve();
    let path = format!("{MAPS}/a");
    assert_eq!(call(&served, "PUT", &path, map("a", "1")).await.0, 404);
    assert_eq!(call(&served, "POST", MAPS, map("a", "1")).await.0, 201);
    assert_eq!(call(&served, "POST", MAPS, map("a", "1")).await.0, 409);
    let (code, replaced) = call(&served, "PUT", &path, map("a", "2")).await;
    assert_eq!((code, &replaced["data"]["k"]), (200, &json!("2")));
    let mut stale = map("a", "3");
    stale["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(call(&served, "PUT", &path, stale).await.0, 409);
    assert_eq!(call(&served, "PUT", &path, map("b", "3")).await.0, 400);
    let mut fixed = map("a", "4");
    fixed["immutable"] = true.into();
    assert_eq!(call(&served, "PUT", &path, fixed.clone()).await.0, 200);
    assert_eq!(call(&served, "PUT", &path, fixed).await.0, 200);
    assert_eq!(call(&served, "PUT", &path, map("a", "5")).await.0, 422);
    let (_, list) = get(&served, "/api/v1/configmaps").await;
    assert_eq!(list["items"][0]["kind"], "ConfigMap");
    for (options, expected) in [
        (json!({"dryRun": ["All"]}), 400),
        (json!({"preconditions": {"uid": "x"}}), 409),
        (json!({"preconditions": {"resourceVersion": "1"}}), 409),
    ] {
        assert_eq!(call(&served, "DELETE", &path, options).await.0, expected);
    }
    let (_, there) = get(&served, &path).await;
    let meant = json!({"preconditions": {
        "uid": there["metadata"]["uid"], "resourceVersion": there["metadata"]["resourceVersion"],
    }});
    let (code, status) = call(&served, "DELETE", &path, meant).await;
    assert_eq!((code, &status["status"]), (200, &json!("Success")));
    assert_eq!(get(&served, &path).await.0, 404);
}

#[tokio::test]
async fn secrets_are_created_replaced_and_deleted() {
    let served = serve();
    let list = "/api/v1/namespaces/default/secrets";
    let path = format!("{list}/a");
    let secret = |text: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"},
            "stringData": {"k": text},
        })
    };
    let (code, created) = call(&served, "POST", list, secret("one")).await;
    assert_eq!((code, &created["data"]["k"]), (201, &json!("b25l")));
    assert_eq!((&created["type"], &created["stringData"]), (&json!("Opaque"), &Value::Null));
    let (code, replaced) = call(&served, "PUT", &path, secret("two")).await;
    assert_eq!((code, &replaced["data"]["k"]), (200, &json!("dHdv")));
    let mut other = secret("two");
    other["type"] = "example.org/x".into();
    let (code, status) = call(&served, "PUT", &path, other).await;
    assert_eq!((code, &status["details"]["causes"][0]["field"]), (422, &json!("type")));
    let mut fixed = secret("two");
    fixed["immutable"] = true.into();
    assert_eq!(call(&served, "PUT", &path, fixed).await.0, 200);
    assert_eq!(call(&served, "PUT", &path, secret("three")).await.0, 422);
    let (_, all) = get(&served, "/api/v1/secrets").await;
    assert_eq!((&all["kind"], &all["items"][0]["kind"]), (&json!("SecretList"), &json!("Secret")));
    assert_eq!(call(&served, "DELETE", &path, Value::Null).await.0, 200);
    assert_eq!(get(&served, &path).await.0, 404);
}

#[tokio::test]
async fn the_server_says_what_it_has() {
    let served = serve();
    assert_eq!(text(&served, "/healthz").await, "ok");
    assert_eq!(text(&served, "/readyz").await, "ok");
    assert_eq!(get(&served, "/version").await.1["major"], "1");
    assert_eq!(get(&served, "/api").await.1["versions"][0], "v1");
    assert_eq!(get(&served, "/api/v1").await.1["resources"][0]["name"], "pods");
    assert_eq!(get(&served, "/apis").await.1["groups"][0]["name"], "metrics.k8s.io");
    assert_eq!(get(&served, "/apis/metrics.k8s.io").await.1["kind"], "APIGroup");
    let (code, list) = get(&served, "/apis/metrics.k8s.io/v1beta1").await;
    assert_eq!((code, &list["resources"][0]["kind"]), (200, &json!("PodMetrics")));
    let (code, status) = get(&served, "/api/v1/nope").await;
    assert_eq!((code, &status["reason"]), (404, &json!("NotFound")));
    let (code, status) = call(&served, "PATCH", PODS, Value::Null).await;
    assert_eq!((code, &status["reason"]), (405, &json!("MethodNotAllowed")));
}

#[tokio::test]
async fn usage_has_the_shape_of_the_metrics_api() {
    let served = serve();
    served.node.change("default", "web", |_| {});
    let base = "/apis/metrics.k8s.io/v1beta1";
    let (_, list) = get(&served, &format!("{base}/pods")).await;
    assert_eq!(list["kind"], "PodMetricsList");
    let container = &list["items"][0]["containers"][0];
    assert_eq!(container["usage"], json!({"cpu": "123400000n", "memory": "5120Ki"}));
    assert_eq!(container["podscope"]["receivedBytes"], 2048);
    let (code, one) = get(&served, &format!("{base}/namespaces/default/pods/web")).await;
    assert_eq!((code, &one["metadata"]["name"]), (200, &json!("web")));
    assert_eq!(get(&served, &format!("{base}/namespaces/default/pods/db")).await.0, 404);
}

fn append(path: &Path, text: &str) {
    let mut file = fs::File::options().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[tokio::test]
async fn logs_are_what_the_container_wrote() {
    let served = serve();
    served.node.change("default", "web", |_| {});
    let path = format!("{PODS}/web/log");
    assert_eq!(text(&served, &path).await, "");

    let files = [served.dir.path().join("0.log.1"), served.dir.path().join("0.log")];
    append(&files[0], "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stdout P tw\n");
    append(&files[1], "2026-01-01T00:00:02Z stdout F o\n2026-01-01T00:00:03Z stderr F three\n");
    served.node.set_logs(files.into(), false);

    assert_eq!(text(&served, &path).await, "one\ntwo\nthree\n");
    assert_eq!(text(&served, &format!("{path}?follow=true")).await, "one\ntwo\nthree\n");
    assert_eq!(text(&served, &format!("{path}?tailLines=2")).await, "two\nthree\n");
    assert_eq!(text(&served, &format!("{path}?tailLines=0")).await, "");
    assert_eq!(text(&served, &format!("{path}?limitBytes=5")).await, "one\nt");
    assert_eq!(text(&served, &format!("{path}?sinceTime=2026-01-01T00:00:03Z")).await, "three\n");
    assert_eq!(text(&served, &format!("{path}?sinceSeconds=5")).await, "");
    assert_eq!(
        text(&served, &format!("{path}?tailLines=1&timestamps=true")).await,
        "2026-01-01T00:00:03Z three\n"
    );
    assert_eq!(get(&served, &format!("{path}?tailLines=x")).await.0, 400);
    assert_eq!(get(&served, &format!("{PODS}/db/log")).await.0, 404);
}

#[tokio::test]
async fn a_log_is_followed_through_rotation_to_its_end() {
    let served = serve();
    served.node.change("default", "web", |_| {});
    let at = |name: &str| served.dir.path().join(name);
    append(&at("0.log"), "T stdout F 1\n");
    served.node.set_logs(vec![at("0.log")], true);
    let mut answer =
        open(&served, "GET", &format!("{PODS}/web/log?follow=true"), "").await.into_body();
    let mut read = async |expected: &str| {
        let mut found = String::new();
        while found.len() < expected.len() {
            let frame = timeout(Duration::from_secs(10), answer.frame()).await.unwrap();
            let data = frame.unwrap().unwrap().into_data().unwrap();
            found.push_str(str::from_utf8(&data).unwrap());
        }
        assert_eq!(found, expected);
    };
    read("1\n").await;
    append(&at("0.log"), "T stdout F 2\n");
    read("2\n").await;
    // Rotated, and the last line of the old file is found too.
    append(&at("0.log"), "T stdout F 3\n");
    fs::rename(at("0.log"), at("0.log.a")).unwrap();
    append(&at("0.log"), "T stdout F 4\n");
    served.node.set_logs(vec![at("0.log.a"), at("0.log")], true);
    read("3\n4\n").await;
    // Rotated twice at once, and the oldest file is gone.
    fs::rename(at("0.log"), at("0.log.b")).unwrap();
    append(&at("0.log.c"), "T stdout F 5\n");
    append(&at("0.log"), "T stdout F 6\n");
    served.node.set_logs(vec![at("0.log.b"), at("0.log.c"), at("0.log")], true);
    read("5\n6\n").await;
    // The container is started again: that is another log.
    append(&at("0.log"), "T stdout F 7\n");
    append(&at("1.log"), "T stdout F 8\n");
    served.node.set_logs(vec![at("1.log")], true);
    read("7\n").await;
    assert!(timeout(Duration::from_secs(10), answer.frame()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_log_that_cannot_exist_yet_is_refused() {
    let served = serve();
    served.node.change("default", "web", |pod| {
        pod.status = serde_json::from_value(json!({"containerStatuses": [{
            "name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ContainerCreating"}},
        }]}))
        .unwrap();
    });
    let (code, status) = get(&served, &format!("{PODS}/web/log")).await;
    assert_eq!(code, 400);
    assert_eq!(
        status["message"],
        "container \"a\" in pod \"web\" is waiting to start: ContainerCreating"
    );
}

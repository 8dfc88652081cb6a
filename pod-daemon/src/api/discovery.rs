//! What the server says about itself.

use axum::Json;
use serde_json::{Value, json};

/// The Kubernetes release whose types this daemon speaks.
const KUBERNETES: (&str, &str) = ("1", "36");

pub(super) async fn version() -> Json<Value> {
    let (major, minor) = KUBERNETES;
    let own = env!("CARGO_PKG_VERSION");
    Json(json!({
        "major": major,
        "minor": minor,
        "gitVersion": format!("v{major}.{minor}.0+podscope-{own}"),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", std::env::consts::ARCH),
    }))
}

pub(super) async fn core_versions() -> Json<Value> {
    Json(json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [],
    }))
}

pub(super) async fn core_resources() -> Json<Value> {
    let resource = |name: &str, kind: &str, verbs: &[&str], short: &[&str]| {
        json!({
            "name": name,
            "singularName": kind.to_lowercase(),
            "namespaced": true,
            "kind": kind,
            "verbs": verbs,
            "shortNames": short,
        })
    };
    let pods = ["create", "delete", "get", "list", "watch"];
    let maps = ["create", "delete", "get", "list", "update"];
    Json(json!({
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            resource("pods", "Pod", &pods, &["po"]),
            resource("pods/exec", "PodExecOptions", &["create", "get"], &[]),
            resource("pods/log", "Pod", &["get"], &[]),
            resource("configmaps", "ConfigMap", &maps, &["cm"]),
            resource("events", "Event", &["get", "list", "watch"], &["ev"]),
            json!({
                "name": "nodes",
                "singularName": "node",
                "namespaced": false,
                "kind": "Node",
                "verbs": ["get", "list"],
                "shortNames": ["no"],
            }),
            resource("secrets", "Secret", &maps, &[]),
        ],
    }))
}

pub(super) async fn groups() -> Json<Value> {
    Json(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [metrics()]}))
}

pub(super) async fn metrics_group() -> Json<Value> {
    let mut group = metrics();
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    Json(group)
}

pub(super) async fn metrics_resources() -> Json<Value> {
    Json(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "metrics.k8s.io/v1beta1",
        "resources": [{
            "name": "pods",
            "singularName": "",
            "namespaced": true,
            "kind": "PodMetrics",
            "verbs": ["get", "list"],
        }],
    }))
}

fn metrics() -> Value {
    let version = json!({"groupVersion": "metrics.k8s.io/v1beta1", "version": "v1beta1"});
    json!({"name": "metrics.k8s.io", "versions": [version], "preferredVersion": version})
}

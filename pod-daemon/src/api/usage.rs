//! What pods use, in the shape of `metrics.k8s.io`.
//!
//! What Podscope's probes count and that API has no place for is in each container's `podscope`
//! field; other clients ignore it.

use axum::{Json, extract::State};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{
    Api, Failure, Operations,
    params::{Names, Params},
    pods::List,
    selector::Selector,
};
use crate::node::{self, ContainerUsage, PodUsage};

const VERSION: &str = "metrics.k8s.io/v1beta1";

/// The time over which the node averages CPU use.
const WINDOW: &str = "500ms";

pub(super) async fn list_all<N: Operations>(
    State(api): State<Api<N>>,
    params: Params,
) -> Result<Json<List<Value>>, Failure> {
    list_in(&api, None, &params).await
}

pub(super) async fn list<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
) -> Result<Json<List<Value>>, Failure> {
    list_in(&api, Some(&names.namespace), &params).await
}

pub(super) async fn read<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
) -> Result<Json<Value>, Failure> {
    let usage = api.node.usage(Some(&names.namespace)).await;
    let pod = usage.iter().find(|pod| pod.name == names.name);
    let pod = pod.ok_or(node::Error::NotFound { kind: "pods", name: names.name })?;
    Ok(Json(pod_metrics(pod, Timestamp::now())))
}

async fn list_in<N: Operations>(
    api: &Api<N>,
    namespace: Option<&str>,
    params: &Params,
) -> Result<Json<List<Value>>, Failure> {
    let selector = Selector::of::<Pod>(params)?;
    let usage = api.node.usage(namespace).await;
    let now = Timestamp::now();
    let selected = usage.iter().filter(|usage| {
        api.node.pod(&usage.namespace, &usage.name).is_ok_and(|pod| selector.accepts(&*pod))
    });
    let items = selected.map(|pod| pod_metrics(pod, now)).collect();
    Ok(Json(List::new("PodMetricsList", VERSION, items)))
}

fn pod_metrics(pod: &PodUsage, now: Timestamp) -> Value {
    json!({
        "kind": "PodMetrics",
        "apiVersion": VERSION,
        "metadata": {"name": pod.name, "namespace": pod.namespace, "creationTimestamp": now},
        "timestamp": now,
        "window": WINDOW,
        "containers": pod.containers.iter().map(container_metrics).collect::<Vec<_>>(),
    })
}

fn container_metrics(container: &ContainerUsage) -> Value {
    // Nanocores, as metrics-server has them: a `u64` of them is 18 billion cores.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "floats saturate, and a share of a CPU is neither negative nor that large"
    )]
    let nanocores = (container.cpu_cores * 1e9).round() as u64;
    let mut usage = json!({"cpu": format!("{nanocores}n")});
    if let Some(bytes) = container.memory_bytes {
        usage["memory"] = format!("{}Ki", bytes.div_ceil(1024)).into();
    }
    json!({
        "name": container.name,
        "usage": usage,
        "podscope": {
            "execs": container.execs,
            "receivedBytes": container.received_bytes,
            "transmittedBytes": container.transmitted_bytes,
            "readBytes": container.read_bytes,
            "writtenBytes": container.written_bytes,
        },
    })
}

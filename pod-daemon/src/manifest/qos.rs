//! Quality of service: a pod's class, and how early the kernel is to kill its processes when the
//! node has no memory left. Both as the kubelet has them.

use k8s_openapi::api::core::v1::PodSpec;

use super::{
    amounts::Amounts,
    demand::{container_limits, container_requests, limits, requests},
};

/// `oom_score_adj` of an infra program: after everything else of pods.
pub const INFRA_OOM_SCORE_ADJ: i32 = -998;

const GUARANTEED_OOM_SCORE_ADJ: i64 = -997;
const BEST_EFFORT_OOM_SCORE_ADJ: i64 = 1000;

/// From this priority on a pod is what keeps the node going.
const NODE_CRITICAL: i32 = 2_000_001_000;

/// The quality-of-service class of a pod.
#[must_use]
pub fn qos_class(spec: &PodSpec) -> &'static str {
    // Requests and limits, of the pod if it has any of its own, else of each container.
    let all: Vec<(Amounts, Amounts)> = match &spec.resources {
        Some(own) if own.limits.is_some() || own.requests.is_some() => {
            vec![(requests(spec), limits(spec))]
        }
        _ => {
            let containers = spec.containers.iter();
            containers.map(|one| (container_requests(one), container_limits(one))).collect()
        }
    };
    let both = |amounts: &Amounts| {
        [amounts.cpu_millicores, amounts.memory_bytes].map(|amount| amount.filter(|&n| n > 0))
    };
    let any = all.iter().any(|(requests, limits)| {
        both(requests).into_iter().chain(both(limits)).any(|amount| amount.is_some())
    });
    let guaranteed = all.iter().all(|(requests, limits)| {
        let limits = both(limits);
        limits.iter().all(Option::is_some) && limits == both(requests)
    });
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// `oom_score_adj` of a pod's container on a node with that much memory.
#[must_use]
pub fn oom_score_adj(spec: &PodSpec, container: usize, memory_bytes: u64) -> i32 {
    let score = match qos_class(spec) {
        _ if spec.priority.unwrap_or(0) >= NODE_CRITICAL => GUARANTEED_OOM_SCORE_ADJ,
        "Guaranteed" => GUARANTEED_OOM_SCORE_ADJ,
        "BestEffort" => BEST_EFFORT_OOM_SCORE_ADJ,
        _ => burstable(spec, container, memory_bytes),
    };
    i32::try_from(score).unwrap_or(0)
}

/// The more of the node's memory a container asks for, the later it is killed; never before a best
/// effort one, and never after a guaranteed one.
fn burstable(spec: &PodSpec, container: usize, memory_bytes: u64) -> i64 {
    let memory = |index: usize| {
        spec.containers.get(index).and_then(|one| container_requests(one).memory_bytes).unwrap_or(0)
    };
    let count = spec.containers.len().max(1) as u64;
    let sum: u64 = (0..spec.containers.len()).map(memory).sum();
    // What the pod asks for beyond its containers is shared among them.
    let shared = requests(spec).memory_bytes.unwrap_or(0).saturating_sub(sum) / count;
    let asked = u128::from(memory(container) + shared);
    let share = 1000 * asked / u128::from(memory_bytes.max(1));
    let score = BEST_EFFORT_OOM_SCORE_ADJ - i64::try_from(share).unwrap_or(i64::MAX / 2);
    score.clamp(BEST_EFFORT_OOM_SCORE_ADJ + GUARANTEED_OOM_SCORE_ADJ, BEST_EFFORT_OOM_SCORE_ADJ - 1)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(containers: &[Value], own: Value, priority: i32) -> PodSpec {
        let containers: Vec<Value> = containers
            .iter()
            .map(|resources| json!({"name": "c", "resources": resources}))
            .collect();
        serde_json::from_value(json!({
            "containers": containers, "resources": own, "priority": priority,
        }))
        .unwrap()
    }

    #[test]
    fn classes_are_those_of_kubernetes() {
        let both = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let spelt = json!({
            "limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"},
        });
        let less = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
        let half = json!({"limits": {"memory": "1Gi"}});
        let other = json!({"limits": {"podscope.dev/pids": "7", "ephemeral-storage": "1Gi"}});
        let zero = json!({"requests": {"cpu": "0"}});
        let (none, null) = (json!({}), Value::Null);
        for (containers, own, class) in [
            (vec![&both], &null, "Guaranteed"),
            (vec![&both, &spelt], &null, "Guaranteed"),
            (vec![&both, &none], &null, "Burstable"),
            (vec![&less], &null, "Burstable"),
            (vec![&half], &null, "Burstable"),
            (vec![&none, &none], &null, "BestEffort"),
            (vec![&other], &null, "BestEffort"),
            (vec![&zero], &null, "BestEffort"),
            (vec![&none], &both, "Guaranteed"),
            (vec![&none], &less, "Burstable"),
            (vec![&none], &half, "Burstable"),
        ] {
            let containers: Vec<Value> = containers.into_iter().cloned().collect();
            let spec = pod(&containers, own.clone(), 0);
            assert_eq!(qos_class(&spec), class, "{containers:?} {own}");
        }
    }

    #[test]
    fn scores_are_those_of_the_kubelet() {
        const NODE: u64 = 10 << 30;
        let asks = |memory: &str| json!({"requests": {"memory": memory}});
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let none = json!({});
        let own = json!({"requests": {"memory": "4Gi"}});
        for (containers, own, priority, score) in [
            (vec![full], Value::Null, 0, -997),
            (vec![none.clone()], Value::Null, 0, 1000),
            (vec![none.clone()], Value::Null, 2_000_001_000, -997),
            (vec![asks("1Gi")], Value::Null, 0, 900),
            (vec![asks("1")], Value::Null, 0, 999),
            (vec![asks("20Gi")], Value::Null, 0, 3),
            (vec![json!({"requests": {"cpu": "1"}})], Value::Null, 0, 999),
            // One GiB of its own, and half of the three that are nobody's.
            (vec![asks("1Gi"), none], own, 0, 750),
        ] {
            let spec = pod(&containers, own, priority);
            assert_eq!(oom_score_adj(&spec, 0, NODE), score, "{containers:?}");
        }
    }
}
